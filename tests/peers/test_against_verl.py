"""Advantages and losses against verl's own code: the functions of `verl.trainer.ppo.core_algos`."""

import pytest
import torch
from pairs import B, agree, differ, drawn, ours, shortened

from partita.estimators.masked import whiten
from partita.papers.baselines.grpo import GRPO
from partita.papers.reasoning.entropy_mechanism import ClipCov, KLCov
from partita.parts.aggregate import FixedLength, SequenceMean, SequenceSum, TokenMean
from partita.parts.credit import GAE, GroupRelative, LeaveOneOut
from partita.parts.objective import ClippedSurrogate, ClippedWeight, SequenceRatio

core = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


def same(a, b):
    assert a.dtype == b.dtype == torch.float64 and a.abs().max() > 1e-3
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def estimated(name, batch, **settings):
    """verl's advantages and returns for the rewards of a batch."""
    rewards, mask = batch.reward.clone(), batch.mask.double()
    if name == "gae":
        return core.compute_gae_advantage_return(rewards, batch.value, mask, **settings)
    return core.get_adv_estimator_fn(name)(rewards, mask, index=batch.group.numpy(), **settings)


SEEDS = pytest.mark.parametrize("seed", range(4))


@SEEDS
@pytest.mark.parametrize("std", [True, False])
def test_grpo_advantages_agree(seed, std):
    batch, _ = drawn(seed)
    same(GroupRelative(std=std)(batch), estimated("grpo", batch, norm_adv_by_std_in_grpo=std)[0])


def test_a_group_of_one_gets_its_return_in_verl_and_nothing_here():
    """There is nobody to compare it with: verl takes 0 for the mean and 1 for the deviation."""
    batch, _ = drawn(0)
    batch = batch.but(group=torch.tensor([0, 1, 1, 1, 2, 2, 3, 3]))
    mine, other = GroupRelative()(batch), estimated("grpo", batch)[0]
    same(mine[1:], other[1:])
    assert not mine[0].any()
    same(other[0], batch.reward[0].sum() * batch.mask[0])


@SEEDS
@pytest.mark.parametrize("name", ["rloo", "rloo_vectorized"])
def test_leave_one_out_advantages_agree(seed, name):
    batch, _ = drawn(seed)
    same(LeaveOneOut()(batch), estimated(name, batch)[0])


def test_of_a_group_of_one_the_two_forms_of_rloo_disagree_and_ours_is_the_first():
    batch, _ = drawn(0)
    batch = batch.but(group=torch.tensor([0, 1, 1, 1, 2, 2, 3, 3]))
    mine = LeaveOneOut()(batch)
    same(mine, estimated("rloo", batch)[0])
    vectorised = estimated("rloo_vectorized", batch)[0]
    same(mine[1:], vectorised[1:])
    assert not vectorised[0].any()


@SEEDS
@pytest.mark.parametrize(("discount", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.5)])
def test_gae_agrees_after_whitening(seed, discount, lam):
    """verl whitens inside; here that is the recipe's `whiten`. Observation tokens are skipped by both."""
    batch, _ = drawn(seed)
    mine = GAE(discount=discount, gae_lambda=lam)(batch)
    other, returns = estimated("gae", batch, gamma=discount, lam=lam)
    same(whiten(mine, batch.mask), other * batch.mask)
    same((mine + batch.value) * batch.mask, returns * batch.mask)


def actor(**settings):
    """verl's actor settings: those given, its defaults for the others."""
    from verl.workers.config import ActorConfig
    from verl.workers.config.actor import PolicyLossConfig

    own = {k: settings.pop(k) for k in list(settings) if hasattr(PolicyLossConfig, k)}
    return ActorConfig(
        strategy="fsdp", rollout_n=2, use_dynamic_bsz=True, policy_loss=PolicyLossConfig(**own), **settings
    )


def theirs(name, batch, logp, mode="token-mean", **settings):
    """verl's loss and its gradient by log-probabilities."""
    leaf = logp.clone().requires_grad_()
    loss, _ = core.get_policy_loss_fn(name)(
        old_log_prob=batch.logp, log_prob=leaf, advantages=batch.advantage, response_mask=batch.mask.double(),
        loss_agg_mode=mode, config=actor(**settings),
    )  # fmt: skip
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


AGGREGATES = {
    "token-mean": TokenMean(),
    "seq-mean-token-mean": SequenceMean(),
    "seq-mean-token-sum": SequenceSum(),
    "seq-mean-token-sum-norm": FixedLength(),
}
PPO = ClippedSurrogate(clip_low=0.2, clip_high=0.28, dual_clip=3.0, log_ratio_clamp=20.0)


@SEEDS
@pytest.mark.parametrize("mode", AGGREGATES)
@pytest.mark.parametrize("far", [0.3, 8.0])
def test_the_clipped_surrogate_agrees_under_every_aggregate(seed, mode, far):
    batch, logp = drawn(seed, per_step=True, far=far)
    recipe = GRPO.but(objective=PPO, aggregate=AGGREGATES[mode])
    agree(ours(recipe, batch, logp), theirs("vanilla", batch, logp, mode, clip_ratio_high=0.28))


