"""PDPPO: two advantages by hand, what is left of it without the second critic, and a critic that learns in time."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.lab.config import Config, Settings
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.online.pdppo import DualCritic, apart_from_bellman, from_the_optimum
from partita.parts.credit import GAE
from partita.parts.reward import Outcome
from partita.parts.rollout import Sample, Segments
from partita.parts.rollout.segments import segment
from partita.policies import distributions
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.lot_sizing import LotSizing
from partita.tasks.control.probes import ProbeAction, ProbeDelayed
from resuming import resumed_alike

SMALL = LotSizing(
    items=1, machines=1, trials=10, max_inventory=20, production=(12,), setup_loss=(2,), setup_cost=(4.0,),
    holding_cost=(0.2,), lost_cost=(2.0,), max_steps=20,
)  # fmt: skip


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def knowing(part, value):
    """The part with this V^x of the post-decision states that it is shown."""
    part._live["acting"] = value
    return part


def case(**fields):
    """Three steps: rewards 1, 2, 3, of which decisions were paid 4, 5, 6; V 10, 20, 30, then 40; V^x 7, 8, 9."""
    return Batch(
        mask=torch.ones(1, 3, dtype=torch.bool), logp=rows([0.0] * 3), reward=rows([1.0, 2.0, 3.0]),
        value=rows([10.0, 20.0, 30.0]), bootstrap=rows([0.0, 0.0, 40.0]),
        inputs={"post": rows([[7.0], [8.0], [9.0]]), "post_reward": rows([4.0, 5.0, 6.0])},
    ).but(**fields)  # fmt: skip


def drawn(seed, b=5, t=6):
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    over, cut = torch.rand(2, b, t, generator=g) < 0.15
    cut = cut & ~over
    last = torch.arange(t) == t - 1
    return Batch(
        mask=torch.ones(b, t, dtype=torch.bool), logp=normal(b, t), reward=normal(b, t), value=normal(b, t),
        bootstrap=normal(b, t) * ((cut | last) & ~over), terminated=over, truncated=cut,
        inputs={"post": normal(b, t, 1), "post_reward": normal(b, t)},
    )  # fmt: skip


def same_value(post):
    return post


def test_both_advantages_by_hand():
    # discount 1/2, Monte Carlo. What is left without the decisions: -3, -3, -3, then 40: returns -3 - 3/2 - 3/4 + 5 =
    # -0.25, -3 - 3/2 + 10 = 5.5, 17; the decisions: 4 + 5/2 + 6/4 + 9/8 = 9.125, 5 + 3 + 9/4 = 10.25, 6 + 9/2 = 10.5.
    part = knowing(DualCritic(discount=0.5), same_value)
    pre, after = [-10.25, -14.5, -13.0], [2.125, 2.25, 1.5]
    assert part.state_advantage(case())[0].tolist() == pytest.approx(pre)
    assert part.but(use="post").discount == 0.5
    assert knowing(part.but(use="post"), same_value)(case())[0].tolist() == pytest.approx(after)
    assert part(case())[0].tolist() == pytest.approx(after)
    assert part(case(value=rows([-10.0, 3.0, 30.0])))[0].tolist() == pytest.approx([9.75, 2.5, 1.5])
    assert part.returns(case())[0].tolist() == pytest.approx([-0.25, 5.5, 17.0])


def test_with_the_whole_return_in_both_the_lesser_value_counts():
    # Returns, with V next: 1 + 1 + 3/4 + 5 = 7.75, 13.5, 23; with V^x next: 1 + 1 + 3/4 + 9/8 = 3.875, 5.75, 7.5.
    part = knowing(DualCritic(discount=0.5, split=False), same_value)
    assert part(case())[0].tolist() == pytest.approx([-2.25, -2.25, -1.5])
    ended = case(terminated=torch.tensor([[False, False, True]]), bootstrap=torch.zeros(1, 3, dtype=torch.float64))
    returns = torch.tensor([2.75, 3.5, 3.0], dtype=torch.float64)
    lesser = torch.minimum(ended.value, ended.inputs["post"][..., 0])
    assert part(ended)[0].tolist() == pytest.approx((returns - lesser[0]).tolist())


def test_lambda_and_ends_by_hand():
    # lambda and discount 1/2: d = 4 + 4 - 7 = 1, 5 + 4.5 - 8 = 1.5, 6 + V' - 9; the last is cut, ends, or is truncated.
    part = knowing(DualCritic(discount=0.5, gae_lambda=0.5, use="post"), same_value)
    for ends, last in (({}, 1.5), ({"terminated": torch.tensor([[False, False, True]])}, -3.0)):
        assert part(case(**ends))[0].tolist() == pytest.approx([1 + 1.5 / 4 + last / 16, 1.5 + last / 4, last])
    broken = part(case(truncated=torch.tensor([[True, False, False]])))
    assert broken[0].tolist() == pytest.approx([4 + 3.5 - 7, 1.5 + 1.5 / 4, 1.5])


@pytest.mark.parametrize("gae_lambda", [0.95, 1.0])
def test_with_the_critic_of_states_alone_it_is_gae(gae_lambda):
    part = DualCritic(discount=0.9, gae_lambda=gae_lambda, use="state", split=False)
    assert part.needs == ("value",)
    batch = drawn(3)
    assert torch.equal(part(batch), GAE(0.9, gae_lambda)(batch))
    high = knowing(part.but(use="both"), lambda post: post * 0 + 1e9)
    assert torch.equal(high(batch), GAE(0.9, gae_lambda)(batch))  # a V^x that is never the lesser one


def test_training_with_the_critic_of_states_alone_is_ppo_to_the_bit():
    weights = []
    for credit in (GAE(), DualCritic(gae_lambda=0.95, use="state", split=False)):
        recipe = recipe_of("ppo").but(credit=credit, rollout=Segments(steps=8), batch_size=8, steps=3)
        policy = ActorCritic(hidden=(8,)).build(SMALL, True, torch.Generator().manual_seed(0))
        train(recipe, policy, SMALL, Run(0))
        weights.append(policy.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_where_decisions_cost_nothing_no_advantage_is_below_zero():
    # A^x is then that of a critic of nothing: half of what PPO learns from, the bad steps, is left out.
    batch = drawn(5)
    batch = batch.but(inputs={**batch.inputs, "post_reward": batch.inputs["post_reward"] * 0})
    advantage = DualCritic(discount=0.9)(batch)
    assert torch.equal(advantage, GAE(0.9, 1.0)(batch).clamp(min=0))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.1, 10.0))
def test_order_and_unit_of_rewards(seed, factor):
    batch, part = drawn(seed), knowing(DualCritic(discount=0.9, gae_lambda=0.8), lambda post: post)
    advantage, order = part(batch), torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(part(batch[order]), advantage[order])
    scaled = batch.but(
        reward=batch.reward * factor, value=batch.value * factor, bootstrap=batch.bootstrap * factor,
        inputs={name: x * factor for name, x in batch.inputs.items()},
    )  # fmt: skip
    torch.testing.assert_close(part(scaled), advantage * factor)


def sampled(part, task=SMALL, seed=0, n=16, steps=20):
    policy = ActorCritic(hidden=(8,)).build(task, True, torch.Generator().manual_seed(seed))
    g = torch.Generator().manual_seed(seed + 1)
    live = {"envs": task.envs(task.problems(n, g), g)}
    return policy, segment(policy, live, steps, g, set(part.needs))


def test_the_rollout_records_where_decisions_led():
    task = LotSizing(items=2, machines=2, max_inventory=10, max_steps=7, production=(4,), setup_loss=(1,))
    _, batch = sampled(DualCritic(), task)
    obs, action = batch.inputs["obs"].flatten(0, 1), batch.inputs["action"].flatten(0, 1)
    setup = obs[:, 2:].view(-1, 2, 3).argmax(2)
    state = torch.cat((obs[:, :2] * 10, setup.float()), 1).round()
    post, reward = task.post(state, action)
    torch.testing.assert_close(batch.inputs["post"].flatten(0, 1), task.observe(post))
    torch.testing.assert_close(batch.inputs["post_reward"].flatten(), reward)
    assert float(reward.min()) < 0 and bool((batch.reward <= batch.inputs["post_reward"] + 1e-6).all())
    plain = sampled(GAE(), task)[1]
    assert set(plain.inputs) == {"obs", "action"} and torch.equal(plain.reward, batch.reward)


def test_advantages_are_of_the_critic_before_it_saw_the_batch():
    part = DualCritic(discount=0.9)
    policy, batch = sampled(part)
    part.learn(policy, batch, torch.Generator().manual_seed(2))
    begun = part.post_value(batch)
    twin = DualCritic(discount=0.9, critic_lr=1e-12)  # one that hardly learns
    for seed in (2, 3):
        twin.learn(policy, batch, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(twin.post_value(batch), begun)
    part.learn(policy, batch, torch.Generator().manual_seed(3))
    assert float((part.post_value(batch) - begun).abs().mean()) > 1e-3
    larger = twin.post_advantage(batch, begun) > twin.state_advantage(batch)
    assert twin.metrics()["post_larger"] == pytest.approx(float(larger.float().mean()), abs=0.01)


def test_its_first_step_goes_against_the_gradient():
    # The last bias of V^x has the gradient 2 mean(V^x - G); the first step of Adam is its sign times the rate.
    for shift in (-50.0, 50.0):
        part = DualCritic(discount=0.0, use="post", split=False, critic_epochs=1, critic_minibatches=1, critic_lr=0.01)
        policy, batch = sampled(part)
        batch = batch.but(reward=batch.reward + shift)
        part.learn(policy, batch, torch.Generator().manual_seed(2))
        before, after = (part._live[name][-1].bias for name in ("acting", "online"))
        assert float((after - before).detach()) == pytest.approx(math.copysign(0.01, shift), rel=1e-3)


def test_it_learns_what_follows_a_post_decision_state():
    # With discount 0, the whole reward and setups for nothing: the mean over demand of what is lost and kept.
    part = DualCritic(discount=0.0, use="post", split=False, critic_lr=2e-2, critic_epochs=30)
    task = SMALL.but(setup_cost=(0.0,))
    policy, batch = sampled(part, task, n=64)
    g = torch.Generator().manual_seed(3)
    for _ in range(6):
        part.learn(policy, batch, g)
    stock = (batch.inputs["post"][..., 0] * 20).round().long()
    exact = task.post_values(torch.zeros(42, dtype=torch.float64)).view(-1, 2)[:, 0][stock]
    off = (part.post_value(batch).double() - exact).square().mean()
    assert float(off) < 0.05 * float(exact.var())
    assert part.metrics()["post_explained_variance"] > 0.7


@dataclass(frozen=True)
class Told(ProbeDelayed):
    """The probe, with the state after the first choice as post-decision state, and no reward for a decision."""

    def post(self, state, action):
        following, reward, _ = self.step(state, action, torch.Generator())
        return following, torch.zeros_like(reward)


@pytest.mark.parametrize("name", ["pdppo", "pdppo_whole"])
def test_a_delayed_reward_is_learnt(name):
    recipe = recipe_of(name)
    recipe = recipe.but(
        credit=recipe.credit.but(discount=1.0), rollout=Segments(steps=16), batch_size=16, steps=25, lr=1e-2
    )
    task = Told()
    policy = ActorCritic(hidden=(16,)).build(task, True, torch.Generator().manual_seed(0))
    train(recipe, policy, task, Run(0))
    obs = task.observe(torch.zeros(1, 2))
    with torch.no_grad():
        logp, _ = distributions.logp_entropy(policy.space, policy.head(obs), None, torch.tensor([1]))
    assert float(logp.exp()) > 0.9


def test_one_item_is_kept_in_stock_almost_as_well_as_can_be(tmp_path):
    recipe = recipe_of("pdppo").but(
        credit=DualCritic(discount=0.9), rollout=Segments(steps=20), batch_size=32, steps=30, lr=3e-3
    )
    policy = ActorCritic(hidden=(32,)).build(SMALL, True, torch.Generator().manual_seed(0))
    run = Run(0)

    def short(folder: Path) -> float:
        policy.save(folder / "policy")
        task = {"part": "lot_sizing", **SMALL.settings()}
        (folder / "config.json").write_text(json.dumps({"task": task}))
        return from_the_optimum(folder)

    before = short(tmp_path)
    train(recipe, policy, SMALL, run)
    after = short(tmp_path)
    assert 0 <= after < 0.15 * before
    assert {"post_loss", "post_explained_variance", "post_larger"} <= run.metrics[-1].keys()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    recipe = recipe_of("pdppo").but(rollout=Segments(steps=10), batch_size=4, steps=4, lr=1e-3)
    resumed_alike(Config("pdppo", recipe, SMALL, ActorCritic(hidden=(8,)), Settings(seed=0)), tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_post_decision_states_lose_nothing(seed):
    assert apart_from_bellman(seed) < 1e-12


def test_what_cannot_work_says_why():
    part, task = DualCritic(), SMALL
    recipe = recipe_of("pdppo").settle(task)
    assert part.refuses(recipe, task) is None
    assert "has no post-decision states; use --task lot_sizing" in part.refuses(recipe, ProbeAction())
    assert DualCritic(use="state", split=False).refuses(recipe, ProbeAction()) is None
    assert "use --rollout segments" in part.refuses(recipe.but(rollout=Sample()), task)
    assert "leave --reward out" in part.refuses(recipe.but(reward=(Outcome(2.0),)), task)
    assert DualCritic(split=False).refuses(recipe.but(reward=(Outcome(2.0),)), task) is None


@pytest.mark.parametrize(
    "changes",
    [{"use": "neither"}, {"critic_epochs": 0}, {"critic_minibatches": 0}, {"critic_lr": 0.0}, {"gae_lambda": 1.5},
     {"critic_grad_norm": math.inf}, {"discount": -0.1}],
)  # fmt: skip
def test_bad_settings_are_refused_in_a_line(changes):
    (field,) = changes
    with pytest.raises(UserError, match=rf"^credit\.{field}: expected [^\n]*, got [^\n]*$"):
        DualCritic(**changes)


def test_a_reward_that_is_not_finite_teaches_nothing():
    part = DualCritic(discount=0.9, split=False)
    policy, batch = sampled(part)
    part.learn(policy, batch.but(reward=batch.reward / 0), torch.Generator().manual_seed(2))
    live = part._live
    assert all(torch.equal(a, b) for a, b in zip(live["online"].parameters(), live["acting"].parameters(), strict=True))
