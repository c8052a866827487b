"""Credit as an advantage estimator of verl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.engines.verl.parts import Held, credit_settings
from partita.engines.verl.rows import found_beside, genuine, numbered
from partita.estimators.masked import last_step
from partita.parts.credit import Credit


class Estimator(Held):
    """A credit part under the signature that verl's `register_adv_est` asks for.

        register_adv_est("mine")(Estimator(MyCredit))

    Its settings are `algorithm.partita` of verl's configuration.
    """

    def __call__(
        self, token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray | None = None, config: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Advantages and returns, both (B, L), of rewards and a mask (B, L) of the policy's own tokens.

        index: (B,) names of groups. Rows that verl added as padding are left out of the part's batch and get zeros.
        Returns, what a critic is to learn, are those of the part where there are values, else the advantages.
        """
        part, further = self.part(credit_settings(config)), found_beside()
        self._check(part, further)
        uid = range(len(response_mask)) if index is None else index
        batch = rows(token_level_rewards, response_mask.bool(), numbered(uid), further or {})
        real = genuine(uid).to(batch.mask.device)
        advantage, returns = torch.zeros_like(token_level_rewards), torch.zeros_like(token_level_rewards)
        batch = batch[real]
        batch = batch.but(advantage=part(batch))
        advantage[real] = batch.need("advantage").to(advantage.dtype)
        learnt = batch.need("advantage") if batch.value is None else part.returns(batch)
        returns[real] = learnt.to(returns.dtype)
        return advantage, returns

    def _check(self, part: Credit, further: Mapping[str, Any] | None) -> None:
        name = f"credit {part.part_name()}"
        if further is None and self.apart:
            raise UserError(f"{name} reads {self.apart}; train with trainer.v1.trainer_mode=partita")
        if "value" in part.needs and "value" not in (further or {}):
            raise UserError(
                f"{name} reads values of a critic; train with trainer.v1.trainer_mode=partita critic.enable=true"
            )


def rows(reward: Tensor, mask: Tensor, group: Tensor, further: Mapping[str, Any]) -> Batch:
    """Rewards (B, T), a bool mask (B, T), groups (B,) and further fields as a batch.

    verl does not tell which responses were cut short: all of them end at the policy's last token.
    """
    last = torch.arange(mask.shape[1], device=mask.device) == last_step(mask)[:, None]
    fields = {"logp": torch.zeros_like(reward), **further}
    fields |= {"mask": mask, "reward": reward, "group": group.to(mask.device), "terminated": last & mask}
    return Batch(**fields)
