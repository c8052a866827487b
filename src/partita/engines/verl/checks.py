"""What a trainer of ours refuses before anything is started, with the setting that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

from partita.core.errors import UserError
from partita.core.part import Part
from partita.core.registry import part_class
from partita.engines.verl.credit import Estimator
from partita.engines.verl.fits import fits
from partita.engines.verl.objective import Loss
from partita.engines.verl.parts import PREFIX, credit_settings, is_ours, objective_settings
from partita.parts.credit import GroupCredit
from partita.parts.objective import Objective


def credit_of(config: Any) -> Any:
    """The credit part that verl will call, None if it is verl's own estimator; UserError for a wrong name of ours."""
    held = registered("credit", config.algorithm.adv_estimator, ADV_ESTIMATOR_REGISTRY)
    return held.part(credit_settings(config.algorithm)) if isinstance(held, Estimator) else None


def objective_of(config: Any) -> Any:
    """The objective that verl will call, None if it is verl's own loss; UserError for a wrong name of ours."""
    about = config.actor_rollout_ref.actor.policy_loss
    held = registered("objective", about.loss_mode, POLICY_LOSS_REGISTRY)
    return held.part(objective_settings(about)) if isinstance(held, Loss) else None


def registered(slot: str, name: str, registry: Mapping[str, Any]) -> Any:
    """What verl knows by a name; UserError for a name of ours that it does not, saying why."""
    if is_ours(name) and name not in registry:
        for fit in fits():
            if fit.slot == slot and name in fit.names:
                raise UserError(f"{slot} {fit.name} does not run in verl: {fit.why}")
        part_class(slot, name.removeprefix(PREFIX))
    return registry.get(name)


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
