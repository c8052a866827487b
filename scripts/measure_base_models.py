"""Measure the shipped base models on every built-in task; write `docs/models.md` and its numbers, `docs/models.json`.

Measured alone, a model or a task replaces its own rows.

Greedy success, and pass@1, pass@8 and pass@64 of samples at temperature 1, per level and on the hard slice.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from partita.core.registry import part_class
from partita.core.task import Problem
from partita.parts.rollout import Sample
from partita.policies.language import Language
from partita.policies.loading import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("arithmetic", "strings", "countdown", "programs", "keydoor", "lookup", "calculator")
PASSES = (1, 8, 64)
ROWS = 1024  # responses that are written at once


@dataclass(frozen=True)
class Cell:
    """What a model does on one level: greedy success, and the mean over problems of pass@k for k in `PASSES`."""

    greedy: float
    passes: tuple[float, ...]


def pass_at(k: int, n: int, right: int) -> float:
    """1 - C(n - right, k) / C(n, k), the unbiased estimate from n samples (Chen et al., 2021, section 2.1)."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def measure(policy: Any, task: Any, problems: int, greedy_problems: int, samples: int, seed: int) -> Cell:
    """The cell of one task at one level; the same problems for every model."""
    asked = task.problems(max(problems, greedy_problems), torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    best = _right(policy, task, asked[:greedy_problems], 1, generator, greedy=True)
    right = _right(policy, task, asked[:problems], samples, generator)
    passes = tuple(sum(pass_at(k, samples, c) for c in right) / len(right) for k in PASSES if k <= samples)
    return Cell(sum(best) / len(best), passes)


def _right(
    policy: Any, task: Any, problems: list[Problem], samples: int, generator: torch.Generator, greedy: bool = False
) -> list[int]:
    """Per problem, how many of `samples` responses are right."""
    out: list[int] = []
    size = max(ROWS // samples, 1)
    for i in range(0, len(problems), size):
        some = problems[i : i + size]
        batch = Sample().sample(policy, task, some, samples, generator, greedy=greedy)
        out += (batch.need("outcome") >= 1).view(-1, samples).sum(1).tolist()
    return out


def table(policy: Any, names: list[str], problems: int, greedy: int, samples: int, seed: int) -> dict[str, Any]:
    """Per task: a cell for each level, for the hard slice, and "all", the mean over the levels (level 0)."""
    out: dict[str, Any] = {}
    for name in names:
        task = part_class("task", name)()
        rows: dict[str, Cell] = {}
        for level in (*task.levels, task.hard):
            rows["hard" if level == task.hard else str(level)] = measure(
                policy, task.but(level=level), problems, greedy, samples, seed + level
            )
            print(name, level, rows["hard" if level == task.hard else str(level)], flush=True)
        cells = [rows[str(level)] for level in task.levels]
        passes = tuple(sum(p) / len(cells) for p in zip(*(c.passes for c in cells), strict=True))
        mean = Cell(sum(c.greedy for c in cells) / len(cells), passes)
        out[name] = {level: asdict(cell) for level, cell in {"all": mean, **rows}.items()}
        print(name, "all", mean, flush=True)
    return out


def page(models: dict[str, dict[str, Any]], problems: int, greedy: int, samples: int, seed: int) -> str:
    """The documentation page."""
    lines = [
        "# The base models",
        "",
        "Small character-level models of the Llama type that come with the package, so that demos, tests and claims",
        "run anywhere without a download. `scripts/make_base_models.py` makes them from `scripts/base_models.json`",
        "(shares of tasks, levels and procedures; sizes; seed; steps), and each folder holds the recipe that made it.",
        "",
        "They have seen worked answers to the built-in tasks, most of them with a flaw: a carry forgotten, operations",
        "in the wrong order, an answer one step too soon. A greedy answer is therefore often wrong where samples are",
        "often right, which is what reinforcement learning can select. The hard slices (longer procedures) were not",
        "seen; there even many samples are rarely right, and demonstrations can teach what reward alone cannot.",
        "",
        "## Evaluation",
        "",
        "Problems are drawn anew, but the smallest levels have so few problems that all were seen in training.",
        "",
        f"Greedy: {greedy} problems a level. pass@k: the chance that one of k samples at temperature 1 is right,",
        f"unbiased, from {samples} samples of each of {problems} problems (seed {seed}). `all` is the mean over the",
        "levels, which is what a task draws by default. Written by `scripts/measure_base_models.py`.",
        "An answer to `lookup` is one of 400 entities: a guess is right 0.25% of the time, one of 64 guesses 15%.",
    ]
    for model, tasks in models.items():
        about = json.loads((SHIPPED / model / "recipe.json").read_text())
        lines += ["", f"## {model}", "", f"{about['parameters']:,} parameters, context {about['context']}."]
        lines += ["", "| task | level | greedy | pass@1 | pass@8 | pass@64 |", "|---|---|---|---|---|---|"]
        for name, rows in tasks.items():
            for level, cell in rows.items():
                numbers = " | ".join(f"{x:.2f}" for x in (cell["greedy"], *cell["passes"]))
                lines.append(f"| {name if level == 'all' else ''} | {level} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["tiny-0.3m", "tiny-1.5m"], help="names or folders")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--greedy", type=int, default=200)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "models.md")
    parser.add_argument("--dry", action="store_true", help="print only")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {k: getattr(options, k) for k in ("problems", "greedy", "samples", "seed")}
    fresh = {}
    for model in options.models:
        print(model)
        policy = Language(model=model).build(None, False, torch.Generator().manual_seed(0))
        with torch.inference_mode():
            fresh[model] = table(policy, options.tasks, **settings)
    if not options.dry:
        print("wrote", write(fresh, options.out, settings))


def write(fresh: dict[str, Any], out: Path, settings: dict[str, int]) -> Path:
    """Put what was measured beside what stands in the file of numbers (if measured alike), and write the page."""
    raw = out.with_suffix(".json")
    known = json.loads(raw.read_text()) if raw.is_file() else {}
    models = known["models"] if known.get("settings") == settings else {}
    for model, rows in fresh.items():
        models[model] = {**models.get(model, {}), **rows}
    models = dict(sorted(models.items()))
    out.parent.mkdir(parents=True, exist_ok=True)
    raw.write_text(json.dumps({"settings": settings, "models": models}, indent=1) + "\n")
    out.write_text(page(models, **settings))
    return out


if __name__ == "__main__":
    main()
