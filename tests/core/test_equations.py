"""Every part that has an equation shows it: the docstring's indented block survives formatting and Python versions."""

from __future__ import annotations

import inspect

import pytest

from partita.core import registry
from partita.core.part import equations, summary

# nothing to write as an equation
PLAIN = {
    "uniform", "all_steps", "all", "frozen", "reset", "outcome", "segments", "current", "demonstrations", "pool",
    "easy_to_hard", "offline", "online", "labelled",
}  # fmt: skip
SLOTS = [s for s in registry.index()["parts"] if s not in ("task", "policy")]


@pytest.mark.parametrize("slot", SLOTS)
def test_parts_state_their_equation(slot):
    for name, entry in registry.index()["parts"][slot].items():
        cls = registry.load(entry["target"])
        assert name in PLAIN or equations(cls), f"{name}: no indented equation, or nothing but it after the first line"


def test_equations_are_the_indented_blocks():
    text = """One sentence.

        a = b
        c = d

    Words.

        e = f

    More.
    """
    assert equations(inspect.cleandoc(text)) == "a = b\nc = d\ne = f"
    assert summary(text) == "One sentence."
