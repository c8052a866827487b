"""TRPO: the surrogate, exact divergences, and a step that is the natural gradient held to its limit."""

import math

import pytest
import torch
from surrogates import case, drawn, gradient

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.spaces import Box, Discrete, MultiDiscrete
from partita.estimators.trust_region import flatten
from partita.loops.descent import evaluated
from partita.loops.learner import Learner
from partita.loops.on_policy import gather, train
from partita.loops.run import Generators, Run
from partita.loops.update import minibatches, remembered
from partita.papers.baselines.ppo import PPO
from partita.papers.baselines.trpo import TRPO, Surrogate, TrustRegion, divergence
from partita.parts.credit import GAE
from partita.parts.objective import ClippedSurrogate, Reinforce
from partita.parts.rollout import Segments
from partita.policies import distributions
from partita.policies.actor_critic import ActorCritic
from partita.policies.language import LanguagePolicy
from partita.tasks.control.classic import Pendulum
from partita.tasks.control.probes import ProbeAction, ProbeContinuous, ProbeDelayed, ProbeObservation
from partita.tasks.language.arithmetic import Arithmetic

SPACES = [Discrete(4), MultiDiscrete((2, 3)), Box(2, (-1.0,) * 2, (1.0,) * 2)]
SMALL = TRPO.but(rollout=Segments(steps=16), batch_size=16, steps=15, lr=1e-2)


# ----- the surrogate


def test_surrogate_and_gradient_by_hand():
    out, batch = case([[2.0, 0.5]], [[3.0, -4.0]])
    assert Surrogate()(out, batch).tolist() == [pytest.approx([-6.0, 2.0])]
    assert gradient(Surrogate(), out, batch).tolist() == [pytest.approx([-6.0, 2.0])]  # dw / dlogp = w


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_has_moved_its_gradient_is_that_of_reinforce_and_of_the_clipped_one(seed):
    out, batch = drawn(seed, on_policy=True)
    mine = gradient(Surrogate(), out, batch)
    torch.testing.assert_close(mine, gradient(Reinforce(), out, batch))
    torch.testing.assert_close(mine, gradient(ClippedSurrogate(), out, batch))


# ----- divergences


def test_divergences_by_hand():
    p, q = torch.tensor([0.5, 0.25, 0.25]).log().double(), torch.tensor([0.25, 0.5, 0.25]).log().double()
    assert float(distributions.kl(Discrete(3), p + 7.0, q)) == pytest.approx(0.25 * math.log(2))
    # m 1 and 3, s 1 and 2: log 2 + (1 + 4) / 8 - 1/2; the other way -log 2 + (4 + 4) / 2 - 1/2.
    one, two = torch.tensor([1.0, 0.0]).double(), torch.tensor([3.0, math.log(2)]).double()
    box = Box(1, (-1.0,), (1.0,))
    assert float(distributions.kl(box, one, two)) == pytest.approx(math.log(2) + 0.125)
    assert float(distributions.kl(box, two, one)) == pytest.approx(3.5 - math.log(2))


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_divergences_are_those_of_torch(space):
    g = torch.Generator().manual_seed(3)
    heads = [torch.randn(5, 7, distributions.size(space), generator=g, dtype=torch.float64) for _ in range(2)]
    stds = [torch.randn(distributions.size(space), generator=g, dtype=torch.float64) for _ in range(2)]
    p, q = (distributions.parameters(space, h, s) for h, s in zip(heads, stds, strict=True))
    if isinstance(space, Box):
        theirs = [torch.distributions.Normal(h, s.exp()) for h, s in zip(heads, stds, strict=True)]
        wanted = torch.distributions.kl_divergence(*theirs).sum(-1)
    else:
        choices = [space.n] if isinstance(space, Discrete) else list(space.choices)
        pieces = zip(*(h.split(choices, -1) for h in heads), strict=True)
        of = torch.distributions.Categorical
        wanted = sum(torch.distributions.kl_divergence(of(logits=a), of(logits=b)) for a, b in pieces)
    torch.testing.assert_close(distributions.kl(space, p, q), wanted)
    assert not distributions.kl(space, p, p).any()


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_the_policy_compares_itself_with_what_it_was(space):
    policy = ActorCritic(hidden=(8,)).build(_Fake(space), True, torch.Generator().manual_seed(0))
    obs = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    noise = distributions.noise(space, (3, 4), torch.Generator().manual_seed(2), torch.device("cpu"))
    mask = torch.arange(4) < torch.tensor([4, 2, 1])[:, None]
    with torch.no_grad():
        batch = Batch(mask=mask, inputs={"obs": obs, "action": policy.act(obs, noise)})
        old = policy.distribution(batch)
        batch = batch.but(inputs={**batch.inputs, "old": old})
        still = policy.evaluate(batch)
        assert not still.forward_kl.any() and not still.reverse_kl.any()
        for parameter in policy.trainable().values():
            parameter += 0.3
        out, now = policy.evaluate(batch), policy.distribution(batch)
    torch.testing.assert_close(out.forward_kl, distributions.kl(space, old, now) * mask)
    torch.testing.assert_close(out.reverse_kl, distributions.kl(space, now, old) * mask)
    assert bool((out.forward_kl[mask] > 0).all()) and not torch.equal(out.forward_kl, out.reverse_kl)


