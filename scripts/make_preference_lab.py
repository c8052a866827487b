"""Draw the responses of the preference laboratory: `src/partita/assets/preferences/lab.json`.

What a shipped model writes at temperature 1 to prompts of `strings` that are beyond it: a few responses to many
prompts, from which offline data are made, and many to a few, for best-of-n without a model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from partita.policies.language import Language
from partita.policies.sampling import Sampling
from partita.tasks.preferences.gold import ASSET, MAX_TOKENS, PROMPTS

CHUNK = 64  # prompts sampled at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-0.3m")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--wide", type=int, nargs=2, default=(768, 14), metavar=("PROMPTS", "RESPONSES"))
    parser.add_argument("--deep", type=int, nargs=2, default=(16, 256), metavar=("PROMPTS", "RESPONSES"))
    parser.add_argument("--out", type=Path, default=ASSET)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(given.seed)
    policy = Language(model=given.model).build(None, False, generator)
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=1.0, stop=("\n",))
    seen: set[str] = set()
    drawn: dict[str, dict[str, list[str]]] = {}
    for name, (count, each) in (("wide", given.wide), ("deep", given.deep)):
        prompts: list[str] = []
        while len(prompts) < count:
            fresh = [p.prompt for p in PROMPTS.problems(count, generator) if p.prompt not in seen]
            prompts += list(dict.fromkeys(fresh))[: count - len(prompts)]
            seen.update(prompts)
        drawn[name] = {}
        for at in range(0, count, CHUNK):
            some = prompts[at : at + CHUNK]
            texts = policy.generate(some, each, sampling, generator).texts
            drawn[name] |= {p: list(texts[i * each : (i + 1) * each]) for i, p in enumerate(some)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": given.model, "temperature": 1.0, "max_tokens": MAX_TOKENS, "seed": given.seed}
    given.out.write_text(json.dumps(about | drawn, separators=(",", ":")) + "\n")
    print(f"wrote {given.out}: {given.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
