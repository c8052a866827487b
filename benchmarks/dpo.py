"""What both sides of the benchmark `dpo` learn from: `python benchmarks/run.py dpo`.

A step is one update on 32 pairs. The end of sequence, which both sides put behind a response, is its last token.
known: the reference has been asked about every response before the steps that count (on both sides, once).
fresh: every step brings pairs that nobody has seen, so that the reference is asked within the step.
"""

from __future__ import annotations

from benchmarks.tiny_model import prompts

PAIRS, WARM = 32, 3
SIZES = {"short": (64, 64), "long": (256, 256)}  # tokens of a prompt, and of each response to it
REFERENCES = ("known", "fresh")


def rows(size: str, reference: str, steps: int, seed: int = 0) -> list[dict[str, str]]:
    """Random pairs for `WARM` + `steps` steps, or where the reference is known, for `WARM`, which then come again."""
    count = PAIRS * (WARM + (steps if reference == "fresh" else 0))
    prompt, response = SIZES[size]
    asked, answers = prompts(count, prompt, seed), prompts(2 * count, response - 1, seed + 1)
    return [
        {"prompt": p, "chosen": a, "rejected": b}
        for p, a, b in zip(asked, answers[::2], answers[1::2], strict=True)
    ]  # fmt: skip


def tokens(size: str) -> int:
    """Tokens of a step, prompts counted once for each response to them."""
    return 2 * PAIRS * sum(SIZES[size])
