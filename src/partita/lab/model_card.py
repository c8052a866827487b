"""The README of an exported model: what it is, how it was trained, and how it is used."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from partita import __version__
from partita.lab.config import Config
from partita.policies.loading import shipped

MARK = "tags: [partita"  # of the READMEs that are written here

PAGE = """---
{head}
---

# {title}

{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```

{ends}
{form}
"""


def card(config: Config | None, step: int | None, dtype: str, chat: bool) -> str:
    """The page. config, step: of the run, where it is known. chat: whether the tokenizer has a chat template."""
    head = ["library_name: transformers", "pipeline_tag: text-generation"]
    facts = {"weights": dtype, "written by": f"Partita {__version__}, transformers {version('transformers')}"}
    title, tags = "A language model", ""
    stop: tuple[str, ...] = ()
    if config is not None:
        policy: Any = config.policy
        task: Any = config.task
        recipe, problem, base = short(config.name), short(task.part_name()), public(policy.model)
        title, tags, stop = f"{recipe} on {problem}", f", {json.dumps(recipe)}", task.stop
        known = {"recipe": recipe, "task": problem, "base model": base or "a local model"}
        if step is not None:
            known["step"] = str(step)
        if policy.lora_rank:
            known["adapter"] = f"LoRA of rank {policy.lora_rank}, added into the weights"
        facts = known | facts
        if base and base not in shipped():
            head.append(f"base_model: {base}")
    head.append(f"{MARK}{tags}]")
    ends = " or after ".join(["A response ends with the end of sequence", *(f"`{json.dumps(text)}`" for text in stop)])
    return PAGE.format(
        head="\n".join(head), title=title, ends=f"{ends}.",
        table="\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]),
        form="Conversations are written by its chat template." if chat else "It continues plain text.",
    )  # fmt: skip


def written_here(folder: Path) -> bool:
    """Whether a folder is an exported model."""
    try:
        return MARK in (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:1000]
    except OSError:
        return False


def short(name: str) -> str:
    """The name of a recipe or task; without the folder where it is from a file."""
    return name.rpartition("/")[2]


def public(model: str) -> str | None:
    """The name of a base model where it has one that is known elsewhere; none for a folder of this machine."""
    if model in shipped():
        return model
    local = model.startswith(("/", ".", "~")) or model.count("/") > 1 or Path(model).exists()
    return None if local else model
