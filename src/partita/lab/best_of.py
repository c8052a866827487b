"""`partita evaluate --best-of`: the score of what a judge likes best among n responses, over how far that goes.

The judge is an ensemble of reward models, a single one, a part of what the verifier says, or the verifier's own score.
Means are exact over all sets of n of the responses that were sampled; intervals are over problems.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.words import switch, take, whole
from partita.estimators.best_of import best_of, best_of_kl
from partita.lab.evaluate import interval
from partita.lab.passk import opened, share
from partita.lab.train import use_threads
from partita.loops.run import Generators
from partita.papers.preference.rm_ensembles import How, agreed, spread_of
from partita.parts.rollout import Sample
from partita.policies.ensemble import scorers

PART = "part:"  # what a judge's name begins with where the verifier gives it
AT_ONCE = 1024  # responses sampled and judged at once


@dataclass(frozen=True)
class Asked:
    """What the words ask for: sizes n in order, how to sample, and the judge.

    judge: folders of reward models with commas between them, part:NAME, or empty for the score. how, uncertainty: what
    several models agree on (`rm_ensembles`).
    """

    ns: list[int]
    samples: int
    size: int = 200
    seed: int = 0
    temperature: float = 1.0
    judge: str = ""
    how: How = "wco"
    uncertainty: float = 0.5

    @property
    def models(self) -> list[str]:
        """The folders of reward models."""
        return self.judge.split(",") if self.judge and not self.judge.startswith(PART) else []


def main(argv: list[str]) -> None:
    """Evaluate what the words name, and print it."""
    words = list(argv)
    asked, as_json = read(words), switch(words, "--json")
    name, config, policy = opened(words)
    use_threads(config.settings, config.task)
    task = config.task.met(policy)
    rows, count = measure(policy, task, asked)
    about: dict[str, Any] = {
        "policy": name, "task": task.part_name(), "settings": task.settings(), "problems": asked.size,
        "samples": asked.samples, "temperature": asked.temperature, "judge": asked.judge or "score",
    }  # fmt: skip
    if count:
        about |= {"models": count, "how": asked.how}
        about |= {"uncertainty": asked.uncertainty} if asked.how == "uwo" else {}
    if as_json:
        print(json.dumps({**about, "seed": asked.seed, "values": rows}, indent=1))
        return
    print("\n".join(lines(about, rows)))


def read(words: list[str]) -> Asked:
    """Take out of the words what they ask for; UserError for what cannot be."""
    for flag in ("--metric", "--k"):
        if take(words, flag) is not None:
            raise UserError(f"{flag}: --best-of says by itself what is measured; leave one of them out")
    ns = sorted({whole("--best-of", part, least=1) for part in (take(words, "--best-of") or "").split(",")})
    samples = whole("--samples", take(words, "--samples"), ns[-1], 1)
    if ns[-1] > samples:
        raise UserError(f"--best-of {ns[-1]}: needs as many samples of each problem; give --samples {ns[-1]} or more")
    judge, uncertainty = take(words, "--judge"), take(words, "--uncertainty")
    how: Any = take(words, "--how")
    if how is not None and how not in get_args(How):
        raise UserError(f"--how {how}: expected one of {', '.join(get_args(How))}")
    asked = Asked(
        ns, samples, whole("--size", take(words, "--size"), 200, 1), whole("--seed", take(words, "--seed"), 0),
        _number("--temperature", take(words, "--temperature"), 1.0), judge or "", how or Asked.how,
        _number("--uncertainty", uncertainty, Asked.uncertainty, zero=True),
    )  # fmt: skip
    if (how or uncertainty) and not asked.models:
        raise UserError("--how, --uncertainty: they say what reward models agree on; name these: --judge RUN")
    return asked


def measure(policy: Any, task: Any, asked: Asked) -> tuple[list[dict[str, Any]], int]:
    """A row for each n, and how many reward models judged; UserError for tasks whose responses cannot be scored."""
    name = task.part_name()
    if task.domain != "language" or hasattr(task, "open"):
        raise UserError(f"--best-of: it chooses among single answers, and task {name} is {_kind(task)}")
    if not getattr(task, "judged", True):
        raise UserError(f"--best-of: nobody scores new responses in task {name}; use a task with a verifier, or lab")
    judges = scorers(asked.models, "--judge", policy.device, task.stop)
    streams, score, marks = Generators(asked.seed), [], []
    problems = task.problems(asked.size, streams["evaluation/problems"])
    width = max(1, AT_ONCE // asked.samples)
    for i in range(0, asked.size, width):
        batch = Sample(temperature=asked.temperature).sample(
            policy, task, problems[i : i + width], asked.samples, streams["evaluation/tokens"]
        )
        score.append(batch.need("outcome"))
        marks.append(torch.stack([judge(batch) for judge in judges]) if judges else _said(batch, asked.judge)[None])
    mark = torch.cat(marks, 1).double()
    if judges:
        shift, scale = spread_of(mark)
        mark = (mark - shift) / scale
    value, judged = torch.cat(score).double(), agreed(mark, asked.how, asked.uncertainty)
    return curve(value.view(-1, asked.samples), judged.view(-1, asked.samples), asked.ns), len(judges)


def _kind(task: Any) -> str:
    return "played in turns" if hasattr(task, "open") else task.domain


def _said(batch: Batch, judge: str) -> Tensor:
    """The score of every response, (B,), or the part of what the verifier says that the judge's name asks for."""
    if not judge:
        return batch.need("outcome")
    part, rows = judge.removeprefix(PART), [record["parts"] for record in batch.records or ()]
    if not all(part in row for row in rows):
        known = ", ".join(sorted({name for row in rows for name in row})) or "nothing"
        raise UserError(f"--judge {judge}: the verifier gives no such part (it gives {known}); name one")
    return torch.tensor([float(row[part]) for row in rows], device=batch.mask.device)


