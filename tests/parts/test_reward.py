"""Rewards: the three regimes of the overlong punishment, and the running scale against NumPy."""

import numpy as np
import pytest
import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.loops.on_policy import OnPolicy, train
from partita.loops.run import Run
from partita.parts.reward import KLPenalty, Outcome, OutcomePart, RewardModel, ScaledByReturn, SoftOverlong
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.probes import ProbeAction
from partita.tasks.preferences.lab import Lab


def test_outcome_scales_what_the_task_gave():
    batch = Batch(mask=torch.ones(1, 2, dtype=torch.bool), reward=torch.tensor([[1.0, -2.0]]))
    assert Outcome()(batch).tolist() == [[1.0, -2.0]] and Outcome(scale=0.5)(batch).tolist() == [[0.5, -1.0]]


def test_soft_overlong_punishment_in_its_three_regimes():
    lengths = torch.tensor([0, 1, 6, 7, 9, 10, 12])  # L = 10, C = 4: free up to 6, full from 10
    mask = torch.arange(12) < lengths[:, None]
    reward = torch.zeros(7, 12)
    reward[2, 5] = 1.0
    out = SoftOverlong(limit=10, cache=4, penalty=2.0)(Batch(mask=mask, reward=reward))
    assert out.sum(1).tolist() == [0.0, 0.0, 1.0, -0.5, -1.5, -2.0, -2.0]
    assert [out[i, n - 1].item() for i, n in enumerate(lengths.tolist()) if n] == [0.0, 1.0, -0.5, -1.5, -2.0, -2.0]


def test_soft_overlong_counts_and_pays_the_tokens_of_the_policy_only():
    mask = torch.tensor([[True, False, False, True, False]])
    out = SoftOverlong(limit=2, cache=1)(Batch(mask=mask, reward=torch.zeros(1, 5)))
    assert out.tolist() == [[0, 0, 0, -1, 0]]


def test_soft_overlong_refuses_a_cache_beyond_the_limit():
    with pytest.raises(UserError, match=r"reward\.soft_overlong\.cache: expected 0 < cache <= limit = 8, got 9"):
        SoftOverlong(limit=8, cache=9)


def segments(count, seed=0, n=3, t=6):
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        done = torch.rand(n, t, generator=g) < 0.2
        kind = torch.rand(n, t, generator=g) < 0.5
        yield Batch(
            mask=torch.ones(n, t, dtype=torch.bool),
            reward=2 + 3 * torch.randn(n, t, generator=g),
            terminated=done & kind,
            truncated=done & ~kind,
        )


def test_rewards_are_divided_by_the_deviation_of_all_discounted_returns_so_far():
    part = ScaledByReturn(discount=0.9, clip=1.5).fresh()
    running, seen = np.zeros(3), []
    for batch in segments(4):
        out = part(batch)
        done = (batch.terminated | batch.truncated).numpy()
        for t in range(6):
            running = running * 0.9 + batch.reward.numpy()[:, t]
            seen.append(running.copy())
            running[done[:, t]] = 0.0
        expected = np.clip(batch.reward.numpy() / np.sqrt(np.var(np.concatenate(seen)) + 1e-8), -1.5, 1.5)
        np.testing.assert_allclose(out.numpy(), expected, rtol=1e-3)


def test_the_running_scale_goes_on_from_its_state():
    one, batches = ScaledByReturn().fresh(), list(segments(3))
    for batch in batches[:2]:
        one(batch)
    other = ScaledByReturn().fresh()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(batches[2]), one(batches[2]))
    assert not torch.equal(ScaledByReturn().fresh()(batches[2]), one(batches[2]))


def test_fresh_copies_share_no_state():
    one = ScaledByReturn()
    one(next(segments(1)))
    assert one.fresh().state_dict() == {} and one.state_dict()
    with pytest.raises(UserError, match=r"reward\.scaled_by_return\.discount"):
        ScaledByReturn(discount=1.5)


def test_a_chain_hands_the_reward_on():
    """1 for the right action, doubled and then less ten nats a nat: with the reference as it is nothing is taken."""
    task = ProbeAction()
    seen = {}
    for weight in (0.0, 10.0):
        recipe = OnPolicy(reward=(Outcome(scale=2.0), KLPenalty(weight)), steps=2, batch_size=8, lr=0.1)
        policy = ActorCritic(hidden=(8,)).build(task, False, torch.Generator().manual_seed(0))
        run = Run(0)
        train(recipe, policy, task, run)
        seen[weight] = [row["reward"] for row in run.metrics]
    assert seen[0.0][0] == seen[10.0][0] and seen[0.0][1] > seen[10.0][1]


def test_the_price_is_the_log_ratio_where_the_policy_acted():
    mask = torch.tensor([[True, False, True]])
    batch = Batch(
        mask=mask, reward=torch.tensor([[0.0, 0.0, 1.0]]), logp=torch.tensor([[-1.0, -9.0, -2.0]]),
        ref_logp=torch.tensor([[-1.5, -1.0, -1.0]]),
    )  # fmt: skip
    assert KLPenalty(weight=0.5)(batch).tolist() == [[-0.25, 0.0, 1.5]]
    k3 = KLPenalty(weight=1.0, estimator="k3")(batch)[0, 0]  # e^-(1/2) - 1 + 1/2
    assert k3.item() == pytest.approx(-(np.exp(-0.5) - 0.5))


def test_a_part_of_the_outcome_stands_at_the_last_token():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    records = ({"parts": {"proxy": 0.5, "gold": 9.0}}, {"parts": {"proxy": -1.0, "gold": 9.0}})
    batch = Batch(mask=mask, reward=torch.ones(2, 3), records=records)
    assert OutcomePart("proxy", scale=2.0)(batch).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, -2.0]]
    with pytest.raises(UserError, match=r"no part 'style' \(it gives gold, proxy\)"):
        OutcomePart("style")(batch)


def test_parts_that_the_task_does_not_give_are_refused_at_once():
    assert "gives gold, covered, class), got 'proxy'" in OutcomePart("proxy").refuses(None, Lab(size=4))
    assert OutcomePart("proxy").refuses(None, Lab(size=4, judge="proxy")) is None
    assert "expected a part" in OutcomePart().refuses(None, Lab(size=4))
    assert "train one by partita train reward_model" in RewardModel().refuses(None, Lab(size=4))


@pytest.mark.parametrize(("part", "field"), [({"weight": -1.0}, "weight"), ({"estimator": "k4"}, "estimator")])
def test_a_price_out_of_range_names_the_field(part, field):
    with pytest.raises(UserError, match=rf"reward\.kl_penalty\.{field}: expected"):
        KLPenalty(**part)
