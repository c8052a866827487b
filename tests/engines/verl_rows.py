"""Random episodes in a small world, as a batch of ours and as rows of verl, and what each side makes of them."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.loops.descent import losses
from partita.loops.on_policy import OnPolicy

B, SIZE = 12, 3
NAMES = ("7f", "3a", "c0", "11")  # of groups; their order by alphabet is not that in which they come
PADS = 2


def drawn(seed: int, wide: int = 3) -> Batch:
    """Four groups of three episodes of 1 to `wide` turns, in float64; `state_key` is the number of the state.

    Some end with words of the world, where their reward is then. `inputs` has the tokens, `context` the prompts.
    """
    g = torch.Generator().manual_seed(seed)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=g))

    rows = []
    for i in range(B):
        state, row = 9 + i // SIZE, []
        turns = 1 + (below(wide) if i else wide - 1)
        for turn in range(turns):
            row += [(1 + below(3), True, turn, state) for _ in range(1 + below(2))]
            key = state
            state = 1 + below(2)
            if turn < turns - 1 or below(2):
                row += [(50 + state, False, turn, key)] * state
        rows.append(row)
    width = max(map(len, rows))
    length = torch.tensor([len(row) for row in rows])
    table = torch.tensor([row + [(0, False, 0, 0)] * (width - len(row)) for row in rows], dtype=torch.int64)
    tokens, mask, turn, key = table.unbind(2)
    mask = mask.bool()

    def normal() -> Tensor:
        return torch.randn(B, width, generator=g, dtype=torch.float64)

    score = torch.rand(B, generator=g, dtype=torch.float64)
    reward = score[:, None] * (torch.arange(width) == length[:, None] - 1)
    last = torch.arange(width) == (mask * torch.arange(1, width + 1)).argmax(1, keepdim=True)
    advantage = (normal()[:, :1]).clamp(-0.9, 0.9) * mask
    return Batch(
        mask=mask, logp=-normal().abs() * mask, reward=reward, terminated=last, value=normal() * mask, outcome=score,
        ref_logp=-normal().abs() * mask, entropy=normal().abs() * mask, turn=turn, state_key=key,
        group=torch.arange(B) // SIZE, advantage=advantage, inputs={"tokens": tokens, "length": length[:, None].expand(
            B, width)}, context={"prompt": torch.full((B, 1), 90) + torch.arange(B)[:, None] // SIZE},
    )  # fmt: skip


def moved(batch: Batch, seed: int = 0, far: float = 0.3) -> Tensor:
    """Log-probabilities of a policy that has moved since it sampled the batch, (B, T)."""
    g = torch.Generator().manual_seed(seed)
    step = torch.randn(batch.mask.shape, generator=g, dtype=torch.float64)
    return (batch.need("logp") + far * step) * batch.mask


def ours(recipe: OnPolicy, batch: Batch, logp: Tensor, entropy: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss of a recipe and its gradient by log-probabilities (B, T), as our loop computes it."""
    leaf, told, before = logp.clone().requires_grad_(), entropy, torch.get_default_dtype()
    policy = SimpleNamespace(evaluate=lambda batch, entropy: Outputs(leaf, told))
    torch.set_default_dtype(torch.float64)
    try:
        batch = batch.but(weight=recipe.focus(batch) if batch.weight is None else batch.weight)
        loss, _ = losses(recipe, policy, batch, recipe.aggregate(batch), 1.0, watch=False)  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(before)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


# verl's side ------------------------------------------------------------------------------------------------------


def uids(batch: Batch, pads: int = 0) -> np.ndarray:
    """Names of the groups of each row, and of rows of padding, as verl makes them."""
    return np.array([NAMES[g] for g in batch.need("group").tolist()] + ["pad" + "0a" * 16] * pads, dtype=object)


def proto(batch: Batch, pads: int = PADS):
    """What verl's `compute_advantage` reads, with rows of padding at the end."""
    from tensordict import TensorDict
    from verl import DataProto

    def more(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(pads, x.shape[1])])

    fields = {"token_level_rewards": more(batch.need("reward")), "response_mask": more(batch.mask.long())}
    tensors = TensorDict(fields, batch_size=B + pads)
    return DataProto(batch=tensors, non_tensor_batch={"uid": uids(batch, pads)})


