"""PMOE: both losses by hand, who is taught what, one expert as SAC, the relaxed control, and several optima."""

import math
from types import SimpleNamespace

import pytest
import torch

from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.core.transitions import Transitions
from partita.loops.replay import train
from partita.loops.run import Generators, Run
from partita.papers.online.pmoe import BestExpert, GumbelMixture, distinct
from partita.papers.online.sac import SAC
from partita.parts.actor import SoftActor
from partita.parts.temperature import FixedTemperature
from partita.policies.feed_forward import FeedForward
from partita.policies.mixture import Mixture
from partita.tasks.control.classic import Cartpole
from partita.tasks.control.probes import ProbeContinuous
from partita.tasks.control.room import RoundRoom


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


class Table:
    """An agent of given numbers h (N, size) and noise, whose critics are functions of actions (N, 1)."""

    def __init__(self, h, noise, critics, experts, alpha=0.5):
        self.h, self.critics, self.alpha, self.generator = h, critics, row(alpha)[0], None
        self.policy = SimpleNamespace(shape=Mixture(experts=experts), noise=lambda shape, generator: noise)

    def head(self, obs):
        return self.h

    def q(self, obs, action):
        return torch.stack([critic(action[:, 0]) for critic in self.critics])


def batch_of(n, weight=None):
    nothing = torch.zeros(n, 1, dtype=torch.float64)
    return Transitions(nothing, nothing, nothing[:, 0], nothing, nothing[:, 0], weight)


def case(seed=0, n=6, experts=3, alpha=0.5):
    g = torch.Generator().manual_seed(seed)
    h = (0.5 * torch.randn(n, 3 * experts, generator=g, dtype=torch.float64)).requires_grad_()
    noise = torch.cat((torch.randn(n, experts, generator=g), torch.rand(n, experts, generator=g) + 0.1), 1).double()
    return Table(h, noise, [lambda a: torch.sin(5 * a), lambda a: torch.cos(3 * a)], experts, alpha)


def test_losses_by_hand():
    # Noise 0 and deviations 1: actions tanh(0.5) and tanh(-1), worth min(a, 1) and so the first is the best.
    # log pi_1 = -log(2 pi) / 2 - log(1 - tanh(0.5)^2) = -0.9189385 + 0.2402290; the gate is (1/4, 3/4).
    h = row([0.5, -1.0, 0.0, 0.0, 0.0, math.log(3.0)])
    agent = Table(h, row([0.0, 0.0, 1.0, 1.0]), [lambda a: a, lambda a: a * 0 + 1], experts=2)
    loss, notes = BestExpert(weight=2.0)(agent, batch_of(1))
    logp, other = -0.9189385 + 0.2402290, -0.9189385 + 0.8675616
    frequency = ((0.25 - 1) ** 2 + 0.75**2) / 2
    assert float(notes["frequency_loss"]) == pytest.approx(frequency) and float(notes["entropy"]) == pytest.approx(
        -logp
    )
    assert float(loss) == pytest.approx(0.5 * logp - math.tanh(0.5) + 2 * frequency, abs=1e-6)
    every, _ = BestExpert(through="all", weight=0.0)(agent, batch_of(1))
    assert float(every) == pytest.approx(0.5 * (logp + other) - math.tanh(0.5) - math.tanh(-1.0), abs=1e-6)


