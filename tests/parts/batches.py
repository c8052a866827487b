"""Batches and policies so small that tests can work out every number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from partita.core.batch import Batch, Outputs
from partita.core.policy import Policy


class Table(Policy):
    """A softmax policy, and a critic, that are tables over `states`; float64. Observation tokens are not acted on."""

    domain = "control"
    unit = "step"
    has_value = True

    def __init__(self, states: int = 5, actions: int = 3, seed: int = 0, unit: str = "step"):
        g = torch.Generator().manual_seed(seed)
        self.unit = unit  # type: ignore[assignment]
        self.module = nn.Module()
        self.module.logits = nn.Parameter(torch.randn(states, actions, generator=g, dtype=torch.float64))
        self.module.values = nn.Parameter(torch.randn(states, generator=g, dtype=torch.float64))

    def evaluate(self, batch: Batch, entropy: bool = False) -> Outputs:
        state, mask = batch.inputs["state"], batch.mask
        table = self.module.logits[state].log_softmax(-1)
        logp = table.gather(-1, batch.inputs["action"][..., None])[..., 0] * mask
        spread = -(table.exp() * table).sum(-1) * mask if entropy else None
        others = table.gather(-1, batch.inputs["alternatives"]) * mask[..., None]
        return Outputs(logp, spread, self.module.values[state] * mask, others)


def make(b: int = 8, t: int = 5, groups: int = 4, seed: int = 0, holes: bool = False, on_policy: bool = False) -> Batch:
    """A batch with every field filled as the loop would; rows of different length, `groups` groups of equal size.

    The behaviour policy is `Table(seed=0)` itself when `on_policy`, else one near it.
    """
    g = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(b, t, generator=g, dtype=torch.float64)

    lengths = torch.randint(2, t + 1, (b,), generator=g)
    lengths[0] = t
    mask = torch.arange(t) < lengths[:, None]
    if holes:
        mask &= (torch.rand(b, t, generator=g) < 0.6) | (torch.arange(t) == 0)
    inputs = {
        "state": torch.randint(0, 5, (b, t), generator=g) * mask,
        "action": torch.randint(0, 3, (b, t), generator=g) * mask,
    }
    inputs["tokens"] = inputs["action"]  # the same under the name that language gives them, and others beside them
    drawn = torch.randint(0, 3, (b, t, 2), generator=torch.Generator().manual_seed(seed)) * mask[..., None]
    inputs["alternatives"] = torch.cat((inputs["action"][..., None], drawn), -1)
    bare = Batch(mask=mask, inputs=inputs)
    with torch.no_grad():
        out = Table().evaluate(bare, entropy=True)
    assert out.entropy is not None and out.value is not None
    near = torch.zeros_like(out.logp) if on_policy else 0.3 * normal()
    cut = torch.zeros_like(mask)
    cut[torch.arange(b), lengths - 1] = True
    stopped = torch.rand(b, 1, generator=g) < 0.5
    advantage = normal() * mask
    return bare.but(
        logp=(out.logp - near) * mask, reward=normal() * mask, terminated=cut & ~stopped, truncated=cut & stopped,
        value=out.value, bootstrap=normal() * (cut & stopped), ref_logp=(out.logp + 0.3 * normal()) * mask,
        entropy=out.entropy, turn=torch.zeros(b, t, dtype=torch.int64),
        state_key=torch.randint(1, 6, (b, t), generator=g) * mask, advantage=advantage,
        returns=advantage + out.value, weight=mask.double(), group=torch.arange(b) // (b // groups),
        outcome=torch.randn(b, generator=g, dtype=torch.float64),
        baseline=torch.randn(b, generator=g, dtype=torch.float64),
        sampler_logp=(out.logp - near + 0.1 * normal()) * mask, source=torch.zeros(b, dtype=torch.int64),
        age=torch.arange(b) // (b // groups), failed=torch.zeros(b, dtype=torch.bool),
        value_weight=torch.rand(b, t, generator=g, dtype=torch.float64) * mask,
    )  # fmt: skip


def padded(batch: Batch, extra: int) -> Batch:
    """The batch with `extra` empty steps on the right."""
    width = batch.mask.shape[1] + extra
    filler = Batch(
        mask=torch.zeros(1, width, dtype=torch.bool),
        **{
            n: torch.zeros(1, *([width] if v.dim() == 2 else []), dtype=v.dtype)
            for n, v in vars(batch).items()
            if isinstance(v, Tensor) and n != "mask"
        },
        inputs={k: torch.zeros(1, width, *v.shape[2:], dtype=v.dtype) for k, v in batch.inputs.items()},
    )
    return Batch.cat([batch, filler])[: len(batch)]
