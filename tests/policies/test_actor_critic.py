"""The actor-critic policy: what it evaluates is what it did, for every space and observation."""

import pytest
import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.spaces import Box, Discrete, MultiDiscrete
from partita.policies import distributions
from partita.policies.actor_critic import ActorCritic, ActorCriticPolicy

SPACES = [Discrete(3), MultiDiscrete((2, 3)), Box(2, (-1.0,) * 2, (1.0,) * 2)]


def build(space, observation=(4,), value=True, seed=0, **settings):
    g = torch.Generator().manual_seed(seed)
    return ActorCriticPolicy(ActorCritic(hidden=(8, 8), **settings), observation, space, value, g)


def acted(policy, b=3, t=4):
    g = torch.Generator().manual_seed(1)
    obs = torch.randn(b, t, *policy.observation, generator=g)
    if len(policy.observation) == 3:
        obs = (obs * 100).to(torch.uint8)
    noise = distributions.noise(policy.space, (b, t), g, torch.device("cpu"))
    with torch.no_grad():
        action = policy.act(obs, noise)
    mask = torch.arange(t) < torch.tensor([4, 2, 1])[:, None]
    return Batch(mask=mask, inputs={"obs": obs, "action": action})


@pytest.mark.parametrize("space", SPACES, ids=repr)
@pytest.mark.parametrize("observation", [(4,), (3, 16, 16)])
def test_evaluate_agrees_with_head_and_value_and_is_zero_outside_the_mask(space, observation):
    policy = build(space, observation, normalise=len(observation) == 1)
    batch = acted(policy)
    out = policy.evaluate(batch, entropy=True)
    for b, t in batch.mask.nonzero().tolist():
        obs, action = batch.inputs["obs"][b, t][None], batch.inputs["action"][b, t][None]
        logp, entropy = distributions.logp_entropy(space, policy.head(obs), policy.module.log_std, action)
        torch.testing.assert_close(out.logp[b, t], logp[0])
        torch.testing.assert_close(out.entropy[b, t], entropy[0])
        torch.testing.assert_close(out.value[b, t], policy.value(obs)[0])
    for tensor in (out.logp, out.entropy, out.value):
        assert not tensor[~batch.mask].any() and tensor[batch.mask].all()


def test_same_generator_same_weights_and_small_first_preferences():
    a, b, c = build(SPACES[0]), build(SPACES[0]), build(SPACES[0], seed=1)
    same = [torch.equal(a.state_dict()[n], b.state_dict()[n]) for n in a.state_dict()]
    assert all(same) and not torch.equal(a.module.actor[0].weight, c.module.actor[0].weight)
    assert a.head(torch.ones(1, 4)).abs().max() < 0.1


def test_without_a_critic_there_is_no_value():
    policy = build(SPACES[0], value=False)
    assert policy.evaluate(acted(policy)).value is None and not policy.has_value
    assert policy.both(acted(policy).inputs["obs"])[1] is None


def test_normaliser_learns_from_the_steps_of_the_mask_and_is_part_of_the_state():
    policy = build(SPACES[0], normalise=True)
    batch = acted(policy)
    policy.observe_batch(batch)
    torch.testing.assert_close(
        policy.module.normaliser.mean, batch.inputs["obs"][batch.mask].mean(0), rtol=1e-3, atol=1e-3
    )
    other = build(SPACES[0], seed=1, normalise=True)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.evaluate(batch).logp, policy.evaluate(batch).logp)
    with pytest.raises(ValueError, match="names differ"):
        build(SPACES[0]).load_state_dict(policy.state_dict())


def test_settings_out_of_range_name_the_field():
    with pytest.raises(UserError, match=r"policy\.hidden"):
        ActorCritic(hidden=())
    with pytest.raises(UserError, match=r"policy\.activation: expected one of tanh, relu, silu, got 'gelu'"):
        ActorCritic(activation="gelu")


@pytest.mark.parametrize("observation", [(4,), (9,)])
def test_many_rows_have_the_outputs_and_gradients_of_a_few_at_a_time(observation):
    policy = build(Discrete(3), observation, activation="relu")
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))  # biases, too
    obs = torch.randn(600, *observation, generator=torch.Generator().manual_seed(3))
    ends = []
    for size in (600, 100):  # 100 rows go straight through `linear`
        out = torch.cat([policy.head(part).square() for part in obs.split(size)])
        ends.append((out, *torch.autograd.grad(out.sum(), list(policy.module.actor.parameters()))))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize("rows", [(7,), (600, 2)])
def test_actor_and_critic_together_have_the_outputs_and_gradients_of_each_alone(activation, rows):
    policy = build(Discrete(3), (4,), activation=activation)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    obs = torch.randn(*rows, 4, generator=torch.Generator().manual_seed(3))
    ends = []
    policy.fused = True
    for head, value in (policy.both(obs), (policy.head(obs), policy.value(obs))):
        assert head.shape == (*rows, 3) and value.shape == rows
        total = (head.square().sum(-1) * value).sum()
        ends.append((head, value, *torch.autograd.grad(total, list(policy.module.parameters()))))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)
