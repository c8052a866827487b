"""RiskPO: bundles and their advantages by hand, what the risk measure is, its quantiles, and that it learns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.lab import checkpoint
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.reasoning.riskpo import MixedValueAtRisk, bundled
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.language.probes import ProbeBandit


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def batch_of(*groups):
    """A batch of one-step trajectories with the rewards of each group."""
    reward = tensor(*(r for group in groups for r in group))[:, None]
    group = torch.tensor([i for i, rewards in enumerate(groups) for _ in rewards])
    return Batch(mask=torch.ones_like(reward, dtype=torch.bool), reward=reward, group=group)


def started(part, low, high):
    """The part with quantiles that it has tracked before."""
    part.load_state_dict({"quantiles": tensor(low, high)})
    return part


def test_bundles_by_hand():
    group = torch.tensor([7, 7, 3, 3, 5, 5, 9, 9])  # in order of id: 3, 5 | 7, 9
    score, member = bundled(tensor(1, 2, 10, 20, 100, 200, 1000, 2000), group, 2)
    assert score.tolist() == [[110, 220], [1001, 2002]]
    assert member.nonzero()[:, 1].tolist() == [2, 3, 0, 1, 0, 1, 2, 3]


def test_bundles_of_uneven_size_are_scaled():
    score, member = bundled(torch.ones(14, dtype=torch.float64), torch.arange(14) // 2, 3)
    assert score.tolist() == [[3.0, 3.0], [3.0, 3.0]] and member.sum(0).tolist() == [4.0, 4.0, 3.0, 3.0]


def test_a_question_with_fewer_responses_lends_them():
    score, member = bundled(tensor(1, 2, 3, 10), torch.tensor([0, 0, 0, 1]), 2)
    assert score.tolist() == [[11, 12, 13]]
    assert member.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]


def test_the_advantage_by_hand():
    part = MixedValueAtRisk(omega=0.5)
    out = part.advantage(tensor(0, 1, 2, 3, 4, 5), tensor(1.5, 4.0))
    # below q_alpha: -1.5 (1.5 - R) + 1.5 - 4; between: R - 4; above: 0
    torch.testing.assert_close(out, tensor(-2.25 - 2.5, -0.75 - 2.5, -2, -1, 0, 0))
    lower = part.but(baseline="lower").advantage(tensor(0, 1, 2, 3, 4, 5), tensor(1.5, 4.0))
    torch.testing.assert_close(lower, out + 2.5)
    mean = part.but(baseline="mean").advantage(tensor(0, 1, 2, 3, 4, 5), tensor(1.5, 4.0))
    torch.testing.assert_close(mean, out - out.mean())


def test_a_batch_gives_the_advantage_of_each_bundle_to_all_its_responses():
    part = started(MixedValueAtRisk(bundle=2, omega=1.0), 0.5, 1.5)
    out = part(batch_of([1, 0], [1, 0], [1, 0], [0, 0]))[:, 0]
    by_score = {0: -2 * 0.5 + 0.5 - 1.5, 1: -0.5, 2: 0.0}
    scores = [2, 0, 2, 0, 1, 0, 1, 0]
    torch.testing.assert_close(out, tensor(*(by_score[s] for s in scores)))


def test_the_gradient_is_that_of_the_risk():
    """E[A grad log pi] is the derivative of the mixed value-at-risk of a score with probabilities softmax(theta)."""
    score, omega, alpha, beta = torch.arange(6, dtype=torch.float64), 0.7, 0.2, 0.8
    theta = (torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()

    def risk(logits):
        """The integral of the quantile function, weighted 1 + omega up to alpha and 1 from there to beta."""
        ends = logits.softmax(0).cumsum(0)
        starts = torch.cat((ends.new_zeros(1), ends[:-1]))
        parts = [(ends.clamp(max=level) - starts.clamp(max=level)) for level in (alpha, beta)]
        return (score * (omega * parts[0] + parts[1])).sum()

    p = theta.softmax(0)
    quantiles = torch.stack([score[(p.cumsum(0) >= level).nonzero()[0, 0]] for level in (alpha, beta)])
    advantage = MixedValueAtRisk(alpha, beta, omega).advantage(score, quantiles)
    ours = torch.autograd.grad((p.detach() * advantage * theta.log_softmax(0)).sum(), theta, retain_graph=True)[0]
    theirs = torch.autograd.grad(risk(theta), theta)[0]
    torch.testing.assert_close(ours, theirs)


def test_without_risk_it_is_the_mean():
    part = started(MixedValueAtRisk(alpha=0.0, beta=1.0, omega=0.0, bundle=1), 0.0, 1.0)
    batch = batch_of([1, 0, 1], [0, 0, 1])
    torch.testing.assert_close(part(batch), batch.reward - 1)  # the reward, up to a constant
    part = started(MixedValueAtRisk(0.0, 1.0, 0.0, 1, baseline="lower"), 0.0, 1.0)
    torch.testing.assert_close(part(batch), batch.reward)


def test_quantiles_start_from_the_first_batch_and_follow_the_scores():
    part = MixedValueAtRisk(alpha=0.25, beta=0.75, bundle=1, rate=0.5)
    part(batch_of([0, 1, 2, 3, 4]))
    assert part.state_dict()["quantiles"].tolist() == [1 + 0.5 * (0.25 - 0.2), 3 + 0.5 * (0.75 - 0.6)]
    g = torch.Generator().manual_seed(0)
    part = MixedValueAtRisk(bundle=1, rate=0.02)
    for _ in range(800):
        part(batch_of(torch.rand(16, generator=g).tolist()))
    torch.testing.assert_close(part.state_dict()["quantiles"], tensor(0.2, 0.8), atol=0.06, rtol=0)


def test_the_state_is_saved_and_a_fresh_part_has_none(tmp_path):
    part, batch = MixedValueAtRisk(bundle=2), batch_of([1, 0], [1, 1], [0, 0], [1, 0])
    first = part(batch)
    checkpoint.save(tmp_path / "state", part.state_dict())
    other = part.fresh()
    assert other.state_dict() == {} and other == part
    other.load_state_dict(checkpoint.load(tmp_path / "state"))
    torch.testing.assert_close(other(batch), part(batch), rtol=0, atol=0)
    torch.testing.assert_close(part.fresh()(batch), first, rtol=0, atol=0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_advantages_scale_with_rewards_and_ignore_their_origin(seed, scale, shift):
    g = torch.Generator().manual_seed(seed)
    batch = batch_of(*torch.rand(10, 4, generator=g, dtype=torch.float64).tolist())
    out = MixedValueAtRisk()(batch)
    moved = MixedValueAtRisk()(batch.but(reward=batch.reward * scale + shift))
    torch.testing.assert_close(moved, out * scale, rtol=1e-7, atol=1e-7)
    assert out.max() <= 1e-12


def test_it_learns():
    recipe = recipe_of("riskpo").but(batch_size=15, lr=1e-2, steps=40)
    model = tiny_model(tiny_config("qwen2", hidden=32, layers=1, heads=2, context=32))
    run = Run(0)
    train(recipe, LanguagePolicy(model, character_tokenizer(context=32), Language()), ProbeBandit(), run)
    assert run.metrics[0]["return"] < 0.45
    assert sum(m["return"] for m in run.metrics[-3:]) / 3 > 0.9


def test_bad_settings_are_refused():
    for bad, said in [
        ({"alpha": 0.8}, "credit.beta: expected 0 <= alpha < beta <= 1, got 0.8 and 0.8"),
        ({"omega": -1.0}, "credit.omega: expected 0 or more, got -1.0"),
        ({"bundle": 0}, "credit.bundle: expected at least 1 question, got 0"),
        ({"rate": 0.0}, "credit.rate"),
        ({"baseline": "middle"}, "credit.baseline: expected upper, lower or mean, got 'middle'"),
    ]:
        with pytest.raises(UserError, match=said):
            MixedValueAtRisk(**bad)