class _Fake:
    observation_shape = (5,)

    def __init__(self, space):
        self.action_space = space


# ----- the step


def before_a_step(task, hidden=(4,), **changes):
    """A policy in float64, its learner, a minibatch with gradients of its loss, and the way to compute it again."""
    recipe = SMALL.but(optimiser=TrustRegion(**changes)).settle(task).fresh()
    policy = ActorCritic(hidden=hidden).build(task, True, torch.Generator().manual_seed(1))
    batch = gather(recipe, policy, task, Generators(0), 1)[0].but()
    batch = batch.but(weight=recipe.focus(batch))
    policy.module.double()
    batch = Batch(**{k: _double(v) for k, v in vars(batch).items()})
    with torch.no_grad():
        batch = batch.but(logp=policy.evaluate(batch).logp)
    batch = next(iter(minibatches(recipe, policy, remembered(recipe, policy, batch), Generators(0))))[0]
    weights = recipe.aggregate(batch).double()

    def again():
        return evaluated(recipe, policy, batch, weights)

    again()[0].backward()
    learner = Learner(policy.trainable(), 1e-2, "constant", 0, 10, 0.5, 0.0, (0.9, 0.999), 1e-5)
    learner.begin(1)
    return recipe.optimiser, policy, learner, batch, again


def _double(x):
    if isinstance(x, dict):
        return {k: _double(v) for k, v in x.items()}
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def actors(policy):
    return [p for n, p in policy.trainable().items() if not n.startswith("critic")]


@pytest.mark.parametrize("task", [ProbeObservation(), ProbeContinuous()], ids=lambda t: t.part_name())
def test_the_direction_is_the_natural_gradient_and_the_length_that_of_the_model(task):
    part, policy, learner, batch, again = before_a_step(task, max_kl=1e-6, damping=0.01, cg_steps=200, backtracks=60)
    mine = actors(policy)
    g = flatten([p.grad for p in mine])
    slopes = flatten(torch.autograd.grad(divergence(again()[1], batch), mine, create_graph=True))
    rows = [flatten(torch.autograd.grad(s, mine, retain_graph=True, materialize_grads=True)) for s in slopes]
    fisher = torch.stack(rows) + 0.01 * torch.eye(len(g), dtype=torch.float64)
    x = torch.linalg.solve(fisher, g)
    wanted = -(2e-6 / (x @ fisher @ x)).sqrt() * x
    start = flatten([p.detach() for p in mine])
    notes = part(learner, batch, again)
    moved = flatten([p.detach() for p in mine]) - start
    torch.testing.assert_close(moved, wanted * float(notes["step_share"]), rtol=1e-3, atol=5e-7)
    assert float(notes["step_share"]) == 1.0
    assert float(notes["step_kl"]) == pytest.approx(1e-6, rel=0.02) or float(notes["step_kl"]) < 1e-6


@pytest.mark.parametrize("max_kl", [1e-3, 0.3, 3.0])
def test_the_loss_falls_and_the_divergence_keeps_its_limit(max_kl):
    part, policy, learner, batch, again = before_a_step(ProbeContinuous(), max_kl=max_kl, damping=1e-4)
    critic = {n: p.detach().clone() for n, p in policy.trainable().items() if n.startswith("critic")}
    before = float(again()[0].detach())
    notes = part.but(critic_steps=1)(learner, batch, again)
    with torch.no_grad():
        for name, value in critic.items():  # the policy's share of the loss alone
            policy.trainable()[name].copy_(value)
        loss, out = again()
    assert float(loss) < before and 0 < float(notes["step_share"]) <= 1
    assert float(divergence(out, batch)) == pytest.approx(float(notes["step_kl"]))
    assert 0 < float(notes["step_kl"]) <= max_kl


def test_a_step_that_is_never_accepted_leaves_the_policy_where_it_was():
    part, policy, learner, batch, again = before_a_step(ProbeContinuous(), backtracks=3)
    start, critic = flatten([p.detach() for p in actors(policy)]).clone(), policy.module.critic[0].weight.clone()
    for p in actors(policy):
        p.grad = -p.grad  # up, where the loss never falls
    notes = part(learner, batch, again)
    assert float(notes["step_share"]) == 0.0 == float(notes["step_kl"])
    assert torch.equal(flatten([p.detach() for p in actors(policy)]), start)
    assert not torch.equal(policy.module.critic[0].weight, critic)  # which learns all the same


