"""Losses and the top-entropy mask against TRL's own code: `GRPOTrainer._compute_loss` and `get_high_entropy_mask`."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from pairs import B, agree, differ, drawn, ours, shortened

from partita.papers.baselines.grpo import GRPO
from partita.papers.reasoning.forking_tokens import ForkingTokens
from partita.parts.aggregate import FixedLength, TokenMean
from partita.parts.objective import ClippedSurrogate, ClippedWeight, SequenceRatio
from partita.parts.regularisers import KL

trl = pytest.importorskip("trl", reason="TRL is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


def trainer(logp, entropy, **settings):
    """A GRPOTrainer with what its loss reads and nothing else; its policy says `logp` and `entropy`."""
    from accelerate import Accelerator

    args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    vars(args).update({k: settings.pop(k) for k in list(settings) if hasattr(args, k)})
    out = object.__new__(trl.GRPOTrainer)
    vars(out).update(
        args=args, accelerator=Accelerator(cpu=True), model=SimpleNamespace(training=True), use_vllm=False, beta=0.0,
        epsilon_low=0.2, epsilon_high=0.2, importance_sampling_level="token", top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, aux_loss_enabled=False, max_completion_length=32,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, entropy, None),
    )  # fmt: skip
    vars(out).update(settings)
    return out


def theirs(loss_type, batch, logp, items=None, **settings):
    """TRL's loss and its gradient by log-probabilities; `items`: tokens of the generation batch."""
    leaf = logp.clone().requires_grad_()
    tokens = torch.zeros(batch.mask.shape, dtype=torch.int64)
    inputs = dict(
        prompt_ids=tokens[:, :1], prompt_mask=tokens[:, :1] + 1, completion_ids=tokens,
        completion_mask=(batch.mask.flip(1).cumsum(1).flip(1) > 0).long(), tool_mask=batch.mask.long(),
        advantages=batch.advantage.sum(1) / batch.mask.sum(1).clamp(min=1), old_per_token_logps=batch.logp,
        ref_per_token_logps=batch.ref_logp, num_items_in_batch=batch.mask.sum() if items is None else items,
    )  # fmt: skip
    one = trainer(leaf, batch.entropy, loss_type=loss_type, **settings)
    loss = one._compute_loss(None, inputs)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


RATIO = ClippedSurrogate()
LOSSES = {
    "grpo": (GRPO, {}),
    "bnpo": (GRPO.but(aggregate=TokenMean()), {}),
    "dapo": (GRPO.but(objective=RATIO.but(clip_high=0.28), aggregate=TokenMean()), {"epsilon_high": 0.28}),
    "dr_grpo": (GRPO.but(aggregate=FixedLength(32)), {}),
    "cispo": (GRPO.but(objective=ClippedWeight(upper=1.2), aggregate=TokenMean()), {"epsilon_high": 1.2}),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LOSSES)
def test_losses_agree(name, seed):
    recipe, settings = LOSSES[name]
    batch, logp = drawn(seed)
    agree(ours(recipe, batch, logp), theirs(name, batch, logp, **settings))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_agree_where_no_token_of_a_response_counts(name):
    recipe, settings = LOSSES[name]
    batch, logp = drawn(0)
    batch = shortened(batch)
    agree(ours(recipe, batch, logp), theirs(name, batch, logp, **settings))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_agree_with_a_divergence_from_the_reference(name):
    recipe, settings = LOSSES[name]
    batch, logp = drawn(1)
    mine = ours(recipe.but(regularisers=(KL(weight=0.04, estimator="k3"),)), batch, logp)
    agree(mine, theirs(name, batch, logp, beta=0.04, **settings))


def test_ratios_of_sequences_agree():
    batch, logp = drawn(2)
    for clip in (0.2, 0.02):
        mine = ours(GRPO.but(objective=SequenceRatio(clip_low=clip, clip_high=clip)), batch, logp)
        given = dict(importance_sampling_level="sequence", epsilon_low=clip, epsilon_high=clip)
        agree(mine, theirs("grpo", batch, logp, **given))


def test_delta_is_our_dual_clip():
    batch, logp = drawn(3, far=1.0)
    mine = ours(GRPO.but(objective=RATIO.but(dual_clip=1.5)), batch, logp)
    agree(mine, theirs("grpo", batch, logp, delta=1.5))
    differ(mine, theirs("grpo", batch, logp))


@pytest.mark.parametrize("name", LOSSES)
def test_an_accumulated_batch_is_one_of_ours_but_for_bnpo(name):
    """Two micro-batches of TRL's: `bnpo` gives each the same weight, whatever its number of tokens; ours does not."""
    recipe, settings = LOSSES[name]
    batch, logp = drawn(4)
    rows = batch.lengths.argsort().split(B // 2)
    split = dict(current_gradient_accumulation_steps=2, steps_per_generation=2, items=batch.mask.sum())
    pieces = [theirs(name, batch[some], logp[some], **settings, **split) for some in rows]
    gradient = torch.zeros_like(logp)
    for some, (_, part) in zip(rows, pieces, strict=True):
        gradient[some] = part
    whole = sum(loss for loss, _ in pieces), gradient
    (differ if name == "bnpo" else agree)(ours(recipe, batch, logp), whole)
    if name == "bnpo":
        halves = [ours(recipe, batch[some], logp[some])[0] for some in rows]
        torch.testing.assert_close(sum(halves) / 2, whole[0], rtol=1e-6, atol=1e-6)


def kept(share, batch, logp):
    """Our tokens and TRL's, (B, T) bool."""
    mine = ForkingTokens(keep=share)(batch) > 0
    one = trainer(logp, batch.entropy)
    return mine, one.get_high_entropy_mask(batch.entropy, batch.mask, 1 - share)


@pytest.mark.parametrize("seed", range(4))
def test_the_top_entropy_mask_agrees_where_the_share_is_a_whole_number_of_tokens(seed):
    batch, logp = drawn(seed)
    count = int(batch.mask.sum())
    for k in range(1, count):
        mine, other = kept(k / count, batch, logp)
        assert torch.equal(mine, other) and int(mine.sum()) == k


@pytest.mark.parametrize("seed", range(4))
def test_elsewhere_the_top_entropy_mask_of_trl_is_ours_or_one_token_smaller(seed):
    """TRL interpolates the quantile: floor(share * (N - 1)) + 1 tokens are above it; ours are ceil(share * N)."""
    batch, logp = drawn(seed)
    count, fewer = int(batch.mask.sum()), 0
    for share in (0.05, 0.123, 0.2, 0.31, 0.5, 0.777):
        mine, other = kept(share, batch, logp)
        assert int(mine.sum()) == math.ceil(share * count) and not (other & ~mine).any()
        assert int(other.sum()) == math.floor(share * (count - 1)) + 1
        fewer += int(mine.sum()) - int(other.sum())
    assert fewer > 0


def test_losses_with_the_top_entropy_mask_agree():
    batch, logp = drawn(5)
    share = 6 / int(batch.mask.sum())
    for name, (recipe, settings) in LOSSES.items():
        recipe = recipe.but(focus=ForkingTokens(keep=share), regularisers=(KL(weight=0.04, estimator="k3"),))
        agree(ours(recipe, batch, logp), theirs(name, batch, logp, top_entropy_quantile=share, beta=0.04, **settings))