def nested(rows) -> Tensor:
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def strayed(batch: Batch, x: Tensor, to: float = -1000.0) -> Tensor:
    """With numbers at the world's tokens too, where verl's models and critics say something and ours are zero."""
    return torch.where(batch.mask, x, to)


def within(batch: Batch, x: Tensor) -> Tensor:
    """(B, T) over the tokens of each response, nested."""
    return nested(x[i, :n] for i, n in enumerate(batch.inputs["length"][:, 0].tolist()))


def stored(batch: Batch) -> dict:
    """The rows as verl stores them: nested tensors over the tokens of each response, and lists."""
    prompt, tokens = batch.context["prompt"], batch.inputs["tokens"]
    names = {"logp": "old_log_probs", "ref_logp": "ref_log_prob", "value": "values",
             "entropy": "entropy", "advantage": "advantages"}  # fmt: skip
    return {
        "prompts": nested(prompt),
        "responses": within(batch, tokens),
        "input_ids": nested(torch.cat(pair) for pair in zip(prompt, within(batch, tokens).unbind(), strict=True)),
        "response_mask": within(batch, batch.mask.long()),
        "loss_mask": within(batch, batch.mask.long()),
        "rm_scores": within(batch, batch.need("reward")),
        **{theirs: within(batch, strayed(batch, getattr(batch, ours))) for ours, theirs in names.items()},
        "uid": uids(batch).tolist(),
    }


def actor(mode: str, loss_mode: str, settings: dict | None = None, **more):
    """verl's configuration of an actor."""
    from verl.workers.config import FSDPActorConfig

    from partita.engines.verl.objective import PolicyLoss

    policy_loss = PolicyLoss(loss_mode=loss_mode, settings=settings or {})
    return FSDPActorConfig(rollout_n=SIZE, use_dynamic_bsz=True, loss_agg_mode=mode, policy_loss=policy_loss, **more)


def composed(*overrides: str):
    """verl's configuration as its launcher composes it."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


def theirs(
    config, batch: Batch, logp: Tensor, micro: int, loss, entropy: Tensor | None = None, group: int = 1,
    columns: tuple[str, ...] = (), **told,
):  # fmt: skip
    """Loss and gradient of one mini-batch in micro-batches of `micro` rows (or groups), through verl's own code.

    columns: fields of the batch that are stored beside verl's. told: sizes of the mini-batch, where it is not this one.
    """
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.utils import prepare_micro_batches

    sizes = {"dp_size": 1, "batch_num_tokens": int(batch.mask.sum()), "global_batch_size": len(batch)} | told
    how = {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": micro, "force_group_size": group}
    table = stored(batch) | {name: within(batch, getattr(batch, name)) for name in columns}
    if batch.weight is not None:
        table["rollout_is_weights"] = within(batch, batch.weight)
    data = tu.get_tensordict(table, sizes | how)
    leaf, total, start = strayed(batch, logp, 1000.0).requires_grad_(), 0.0, 0
    for piece in prepare_micro_batches(data)[0]:
        rows = slice(start, start + len(piece))
        said = {"log_probs": spoken(piece, leaf[rows])}
        if entropy is not None:
            said["entropy"] = spoken(piece, entropy[rows])
        value, _ = loss(config, said, piece)
        value.backward()
        total, start = total + value.detach(), rows.stop
    return total, leaf.grad


def spoken(piece, x: Tensor) -> Tensor:
    """Numbers of response tokens (b, T) as a model of verl says them: of each token at the place of the one before."""
    count = piece["responses"].offsets().diff().tolist()
    ends = piece["input_ids"].offsets()
    zero = x.new_zeros(1)
    said = [torch.cat([row[:n], zero.expand(int(m) - n)]) for row, n, m in zip(x, count, ends.diff(), strict=True)]
    return torch.nested.nested_tensor_from_jagged(torch.cat(said), offsets=ends)


def same(a: Tensor, b: Tensor) -> None:
    """Equal to 1e-6 in float64, and not both nothing."""
    assert a.dtype == b.dtype == torch.float64 and a.abs().max() > 1e-3
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
