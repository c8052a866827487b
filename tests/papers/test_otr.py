"""One-token rollout: candidates' rewards by hand, the mean over candidates, and what is learnt from answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import policy, roll

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.baselines.sft import SFT
from partita.papers.hybrid.otr import OTR, OneToken, OneTokenGradient, weight_gap
from partita.parts.objective import Reinforce
from partita.parts.rollout import Demonstrations, Sample
from partita.policies.candidates import candidates
from partita.tasks.language.arithmetic import Arithmetic

f64 = torch.float64


def case(tokens, drawn, logp, mask=None, advantage=None):
    """Steps with candidates and their log-probabilities; one trajectory."""
    tokens, drawn = torch.tensor([tokens]), torch.tensor([drawn])
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else torch.tensor([mask], dtype=torch.bool)
    weight = torch.ones(tokens.shape, dtype=f64) if advantage is None else torch.tensor([advantage], dtype=f64)
    batch = Batch(mask=mask, advantage=weight * mask, inputs={"tokens": tokens, "alternatives": drawn})
    leaf = torch.tensor([logp], dtype=f64, requires_grad=True)
    return Outputs(torch.zeros(tokens.shape, dtype=f64), alternatives=leaf), batch


def test_the_loss_by_hand():
    out, batch = case([3, 5], [[3, 1, 3, 2], [0, 1, 1, 2]], [[-0.1, -2.0, -0.1, -3.0], [-1.0, -2.0, -2.0, -3.0]])
    found = OneTokenGradient(beta=-0.1)(out, batch)
    expected = [-(-0.1 + 0.2 - 0.1 + 0.3) / 4, -(0.1 + 0.2 + 0.2 + 0.3) / 4]
    torch.testing.assert_close(found, torch.tensor([expected], dtype=f64))
    assert float(OneTokenGradient().metrics(out, batch)["right_candidates"]) == pytest.approx(0.25)


def test_the_gradient_of_each_candidate_is_its_reward():
    out, batch = case([3], [[3, 1, 3, 2]], [[-0.1, -2.0, -0.1, -3.0]], advantage=[2.0])
    OneTokenGradient(beta=-0.5)(out, batch).sum().backward()
    assert out.alternatives.grad[0, 0].tolist() == [-0.5, 0.25, -0.5, 0.25]


def test_wrong_candidates_do_not_count_without_a_penalty():
    out, batch = case([3], [[0, 1, 2, 2]], [[-0.1, -2.0, -0.1, -3.0]])
    assert OneTokenGradient(beta=0.0)(out, batch).item() == 0
    assert OneTokenGradient(beta=-0.1)(out, batch).item() < 0


def test_one_right_candidate_at_every_step_is_supervised_fine_tuning():
    batch = roll(OneToken(candidates=1))
    forced = {**batch.inputs, "alternatives": batch.inputs["tokens"][..., None]}
    batch = batch.but(inputs=forced, advantage=batch.mask.float())
    out = policy().evaluate(batch)
    torch.testing.assert_close(OneTokenGradient(beta=-7.0)(out, batch), Reinforce()(out, batch))


@pytest.mark.parametrize("beta", [0.0, -0.1, -1.0, 0.5])
def test_its_mean_is_dynamic_fine_tuning(beta):
    assert max(weight_gap(seed, beta) for seed in range(3)) < 1e-10


def test_the_mean_over_many_candidates_comes_near_it():
    """With 20000 candidates at temperature 1 the gradient in the logits is (1 - beta) pi(y) (e_y - pi)."""
    by = policy(scale=0.02)
    batch = by.teach(["12+3="], ["15\n"], torch.tensor([0]))
    drawn = candidates(by, batch, 20_000, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden, place = by.hidden(batch)
        z = by.head(hidden).double()
    order = place.argsort()
    z = z[order].requires_grad_()
    logp = z.log_softmax(1)
    tokens = batch.inputs["tokens"]
    step = Batch(mask=batch.mask, advantage=batch.mask.double(), inputs={"tokens": tokens, "alternatives": drawn})
    out = Outputs(torch.zeros(tokens.shape), alternatives=logp.gather(1, drawn[0])[None])
    OneTokenGradient(beta=-0.1)(out, step).sum().backward()
    pi = z.detach().softmax(1)
    chance = pi.gather(1, tokens[0][:, None])
    expected = -1.1 * chance * (torch.nn.functional.one_hot(tokens[0], pi.shape[1]) - pi)
    torch.testing.assert_close(z.grad, expected, atol=0.25 * float(expected.abs().max()), rtol=0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99))
def test_the_order_of_candidates_and_padding_change_nothing(seed):
    g = torch.Generator().manual_seed(seed)
    tokens, drawn = torch.randint(4, (5,), generator=g).tolist(), torch.randint(4, (5, 6), generator=g)
    logp = -torch.rand(5, 6, generator=g, dtype=f64)
    order = torch.randperm(6, generator=g)
    part = OneTokenGradient()
    ours = part(*case(tokens, drawn.tolist(), logp.tolist()))
    torch.testing.assert_close(part(*case(tokens, drawn[:, order].tolist(), logp[:, order].tolist())), ours)
    zeros = [[0] * 6, [0.0] * 6]
    out, batch = case([*tokens, 0], [*drawn.tolist(), zeros[0]], [*logp.tolist(), zeros[1]], [1] * 5 + [0])
    wide = part(out, batch)
    torch.testing.assert_close(wide[:, :5], ours)
    assert wide[0, 5].item() == 0
    torch.testing.assert_close(
        part.metrics(out, batch)["right_candidates"],
        part.metrics(*case(tokens, drawn.tolist(), logp.tolist()))["right_candidates"],
    )


def test_the_rollout_gives_demonstrations_with_candidates_of_the_policy():
    plain, batch = roll(Demonstrations()), roll(OneToken(candidates=9, kappa=1.3))
    assert torch.equal(batch.inputs["tokens"], plain.inputs["tokens"]) and torch.equal(batch.logp, plain.logp)
    drawn = batch.inputs["alternatives"]
    assert drawn.shape == (*batch.mask.shape, 9) and batch.source.unique().tolist() == [1]
    out = policy().evaluate(batch)
    assert bool((out.alternatives[batch.mask] < 0).all()) and not bool(out.alternatives[~batch.mask].any())
    again = roll(OneToken(candidates=9, kappa=1.3))
    assert torch.equal(drawn, again.inputs["alternatives"])


def greedy(by, task):
    problems = task.problems(48, torch.Generator().manual_seed(5))
    return float(Sample().sample(by, task, problems, 1, torch.Generator(), greedy=True).outcome.mean())


def test_it_learns_from_demonstrations_what_the_policy_can_say():
    from partita.policies.language import Language

    task, by = Arithmetic(level=2), Language().build(None, False, torch.Generator().manual_seed(0))
    before, run = greedy(by, task), Run(0)
    train(OTR.but(batch_size=16, steps=12, lr=3e-3), by, task, run)
    assert greedy(by, task) > before + 0.15
    right = [m["right_candidates"] for m in run.metrics]
    assert right[-1] > right[0] and all(0 < r < 1 for r in right)


def test_it_differs_from_supervised_fine_tuning_in_two_slots():
    from partita.core.recipe import differences

    assert {name for name, *_ in differences(OTR, SFT)} == {"rollout", "objective"}


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: OneToken(candidates=0), "rollout.candidates"), (lambda: OneToken(kappa=0.0), "rollout.kappa"),
        (lambda: OneToken(per_problem=0), "rollout.per_problem"),
        (lambda: OneTokenGradient(beta=1.0), "objective.beta"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make, field):
    with pytest.raises(UserError, match=field):
        make()


def test_what_draws_no_candidates_or_gives_no_answers_is_refused():
    by, task = policy(), Arithmetic(level=1)
    with pytest.raises(UserError, match="rollout demonstrations draws none; use --rollout one_token"):
        SFT.but(objective=OneTokenGradient()).settle(task, by).check(task, by)
    world = part_class("task", "keydoor")()
    with pytest.raises(UserError, match="rollout one_token needs worked answers, and task keydoor gives none"):
        OTR.settle(world, by).check(world, by)