def test_the_least_of_the_critics_decides_who_is_best():
    h = row([0.5, -1.0, 0.0, 0.0, 0.0, 0.0])
    agent = Table(h, row([0.0, 0.0, 1.0, 1.0]), [lambda a: a, lambda a: -9 * a - 9], experts=2)
    _, notes = BestExpert()(agent, batch_of(1))  # min: -13.2 and -2.1
    assert float(notes["entropy"]) == pytest.approx(0.9189385 - 0.8675616, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_values_reach_the_best_expert_and_frequencies_the_gate(seed):
    agent = case(seed)
    whole = torch.autograd.grad(BestExpert()(agent, batch_of(6))[0], agent.h)[0]
    values = torch.autograd.grad(BestExpert(weight=0.0)(agent, batch_of(6))[0], agent.h)[0]
    every = torch.autograd.grad(BestExpert(weight=0.0, through="all")(agent, batch_of(6))[0], agent.h)[0]
    head = agent.policy.shape
    with torch.no_grad():
        action = head.each(agent.h, agent.policy.noise(None, None))[0]
        best = agent.q(None, action.view(-1, 1)).amin(0).view(6, 3).argmax(1)
        wanted = torch.nn.functional.one_hot(best, 3).double()
        w = head.gate(agent.h).exp()
        error = 2 * (w - wanted) / 18  # of the mean over 6 states and 3 experts
        gate = w * (error - (w * error).sum(1, keepdim=True))
    assert not values[:, -3:].any()
    torch.testing.assert_close(whole[:, -3:], gate)
    torch.testing.assert_close(whole[:, :-3], values[:, :-3])
    mask = wanted.repeat(1, 2)
    assert not values[:, :-3][mask == 0].any() and bool((values[:, :-3][mask == 1] != 0).all())
    torch.testing.assert_close(values[:, :-3], every[:, :-3] * mask)
    assert bool((every[:, :-3] != 0).all())


def test_the_gradient_of_a_value_is_that_of_sac_for_the_best_expert():
    agent = case(4, n=1)
    found = torch.autograd.grad(BestExpert(weight=0.0)(agent, batch_of(1))[0], agent.h)[0]
    h = agent.h.detach()

    def loss(h):
        return BestExpert(weight=0.0)(Table(h, agent.policy.noise(None, None), agent.critics, 3), batch_of(1))[0]

    for i in range(6):
        step = torch.zeros_like(h)
        step[0, i] = 1e-6
        rise = (loss(h + step) - loss(h - step)) / 2e-6
        assert float(found[0, i]) == pytest.approx(float(rise), abs=1e-6)


def test_frequencies_teach_the_chance_of_being_best():
    # Means 0 and 0.3, deviations 1: the second of two has the larger action with chance Phi(0.3 / sqrt 2).
    n, g = 20_000, torch.Generator().manual_seed(0)
    h = row([0.0, 0.3, 0.0, 0.0]).expand(n, -1)
    noise = torch.cat((torch.randn(n, 2, generator=g), torch.ones(n, 2)), 1).double()
    gate = row(0.0, 0.0).requires_grad_()
    for _ in range(60):
        agent = Table(torch.cat((h, gate.expand(n, -1)), 1), noise, [lambda a: a], experts=2)
        slope = torch.autograd.grad(BestExpert()(agent, batch_of(n))[0], gate)[0]
        with torch.no_grad():
            gate -= 4 * slope
    assert float(gate.detach().softmax(0)[1]) == pytest.approx(0.5 * (1 + math.erf(0.15)), abs=0.01)


def test_order_of_states_and_of_experts():
    agent, order = case(2), torch.tensor([3, 1, 5, 0, 2, 4])
    noise, part = agent.policy.noise(None, None), BestExpert()
    loss = part(agent, batch_of(6))[0]
    moved = Table(agent.h[order], noise[order], agent.critics, 3)
    torch.testing.assert_close(part(moved, batch_of(6))[0], loss)
    turn = torch.tensor([2, 0, 1])
    other = agent.h.unflatten(1, (3, 3))[:, :, turn].flatten(1), noise.unflatten(1, (2, 3))[:, :, turn].flatten(1)
    torch.testing.assert_close(part(Table(*other, agent.critics, 3), batch_of(6))[0], loss)
    doubled = part(agent, batch_of(6, torch.full((6,), 2.0, dtype=torch.float64)))[0]
    torch.testing.assert_close(doubled, 2 * loss)


def learnt(recipe, task, experts, steps=1, updates=40, hidden=(16,), **changes):
    recipe = recipe.but(**{"steps": steps, "updates": updates, "batch_size": 32, "start": 40, **changes})
    run = Run(3)
    policy = recipe.equip(FeedForward(hidden=hidden, experts=experts), task)
    policy = policy.build(task, False, run.generators["init"])
    train(recipe, policy, task, run)
    return policy, run


@pytest.mark.parametrize("name", ["pmoe", "pmoe_all", "moe_gumbel"])
def test_one_expert_is_sac_to_the_bit(name):
    task = RoundRoom(max_steps=10)
    mine, run = learnt(recipe_of(name), task, experts=1)
    plain, other = learnt(SAC, task, experts=1)
    first, second = mine.state_dict(), plain.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
    assert {n: v for n, v in run.metrics[-1].items() if n != "frequency_loss"} == other.metrics[-1]


def test_recipes_change_the_actor_alone():
    assert recipe_of("pmoe").but(actor=SoftActor()) == recipe_of("moe_gumbel").but(actor=SoftActor()) == SAC


def test_the_relaxed_loss_is_that_of_sac_at_the_drawn_action():
    agent = case(1)
    head, noise = agent.policy.shape, agent.policy.noise(None, None)
    loss, notes = GumbelMixture(temperature=0.5)(agent, batch_of(6))
    action, logp = head.draw(agent.h, noise)
    torch.testing.assert_close(loss, (0.5 * logp - agent.q(None, action).amin(0)).mean())
    torch.testing.assert_close(notes["entropy"], -logp.mean().detach())
    assert bool((torch.autograd.grad(loss, agent.h)[0][:, -3:] != 0).all())


def spread(means, log_std):
    """A policy with these means of experts (K,) everywhere and one deviation."""
    policy = FeedForward(hidden=(4,), head="mixture", experts=len(means))
    policy = policy.build(ProbeContinuous(), False, Generators(0)["init"])
    with torch.no_grad():
        for weight in policy.module.actor.parameters():
            weight.zero_()
        policy.module.actor.biases[-1].copy_(torch.tensor([*means, *[log_std] * len(means)])[None, None])
    return policy


def test_experts_are_as_distinct_as_their_actions_tell_them_apart():
    obs, g = torch.zeros(500, 1), torch.Generator().manual_seed(0)
    assert distinct(spread([0.2] * 3, 0.0), obs, g) == pytest.approx(0.0, abs=1e-5)
    assert distinct(spread([-1.0, 0.0, 1.0], -5.0), obs, g) == pytest.approx(math.log(3), abs=1e-5)
    assert distinct(spread([-1.0, 1.0, 1.0], -5.0), obs, g) == pytest.approx(
        math.log(3) / 3 + 2 / 3 * math.log(1.5), abs=1e-5
    )


@pytest.mark.parametrize("name", ["pmoe", "moe_gumbel"])
def test_learns_the_best_real_valued_action(name):
    task, obs = ProbeContinuous(gain=0.8), torch.linspace(-1, 1, 21)[:, None]
    policy, _ = learnt(
        recipe_of(name), task, 3, updates=400, hidden=(32,), batch_size=64, lr=5e-3, start=200,
        temperature=FixedTemperature(0.02),
    )  # fmt: skip
    with torch.no_grad():
        assert float((policy.act(obs, None) - task.optimal_action(obs)).square().mean()) < 0.02


def test_settings_out_of_range_name_the_field():
    for part, changes, field in (
        (BestExpert, {"through": "some"}, "through"), (BestExpert, {"weight": -1.0}, "weight"),
        (BestExpert, {"delay": 0}, "delay"), (GumbelMixture, {"temperature": 0.0}, "temperature"),
        (GumbelMixture, {"delay": 0}, "delay"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"actor\.{field}: expected .* got"):
            part(**changes)


def test_what_cannot_work_is_refused():
    pmoe, room = recipe_of("pmoe"), RoundRoom()
    with pytest.raises(UserError, match="actor: best_expert teaches policies that are mixture, and task cartpole has"):
        pmoe.equip(FeedForward(hidden=(8,)), Cartpole())
    plain = pmoe.equip(FeedForward(hidden=(8,), head="squashed"), room).build(room, False, Generators(0)["init"])
    with pytest.raises(UserError, match=r"policy\.head: squashed is none that best_expert teaches"):
        pmoe.settle(room).check(room, plain)
