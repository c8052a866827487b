"""The loss of an actor's micro-batch, with what verl's own does not pass to the objective."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDict
from torch import Tensor
from verl.workers.utils.losses import ppo_loss

from partita.engines.verl.rows import beside, read


def loss(config: Any, model_output: Any, data: TensorDict, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """verl's loss, entropy and divergence included, whose objective also finds the other fields of its rows.

    Those are groups, scores, values, entropies, reference log-probabilities, turns and states, as far as `data` holds
    them; arguments and results are those of `verl.workers.utils.losses.ppo_loss`.
    """
    with beside(read(data)):
        return ppo_loss(config, model_output, data, dp_group)
