"""Small files of preferences for tests, and policies to read them."""

import json
from pathlib import Path

from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.preferences.dataset import Comparisons

EXAMPLES = Path(__file__).parent / "examples"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content | trim }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def fresh(context: int = 64, template: str | None = None, value: bool = False) -> LanguagePolicy:
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=context))
    tokenizer = character_tokenizer(context=context)
    tokenizer.split_special_tokens = template is None
    tokenizer.chat_template = template
    return LanguagePolicy(model, tokenizer, Language(), value=value)


def task(tmp_path, rows, **settings) -> Comparisons:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Comparisons(path=str(file), **settings)


def pair(prompt="q:", chosen="yes", rejected="no"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def talk(prompt="q", chosen="yes", rejected="no"):
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


PAIRS = [pair(f"{i}:") for i in range(20)]


def all_of(found: Comparisons):
    return [*found.data.train, *found.data.held]
