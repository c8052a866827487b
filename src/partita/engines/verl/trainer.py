"""Trainers of verl that pass on to parts what verl's signatures leave out.

    trainer.v1.trainer_mode = partita | partita_colocate_async | partita_separate_async

are verl's `sync`, `colocate_async` and `separate_async` with these differences: credit finds values, log-probabilities,
entropies, tokens, turns, states and partial scores beside its arguments; objectives find those too, and groups, scores
and reference log-probabilities; an objective that compares whole groups gets them whole; checkpoints hold what a
credit part remembers.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.v1 import (
    PPOTrainer,
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    register_trainer,
)
from verl.utils.config import omega_conf_to_dataclass

from partita.engines.verl import states
from partita.engines.verl.checks import check, credit_of, objective_of
from partita.engines.verl.groups import keep_whole
from partita.engines.verl.loss import loss
from partita.engines.verl.rows import FIELDS, beside, read
from partita.lab.checkpoint import load, save

WANTED = [*FIELDS, "uid", "prompts", "responses", "response_mask", "rm_scores", "extra_fields"]


class PartitaTrainer(PPOTrainer):
    """What our trainers change in verl's; `mode` is the name of the one that a subclass also inherits from.

    Raises UserError, before workers are started, for parts that could not work in the configuration.
    """

    mode: ClassVar[str]

    def __init__(self, config: Any) -> None:
        config.trainer.v1.trainer_mode = self.mode  # verl reads the settings, and chooses queues, by this name
        super().__init__(config)
        check(config, self.use_critic, self.use_reference_policy)
        self.objective = objective_of(config)

    def on_init_end(self) -> None:
        """Give the actor's workers the loss that passes on what its rows hold."""
        if self.objective is not None:
            actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
            self.actor_rollout_wg.set_loss_fn(partial(loss, config=actor))
        super().on_init_end()

    @property
    def whole_groups(self) -> bool:
        """Whether the objective compares the responses of a group."""
        return self.objective is not None and self.objective.unit == "group"

    def _balance_batch(self, batch: Any, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        batch = super()._balance_batch(batch, metrics, *args, **kwargs)
        if self.whole_groups:
            ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
            about = self.config.actor_rollout_ref
            keep_whole(batch, ranks, about.rollout.n, about.actor.ppo_mini_batch_size)
        return batch

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=WANTED)
        talks = states.talks(data)
        if turns := states.columns(talks):
            columns = TensorDict(turns, batch_size=len(batch))
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=columns)
            data.update(columns)
        with beside({**read(data), "records": states.records(talks, data)}):
            return super()._compute_advantage(batch, metrics)

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        if self.whole_groups:
            batch.extra_info["force_group_size"] = self.config.actor_rollout_ref.rollout.n
        return super()._update_actor(batch, metrics)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        credit = credit_of(self.config)
        if hasattr(credit, "state_dict"):
            folder = Path(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}", "partita")
            save(folder, {"credit": credit.state_dict()})
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        folder, credit = self._resumed() / "partita", credit_of(self.config)
        if self.global_steps and hasattr(credit, "load_state_dict") and folder.is_dir():
            credit.load_state_dict(load(folder)["credit"])

    def _resumed(self) -> Path:
        """The folder that verl has resumed from, where it has."""
        about = self.config.trainer
        if about.resume_mode == "resume_path":
            return Path(os.path.abspath(about.resume_from_path))
        return Path(os.path.abspath(about.default_local_dir), f"global_step_{self.global_steps}")


@register_trainer("partita")
class PartitaTrainerSync(PartitaTrainer, PPOTrainerSync):
    """verl's `sync`: sampling and training take turns on the same devices."""

    mode = "sync"


@register_trainer("partita_colocate_async")
class PartitaTrainerColocateAsync(PartitaTrainer, PPOTrainerColocateAsync):
    """verl's `colocate_async`: responses that are not finished go on after the update."""

    mode = "colocate_async"


@register_trainer("partita_separate_async")
class PartitaTrainerSeparateAsync(PartitaTrainer, PPOTrainerSeparateAsync):
    """verl's `separate_async`: sampling goes on elsewhere while the policy is trained."""

    mode = "separate_async"
