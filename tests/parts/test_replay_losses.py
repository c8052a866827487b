"""Critics, values, actors and regularisers of the replay loop: each equation by hand, and what promises to be equal."""

import math

import pytest
import torch

import agents
from partita.core.errors import UserError
from partita.parts.actor import Clone, DeterministicActor, SoftActor, WeightedClone
from partita.parts.critic import ClippedDoubleQ, FromValue, GreedyQ, SoftQ
from partita.parts.penalty import Conservative, Diversity, NearData
from partita.parts.value import Expectile, Gumbel


def close(a, b):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=1e-9, atol=1e-12)


def again(agent):
    agent.generator.manual_seed(0)
    return agent


# -- critics ------------------------------------------------------------------------------------------------------


def test_soft_q_by_hand():
    agent, batch = agents.agent(), agents.transitions()
    loss, notes = SoftQ()(agent, batch)
    action, logp = again(agent).draw(batch.next_obs)
    least = torch.minimum(*agent.q(batch.next_obs, action, lagged=True))
    target = batch.reward + batch.discount * (least - 0.3 * logp)
    q = agent.q(batch.obs, batch.action)
    close(loss, ((q[0] - target) ** 2).mean() + ((q[1] - target) ** 2).mean())
    close(notes["error"], ((q[0] - target).abs() + (q[1] - target).abs()) / 2)
    close(target[1].detach(), batch.reward[1])  # it has terminated


def test_soft_q_on_discrete_actions_is_the_exact_expectation():
    agent, batch = agents.agent(discrete=True), agents.transitions(discrete=True)
    chance = agent.policy.head(batch.next_obs).softmax(-1)
    least = agent.q(batch.next_obs, lagged=True).min(0).values
    value = (chance * (least - 0.3 * chance.log())).sum(-1)
    close(SoftQ().target(agent, batch), batch.reward + batch.discount * value)


def test_weights_count_and_a_weight_of_one_changes_nothing():
    agent, batch = agents.agent(discrete=True), agents.transitions(discrete=True)
    plain = SoftQ()(agent, batch)[0]
    close(SoftQ()(agent, batch.but(weight=torch.ones(6, dtype=torch.float64)))[0], plain)
    first = torch.zeros(6, dtype=torch.float64)
    first[0] = 6
    close(SoftQ()(agent, batch.but(weight=first))[0], SoftQ()(agent, batch[:1])[0])


def test_clipped_double_q_by_hand():
    agent, batch = agents.agent(head="deterministic"), agents.transitions()
    part = ClippedDoubleQ(noise=2.0, clip=0.3)
    found = part.target(agent, batch)
    noise = (torch.randn(6, 2, generator=again(agent).generator) * 2).clamp(-0.3, 0.3)
    action = (agent.policy.head(batch.next_obs, agent.lagged).tanh() + noise).clamp(-1, 1)
    least = torch.minimum(*agent.q(batch.next_obs, action, lagged=True))
    close(found, batch.reward + batch.discount * least)


def test_one_critic_without_noise_is_ddpg():
    agent, batch = agents.agent(head="deterministic", critics=1), agents.transitions()
    action = agent.mode(batch.next_obs, lagged=True)
    expected = batch.reward + batch.discount * agent.q(batch.next_obs, action, lagged=True)[0]
    close(ClippedDoubleQ(members=1, noise=0.0).target(agent, batch), expected)


@pytest.mark.parametrize("double", [True, False])
def test_greedy_q_by_hand(double):
    agent, batch = agents.agent(discrete=True, head="greedy", critics=1, lag=-0.7), agents.transitions(discrete=True)
    later, now = agent.q(batch.next_obs, lagged=True)[0], agent.q(batch.next_obs)[0]
    best = (now if double else later).argmax(-1)
    expected = batch.reward + batch.discount * later[torch.arange(6), best]
    close(GreedyQ(double=double).target(agent, batch), expected)
    error = agent.q(batch.obs, batch.action)[0] - expected
    huber = torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5).mean()
    close(GreedyQ(double=double)(agent, batch)[0], huber)
    close(GreedyQ(double=double, loss="squared")(agent, batch)[0], (error**2).mean())


def test_double_and_plain_q_learning_agree_where_nothing_lags():
    agent, batch = agents.agent(discrete=True, head="greedy", lag=1.0), agents.transitions(discrete=True)
    close(GreedyQ().target(agent, batch), GreedyQ(double=False).target(agent, batch))


def test_dueling_critics_have_advantages_of_mean_zero():
    agent = agents.agent(discrete=True, head="greedy", critics=1, dueling=True)
    obs = agents.transitions().obs
    raw = agent.policy.module.critic(obs)[0]
    close(agent.q(obs)[0].mean(-1), raw[:, 0])
    close(agent.q(obs)[0] - raw[:, :1], raw[:, 1:] - raw[:, 1:].mean(-1, keepdim=True))


