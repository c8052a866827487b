"""PROPS: its loss by hand, what it comes to without a buffer, and data that look more on-policy than on-policy ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.estimators.sampling_error import tabular
from partita.lab.checkpoint import flatten, restore
from partita.loops.on_policy import gather, train
from partita.loops.run import Generators, Run
from partita.papers.baselines.ppo import PPO
from partita.papers.online.props import Buffered, RobustSampling, gradient_error, in_time, surrogate
from partita.parts.credit import GAE
from partita.parts.rollout import Sample, Segments
from partita.parts.rollout.segments import segment
from partita.policies import distributions
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.classic import Cartpole, Pendulum
from partita.tasks.control.grid import Gridworld
from partita.tasks.control.probes import ProbeContinuous, ProbeDelayed, ProbeObservation

QUICK = dict(rollout=Segments(steps=8), batch_size=8, steps=3, lr=1e-2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def agent(task, seed=0, hidden=(16,), value=True):
    return ActorCritic(hidden=hidden).build(task, value, seeded(seed))


def trained(recipe, task, seed=0, hidden=(16,), **changes):
    policy, run = agent(task, hidden=hidden), Run(seed)
    train(recipe.but(**(QUICK | changes)), policy, task, run)
    return policy, run


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_loss_and_gradient_by_hand():
    # r = 2 counts in full, r = 0.8 too, r = 0.5 is clipped to 0.7 and left alone; 0.2 times the KL beside them.
    target = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64).log()
    ratio, kl = torch.tensor([2.0, 0.8, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.1, 1.0], dtype=torch.float64)
    logp = (target + ratio.log()).requires_grad_()
    loss = RobustSampling(clip=0.3, penalty=0.2).loss(logp, target, kl)
    assert loss.tolist() == pytest.approx([2.1, 0.82, 0.9])
    assert torch.autograd.grad(loss.sum(), logp)[0].tolist() == pytest.approx([2.0, 0.8, 0.0])


def test_at_the_policy_its_gradient_is_that_of_the_likelihood():
    theta = torch.randn(4, generator=seeded(), dtype=torch.float64).requires_grad_()
    action = torch.tensor([0, 0, 2, 3, 0])
    logp = theta.log_softmax(0)[action]
    loss = RobustSampling(penalty=0.0).loss(logp, logp.detach(), torch.zeros(5)).mean()
    mine, likelihood = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (loss, logp.mean()))
    torch.testing.assert_close(mine, likelihood)


def test_the_least_loss_is_where_its_docstring_says():
    part, left = RobustSampling(clip=1.0, penalty=0.2), []
    theta, away = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.3, 0.2], [-0.4, 0.6, -0.2]))
    for size in (0.02, 0.01):
        seen = theta + size * away
        phi = (theta.log() - (seen / theta) / 0.2).requires_grad_()
        logp = phi.log_softmax(0)
        kl = (logp.exp() * (logp - theta.log())).sum()
        slope = torch.autograd.grad(seen @ part.loss(logp, theta.log(), kl), phi)[0]
        torch.testing.assert_close(slope, torch.zeros_like(slope))  # and the loss is convex in phi
        together = (5 * seen + logp.detach().exp()) / 6  # five times as many data as the piece that follows
        left.append(float((together - theta).abs().max()))
    assert left[0] < 0.1 * 0.02 * 0.6 and left[0] / left[1] == pytest.approx(4, rel=0.1)  # of second order


@pytest.mark.parametrize("task", [ProbeObservation(), ProbeContinuous(), Pendulum()], ids=lambda t: t.part_name())
def test_without_a_buffer_or_pieces_it_is_ppo_to_the_bit(task):
    plain, run = trained(PPO, task)
    for part in (Buffered(batches=1), RobustSampling(batches=1, pieces=1)):
        policy, other = trained(PPO, task, behaviour=part)
        assert same(policy, plain)
        error = [row.pop("sampling_error") for row in other.metrics]
        assert other.metrics == run.metrics and min(error) > 0


def test_a_step_that_moves_nothing_is_ppo_with_the_same_buffer():
    task = ProbeObservation()
    plain, _ = trained(PPO, task, behaviour=Buffered(batches=2, pieces=2), lr=1e-3)
    still = RobustSampling(batches=2, pieces=2, lr=1e-30)
    policy, run = trained(PPO, task, behaviour=still, lr=1e-3)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(policy.state_dict()[name], weight, rtol=1e-3, atol=1e-5)
    assert run.metrics[-1]["behaviour_kl"] == pytest.approx(0.0, abs=1e-6)


def test_robust_on_policy_sampling_is_one_step_against_the_likelihood():
    part, task = recipe_of("ros").behaviour, ProbeObservation()
    policy, data = agent(task), []
    data.append(gather(PPO.but(**QUICK).settle(task, policy), policy, task, Generators(0), 1)[0])
    phi = part.fresh()
    phi._held["watched"] = []
    weights = phi.adapted(policy, data, seeded())
    assert phi._held["watched"][0][1] == 1 and not any(name.startswith("critic") for name in weights)
    likelihood = policy.evaluate(data[0]).logp.mean()
    names = [n for n, p in policy.trainable().items() if n.startswith("actor")]
    slopes = torch.autograd.grad(likelihood, [policy.trainable()[n] for n in names])
    moved = [(weights[n] - policy.trainable()[n]).detach() for n in names]
    assert sum(float((m * s).sum()) for m, s in zip(moved, slopes, strict=True)) < 0
    with policy.using(weights):  # and the data are less likely than they were
        assert policy.evaluate(data[0]).logp.mean() < likelihood


def two_actions(count):
    """Steps of ProbeObservation at observation 1 with `count` times action 1, then action 0 for the rest of 20."""
    action = (torch.arange(20) < count).long()[:, None]
    return Batch(mask=torch.ones(20, 1, dtype=torch.bool), inputs={"obs": torch.ones(20, 1, 1), "action": action})


@pytest.mark.parametrize(("count", "sign"), [(2, 1), (18, -1), (10, 0)])
def test_actions_that_are_rare_in_the_data_become_likelier(count, sign):
    policy, part = agent(ProbeObservation()), RobustSampling(penalty=0.2, lr=1e-2, epochs=16, minibatches=1)
    with torch.no_grad():
        policy.module.actor[-1].weight.zero_()  # one half each
    part._held["watched"] = []
    before = {n: w.clone() for n, w in policy.state_dict().items()}
    with policy.using(part.adapted(policy, [two_actions(count)], seeded())):
        chance = float(policy.head(torch.ones(1, 1)).softmax(-1)[0, 1])
    assert (chance - 0.5) * sign > 0.05 if sign else chance == pytest.approx(0.5, abs=1e-3)
    assert all(torch.equal(w, before[n]) for n, w in policy.state_dict().items())


def test_it_stops_at_its_distance():
    policy = agent(ProbeObservation())
    steps = []
    for limit in (1e-3, 1e-2, math.inf):
        part = RobustSampling(target_kl=limit, penalty=0.0, clip=1.0, lr=1e-2, epochs=8, minibatches=1)
        part._held["watched"] = []
        part.adapted(policy, [two_actions(3)], seeded())
        kl, count = part._held["watched"][0]
        assert (count == 8) == (kl <= limit)
        steps.append(count)
    assert steps[0] < steps[1] < steps[2] == 8


def test_the_price_is_the_divergence_from_the_policy():
    task, seen = ProbeObservation(), []

    class Recorded(RobustSampling):
        def loss(self, logp, target, kl):
            seen.append(kl.detach())
            return super().loss(logp, target, kl)

    policy, data = agent(task), [two_actions(3)]
    changes = dict(minibatches=1, lr=0.1, target_kl=math.inf)
    for part in (once := RobustSampling(epochs=1, **changes)), (twice := Recorded(epochs=2, **changes)):
        part._held["watched"] = []
    with torch.no_grad():
        theta = policy.distribution(data[0])
    with policy.using(once.adapted(policy, data, seeded())):
        phi = policy.distribution(data[0])
    twice.adapted(policy, data, seeded())
    torch.testing.assert_close(seen[0], torch.zeros(20, 1))
    torch.testing.assert_close(seen[1], distributions.kl(policy.space, phi, theta))
    assert not torch.allclose(seen[1], distributions.kl(policy.space, theta, phi), rtol=1e-3)


def test_pieces_in_time_have_the_advantages_of_one_segment():
    task, policy = Cartpole(), agent(Cartpole())
    live = {"envs": task.envs(task.problems(6, seeded()), seeded(1))}
    pieces = [segment(policy, live, 16, seeded(i), {"value"}) for i in range(3)]
    whole, credit = in_time(pieces), GAE(0.9, 0.8)
    assert whole.mask.shape == (6, 48) and bool((whole.terminated | whole.truncated).any())
    true = torch.cat([p.bootstrap for p in pieces], 1)
    after = torch.cat((whole.value[:, 1:], true[:, -1:]), 1) * ~(whole.terminated | whole.truncated)
    after = torch.where(whole.truncated, true, after)
    after[:, -1] = true[:, -1]
    delta = whole.reward + 0.9 * after - whole.value
    advantage, running = torch.zeros_like(delta), torch.zeros(6)
    for t in reversed(range(48)):
        running = delta[:, t] + 0.72 * running * ~(whole.terminated | whole.truncated)[:, t]
        advantage[:, t] = running
    torch.testing.assert_close(credit(whole), advantage)
    assert in_time(pieces[:1]) is pieces[0]


def test_what_is_learnt_from_is_taken_for_the_policys_own():
    task, recipe = Cartpole(), PPO.but(**QUICK, behaviour=Buffered(batches=3))
    policy, rng = agent(task), Generators(0)
    recipe = recipe.settle(task, policy).fresh()
    for step in range(1, 6):
        batch, seen, metrics = gather(recipe, policy, task, rng, step)
        held = min(step, 3)
        assert batch.age.tolist() == [age for age in range(held) for _ in range(8)] and len(seen) == 8
        assert metrics["steps"] == 64.0
        out = policy.evaluate(batch)
        torch.testing.assert_close(batch.logp, out.logp.detach())
        torch.testing.assert_close(batch.value, out.value.detach())
        torch.testing.assert_close(batch.advantage, recipe.credit(batch))
        torch.testing.assert_close(batch.returns, batch.advantage + batch.value)
        with torch.no_grad():
            for weight in policy.trainable().values():
                weight.add_(0.02)


def test_data_look_more_on_policy_than_on_policy_data():
    world = Gridworld(layout="open")
    policy, found = agent(world, hidden=(32,), value=False), {}
    for part in (Buffered(batches=2, pieces=4), RobustSampling(batches=2, pieces=4)):
        rng, errors, part = seeded(3), [], part.fresh()
        live = {"envs": world.envs(world.problems(8, rng), rng)}
        for step in range(1, 7):
            fresh = part.collect(lambda live=live, rng=rng: segment(policy, live, 16, rng, set()), policy, step, rng)
            batch = part.mix(fresh, step, rng).steps()
            state = torch.unique(batch.inputs["obs"][:, 0], dim=0, return_inverse=True)[1]
            logp = policy.evaluate(batch).logp.detach()[:, 0]
            errors.append(float(tabular(state, batch.inputs["action"][:, 0], logp)))
        found[type(part)] = sum(errors[1:]) / len(errors[1:])
    assert found[RobustSampling] < 0.75 * found[Buffered]


def test_the_exact_gradient_is_what_many_walks_give():
    world = Gridworld(layout="corridor", max_steps=1_000_000)
    policy = agent(world, hidden=(8,), value=False)
    exact, advantage = surrogate(policy, world, 10, 0.9)
    envs = world.envs(world.problems(6000, seeded()), seeded(1))
    total, rng = torch.zeros(()), seeded(2)
    for _ in range(10):
        state, head = envs.state, policy.head(envs.obs)
        noise = distributions.noise(policy.space, (6000,), rng, torch.device("cpu"))
        action = distributions.draw(policy.space, head.detach(), None, noise)
        logp = head.double().log_softmax(1).gather(1, action[:, None])[:, 0]
        total = total + (advantage[state, action] * logp).mean() / 10
        envs.step(action)
    slopes = torch.autograd.grad(total, list(policy.module.actor.parameters()))
    estimate = torch.cat([g.flatten() for g in slopes])
    assert float((estimate - exact).norm() / exact.norm()) < 0.1
    p = policy.head(world.tables.features).double().softmax(1)
    torch.testing.assert_close((p * advantage).sum(1), torch.zeros(len(p), dtype=torch.float64))


def test_the_gradient_is_nearer_to_the_exact_one():
    sized = dict(environments=8, steps=16, pieces=4, repeats=3)
    assert gradient_error("treatment", 1000, **sized) < gradient_error("control", 1000, **sized)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_the_measured_error_does_not_depend_on_the_order_of_rows(seed):
    task, part = ProbeContinuous(), Buffered(batches=1)
    policy = agent(task, seed=seed % 7, hidden=(4,))
    recipe = PPO.but(**QUICK).settle(task, policy).fresh()
    batch = gather(recipe, policy, task, Generators(seed), 1)[0]
    order = torch.randperm(len(batch), generator=seeded(seed))
    one, other = part.watch(policy, batch), part.watch(policy, batch[order])
    assert one["sampling_error"] == pytest.approx(other["sampling_error"], abs=1e-6)


def test_it_goes_on_from_a_checkpoint():
    task = Cartpole()
    policy, rng = agent(task), Generators(0)
    recipe = PPO.but(**QUICK, behaviour=RobustSampling(batches=3, pieces=2)).settle(task, policy).fresh()
    for step in range(1, 4):
        gather(recipe, policy, task, rng, step)
    part, tensors = recipe.behaviour, {}
    structure = flatten(part.state_dict(), tensors)
    again = RobustSampling(batches=3, pieces=2).fresh()
    again.load_state_dict(restore(structure, tensors))
    assert len(again._past) == 2
    for held in (part, again):
        held._held["watched"] = []
    one, other = part.adapted(policy, part._past, seeded(5)), again.adapted(policy, again._past, seeded(5))
    assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    ("name", "task"),
    [("props", ProbeDelayed()), *((name, ProbeObservation()) for name in ("props", "ros", "ppo_buffer", "ppo_fresh"))],
)
def test_the_best_action_is_found(name, task):
    recipe = recipe_of(name)
    fewer = recipe.behaviour.but(pieces=2)
    policy, run = trained(recipe, task, batch_size=16, steps=14, credit=GAE(1.0, 0.95), behaviour=fewer)
    obs = task.observe(task.problems(32, seeded(9)))
    chance = policy.head(obs).detach().softmax(-1).gather(1, task.optimal_action(obs)[:, None])
    assert float(chance.min()) > 0.85
    assert all(math.isfinite(row["sampling_error"]) for row in run.metrics if "sampling_error" in row)
    assert ("behaviour_kl" in run.metrics[-1]) == (name in ("props", "ros"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"batches": 0}, "batches"),
        ({"pieces": 0}, "pieces"),
        ({"measure": "exact"}, "measure"),
        ({"clip": 0.0}, "clip"),
        ({"clip": 1.1}, "clip"),
        ({"penalty": -0.1}, "penalty"),
        ({"target_kl": 0.0}, "target_kl"),
        ({"target_kl": math.nan}, "target_kl"),
        ({"lr": 0.0}, "lr"),
        ({"max_grad_norm": math.inf}, "max_grad_norm"),
        ({"epochs": 0}, "epochs"),
        ({"minibatches": 0}, "minibatches"),
    ],
)
def test_settings_out_of_range_name_the_field(change, field):
    with pytest.raises(UserError, match=rf"behaviour\.{field}: expected .*, got") as told:
        RobustSampling(**change)
    assert "\n" not in str(told.value)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UserError, match="use --rollout segments"):
        trained(recipe_of("props"), Cartpole(), rollout=Sample())
    with pytest.raises(UserError, match=r"behaviour\.measure: .*use --behaviour\.measure fitted"):
        trained(PPO, Pendulum(), behaviour=Buffered(measure="tabular"))
