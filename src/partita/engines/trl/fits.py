"""Which recipes TRL's trainers can run, and why not the others.

TRL decides which prompts come, how responses are sampled, which model is trained and which optimiser moves it. A recipe
decides the rest: rewards, credit, selection, weights, losses. One that asks for something else of the first is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from partita.core import registry
from partita.core.errors import UserError
from partita.core.part import Part
from partita.core.recipe import Recipe
from partita.core.task import Task
from partita.engines.trl.hosted import TrainDataset
from partita.loops.on_policy import OnPolicy
from partita.loops.preference import Preference
from partita.parts.behaviour import Current
from partita.parts.credit import Credit
from partita.parts.curriculum import Uniform
from partita.parts.focus import Focus
from partita.parts.optimiser import Adam
from partita.parts.pairs import Labelled
from partita.parts.reference import Ema, Frozen, Reset
from partita.parts.resample import Offline
from partita.parts.reward import Reward
from partita.parts.rollout import Sample

R = TypeVar("R", bound=Recipe)

OWN = "Partita's own loop (partita train)"
TRAINERS = {OnPolicy.loop: "GRPOTrainer", Preference.loop: "DPOTrainer"}

THEIRS: dict[str, tuple[type[Part], str]] = {  # slots that TRL fills, the part that it is, and why no other fits
    "curriculum": (Uniform, "GRPOTrainer takes prompts from its data set in an order drawn before training"),
    "behaviour": (Current, "GRPOTrainer learns from what the policy has just written, and keeps nothing of before"),
    "rollout": (Sample, "GRPOTrainer writes each response whole and alone: no trees, demonstrations or schedules"),
    "optimiser": (Adam, "the optimiser is the trainer's (args.optim)"),
    "resample": (Offline, "DPOTrainer learns from the responses of its data set, and writes none"),
    "pairs": (Labelled, "DPOTrainer compares the chosen response with the rejected one, as the data say"),
}
FILLED = {"logp", "entropy", "logp_entropy", "ref_logp", "ref"}
UNFILLED = {
    "value": "it needs a value head, and TRL's trainers of policies have none",
    "greedy": "it needs a greedy response to every prompt, and GRPOTrainer samples them all",
    "old": "it compares whole distributions over actions, and TRL keeps log-probabilities of those taken",
    "label": "it learns from labels of single responses, and DPOTrainer reads pairs",
}
HOOKS: tuple[tuple[type[Part], str, str], ...] = (
    (Reward, "start", "it gets ready with the policy and the task of our loop, which TRL does not have"),
    (Credit, "learn", "it trains a critic of its own on every batch, with the policy of our loop"),
    (Focus, "look", "it looks at the state of our loop's optimiser"),
    (Part, "adapt", "it adapts to every update by what the policy of our loop says of it"),
)


class Fit(NamedTuple):
    """trainer: the one that runs a recipe, "" where none does. why: the reason then, else ""."""

    trainer: str
    why: str


def fits() -> dict[str, Fit]:
    """What TRL makes of every registered recipe of the loops that it has trainers for."""
    known = {name: entry["loop"] for name, entry in registry.index()["recipes"].items() if entry["loop"] in TRAINERS}
    why = {name: refusal(registry.recipe(name)) for name in known}
    return {name: Fit("", found) if (found := why[name]) else Fit(TRAINERS[loop], "") for name, loop in known.items()}


def refusal(recipe: Recipe, task: Task | None = None) -> str | None:
    """Why TRL's trainers cannot run a recipe, in one line with what to do instead; None where one can."""
    return next(complaints(recipe, TrainDataset() if task is None else task), None)


def resolved(recipe: str | Recipe, kind: type[R], task: Task) -> R:
    """The recipe of a name, or the recipe itself, with every None that the task decides filled in.

    Raises UserError where it is none of the loop of `kind`, or where TRL cannot run it.
    """
    found: Any = registry.recipe(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(found, Recipe):
        raise UserError(f"recipe: expected the name of a recipe or a recipe, got {found!r}")
    if not isinstance(found, kind):
        other = f"use Partita{TRAINERS[found.loop]}" if found.loop in TRAINERS else f"use {OWN}"
        raise UserError(
            f"recipe: it belongs to the {found.loop} loop, and {TRAINERS[kind.loop]} runs {kind.loop}; {other}"
        )
    if (why := refusal(found, task)) is not None:
        raise UserError(why)
    return found.each(lambda part: part.settle(task))


def complaints(recipe: Any, task: Task) -> Iterator[str]:
    """Every reason why TRL cannot run a recipe."""
    if recipe.loop not in TRAINERS:
        yield f"recipe: TRL has no trainer for the {recipe.loop} loop; use {OWN}"
        return
    parts = recipe.parts()
    for part in parts:
        if "language" not in part.domains:
            yield said(part, "it works in control, and TRL trains language models")
    for part in parts:
        kind, why = THEIRS.get(part.slot, (type(part), ""))
        if type(part) is not kind:
            yield said(part, why, f"{part.slot} {kind.part_name()}")
    for part in parts:
        for name in part.needs:
            if name not in FILLED:
                yield said(part, UNFILLED.get(name, f"it needs `{name}`, which TRL's trainers do not tell"))
        for base, hook, why in HOOKS:
            if isinstance(part, base) and getattr(type(part), hook) is not getattr(base, hook):
                yield said(part, why)
    yield from numbers(recipe)
    for part in parts:
        if (own := part.refuses(recipe, task)) is not None:
            yield f"{own} (as flags of partita train)"


def numbers(recipe: Any) -> Iterator[str]:
    """What is wrong with the recipe as a whole."""
    if recipe.needs() & {"ref", "ref_logp"} and type(recipe.reference) not in (Frozen, Ema, Reset):
        yield said(recipe.reference, "TRL's reference is still, or follows the policy", "frozen, ema or reset")
    if isinstance(recipe, OnPolicy):
        if recipe.taught is not None:
            part, policy = recipe.taught
            yield said(part, f"it teaches a {policy.part_name()} policy, and TRL trains its own model")
        if recipe.group_size < 2:
            yield f"group_size: GRPOTrainer takes 2 or more responses to a prompt, got {recipe.group_size}; use 2"
    else:
        for name in ("epochs", "minibatches"):
            if getattr(recipe, name) != 1:
                yield f"{name}: DPOTrainer makes one update of a batch, got {getattr(recipe, name)}; use 1"


def said(part: Part, why: str, instead: str = "") -> str:
    """One line: slot and part, the reason, and what to use."""
    return f"{part.slot} {part.part_name()}: {why}; use {instead or f'another {part.slot}'}, or {OWN}"
