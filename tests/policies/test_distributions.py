"""Action distributions against torch.distributions, and draws against their probabilities."""

import pytest
import torch

from partita.core.spaces import Box, Discrete, MultiDiscrete
from partita.policies import distributions

BOX = Box(3, (-1.0,) * 3, (1.0,) * 3)
MULTI = MultiDiscrete((2, 4, 3))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def head_of(space, *lead, dtype=torch.float64):
    return torch.randn(*lead, distributions.size(space), generator=generator(1), dtype=dtype)


def test_sizes():
    assert [distributions.size(s) for s in (Discrete(5), MULTI, BOX)] == [5, 9, 3]


@pytest.mark.parametrize("lead", [(7,), (4, 5)])
def test_discrete(lead):
    head = head_of(Discrete(5), *lead)
    action = torch.randint(0, 5, lead, generator=generator())
    theirs = torch.distributions.Categorical(logits=head)
    logp, entropy = distributions.logp_entropy(Discrete(5), head, None, action)
    torch.testing.assert_close(logp, theirs.log_prob(action))
    torch.testing.assert_close(entropy, theirs.entropy())


@pytest.mark.parametrize("lead", [(7,), (4, 5)])
def test_multi_discrete(lead):
    head = head_of(MULTI, *lead)
    action = torch.stack([torch.randint(0, n, lead, generator=generator(n)) for n in MULTI.choices], -1)
    theirs = [torch.distributions.Categorical(logits=h) for h in head.split(MULTI.choices, -1)]
    logp, entropy = distributions.logp_entropy(MULTI, head, None, action)
    torch.testing.assert_close(logp, sum(d.log_prob(action[..., i]) for i, d in enumerate(theirs)))
    torch.testing.assert_close(entropy, sum(d.entropy() for d in theirs))


@pytest.mark.parametrize("lead", [(7,), (4, 5)])
def test_box(lead):
    head, log_std = head_of(BOX, *lead), torch.tensor([-0.5, 0.1, 0.7], dtype=torch.float64)
    action = torch.randn(*lead, 3, generator=generator(2), dtype=torch.float64)
    theirs = torch.distributions.Independent(torch.distributions.Normal(head, log_std.exp()), 1)
    logp, entropy = distributions.logp_entropy(BOX, head, log_std, action)
    torch.testing.assert_close(logp, theirs.log_prob(action))
    torch.testing.assert_close(entropy, theirs.entropy())


def test_entropy_only_when_asked():
    for space, action in ((Discrete(5), torch.tensor([1])), (MULTI, torch.tensor([[1, 3, 2]]))):
        assert distributions.logp_entropy(space, head_of(space, 1), None, action, entropy=False)[1] is None


def test_gradients_against_finite_differences():
    action = torch.tensor([2, 0, 4])
    head = head_of(Discrete(5), 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: distributions.logp_entropy(Discrete(5), h, None, action), (head,))
    mean, log_std = head_of(BOX, 4).requires_grad_(), torch.tensor([-0.5, 0.1, 0.7]).double().requires_grad_()
    real = torch.randn(4, 3, generator=generator(3), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, s: distributions.logp_entropy(BOX, m, s, real), (mean, log_std))


def frequencies(space, head, n=40000):
    noise = distributions.noise(space, (n,), generator(5), torch.device("cpu"))
    return distributions.draw(space, head.float().expand(n, -1), None, noise)


def test_draws_follow_the_softmax():
    head = head_of(Discrete(5), 1)
    counts = torch.bincount(frequencies(Discrete(5), head), minlength=5) / 40000
    torch.testing.assert_close(counts, head[0].softmax(0).float(), atol=0.01, rtol=0)
    head = head_of(MULTI, 1)
    drawn = frequencies(MULTI, head)
    for i, (n, part) in enumerate(zip(MULTI.choices, head[0].split(MULTI.choices), strict=True)):
        counts = torch.bincount(drawn[:, i], minlength=n) / 40000
        torch.testing.assert_close(counts, part.softmax(0).float(), atol=0.01, rtol=0)


def test_box_draws_are_mean_plus_deviation_times_noise():
    head, log_std = head_of(BOX, 2), torch.tensor([-0.5, 0.1, 0.7]).double()
    noise = torch.tensor([[1.0, -1.0, 0.0], [2.0, 0.0, 1.0]]).double()
    torch.testing.assert_close(distributions.draw(BOX, head, log_std, noise), head + log_std.exp() * noise)


def test_greedy_is_the_mode():
    assert distributions.greedy(Discrete(3), torch.tensor([[0.0, 2.0, 1.0]])).tolist() == [1]
    head = torch.tensor([[0.0, 2.0, 5.0, 1.0, 0.0, 0.0, 0.0, 0.0, 3.0]])
    assert distributions.greedy(MULTI, head).tolist() == [[1, 0, 2]]
    assert torch.equal(distributions.greedy(BOX, head_of(BOX, 2)), head_of(BOX, 2))


def test_noise_is_the_generators():
    for space in (Discrete(3), BOX):
        a, b, c = (distributions.noise(space, (4,), generator(s), torch.device("cpu")) for s in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)