def test_from_value_takes_the_state_value():
    agent, batch = agents.agent(), agents.transitions()
    close(FromValue().target(agent, batch), batch.reward + batch.discount * agent.v(batch.next_obs))


def test_no_gradient_flows_into_targets():
    for part, kind in ((SoftQ(), {}), (ClippedDoubleQ(), {"head": "deterministic"}), (FromValue(), {})):
        agent = agents.agent(**kind)
        part(agent, agents.transitions())[0].backward()
        held = {n for n, p in agent.policy.trainable().items() if p.grad is not None}
        assert held and all(n.startswith("critic") for n in held)


# -- state values ---------------------------------------------------------------------------------------------------


def test_expectile_by_hand_and_half_is_the_mean():
    agent, batch = agents.agent(), agents.transitions()
    u = torch.minimum(*agent.q(batch.obs, batch.action, lagged=True)) - agent.v(batch.obs)
    weight = torch.where(u > 0, 0.9, 0.1)
    close(Expectile(0.9)(agent, batch)[0], (weight * u**2).mean())
    close(Expectile(0.5)(agent, batch)[0], (u**2).mean() / 2)


def minimiser(loss, values):
    """The constant V at which the mean of loss(value - V) is least."""
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(4000):
        (slope,) = torch.autograd.grad(loss(values - v).mean(), v)
        v = (v - 0.05 * slope).detach().requires_grad_()
    return float(v)


def test_gumbel_regression_ends_at_the_soft_maximum():
    from partita.estimators.implicit import gumbel_loss

    values = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    for beta in (0.7, 2.0):
        found = minimiser(lambda u, beta=beta: gumbel_loss(u / beta), values)
        assert found == pytest.approx(beta * math.log((values / beta).exp().mean()), abs=1e-6)


def test_expectiles_go_from_the_mean_to_the_maximum():
    from partita.estimators.implicit import expectile_loss

    values = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    found = [minimiser(lambda u, tau=tau: expectile_loss(u, tau), values) for tau in (0.5, 0.7, 0.9, 0.99)]
    assert (
        found[0] == pytest.approx(values.mean().item(), abs=1e-6) and found == sorted(found) and 2.3 < found[-1] < 2.5
    )


def test_clipping_changes_gumbel_losses_by_a_factor_only():
    from partita.estimators.implicit import gumbel_loss

    z = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad(gumbel_loss(z).sum(), z)
    (scaled,) = torch.autograd.grad(gumbel_loss(z, clip=7.0).sum(), z)
    close(scaled, plain * math.exp(-3.0))
    low = (z.detach() - 9).requires_grad_()
    close(torch.autograd.grad(gumbel_loss(low, clip=7.0).sum(), low)[0], (low.exp() - 1).detach() * math.e)
    close(
        gumbel_loss(torch.tensor([9.0, 7.0], dtype=torch.float64), clip=7.0)[0],
        gumbel_loss(torch.tensor([7.0, 7.0]).double(), 7.0)[0],
    )


def test_gumbel_values_shift_and_scale_with_values():
    agent, batch = agents.agent(), agents.transitions()
    u = torch.minimum(*agent.q(batch.obs, batch.action, lagged=True)) - agent.v(batch.obs)
    close(Gumbel(beta=2.0, clip=None)(agent, batch)[0], ((u / 2).exp() - u / 2 - 1).mean())


# -- actors ---------------------------------------------------------------------------------------------------------


def test_soft_actor_by_hand():
    agent, batch = agents.agent(), agents.transitions()
    loss, notes = SoftActor()(agent, batch)
    action, logp = again(agent).draw(batch.obs)
    close(loss, (0.3 * logp - torch.minimum(*agent.q(batch.obs, action))).mean())
    close(notes["entropy"], -logp.detach().mean())


def test_soft_actor_on_discrete_actions_ends_at_the_boltzmann_policy():
    agent, batch = agents.agent(discrete=True), agents.transitions(discrete=True)
    q = agent.q(batch.obs).min(0).values.detach()
    table = (q / 0.3).log_softmax(-1)
    best = (table.exp() * (0.3 * table - q)).sum(-1).mean()
    close(best, -0.3 * (q / 0.3).logsumexp(-1).mean())
    assert SoftActor()(agent, batch)[0] >= best


def test_deterministic_actor_scales_values_away():
    agent, batch = agents.agent(head="deterministic"), agents.transitions()
    q = agent.q(batch.obs, agent.mode(batch.obs))[0]
    close(DeterministicActor()(agent, batch)[0], -q.mean())
    close(DeterministicActor(scale=2.5)(agent, batch)[0], -2.5 * q.mean() / q.abs().mean())


