"""Which credit and objective parts run in verl, how, and why the others do not: `python -m partita.engines.verl`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partita.core import registry
from partita.engines.verl.parts import PREFIX

Way = Literal["signature", "trainer", "none"]


@dataclass(frozen=True)
class Fit:
    """How a part runs in verl.

    way: `signature`, under any trainer of verl, since all it reads is in the signature of an advantage estimator or a
    policy loss; `trainer`, under ours alone (`trainer.v1.trainer_mode=partita`), which passes on the rest; `none`.
    why: what it reads, what it is in verl, or what is missing there.
    """

    slot: Literal["credit", "objective"]
    name: str
    way: Way
    why: str

    @property
    def names(self) -> tuple[str, ...]:
        """Its names in verl: that of the part and, where its paper has one part in this slot, that of the paper."""
        known = registry.index()["parts"][self.slot]
        paper = known[self.name]["paper"]
        alone = paper is not None and [entry["paper"] for entry in known.values()].count(paper) == 1
        return tuple(PREFIX + name for name in ((self.name, paper) if alone else (self.name,)))


VALUES = "values of a critic; critic.enable=true"
STATES = "turns and states, from the agent loop or from what the world says"
PAIRS = "a loss of comparisons or labels (preference loop), where verl has responses and advantages"

CREDIT: dict[str, tuple[Way, str]] = {
    "beta_normalised": ("signature", "rewards and groups; with `components`, the trainer for the partial scores"),
    "constant": ("signature", "nothing"),
    "group_relative": ("signature", "rewards and groups"),
    "hybrid": ("signature", "rewards and groups; verl has no demonstrations, all rows are the policy's own"),
    "leave_one_out": ("signature", "rewards and groups"),
    "mixed_value_at_risk": ("signature", "rewards and groups; only the trainer saves its quantiles in checkpoints"),
    "monte_carlo": ("signature", "rewards; with `critic`, the trainer for the values"),
    "one_sided": ("signature", "rewards and groups; verl has no regulated rows, all are the policy's own"),
    "signed_baseline": ("signature", "rewards"),
    "extended_gae": ("trainer", f"{VALUES}; verl has no unfinished responses, which leaves `value_lambda`"),
    "gae": ("trainer", VALUES),
    "group_in_group": ("trainer", STATES),
    "subgroup_relative": ("trainer", f"{STATES}; verl samples no trees"),
    "trajectory_graph": ("trainer", f"{STATES}, and tokens"),
    "dual_critic": ("none", "reads post-decision states, which control tasks have"),
    "greedy_baseline": ("none", "reads the return of a greedy response, and verl's trainers sample none"),
    "hierarchical_credit": ("none", "trains a value network of its own on each batch, for which verl has no worker"),
    "tracked_baseline": ("none", "reads estimates of a curriculum that chooses the prompts, and verl's sampler does"),
    "utterance_advantage": ("none", "trains a value network of its own on each batch, for which verl has no worker"),
}

OBJECTIVE: dict[str, tuple[Way, str]] = {
    "balanced_clip": ("signature", "log-probabilities and advantages; its bounds are those of each micro-batch"),
    "clip_cov": ("signature", "log-probabilities and advantages; it draws in each micro-batch"),
    "clipped_surrogate": ("signature", "log-probabilities and advantages"),
    "clipped_weight": ("signature", "log-probabilities and advantages"),
    "kl_cov": ("signature", "log-probabilities and advantages; it chooses in each micro-batch"),
    "negative_aware": ("signature", "log-probabilities, and advantages of `group_relative` with `std: false`"),
    "reinforce": ("signature", "log-probabilities and advantages"),
    "sequence_ratio": ("signature", "log-probabilities and advantages of whole responses"),
    "surrogate": ("signature", "log-probabilities and advantages"),
    "tapered": ("signature", "log-probabilities and advantages of whole responses"),
    "unified": ("signature", "log-probabilities and advantages; verl has no demonstrations"),
    "labelled_score": ("trainer", "scores, and groups whole in each micro-batch"),
    "one_token_gradient": ("none", "reads log-probabilities of drawn candidates; verl's have the taken token alone"),
    "bradley_terry": ("none", PAIRS),
    "direct": ("none", PAIRS),
    "f_direct": ("none", PAIRS),
    "kto": ("none", PAIRS),
    "likelihood": ("none", PAIRS),
    "no_regret": ("none", PAIRS),
    "orpo": ("none", PAIRS),
    "regression": ("none", PAIRS),
    "self_play": ("none", PAIRS),
    "simpo": ("none", PAIRS),
}


def fits() -> tuple[Fit, ...]:
    """Every registered credit and objective part and how it runs in verl."""
    return (
        *(Fit("credit", name, *about) for name, about in CREDIT.items()),
        *(Fit("objective", name, *about) for name, about in OBJECTIVE.items()),
    )
