"""BAPO: the search for bounds by hand, what it reduces to, and learning from stale trajectories."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surrogates import case, drawn, gradient, late, learn, wider

from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.reasoning.bapo import BalancedClip
from partita.parts.behaviour import Stale
from partita.parts.objective import ClippedSurrogate
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.probes import ProbeAction
from partita.tasks.language.probes import ProbeBandit, ProbeCredit


def test_the_upper_bound_rises_until_the_share_is_reached():
    # share(c_high) = min(5, c_high) / (min(5, c_high) + 3) >= 0.39 from 1.918 on: fifteen steps of 0.05 from 1.2.
    out, batch = case([5.0, 1.0, 1.0, 1.0], [1.0, -1.0, -1.0, -1.0])
    found = BalancedClip(target=0.39).bounds(out, batch)
    assert (found.low, found.high) == pytest.approx((0.6, 1.95))
    assert found.share == pytest.approx(1.95 / 4.95)
    assert BalancedClip(target=0.28).bounds(out, batch).high == 1.2  # 1.2 / 4.2 is enough
    assert BalancedClip(target=0.29).bounds(out, batch).high == pytest.approx(1.25)


def test_then_the_lower_bound_rises_to_its_end():
    # A good step at a ratio of 1 cannot gain by c_high; c_low lifts the bad step at 0.1 from 0.6 to 0.9.
    out, batch = case([1.0, 0.1], [1.0, -2.0])
    found = BalancedClip(target=0.6).bounds(out, batch)
    assert (found.low, found.high) == pytest.approx((0.9, 3.0))
    assert found.share == pytest.approx(1 / (1 + 2 * 0.9))
    start = BalancedClip(target=0.45).bounds(out, batch)  # 1 / (1 + 1.2) = 0.4545 at the start
    assert (start.low, start.high, start.share) == pytest.approx((0.6, 1.2, 1 / 2.2))


def test_steps_that_do_not_fit_are_not_taken():
    out, batch = case([1.0, 0.1], [1.0, -2.0])
    part = BalancedClip(target=0.6, low_step=0.04, high_step=0.7)
    found = part.bounds(out, batch)  # 1.2 + 2 * 0.7 = 2.6, and 0.6 + 7 * 0.04 = 0.88
    assert (found.low, found.high) == pytest.approx((0.88, 2.6))


def test_loss_and_gradient_by_hand_under_the_bounds_found():
    out, batch = case([5.0, 1.5, 1.0, 0.5, 0.7, 2.0], [1.0, 2.0, -1.0, -2.0, -3.0, -1.0])
    part = BalancedClip(target=0.4)
    # At c_high = 1.2: good 1.2 + 2.4, bad 1 + 2 * 0.6 + 3 * 0.7 + 2 = 6.3, a share of 0.3636; at 1.4 it is 0.4.
    assert part.bounds(out, batch).high == pytest.approx(1.4, abs=0.051)
    high = part.bounds(out, batch).high
    loss = part(out, batch)
    assert loss.tolist()[0] == pytest.approx([-high, -2 * high, 1.0, 1.2, 2.1, 2.0])
    # d loss / d logp = -A w where the surrogate is not clipped.
    assert gradient(part, out, batch).tolist()[0] == pytest.approx([0.0, 0.0, 1.0, 0.0, 2.1, 2.0])


@pytest.mark.parametrize("seed", range(3))
def test_without_room_or_target_it_is_the_clipped_surrogate(seed):
    out, batch = drawn(seed)
    fixed = BalancedClip(target=0.99, low_start=0.8, low_end=0.8, high_start=1.3, high_end=1.3)
    assert torch.equal(fixed(out, batch), ClippedSurrogate(clip_low=0.2, clip_high=0.3)(out, batch))
    idle = BalancedClip(target=0.0)
    torch.testing.assert_close(idle(out, batch), ClippedSurrogate(clip_low=0.4, clip_high=0.2)(out, batch))


def test_on_policy_with_balanced_advantages_nothing_moves():
    out, batch = case([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [-1.0, -1.0]])
    found = BalancedClip().bounds(out, batch)
    assert (found.low, found.high, found.share) == (0.6, 1.2, 0.5)
    assert torch.equal(gradient(BalancedClip(), out, batch), -batch.advantage)


def test_without_a_signal_there_is_nothing_to_balance():
    out, batch = case([0.1, 5.0], [0.0, 0.0])
    found = BalancedClip().bounds(out, batch)
    assert (found.low, found.high, found.share) == (0.6, 1.2, 1.0)


def test_only_steps_that_count_are_balanced():
    out, batch = case([5.0, 1.0, 1.0, 1.0], [1.0, -1.0, -1.0, -1.0])
    half = batch.but(weight=torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64))
    assert BalancedClip(target=0.39).bounds(out, half).share == pytest.approx(1.2 / 2.2)
    masked = batch.but(mask=torch.tensor([[True, True, False, False]]))
    assert BalancedClip(target=0.39).bounds(out, masked).high == 1.2


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), target=st.floats(0.0, 0.95), scale=st.floats(0.1, 10.0))
def test_padding_order_and_the_scale_of_advantages_do_not_move_the_bounds(seed, target, scale):
    out, batch = drawn(seed)
    part = BalancedClip(target=target)
    found = part.bounds(out, batch)
    assert 0.6 <= found.low <= 0.9 + 1e-6 and 1.2 <= found.high <= 3.0 + 1e-6
    assert found.share >= target or (found.low > 0.88 - 1e-6 and found.high > 2.95)
    assert found.low == 0.6 or found.high > 2.95  # the upper bound first
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    turned = type(out)(out.logp[order])
    for other in (
        part.bounds(*wider(out, batch, 2)), part.bounds(turned, batch[order]),
        part.bounds(out, batch.but(advantage=batch.advantage * scale)),
    ):  # fmt: skip
        assert (other.low, other.high) == (found.low, found.high) and other.share == pytest.approx(found.share)


def test_gradients_against_finite_differences():
    out, batch = drawn(5)
    part = BalancedClip(target=0.5)
    assert torch.autograd.gradcheck(lambda x: part(type(out)(x), batch) * batch.mask, (out.logp,))


def test_it_tells_what_it_found():
    out, batch = case([5.0, 1.0, 1.0, 1.0], [1.0, -1.0, -1.0, -1.0])
    told = {n: float(v) for n, v in BalancedClip(target=0.39).metrics(out, batch).items()}
    assert told == pytest.approx(
        {"clip_low": 0.6, "clip_high": 1.95, "positive_share": 1.95 / 4.95, "clip_fraction": 0.25}
    )


def test_it_learns_from_current_and_from_stale_trajectories():
    run = learn("bapo", ProbeBandit(), steps=16)
    assert run.metrics[0]["return"] < 0.45 and late(run) > 0.9
    stale = learn("bapo", ProbeCredit(), steps=60, lr=5e-3, behaviour=Stale(refresh=4))
    assert max(row["staleness"] for row in stale.metrics if "staleness" in row) == 3 and late(stale) > 0.9


def test_a_minibatch_is_balanced_as_a_whole_or_not_at_all():
    task = ProbeAction()
    policy = ActorCritic().build(task, False, torch.Generator().manual_seed(0))
    recipe = recipe_of("bapo").but(steps=1, batch_size=4, micro_batch=2)
    with pytest.raises(UserError, match="balanced_clip looks at a whole minibatch"):
        train(recipe, policy, task, Run(0))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"target": 1.0}, "target"),
        ({"target": -0.1}, "target"),
        ({"low_start": 0.95}, "low_end"),
        ({"low_end": 1.1}, "low_end"),
        ({"high_start": 0.9}, "high_end"),
        ({"high_end": 1.1}, "high_end"),
        ({"low_step": 0.0}, "low_step"),
        ({"high_step": -0.05}, "high_step"),
    ],
)
def test_settings_out_of_range_name_the_field(changes, field):
    with pytest.raises(UserError, match=rf"objective\.{field}: expected .* got"):
        BalancedClip(**changes)
