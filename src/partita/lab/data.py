"""`partita data`: what a file of preferences holds, and what is wrong with it, before anything is trained on it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from partita.core.errors import UserError
from partita.core.words import switch, take, whole
from partita.lab.flags import parse
from partita.tasks.preferences.dataset import Comparisons
from partita.tasks.preferences.prepared import Prepared, length, prepare

NAMES = {"pair": "pairs", "label": "labelled responses", "ranking": "rankings"}


@dataclass(frozen=True)
class Reader:
    """What preparing data asks of a policy: its tokenizer and its context, without its weights."""

    tokenizer: Any
    tokens: Any
    context: int | None
    domain: str = "language"


def reader(model: str) -> Reader:
    """The tokenizer and the context of a model; raises UserError where it has none."""
    from transformers import AutoConfig

    from partita.policies.loading import adapter_base, load_tokenizer, locate
    from partita.policies.tokens import Tokens

    folder = locate(model)
    tokenizer, _ = load_tokenizer(folder, model, False)
    above = adapter_base(folder)
    try:
        config = AutoConfig.from_pretrained(locate(above) if above else folder).get_text_config()
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model}: its config.json cannot be read: {str(error).splitlines()[0]}") from None
    return Reader(tokenizer, Tokens(tokenizer), getattr(config, "max_position_embeddings", None))


def main(argv: list[str]) -> None:
    """Read the file that the words name, say what is in it, and exit with 1 where rows are left out."""
    words = list(argv)
    model, show, as_json = take(words, "--model"), whole("--show", take(words, "--show"), 1), switch(words, "--json")
    if not words or words[0].startswith("-"):
        raise UserError("data: expected FILE, a .jsonl file or a dataset of the hub; see partita data --help")
    path = words.pop(0)
    for word in words:
        if word.startswith("--") and not word.startswith("--task.") and word != "--strict":
            raise UserError(f"data: no flag {word.partition('=')[0]}; see partita data --help")
    config, _ = parse(["grpo", "--task", "comparisons", "--task.path", path, *words])
    task = config.task
    assert isinstance(task, Comparisons)
    policy = None if model is None else reader(model)
    data = prepare(task, task.rows(), policy)
    about = described(task, data, policy)
    if as_json:
        print(json.dumps({"path": path, "model": model, **about}, indent=1))
    else:
        print("\n".join([*lines(path, about, model, data), *shown(data, show)]))
    if data.left_out:
        sys.exit(1)


def described(task: Comparisons, data: Prepared, policy: Any) -> dict[str, Any]:
    """What the data hold, as plain values."""
    out: dict[str, Any] = {
        "rows": data.rows, "formats": dict(Counter(data.formats)), "train": len(data.train), "held": len(data.held),
        "offers": list(data.offers), "comparisons": sum(len(g.compared) for g in data.given),
        "left_out": data.left_out, "first": data.first, "cut": data.cut,
        "plain": data.plain,
    }  # fmt: skip
    if policy is not None:
        prompts = map(len, policy.tokens([p.prompt for p in (*data.train, *data.held)], True, keep=True))
        answers = (length(policy, a) for g in data.given for a in g.responses)
        out["tokens"] = {
            "prompt": _spread(list(prompts)), "response": _spread(list(answers)), "context": policy.context,
        }  # fmt: skip
    return out


def _spread(lengths: list[int]) -> dict[str, float]:
    return {"least": min(lengths), "median": float(np.median(lengths)), "most": max(lengths)}


def lines(path: str, about: dict[str, Any], model: str | None, data: Prepared) -> list[str]:
    """The same for a terminal."""
    formats = ", ".join(f"{count} {NAMES[name]}" for name, count in about["formats"].items())
    out = [f"{path}: {about['rows']} rows; {formats}, {about['comparisons']} comparisons in all"]
    if data.left_out:
        out += [data.bad(), f"first, {data.first}"]
    out.append(f"{about['train']} rows to learn from, {about['held']} held out")
    if about["plain"]:
        why = "the model has no chat template" if model else "--model M writes them by its chat template"
        out.append(f"messages are written here as lines `role: text`; {why}")
    if "tokens" in about:
        said = [
            f"{k} {v['least']} to {v['most']}, median {v['median']:g}"
            for k, v in about["tokens"].items()
            if k != "context"
        ]
        out.append(f"tokens of {model} (context {about['tokens']['context'] or 'unknown'}): {'; '.join(said)}")
    if about["cut"]:
        out.append(f"{about['cut']} rows are cut to fit")
    return out


def shown(data: Prepared, count: int) -> list[str]:
    """The first rows as the policy reads them."""
    out = []
    for problem in (*data.train, *data.held)[:count]:
        given = data.given[problem.data["index"]]
        order = {i: "better" for i, *_ in given.compared[:1]} | {j: "worse" for _, j, *_ in given.compared[:1]}
        out += ["", f"row {problem.data['row']}", f"  prompt    {problem.prompt!r}"]
        for i, text in enumerate(given.responses):
            name = ("wanted" if given.labels[i] else "unwanted") if given.labels else order.get(i, "response")
            out.append(f"  {name:9} {text!r}")
    return out