def curve(score: Tensor, judged: Tensor, ns: list[int]) -> list[dict[str, Any]]:
    """For each n the mean score of the response that the judge likes best, with its interval, what the judge thinks of
    it, and how far that is from the policy. score, judged: (P, N)."""
    bounded = float(score.min()) >= 0 and float(score.max()) <= 1
    rows = []
    for n in ns:
        values = best_of(score, judged, n)
        if bounded:
            found = share(values.cpu().numpy().clip(0, 1), score.shape[1])
            mean, low, high = found.value, found.low, found.high
        else:
            _, mean, low, high = interval(values.tolist())
        rows.append({
            "metric": "best_of", "n": n, "value": mean, "low": None if math.isinf(low) else low,
            "high": None if math.isinf(high) else high, "judge": float(best_of(judged, judged, n).mean()),
            "kl": best_of_kl(n),
        })  # fmt: skip
    return rows


def lines(about: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What was found, for a terminal."""
    judge = about["judge"]
    if "models" in about:
        judge += f" ({about['models']} models, {about['how']})" if about["models"] > 1 else ""
    out = [
        f"{about['policy']} on {about['task']}: {about['problems']} problems, {about['samples']} samples of each at "
        f"temperature {about['temperature']:g}; the best of n by {judge}",
        f"{'n':>6} {'score':>8} {'95% interval':>19} {'judge':>8} {'KL, nats':>9}",
    ]
    for row in rows:
        ends = "?" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
        out.append(f"{row['n']:>6} {row['value']:>8.3f} {ends:>19} {row['judge']:>8.3f} {row['kl']:>9.3f}")
    return out


def _number(flag: str, text: str | None, default: float, zero: bool = False) -> float:
    """A finite number above 0, or also 0."""
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf or (zero and value == 0)):
        raise UserError(f"{flag}: expected a number {'of 0 or more' if zero else 'above 0'}, got {text!r}")
    return value
