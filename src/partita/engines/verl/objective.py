"""Objectives as policy losses of verl, and their settings in its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss
from verl.workers.config.actor import PolicyLossConfig

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.engines.verl.parts import Held, build, is_ours, objective_settings
from partita.engines.verl.rows import found_beside
from partita.parts.objective import Objective


@dataclass
class PolicyLoss(PolicyLossConfig):
    """verl's settings of the policy loss, and those of an objective of ours.

        actor_rollout_ref.actor.policy_loss._target_=partita.engines.verl.objective.PolicyLoss
        '+actor_rollout_ref.actor.policy_loss.settings={clip_high: 0.28}'

    Raises UserError, before anything is started, for settings that the part refuses which `loss_mode` names.
    """

    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if is_ours(self.loss_mode):
            build("objective", self.loss_mode, **self.settings)


class Loss(Held):
    """An objective under the signature that verl's `register_policy_loss` asks for.

        register_policy_loss("mine")(Loss(MyObjective))

    Its settings are `actor_rollout_ref.actor.policy_loss.settings` of verl's configuration (`PolicyLoss`).
    """

    def __call__(
        self, old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor,
        loss_agg_mode: str = "token-mean", config: Any = None, rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """The loss of a micro-batch, and what to watch of it; tensors are (B, L), the mask that of the policy's tokens.

            loss = agg_loss(objective * rollout_is_weights)

        with verl's aggregation and the sizes of the mini-batch that `config` holds, so that micro-batches add up.
        """
        part, further = self.part(objective_settings(None if config is None else config.policy_loss)), found_beside()
        mask = response_mask.bool()
        weight = mask.to(log_prob.dtype) if rollout_is_weights is None else rollout_is_weights * mask
        fields = {**(further or {}), "mask": mask, "weight": weight, "advantage": advantages * mask}
        batch = Batch(**{**fields, "logp": torch.where(mask, old_log_prob, 0.0)})
        self._check(part, batch, None if further is None else config.rollout_n)
        out = Outputs(torch.where(mask, log_prob, 0.0))
        sizes = {} if config is None else config.global_batch_info
        loss = agg_loss(part(out, batch) * weight, mask, loss_agg_mode, **sizes)
        with torch.no_grad():
            watched = part.metrics(out, batch)
        return loss, {f"actor/{name}": float(value) for name, value in watched.items()}

    def _check(self, part: Objective, batch: Batch, group_size: int | None) -> None:
        name = f"objective {part.part_name()}"
        if group_size is None:
            if self.apart or part.unit == "group":
                reads = self.apart or "whole groups"
                raise UserError(f"{name} reads {reads}; train with trainer.v1.trainer_mode=partita")
        elif part.unit == "group" and bool((batch.need("group").bincount() != group_size).any()):
            raise UserError(
                f"{name} compares the {group_size} responses of a group, and a micro-batch holds some of them only"
            )