def test_weighted_clone_by_hand_and_beta_zero_is_cloning():
    agent, batch = agents.agent(head="gaussian"), agents.transitions()
    gain = torch.minimum(*agent.q(batch.obs, batch.action, lagged=True)) - agent.v(batch.obs)
    logp = agent.logp(batch.obs, batch.action)
    close(WeightedClone(beta=3.0)(agent, batch)[0], -((3 * gain).exp().clamp(max=100).detach() * logp).mean())
    close(WeightedClone(beta=50.0, clip=1.5).weight(agent, batch), (50 * gain).exp().clamp(max=1.5).detach())
    close(WeightedClone(beta=0.0)(agent, batch)[0], Clone()(agent, batch)[0])


def test_cloning_a_deterministic_policy_is_least_squares():
    agent, batch = agents.agent(head="deterministic"), agents.transitions()
    close(Clone()(agent, batch)[0], (agent.policy.head(batch.obs).tanh() - batch.action).square().mean())


def test_actors_leave_critics_alone():
    for part, kind in (
        (SoftActor(), {}),
        (DeterministicActor(), {"head": "deterministic"}),
        (WeightedClone(), {"head": "gaussian"}),
    ):
        agent = agents.agent(**kind)
        actor = [p for n, p in agent.policy.trainable().items() if n.startswith("actor")]
        gradients = torch.autograd.grad(part(agent, agents.transitions())[0], actor)
        assert all(g.abs().sum() > 0 for g in gradients)


# -- regularisers -----------------------------------------------------------------------------------------------------


def test_conservative_on_discrete_actions_by_hand():
    agent, batch = agents.agent(discrete=True), agents.transitions(discrete=True)
    q = agent.q(batch.obs)
    rows = torch.arange(6)
    expected = sum((q[k].exp().sum(-1).log() - q[k][rows, batch.action]).mean() for k in range(2))
    close(Conservative(weight=5.0).critic(agent, batch), 5 * expected)


def test_the_sampled_soft_maximum_tends_to_the_integral():
    agent, batch = agents.agent(seed=3), agents.transitions(n=2)
    grid = torch.linspace(-1, 1, 201, dtype=torch.float64)[:-1] + 0.005
    actions = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        for i in range(2):
            obs = batch.obs[i].expand(len(actions), 3)
            exact = (agent.q(obs, actions).logsumexp(-1) + 2 * math.log(0.01)).tolist()
            found = Conservative(samples=3000)._soft_maximum(agent, batch)[:, i].tolist()
            assert found == pytest.approx(exact, abs=0.15)  # its variance has no bound; a wrong sign is off by 1


def test_near_data_is_the_mean_square():
    agent, batch = agents.agent(head="deterministic"), agents.transitions()
    close(NearData(weight=2.0).actor(agent, batch), 2 * (agent.mode(batch.obs) - batch.action).square().mean())


def test_diversity_is_largest_for_equal_critics_and_falls_with_gradients():
    batch = agents.transitions()
    agent = agents.agent(critics=3)
    found = Diversity().critic(agent, batch)
    action = batch.action.clone().requires_grad_()
    slopes = [torch.autograd.grad(agent.q(batch.obs, action)[k].sum(), action)[0] for k in range(3)]
    unit = [s / s.norm(dim=-1, keepdim=True) for s in slopes]
    expected = sum((unit[i] * unit[j]).sum(-1).mean() for i in range(3) for j in range(3) if i != j) / 2
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    critic = [p for n, p in agent.policy.trainable().items() if n.startswith("critic")]
    gradients = torch.autograd.grad(found, critic, allow_unused=True)
    with torch.no_grad():
        for p, g in zip(critic, gradients, strict=True):
            p -= 0.05 * (torch.zeros_like(p) if g is None else g)
    assert Diversity().critic(agent, batch) < found
    for p in critic:
        p.data.copy_(p.data[:1].expand_as(p))
    assert float(Diversity().critic(agent, batch)) == pytest.approx(3, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SoftQ(members=0), "critic.members"),
        (lambda: ClippedDoubleQ(noise=-1), "critic.noise"),
        (lambda: GreedyQ(loss="l1"), "critic.loss"),
        (lambda: Expectile(tau=1.0), "value.tau"),
        (lambda: Gumbel(beta=0), "value.beta"),
        (lambda: SoftActor(delay=0), "actor.delay"),
        (lambda: WeightedClone(beta=-1), "actor.beta"),
        (lambda: DeterministicActor(scale=0), "actor.scale"),
        (lambda: Conservative(samples=0), "regularisers.samples"),
        (lambda: NearData(weight=math.nan), "regularisers.weight"),
        (lambda: Diversity(weight=-1), "regularisers.weight"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(make, named):
    with pytest.raises(UserError, match=named) as error:
        make()
    assert "\n" not in str(error.value)
