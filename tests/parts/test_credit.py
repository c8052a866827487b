"""Credit: each equation by hand, and how the parts reduce to each other."""

import statistics

import pytest
import torch
from batches import make, padded

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.parts.credit import GAE, GreedyBaseline, GroupRelative, LeaveOneOut, MonteCarlo, cuts


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def flags(*rows):
    return torch.tensor(rows, dtype=torch.bool)


# decision, observation, decision, padding
TURNS = Batch(
    mask=flags([True, False, True, False]),
    reward=tensor([0.5, 0.0, 1.0, 0.0]),
    value=tensor([0.2, 7.0, 0.4, 7.0]),
)


def test_cuts_are_ends_and_the_last_step_of_a_row():
    batch = make()
    expected = batch.terminated | batch.truncated
    expected[:, -1] = True
    assert torch.equal(cuts(batch), expected)
    assert cuts(Batch(mask=batch.mask)).nonzero()[:, 1].tolist() == [4] * 8
    assert not batch.terminated[:, -1].all()  # and the batch was not written to


def test_gae_skips_observation_tokens_by_hand():
    out = GAE(discount=0.9, gae_lambda=0.8)(TURNS)
    last = 1.0 - 0.4
    torch.testing.assert_close(out, tensor([0.5 + 0.9 * 0.4 - 0.2 + 0.72 * last, 0.0, last, 0.0]))


def test_gae_takes_observation_tokens_for_steps_of_value_zero_by_hand():
    out = GAE(discount=0.9, gae_lambda=0.8, observations="zero")(TURNS)
    last = 1.0 + 0.9 * 0.0 - 0.4
    observed = 0.0 + 0.9 * 0.4 - 0.0 + 0.72 * last
    torch.testing.assert_close(out, tensor([0.5 + 0.9 * 0.0 - 0.2 + 0.72 * observed, 0.0, last, 0.0]))


def test_gae_reads_the_bootstrap_at_truncation_and_nothing_at_termination():
    batch = Batch(
        mask=flags([True, True, True]),
        reward=tensor([1.0, 1.0, 1.0]),
        value=tensor([0.0, 0.0, 0.0]),
        terminated=flags([False, True, False]),
        truncated=flags([True, False, False]),
        bootstrap=tensor([10.0, 0.0, 20.0]),
    )
    assert GAE(0.5, 0.9)(batch).tolist() == [[1 + 0.5 * 10, 1.0, 1 + 0.5 * 20]]


def test_monte_carlo_by_hand():
    out = MonteCarlo(discount=0.5)(TURNS)
    assert out.tolist() == [[0.5 + 0.5 * 1.0, 0.0, 1.0, 0.0]]
    out = MonteCarlo(discount=0.5, critic=True)(TURNS)
    torch.testing.assert_close(out, tensor([1.0 - 0.2, 0.0, 1.0 - 0.4, 0.0]))


def test_monte_carlo_asks_for_a_value_only_with_a_critic():
    assert MonteCarlo().needs == () and MonteCarlo(critic=True).needs == ("value",)


@pytest.mark.parametrize("holes", [False, True])
def test_gae_with_lambda_one_is_monte_carlo_with_a_critic(holes):
    batch = make(holes=holes)
    torch.testing.assert_close(GAE(0.9, 1.0)(batch), MonteCarlo(0.9, critic=True)(batch))


def test_gae_with_lambda_zero_is_the_td_error():
    batch = make()
    cut = cuts(batch)
    following = torch.cat([batch.value[:, 1:], torch.zeros(8, 1, dtype=torch.float64)], 1)
    td = batch.reward + 0.9 * torch.where(cut, batch.bootstrap, following) - batch.value
    torch.testing.assert_close(GAE(0.9, 0.0)(batch), td * batch.mask)


def test_group_parts_by_hand():
    reward = tensor([1.0, 1.0], [0.0, 5.0], [3.0, 0.0], [0.0, 4.0])  # returns 2, 5, 3, 4
    mask = flags([True, True], [True, True], [True, False], [True, True])
    batch = Batch(mask=mask, reward=reward, group=torch.tensor([1, 0, 1, 1]), baseline=tensor(1.0, 1.0, 2.0, 2.0))
    mean, std = 3.0, statistics.stdev([2.0, 3.0, 4.0])
    out = GroupRelative(eps=0.25)(batch)
    expected = [(2 - mean) / (std + 0.25), 0.0, (3 - mean) / (std + 0.25), (4 - mean) / (std + 0.25)]
    torch.testing.assert_close(out, tensor(*expected)[:, None] * mask)
    biased = GroupRelative(eps=0.25, unbiased=False)(batch)[:, 0]
    assert biased[3] == pytest.approx(1 / (statistics.pstdev([2.0, 3.0, 4.0]) + 0.25))
    assert GroupRelative(std=False)(batch)[:, 0].tolist() == [-1.0, 0.0, 0.0, 1.0]
    assert LeaveOneOut()(batch)[:, 0].tolist() == [2 - 3.5, 5.0, 3 - 3.0, 4 - 2.5]
    assert GreedyBaseline()(batch).tolist() == [[1.0, 1.0], [4.0, 4.0], [1.0, 0.0], [2.0, 2.0]]


def test_centred_group_return_is_leave_one_out_times_g_minus_one_over_g():
    batch = make(b=12, groups=3)
    torch.testing.assert_close(GroupRelative(std=False)(batch), LeaveOneOut()(batch) * 3 / 4)


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1 / 3])
@pytest.mark.parametrize("eps", [1e-4, 1e-6, 1e-9])
def test_a_group_of_equal_returns_has_no_advantage_whatever_rounding_does(value, eps):
    for size in range(2, 12):
        batch = Batch(
            mask=torch.ones(size, 1, dtype=torch.bool),
            reward=torch.full((size, 1), value),
            group=torch.zeros(size, dtype=torch.int64),
        )
        assert not GroupRelative(eps=eps)(batch).any()


@pytest.mark.parametrize("credit", [GroupRelative(), GroupRelative(std=False), LeaveOneOut(), GreedyBaseline()])
def test_a_shift_of_all_returns_changes_nothing(credit):
    batch = make()
    moved = batch.reward.clone()
    moved[:, 0] += 3.0
    shifted = batch.but(reward=moved, baseline=batch.baseline + 3.0)
    torch.testing.assert_close(credit(shifted), credit(batch))
    assert credit(batch).abs().max() > 0.1


def test_the_scale_of_returns_matters_only_without_the_deviation():
    batch = make()
    scaled = batch.but(reward=batch.reward * 7)
    torch.testing.assert_close(GroupRelative()(scaled), GroupRelative()(batch), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(GroupRelative(std=False)(scaled), 7 * GroupRelative(std=False)(batch))


def test_wider_padding_changes_no_number_of_gae():
    batch = make(holes=True)
    for credit in (GAE(), GAE(observations="zero"), MonteCarlo()):
        torch.testing.assert_close(credit(padded(batch, 3))[:, :5], credit(batch))


def test_settings_out_of_range_name_the_field():
    for make_part, field in (
        (lambda: GAE(discount=1.1), "discount"),
        (lambda: GAE(gae_lambda=-0.1), "gae_lambda"),
        (lambda: GAE(observations="drop"), "observations"),
        (lambda: MonteCarlo(discount=float("nan")), "discount"),
        (lambda: GroupRelative(eps=-1e-6), "eps"),
    ):
        with pytest.raises(UserError, match=rf"credit\.{field}: expected .* got"):
            make_part()