@pytest.mark.parametrize("mode", AGGREGATES)
def test_a_response_without_tokens_counts_here_and_not_in_means_over_sequences_of_verl(mode):
    batch, logp = drawn(0)
    batch = shortened(batch)
    loss, gradient = ours(GRPO.but(objective=PPO, aggregate=AGGREGATES[mode]), batch, logp)
    scale = 1.0 if mode == "token-mean" else B / (B - 1)
    agree((scale * loss, scale * gradient), theirs("vanilla", batch, logp, mode, clip_ratio_high=0.28))


@SEEDS
def test_cispo_agrees_where_bounds_are_written_as_bounds(seed):
    batch, logp = drawn(seed)
    recipe = GRPO.but(objective=ClippedWeight(lower=0.8, upper=1.28, log_ratio_clamp=20.0), aggregate=TokenMean())
    agree(ours(recipe, batch, logp), theirs("cispo", batch, logp, clip_ratio_high=0.28))


@SEEDS
@pytest.mark.parametrize("mode", AGGREGATES)
@pytest.mark.parametrize("clip", [4e-4, 0.2])
def test_gspo_agrees_where_advantages_are_of_whole_responses(seed, mode, clip):
    """verl gives each step the gradient of its own log-probability; summed over a response that is s_i's."""
    batch, logp = drawn(seed)
    recipe = GRPO.but(objective=SequenceRatio(clip_low=clip, clip_high=clip), aggregate=AGGREGATES[mode])
    agree(ours(recipe, batch, logp), theirs("gspo", batch, logp, mode, clip_ratio_low=clip, clip_ratio_high=clip))


def test_gspo_of_advantages_per_step_has_the_same_loss_and_another_gradient():
    batch, logp = drawn(0, per_step=True)
    recipe = GRPO.but(objective=SequenceRatio(clip_low=0.2, clip_high=0.2))
    mine = ours(recipe, batch, logp)
    other = theirs("gspo", batch, logp, "seq-mean-token-mean", clip_ratio_low=0.2, clip_ratio_high=0.2)
    torch.testing.assert_close(mine[0], other[0], rtol=1e-6, atol=1e-6)
    differ(mine, other)
    mean = (mine[1].sum(1) - other[1].sum(1)).abs()  # the steps of a response share it differently
    assert mean.max() < 1e-6


def test_gspo_of_verl_has_no_gradient_beyond_a_mean_log_ratio_of_ten():
    batch, logp = drawn(0)
    batch = batch.but(advantage=-batch.advantage.abs())  # these are not clipped from above
    logp = torch.where((torch.arange(B) == 0)[:, None] & batch.mask, batch.logp + 11, logp)
    mine = ours(GRPO.but(objective=SequenceRatio(clip_low=0.2, clip_high=0.2)), batch, logp)
    other = theirs("gspo", batch, logp, "seq-mean-token-mean")
    same(mine[1][1:], other[1][1:])
    assert not other[1][0].any() and mine[1][0].any()


@SEEDS
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_kl_cov_agrees(seed, share):
    batch, logp = drawn(seed, per_step=True)
    recipe = GRPO.but(objective=KLCov(share=share, coef=0.1), aggregate=TokenMean())
    agree(ours(recipe, batch, logp), theirs("kl_cov", batch, logp, kl_cov_ratio=share, ppo_kl_coef=0.1))


COV = dict(clip_cov_lb=0.1, clip_cov_ub=2.0)
WIDE = dict(clip_ratio=50.0, clip_ratio_low=1.0, clip_ratio_high=50.0)  # no ratio reaches these


@SEEDS
@pytest.mark.parametrize("share", [0.02, 0.1, 1.0])
def test_clip_cov_agrees_without_ppo_s_clipping_draw_for_draw(seed, share):
    batch, logp = drawn(seed, per_step=True)
    recipe = GRPO.but(objective=ClipCov(share=share, low=0.1, high=2.0, seed=seed).fresh(), aggregate=TokenMean())
    mine = ours(recipe, batch, logp)
    torch.manual_seed(seed)  # verl draws from the global generator, here the objective has its own
    agree(mine, theirs("clip_cov", batch, logp, clip_cov_ratio=share, **COV, **WIDE))
    differ(mine, ours(recipe.but(objective=ClipCov(share=0.0)), batch, logp))


def test_clip_cov_of_verl_also_clips_as_ppo_does():
    """Its loss is PPO's where the ratio is outside, and such steps are not drawn; the paper's loss has no bounds."""
    batch, logp = drawn(0, per_step=True)
    recipe = GRPO.but(objective=ClipCov(share=1.0, low=0.1, high=2.0), aggregate=TokenMean())
    mine, other = ours(recipe, batch, logp), theirs("clip_cov", batch, logp, clip_cov_ratio=1.0, **COV)
    differ(mine, other)
    ratio = (logp - batch.logp).exp()
    clipped = torch.where(batch.advantage > 0, ratio > 1.2, ratio < 0.8)
    same(mine[1] * ~clipped, other[1] * ~clipped)
    assert not other[1][clipped].any() and mine[1][clipped].any()
