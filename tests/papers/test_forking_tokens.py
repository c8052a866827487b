"""Forking tokens: which steps count by hand, the arms of the paper, and that the few are enough to learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surrogates import drawn, gradient, late, learn, wider

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.reasoning.forking_tokens import ForkingTokens
from partita.parts.aggregate import TokenMean
from partita.parts.focus import AllSteps
from partita.parts.objective import ClippedSurrogate
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.probes import ProbeAction
from partita.tasks.language.probes import ProbeBandit, ProbeCredit

ENTROPY = [[0.1, 2.0, 0.3, 0.4, 9.0], [0.5, 0.05, 1.5, 0.7, 0.2]]
MASK = [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]  # nine steps; the entropy of 9 is not one of them


def batch_of(entropy, mask):
    mask, entropy = torch.tensor(mask, dtype=torch.bool), torch.tensor(entropy, dtype=torch.float64)
    return Batch(mask=mask, entropy=entropy, advantage=torch.ones_like(entropy) * mask)


def test_the_steps_of_highest_entropy_by_hand():
    batch = batch_of(ENTROPY, MASK)
    # ceil(0.2 * 9) = 2: those of 2.0 and 1.5; ceil(0.4 * 9) = 4: 0.7 and 0.5 as well.
    assert ForkingTokens(0.2)(batch).tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert ForkingTokens(0.4)(batch).tolist() == [[0, 1, 0, 0, 0], [1, 0, 1, 1, 0]]
    assert ForkingTokens(0.4, rest=True)(batch).tolist() == [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]]


def test_a_share_that_is_whole_is_not_rounded_up():
    batch = batch_of([[5.0, 4.0, 3.0, 2.0, 1.0] * 2], [[1] * 10])
    assert float(ForkingTokens(0.2)(batch).sum()) == 2
    three = batch_of([[3.0, 2.0, 1.0]], [[1] * 3])
    assert [float(ForkingTokens(share)(three).sum()) for share in (1e-6, 1 / 3, 0.34, 2 / 3, 0.999)] == [1, 1, 2, 2, 3]


def test_steps_as_uncertain_as_the_last_count_too():
    batch = batch_of([[1.0, 2.0, 2.0, 2.0, 0.5]], [[1] * 5])
    assert ForkingTokens(0.4)(batch).tolist() == [[0, 1, 1, 1, 0]]


def test_the_threshold_is_of_the_whole_batch_and_not_of_a_trajectory():
    batch = batch_of([[5.0, 4.0, 3.0, 2.0], [1.0, 0.9, 0.8, 0.7]], [[1] * 4] * 2)
    assert ForkingTokens(0.5)(batch).sum(1).tolist() == [4, 0]


def test_all_of_them_is_all_steps():
    _, batch = drawn(0)
    assert torch.equal(ForkingTokens(1.0)(batch), AllSteps()(batch))
    assert torch.equal(ForkingTokens(1.0, rescale=True)(batch), AllSteps()(batch))


def test_both_arms_of_the_paper_make_up_all_steps():
    _, batch = drawn(1)
    both = ForkingTokens(0.2)(batch) + ForkingTokens(0.2, rest=True)(batch)
    assert torch.equal(both, AllSteps()(batch))
    names = ("forking_tokens", "forking_rest")
    assert [(recipe_of(n).focus.keep, recipe_of(n).focus.rest) for n in names] == [(0.2, False), (0.2, True)]


def test_rescaled_the_token_mean_is_over_the_steps_that_count():
    out, batch = drawn(2)
    loss = ClippedSurrogate()(out, batch)
    weights = ForkingTokens(0.3)(batch)
    paper = (TokenMean()(batch) * loss * weights).sum()
    official = (TokenMean()(batch) * loss * ForkingTokens(0.3, rescale=True)(batch)).sum()
    chosen = loss[weights > 0]
    torch.testing.assert_close(official, chosen.mean(), check_dtype=False)
    torch.testing.assert_close(paper, chosen.sum() / batch.mask.sum(), check_dtype=False)


def test_the_gradient_is_that_of_all_steps_where_they_fork_and_zero_elsewhere():
    out, batch = drawn(3)
    weights = ForkingTokens(0.25)(batch)
    everywhere = gradient(ClippedSurrogate(), out, batch)

    def forked(out, batch):
        return ClippedSurrogate()(out, batch) * weights

    assert torch.equal(gradient(forked, out, batch), everywhere * (weights > 0))
    assert everywhere[weights > 0].abs().max() > 0 and everywhere[(weights == 0) & batch.mask].abs().max() > 0


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), keep=st.floats(0.01, 0.99), rest=st.booleans())
def test_padding_order_and_the_scale_of_entropy_change_nothing(seed, keep, rest):
    out, batch = drawn(seed)
    part = ForkingTokens(keep, rest=rest)
    weights = part(batch)
    assert not weights[~batch.mask].any()
    _, wide = wider(out, batch, 3)
    assert torch.equal(part(wide)[:, :5], weights) and not part(wide)[:, 5:].any()
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(part(batch[order]), weights[order])
    assert torch.equal(part(batch.but(entropy=batch.entropy * 3.0)), weights)


def test_an_empty_batch_has_no_weights():
    batch = batch_of([[1.0, 2.0]], [[0, 0]])
    assert not ForkingTokens()(batch).any()


def test_where_all_steps_are_alike_all_are_forks_and_the_rest_learns_nothing():
    assert late(learn("forking_tokens", ProbeBandit(), steps=14)) > 0.9
    assert late(learn("forking_rest", ProbeBandit(), steps=14)) < 0.45


def test_two_tokens_are_learnt_from_the_forks():
    run = learn("forking_tokens", ProbeCredit(), steps=45, focus=ForkingTokens(0.6))
    assert run.metrics[0]["return"] < 0.45 and late(run) > 0.9


def test_control_gives_it_entropies_too():
    task, run = ProbeAction(), Run(0)
    policy = ActorCritic().build(task, True, torch.Generator().manual_seed(0))
    train(recipe_of("ppo").but(focus=ForkingTokens(0.5), steps=2, batch_size=4), policy, task, run)
    assert len(run.metrics) == 2 and all(row["entropy"] > 0 for row in run.metrics)


def test_settings_out_of_range_name_the_field():
    for keep in (0.0, -0.1, 1.5):
        with pytest.raises(UserError, match=r"focus\.keep: expected a share above 0 and at most 1, got"):
            ForkingTokens(keep)
    with pytest.raises(UserError, match=r"focus\.keep: 1 leaves nothing for the rest"):
        ForkingTokens(1.0, rest=True)
