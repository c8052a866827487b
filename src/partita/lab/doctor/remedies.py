"""What addresses a finding: a table from rules to parts, settings and numbers, kept to those that fit the run.

An entry is offered only where its part is registered, fills a slot that the run has, works in its domain and
with the rest of its recipe, and is not in use already; a setting only where the run has it. Each flag can be
added to `partita train --config DIR/config.json` as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from partita.core import registry
from partita.core.errors import UserError
from partita.core.part import Part
from partita.lab.doctor.case import Case, number
from partita.lab.doctor.finding import Remedy
from partita.lab.doctor.progress import worse
from partita.lab.doctor.windows import ends

MOST = 5  # remedies of a finding

When = Callable[[Case], bool]


def always(case: Case) -> bool:
    """A condition that holds for every run."""
    return True


@dataclass(frozen=True)
class Use:
    """Fill a slot with a part, by its name, and set a field of it (its flag without the slot's name)."""

    slot: str
    part: str
    why: str
    field: str = ""
    when: When = always

    def flags(self, case: Case) -> Iterator[str]:
        """The flag, where the part fits."""
        if self.when(case) and fits(case, self.slot, self.part):
            yield choose(case, self.slot, self.part) + "".join(
                f" --{self.slot}.{f}" for f in self.field.split(";") if f
            )


@dataclass(frozen=True)
class Paper:
    """Use the parts that a paper brings, once it is held here; those for one slot are alternatives."""

    key: str
    why: str
    when: When = always

    def flags(self, case: Case) -> Iterator[str]:
        """A line of flags for every choice among the paper's parts, one part a slot."""
        found = {
            slot: [choose(case, slot, n) for n, e in names.items() if e["paper"] == self.key and fits(case, slot, n)]
            for slot, names in registry.index()["parts"].items()
            if slot not in ("task", "policy")
        }
        held = [flags for flags in found.values() if flags]
        if held and self.when(case):
            yield from (" ".join(flags) for flags in product(*held))


@dataclass(frozen=True)
class Set:
    """Change a number of the run: `change` gives the new value from the present one, or None for no such advice."""

    path: str
    change: Callable[[float], float | None]
    why: str
    when: When = always

    def flags(self, case: Case) -> Iterator[str]:
        """The flag, where the run has the number."""
        now = number(case.setting(self.path))
        new = self.change(now) if now is not None and self.when(case) else None
        if new is not None and new != now and allowed(case, self.path, new):
            whole = isinstance(case.setting(self.path), int)
            path = self.path.removeprefix("run.").replace("_", "-")
            yield f"--{path} {round(new) if whole else f'{new:.3g}'}"


Candidate = Use | Paper | Set


def choose(case: Case, slot: str, part: str) -> str:
    """The flag that fills a slot; where a slot takes many parts, those in use stay (the task's reward stands alone)."""
    held = case.setting(slot)
    names = [p["part"] for p in held] if isinstance(held, list) and part != "outcome" else []
    return f"--{slot} {','.join([*names, part])}"


def fits(case: Case, slot: str, part: str) -> bool:
    """Whether the part is registered, of use in this run, and not in use."""
    entry = registry.index()["parts"].get(slot, {}).get(part)
    if entry is None or slot not in case.raw or case.domain not in entry["domains"]:
        return False
    held = case.setting(slot)
    if part in [p.get("part") for p in (held if isinstance(held, list) else [held]) if isinstance(p, dict)]:
        return False
    if case.config is None:  # `train --config` could not read it either
        return False
    recipe: Any = case.config.recipe
    try:
        made = registry.part_class(slot, part)()
        many = (*getattr(recipe, slot), made) if slot in recipe.many else made
        changed = recipe.but(**{slot: many})
        return all(p.refuses(changed, case.config.task) is None for p in changed.parts())
    except (UserError, TypeError):  # it needs settings that only a person can give
        return False


def allowed(case: Case, path: str, value: float) -> bool:
    """Whether the field of a part takes the value (numbers of the recipe and the run are taken as they are)."""
    slot, _, name = path.rpartition(".")
    held: Any = None
    if case.config is not None and slot:
        held = getattr(case.config, slot, None) or getattr(case.config.recipe, slot, None)
    if not isinstance(held, Part):
        return True
    try:
        held.but(**{name: type(getattr(held, name) or 0.0)(value)})
    except (UserError, TypeError, ValueError):
        return False
    return True


def _times(factor: float, least: float = 0.0, most: float = float("inf")) -> Callable[[float], float | None]:
    def change(now: float) -> float | None:
        return min(max(now * factor, least), most)

    return change


def _fewer(now: float) -> float | None:
    return float(now // 2) if now >= 2 else None


def _to(value: float, when: Callable[[float], bool] = lambda now: True) -> Callable[[float], float | None]:
    return lambda now: value if now != value and when(now) else None


def _to_twice(most: float) -> Callable[[float], float | None]:
    return lambda now: 2 * now if 2 * now <= most else None


def _below(value: float) -> Callable[[float], float | None]:
    return _to(value, lambda now: now < value)


def _score(case: Case) -> float:
    series = case.series(case.score)
    return ends(series)[1] if len(series) else 0.0


def too_hard(case: Case) -> bool:
    """Whether less than half of the trajectories succeed."""
    return case.score == "success" and _score(case) < 0.5


def too_easy(case: Case) -> bool:
    """Whether at least half of the trajectories succeed."""
    return case.score == "success" and _score(case) >= 0.5


def grouped(case: Case) -> bool:
    """Whether some groups have a signal that others lack: groups of more than one, and not all of them alike."""
    share = case.series("degenerate")
    return (number(case.setting("group_size")) or 1) > 1 and not (len(share) and ends(share)[1] >= 0.95)


def saturated(case: Case) -> bool:
    """Whether gradients are small for another reason than groups without signal."""
    share = case.series("degenerate")
    return not (len(share) and ends(share)[1] >= 0.75)


def in_groups(case: Case) -> bool:
    """Whether the recipe samples groups."""
    return (number(case.setting("group_size")) or 1) > 1


def wide_clip(case: Case) -> bool:
    """Whether the clip is wider than PPO's."""
    return (number(case.setting("objective.clip_high")) or 0.0) > 0.2


def sometimes(case: Case) -> bool:
    """Whether the task is neither hopeless nor done."""
    return 0.05 < _score(case) < 0.95


def in_control(case: Case) -> bool:
    """Whether the task is control."""
    return case.domain == "control"


def in_language(case: Case) -> bool:
    """Whether the task is language."""
    return case.domain == "language"


LOWER_LR = Set("lr", _times(0.3), "smaller steps")
FEWER_EPOCHS = Set("epochs", _fewer, "fewer passes over the same data")
EASIER = Set("task.level", _to(1.0), "problems that are sometimes solved", too_hard)
HARDER = Set("task.level", lambda now: now + 1 if now >= 1 else None, "problems that are not always solved", too_easy)
HARDEST = Set("task.level", lambda now: 4.0 if now == 0 else None, "problems that are not always solved", too_easy)
ANCHOR = Use("regularisers", "kl", "holds the policy to its reference", "kl.weight 0.04")
DROP = Use("select", "drop_degenerate", "samples again instead of learning from groups without signal", when=grouped)
LARGER_GROUPS = Set("group_size", _times(2), "more chances that a group differs", in_groups)

TABLE: dict[str, tuple[Candidate, ...]] = {
    "entropy_collapse": (
        Set("regularisers.entropy.weight", _below(0.01), "pays for entropy"),
        Use("regularisers", "entropy", "pays for entropy", "entropy.weight 0.01"),
        Set("objective.clip_high", _below(0.28), "lets unlikely choices grow faster (clip-higher)"),
        LOWER_LR,
        Paper("entropy_mechanism", "holds back the tokens whose covariance drives entropy down"),
        Paper("aepo", "steers entropy to a target"),
        Paper("lp_reg", "protects unlikely but sensible tokens"),
        Paper("bapo", "balances positive and negative advantages by adaptive clips"),
        Set("rollout.temperature", _below(1.0), "samples the policy itself"),
    ),
    "kl_runaway": (
        LOWER_LR,
        FEWER_EPOCHS,
        Set("objective.clip_high", _times(0.5), "a tighter clip", wide_clip),
        Use("objective", "clipped_surrogate", "bounds the ratio"),
        ANCHOR,
        Set("max_grad_norm", _to(0.5, lambda now: now > 0.5), "bounds a step"),
    ),
    "reference_runaway": (
        Set("regularisers.kl.weight", _times(3, 0.01), "holds the policy to its reference more firmly"),
        LOWER_LR,
        Use("reference", "ema", "a reference that follows, where leaving the first one is wanted"),
        Paper("salsa", "a reference averaged over policies"),
    ),
    "degenerate_groups": (
        EASIER,
        HARDER,
        HARDEST,
        DROP,
        LARGER_GROUPS,
        Paper("single_stream_po", "needs no groups: a value tracker instead"),
        Use("credit", "greedy_baseline", "compares with the greedy response rather than the group", when=sometimes),
        Set("batch_size", _times(2), "more groups that differ in a batch"),
    ),
    "clip_saturation": (
        LOWER_LR,
        FEWER_EPOCHS,
        Set("objective.clip_low", _to(0.2, lambda now: 0.01 < now < 0.2), "a wider clip"),
        Set("objective.clip_high", _to(0.28, lambda now: 0.01 < now < 0.28), "a wider clip"),
        Use("objective", "clipped_weight", "clips the weight and keeps the gradient of every step"),
        Paper("bapo", "clips that adapt to the batch"),
    ),
    "length_explosion": (
        Use("reward", "soft_overlong", "a price on length near the limit (--reward.soft_overlong.limit)"),
        Use("aggregate", "fixed_length", "long responses no longer dilute their own punishment"),
        Use("aggregate", "token_mean", "every token counts alike, so that long failures are punished in full"),
        LOWER_LR,
        ANCHOR,
    ),
    "reward_divergence": (
        ANCHOR,
        Set("regularisers.kl.weight", _times(3, 0.01), "holds the policy to its reference more firmly"),
        Use("reward", "outcome", "the task's own reward"),
        LOWER_LR,
        Set("run.eval_every", _to(10.0, lambda now: now == 0), "shows where to stop"),
        Paper("rm_ensembles", "an ensemble of reward models is harder to fool"),
        Paper("orpo_occupancy", "penalises occupancy that a proxy rewards by mistake"),
    ),
    "useless_critic": (
        Set("regularisers.value_loss.weight", _below(0.5), "lets the critic learn"),
        Use("regularisers", "value_loss", "lets the critic learn"),
        Set("lr", _to(1e-3, lambda now: now < 3e-4), "a critic that learns faster", in_control),
        Use("reward", "scaled_by_return", "returns of a size that a critic can reach"),
        Set("epochs", _to_twice(8), "more passes for the critic"),
        Use("credit", "group_relative", "needs no critic"),
        Use("credit", "leave_one_out", "needs no critic"),
    ),
    "stale_data": (
        Set("rollout.top_p", _to(1.0), "samples the distribution that is learnt"),
        Set("rollout.top_k", _to(0.0), "samples the distribution that is learnt"),
        Set("rollout.min_p", _to(0.0), "samples the distribution that is learnt"),
        Use("behaviour", "current", "samples with the policy itself"),
        Use("rollout", "sample", "samples anew at every step", when=in_language),
        Use("objective", "clipped_surrogate", "corrects for the ratio, within a clip"),
        Use("objective", "clipped_weight", "corrects for the ratio by a bounded weight"),
        Paper("topr", "tapers the weights of old samples"),
        Paper("bapo", "clips that adapt to off-policy data"),
    ),
    "dead_gradients": (
        EASIER,
        HARDER,
        HARDEST,
        DROP,
        LARGER_GROUPS,
        Set("lr", _times(0.3), "a policy that does not saturate", saturated),
        Use("regularisers", "entropy", "a gradient where it has saturated", "entropy.weight 0.01", saturated),
    ),
    "gradient_spikes": (
        Set("max_grad_norm", _to(0.5, lambda now: now > 0.5), "bounds a step"),
        Use("reward", "scaled_by_return", "rewards of one size, clipped"),
        Set("objective.dual_clip", _to(3.0), "bounds the loss of unlikely bad steps"),
        Set("batch_size", _times(2), "dilutes outliers"),
        LOWER_LR,
    ),
    "no_learning": (
        Set("lr", _to(1e-3, lambda now: now < 1e-5), "steps large enough to see", in_control),
        Set("lr", _to(1e-6, lambda now: now < 1e-7), "steps large enough to see", in_language),
        Set("lr", _times(0.3), "smaller steps", worse),
        Use("regularisers", "kl", "holds the policy to its reference", "kl.weight 0.04", worse),
        EASIER,
        DROP,
        LARGER_GROUPS,
        Set("batch_size", _times(2), "a clearer gradient"),
        Set("steps", _times(3), "more time", lambda case: case.steps < 100 and not worse(case)),
    ),
    "solved_before": (
        HARDER,
        HARDEST,
    ),
}  # fmt: skip


def remedies(rule: str, case: Case) -> tuple[Remedy, ...]:
    """What addresses a finding of `rule` in this run, the most direct first; names that are not registered are left
    out."""
    found = [(flag, candidate.why) for candidate in TABLE.get(rule, ()) for flag in candidate.flags(case)]
    return tuple(found[:MOST])