def test_the_critic_takes_steps_of_adam_that_the_policy_does_not_see():
    stepped, losses = {}, {}
    for count in (1, 5):
        part, policy, learner, batch, again = before_a_step(ProbeObservation(), critic_steps=count)
        part(learner, batch, again)
        stepped[count] = flatten([p.detach() for p in actors(policy)])
        assert {int(m["step"]) for m in learner.moments.values()} == {count}
        losses[count] = float(again()[0].detach())
        assert set(learner.moments) == {n for n in policy.trainable() if n.startswith("critic")}
    assert torch.equal(stepped[1], stepped[5])
    assert losses[5] < losses[1]
    assert all(p.grad is None for p in policy.trainable().values())


def test_nothing_moves_on_a_gradient_that_is_not_finite():
    part, policy, learner, batch, again = before_a_step(ProbeObservation())
    start = flatten([p.detach() for p in policy.trainable().values()]).clone()
    policy.module.actor[0].bias.grad[0] = float("nan")
    assert not bool(part(learner, batch, again)["grad_norm"].isfinite())
    assert torch.equal(flatten([p.detach() for p in policy.trainable().values()]), start)


@pytest.mark.parametrize("scale", [1e-2, 1e2])
def test_the_scale_of_advantages_does_not_change_the_step(scale):
    moved = []
    for factor in (1.0, scale):
        part, policy, learner, batch, again = before_a_step(ProbeObservation(), damping=0.0, cg_steps=60)
        start = flatten([p.detach() for p in actors(policy)]).clone()
        for p in actors(policy):
            p.grad = p.grad * factor
        part(learner, batch, again)
        moved.append(flatten([p.detach() for p in actors(policy)]) - start)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=1e-7)


# ----- in the loop


def test_every_update_of_a_run_keeps_the_limit():
    policy, run = ActorCritic(hidden=(8,)).build(Pendulum(), True, torch.Generator().manual_seed(0)), Run(0)
    train(SMALL.but(steps=4), policy, Pendulum(), run)
    assert all(0 < row["step_kl"] <= 0.01 and 0 < row["step_share"] <= 1 for row in run.metrics)


@pytest.mark.parametrize("task", [ProbeAction(), ProbeObservation(), ProbeDelayed()], ids=lambda t: t.part_name())
def test_the_best_action_is_found(task):
    policy = ActorCritic(hidden=(16,)).build(task, True, torch.Generator().manual_seed(0))
    part = TrustRegion(max_kl=0.2, critic_steps=4)
    train(SMALL.but(credit=GAE(1.0, 0.95), optimiser=part, steps=15), policy, task, Run(0))
    obs = task.observe(task.problems(64, torch.Generator().manual_seed(9)))
    with torch.no_grad():
        logp, _ = distributions.logp_entropy(policy.space, policy.head(obs), None, task.optimal_action(obs))
    assert float(logp.exp().min()) > 0.9


def test_real_valued_actions_are_found():
    task = ProbeContinuous()
    policy = ActorCritic(hidden=(16,)).build(task, True, torch.Generator().manual_seed(0))
    train(SMALL.but(optimiser=TrustRegion(max_kl=0.1, critic_steps=4), steps=40), policy, task, Run(0))
    obs = task.observe(task.problems(64, torch.Generator().manual_seed(9)))
    assert (policy.act(obs, None) - task.optimal_action(obs)).detach().abs().mean() < 0.12


# ----- refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_kl", 0.0), ("max_kl", math.inf), ("damping", -1.0), ("cg_steps", 0), ("backtracks", 0), ("decay", 1.0),
     ("decay", 0.0), ("critic_steps", 0)],
)  # fmt: skip
def test_settings_out_of_range_name_the_field(field, value):
    with pytest.raises(UserError, match=rf"optimiser\.{field}: expected .* got"):
        TrustRegion(**{field: value})


def test_several_updates_of_a_batch_are_refused():
    policy = ActorCritic().build(ProbeAction(), True, torch.Generator())
    for changes in ({"epochs": 2}, {"minibatches": 2}):
        with pytest.raises(UserError, match="one step on a whole batch; use --epochs 1 --minibatches 1"):
            SMALL.but(**changes).check(ProbeAction(), policy)
    with pytest.raises(UserError, match="micro_batch: optimiser trust_region looks at a whole minibatch"):
        SMALL.but(micro_batch=8).check(ProbeAction(), policy)


def test_language_is_refused_by_recipe_and_by_policy():
    with pytest.raises(UserError, match="optimiser: trust_region works in control, and task arithmetic is language"):
        PPO.but(optimiser=TrustRegion(), epochs=1, minibatches=1).check(Arithmetic(), None)
    with pytest.raises(UserError, match="LanguagePolicy says no whole action distributions"):
        LanguagePolicy.distribution(LanguagePolicy.__new__(LanguagePolicy), Batch(mask=torch.ones(1, 1).bool()))
