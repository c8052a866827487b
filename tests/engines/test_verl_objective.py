"""Objectives as verl's policy losses: its loss over micro-batches, and the gradient, are those of our loop."""

# ruff: noqa: E402  (what needs verl is imported after the skip)

import pytest
import torch
from verl_rows import SIZE, B, actor, drawn, moved, ours, same, theirs

from partita.core.batch import Outputs
from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.papers.baselines.grpo import GRPO
from partita.parts.aggregate import FixedLength, SequenceMean, SequenceSum, TokenMean
from partita.parts.objective import ClippedSurrogate, Objective
from partita.parts.regularisers import KL, Entropy

pytest.importorskip("verl", reason="verl is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.workers.utils.losses import ppo_loss

import partita.engines.verl.plugin  # noqa: F401
from partita.engines.verl.fits import fits
from partita.engines.verl.loss import loss
from partita.engines.verl.objective import Loss, PolicyLoss
from partita.engines.verl.rows import beside

MODES = {
    "token-mean": TokenMean(),
    "seq-mean-token-mean": SequenceMean(),
    "seq-mean-token-sum": SequenceSum(),
    "seq-mean-token-sum-norm": FixedLength(12),
}
PLAIN = [name for fit in fits() if fit.slot == "objective" and fit.way == "signature" for name in fit.names]
SETTINGS = [
    ("clipped_surrogate", {"clip_low": 0.05, "clip_high": 0.1, "dual_clip": 1.2}),
    ("sequence_ratio", {"clip_low": 0.4, "clip_high": 0.4}), ("clipped_weight", {"lower": 0.9, "upper": 1.05}),
    ("topr", {"negative_high": 0.5}), ("nft", {"omega": "root"}),
    ("unified", {"positive": "current", "negative": "shaped"}), ("kl_cov", {"share": 0.5}),
    ("bapo", {"low_start": 0.9}),
]  # fmt: skip


def configured(mode, name, settings=None, **more):
    scale = MODES[mode].length if mode == "seq-mean-token-sum-norm" else None
    return actor(mode, name, settings, loss_scale_factor=scale, **more)


def made(name, **settings):
    """A part of ours, and the loss registered in verl, both without a memory."""
    get_policy_loss_fn(f"partita/{name}")._made = None
    return part_class("objective", name)(**settings)


def both(mode, name, settings, batch, logp, micro, through=ppo_loss, group=1):
    mine = ours(GRPO.but(objective=made(name, **settings), aggregate=MODES[mode]), batch, logp)
    config = configured(mode, f"partita/{name}", settings)
    return mine, theirs(config, batch, logp, micro, through, group=group)


@pytest.mark.parametrize("micro", [B, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name.removeprefix("partita/") for name in PLAIN])
def test_loss_and_gradient_are_ours(name, mode, micro):
    for seed in range(2):
        batch = drawn(seed)
        logp = moved(batch, seed)
        mine, other = both(mode, name, {}, batch, logp, B if part_class("objective", name).whole else micro)
        same(mine[0], other[0])
        same(mine[1], other[1])


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_settings_travel_with_the_configuration(name, settings):
    batch = drawn(3)
    logp = moved(batch, far=0.6)
    mine, other = both("token-mean", name, settings, batch, logp, B)
    same(mine[1], other[1])
    assert (both("token-mean", name, {}, batch, logp, B)[0][1] - mine[1]).abs().max() > 1e-4


def test_weights_of_the_rollout_correction_are_our_focus():
    batch = drawn(0)
    weight = torch.rand(batch.mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) * batch.mask
    batch, logp = batch.but(weight=weight), moved(batch)
    mine, other = both("token-mean", "clipped_surrogate", {}, batch, logp, 2)
    same(mine[1], other[1])
    assert (
        mine[1] - both("token-mean", "clipped_surrogate", {}, batch.but(weight=None), logp, 2)[0][1]
    ).abs().max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_average_to_the_whole(mode):
    batch = drawn(1)
    logp, half = moved(batch), B // 2
    mine = ours(GRPO.but(objective=made("reinforce"), aggregate=MODES[mode]), batch, logp)
    whole = {"dp_size": 2, "batch_num_tokens": int(batch.mask.sum()), "global_batch_size": B}
    config = configured(mode, "partita/reinforce")
    ranks = [theirs(config, batch[rows], logp[rows], 2, ppo_loss, **whole) for rows in (slice(0, half), slice(half, B))]
    same(mine[0], sum(loss for loss, _ in ranks) / 2)
    same(mine[1], torch.cat([gradient for _, gradient in ranks]) / 2)


@pytest.mark.parametrize("through", [ppo_loss, loss])
def test_divergence_and_entropy_are_added_by_verl_as_by_us(through):
    batch = drawn(2)
    logp, entropy = moved(batch), torch.rand(batch.mask.shape, dtype=torch.float64)
    terms = (KL(weight=0.3, estimator="k3"), Entropy(weight=0.2))
    recipe = GRPO.but(objective=made("reinforce"), aggregate=TokenMean(), regularisers=terms)
    more = {"use_kl_loss": True, "kl_loss_coef": 0.3, "kl_loss_type": "low_var_kl", "entropy_coeff": 0.2}
    config = actor("token-mean", "partita/reinforce", **more)
    mine, other = ours(recipe, batch, logp, entropy), theirs(config, batch, logp, 2, through, entropy)
    same(mine[0], other[0])
    same(mine[1], other[1])


# What our trainers pass on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["labelled_score", "pacs"])
def test_groups_and_scores_reach_the_objective(name, mode):
    for seed in range(2):
        batch = drawn(seed)
        mine, other = both(mode, name, {"beta": 0.7}, batch, moved(batch, seed), 1, loss, group=SIZE)
        same(mine[0], other[0])
        same(mine[1], other[1])


def test_a_part_of_a_group_is_refused():
    batch = drawn(0)
    with pytest.raises(UserError, match="compares the 3 responses of a group, and a micro-batch holds some of them"):
        both("token-mean", "labelled_score", {}, batch, moved(batch), 1, loss)


@pytest.mark.parametrize("fit", [fit for fit in fits() if fit.slot == "objective" and fit.way == "trainer"])
def test_what_verl_does_not_pass_on_is_asked_for(fit):
    batch = drawn(0)
    with pytest.raises(UserError, match=rf"objective {fit.name} reads .*trainer\.v1\.trainer_mode=partita"):
        both("token-mean", fit.name, {}, batch, moved(batch), B)


class Reads(Objective):
    """Makes a loss of every field that our trainers pass on."""

    def __call__(self, out, batch):
        per_step = (batch.ref_logp, batch.value, batch.entropy, batch.turn, batch.state_key, batch.inputs["tokens"])
        per_row = batch.outcome + batch.group
        return out.logp * (per_row[:, None] + sum(x * (i + 1) for i, x in enumerate(per_step)))


def test_values_references_turns_and_states_reach_the_objective(monkeypatch):
    monkeypatch.setitem(POLICY_LOSS_REGISTRY, "partita/reinforce", Loss(Reads))
    batch = drawn(0)
    logp = moved(batch)
    mine = ours(GRPO.but(objective=Reads(), aggregate=TokenMean()), batch, logp)
    config = actor("token-mean", "partita/reinforce")
    same(mine[1], theirs(config, batch, logp, B, loss, columns=("turn", "state_key"))[1])


# Settings --------------------------------------------------------------------------------------------------------


def test_settings_are_refused_before_anything_is_started():
    with pytest.raises(UserError, match="objective has no field `clip`; did you mean"):
        PolicyLoss(loss_mode="partita/clipped_surrogate", settings={"clip": 0.2})
    with pytest.raises(UserError, match=r"objective\.clip_low: expected a number above 0"):
        PolicyLoss(loss_mode="partita/clipped_surrogate", settings={"clip_low": -1})
    with pytest.raises(UserError, match="no such part; did you mean clipped_surrogate"):
        PolicyLoss(loss_mode="partita/clipped_surogate")


def test_settings_of_a_part_of_one_s_own_travel_too():
    batch = drawn(0)
    logp = moved(batch, far=0.6)
    config = actor("token-mean", "mine", {"clip_low": 0.05})
    found, _ = Loss(ClippedSurrogate)(batch.logp, logp, batch.advantage, batch.mask, config=config)
    recipe = GRPO.but(objective=ClippedSurrogate(clip_low=0.05), aggregate=TokenMean())
    same(found, ours(recipe, batch, logp)[0])
    assert (found - ours(recipe.but(objective=ClippedSurrogate()), batch, logp)[0]).abs() > 1e-3


def test_what_is_watched_is_under_verl_s_name_and_a_part_of_one_s_own_needs_a_line():
    batch = drawn(0)
    logp = moved(batch).requires_grad_()
    mine = ClippedSurrogate(clip_low=0.05, clip_high=0.05)
    _, watched = Loss(lambda: mine)(batch.logp, logp, batch.advantage, batch.mask.long())
    share = float(mine.metrics(Outputs(logp), batch)["clip_fraction"])
    assert watched == {"actor/clip_fraction": share} and 0 < share < 1
    with beside({}):
        assert Loss(lambda: mine)(batch.logp, logp, batch.advantage, batch.mask, config=actor(
            "token-mean", "partita/reinforce"))[1] == watched  # fmt: skip
