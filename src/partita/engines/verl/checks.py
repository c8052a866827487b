"""What a trainer of ours refuses before anything is started, with the setting that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from partita.core.errors import UserError
from partita.core.part import Part
from partita.engines.verl.fits import fits
from partita.engines.verl.parts import build, credit_settings, is_ours, objective_settings
from partita.parts.credit import Credit, GroupCredit
from partita.parts.objective import Objective


def credit_of(config: Any) -> Credit | None:
    """The credit part that `algorithm.adv_estimator` names, if it is one of ours."""
    name = config.algorithm.adv_estimator
    return build("credit", name, **credit_settings(config.algorithm)) if is_ours(name) else None


def objective_of(config: Any) -> Objective | None:
    """The objective that `policy_loss.loss_mode` names, if it is one of ours."""
    about = config.actor_rollout_ref.actor.policy_loss
    return build("objective", about.loss_mode, **objective_settings(about)) if is_ours(about.loss_mode) else None


def check(config: Any, critic: bool, reference: bool) -> None:
    """Raise UserError for parts that could not work in this configuration of verl.

    critic, reference: whether verl computes values and reference log-probabilities.
    """
    for part in (credit_of(config), objective_of(config)):
        if part is not None:
            for complaint in complaints(part, config, critic, reference):
                raise UserError(f"{part.slot} {part.part_name()} {complaint}")


def complaints(part: Part, config: Any, critic: bool, reference: bool) -> Iterator[str]:
    """What stands against a part, each with its remedy."""
    for fit in fits():
        if (fit.slot, fit.name, fit.way) == (part.slot, part.part_name(), "none"):
            yield f"does not run in verl: {fit.why}"
    if "value" in part.needs and not critic:
        yield "reads values of a critic; set critic.enable=true"
    if "ref_logp" in part.needs and not reference:
        yield (
            "reads reference log-probabilities; set actor_rollout_ref.actor.use_kl_loss=true, and "
            "actor_rollout_ref.actor.kl_loss_coef=0 where verl's own divergence is not wanted"
        )
    whole = part.unit == "group"
    if (whole or isinstance(part, GroupCredit)) and config.actor_rollout_ref.rollout.n < 2:
        yield "compares the responses of a group; set actor_rollout_ref.rollout.n=2 or more"
    if whole and config.actor_rollout_ref.actor.shuffle:
        yield "compares whole groups, which shuffling takes apart; set actor_rollout_ref.actor.shuffle=false"
    if isinstance(part, Objective) and (config.get("distillation") or {}).get("enabled"):
        yield "has no place beside distillation, whose loss is verl's own; set distillation.enabled=false"
