"""CAPO: the quadratic model against autograd, which steps count, what the model's optimiser remembers, and learning."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import policy, roll
from surrogates import late, learn

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.estimators.curvature import LastLayer, adam_shifts
from partita.lab.config import Config, Settings
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.baselines.grpo import GRPO
from partita.papers.reasoning.capo import CAPO, RECIPES, CurvatureAware, within_budget
from partita.parts.aggregate import SequenceMean
from partita.parts.focus import AllSteps
from partita.parts.rollout import Sample
from partita.policies.language import Language
from partita.tasks.language.arithmetic import Arithmetic
from partita.tasks.language.probes import ProbeBandit, ProbeCredit
from resuming import resumed_alike

f64 = torch.float64
OPEN = {"objective_low": -math.inf, "objective_high": math.inf, "policy": math.inf}
LEARNER = SimpleNamespace(rate=0.05, betas=(0.9, 0.999), eps=1e-8)


def graded(seed=0):
    """Responses of the small policy with advantages of both signs."""
    batch = roll(Sample(), seed=seed)
    g = torch.Generator().manual_seed(seed)
    return batch.but(advantage=torch.randn(len(batch), 1, generator=g) * batch.mask)


def shifts(batch, name="policy_shift"):
    return batch.inputs[name][batch.mask]


def test_the_model_is_the_quadratic_of_the_objective_and_of_the_divergence():
    """m_H = g d + d H d / 2 of A pi(a) / pi_old(a), m_F = d F d / 2 of the sampled Fisher matrix, by autograd."""
    g = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(4, 3, generator=g, dtype=f64), torch.randn(3, generator=g, dtype=f64)
    action, advantage, rate = 2, -1.7, 0.05
    old = (weight @ hidden).log_softmax(0)[action]

    def objective(w):
        return advantage * ((w @ hidden).log_softmax(0)[action] - old).exp()

    gradient = torch.autograd.functional.jacobian(objective, weight).flatten()
    hessian = torch.autograd.functional.hessian(objective, weight).reshape(12, 12)
    d = rate * gradient
    score = gradient / advantage
    layer = LastLayer(
        hidden[None].float(), weight.float(), None, torch.tensor([action]), torch.tensor([advantage])
    )  # fmt: skip
    batch = Batch(
        mask=torch.ones(1, 1, dtype=torch.bool), advantage=torch.tensor([[advantage]]),
        inputs={"tokens": torch.tensor([[action]])},
    )  # fmt: skip
    fake = SimpleNamespace(
        hidden=lambda b: (layer.hidden, torch.tensor([0])), head=SimpleNamespace(weight=layer.weight, bias=None)
    )
    seen = CurvatureAware(optimiser="sgd").look(fake, batch, SimpleNamespace(rate=rate))
    assert float(shifts(seen, "objective_shift")) == pytest.approx(float(gradient @ d + d @ hessian @ d / 2), rel=1e-5)
    assert float(shifts(seen)) == pytest.approx(float((score @ d).square() / 2), rel=1e-5)


def shifted(objective, policy, mask=None):
    objective, policy = (torch.tensor(x, dtype=f64) for x in (objective, policy))
    mask = torch.ones_like(objective, dtype=torch.bool) if mask is None else torch.tensor(mask, dtype=torch.bool)
    return Batch(
        mask=mask, advantage=mask.double(), inputs={"objective_shift": objective * mask, "policy_shift": policy * mask}
    )


def test_steps_within_all_three_limits_count():
    part = CurvatureAware(objective_low=-0.1, objective_high=0.2, policy=0.01, rescale=False)
    batch = shifted([[-0.11, -0.1, 0.0, 0.2, 0.21, 0.0]], [[0.0, 0.01, 0.0, 0.01, 0.0, 0.011]])
    assert part(batch).tolist() == [[0, 1, 1, 1, 0, 0]]


def test_a_mean_over_the_trajectory_divides_by_the_steps_that_count():
    part = CurvatureAware(policy=0.01)
    batch = shifted([[0.0] * 4, [0.0] * 4], [[0.5, 0.0, 0.0, 0.5], [0.5, 0.5, 0.5, 0.0]], [[1, 1, 1, 1], [1, 1, 1, 0]])
    assert part(batch).tolist() == [[0, 2, 2, 0], [0, 0, 0, 0]]
    share = (part(batch) * SequenceMean()(batch)).sum(1) * len(batch)
    assert share.tolist() == [1, 0]
    found = part.metrics(batch.but(weight=part(batch)))
    assert found["rejected"] == pytest.approx(5 / 7) and found["policy_shift"] == pytest.approx(2.5 / 7)


def test_padding_changes_nothing():
    part = CurvatureAware(policy=0.01)
    narrow = shifted([[0.0, 0.02, 0.0]], [[0.0, 0.0, 0.02]])
    wide = shifted([[0.0, 0.02, 0.0, 7.0]], [[0.0, 0.0, 0.02, 7.0]], [[1, 1, 1, 0]])
    assert torch.equal(part(wide)[:, :3], part(narrow)) and part(wide)[0, 3] == 0
    assert part.metrics(wide.but(weight=part(wide))) == part.metrics(narrow.but(weight=part(narrow)))


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_without_limits_every_step_counts_and_training_is_grpo(optimiser):
    part = CurvatureAware(optimiser=optimiser, **OPEN)
    batch = part.look(policy(), graded(), LEARNER)
    assert torch.equal(part(batch), AllSteps()(batch))
    runs = [learn(GRPO.but(focus=f), ProbeCredit(), steps=3).metrics for f in (part, AllSteps())]
    assert [m["loss"] for m in runs[0]] == [m["loss"] for m in runs[1]]
    assert all(m["rejected"] == 0 for m in runs[0])


def test_look_tells_each_step_what_it_alone_would_do():
    by, batch = policy(), graded()
    seen = CurvatureAware(**OPEN).look(by, batch, LEARNER)
    with torch.no_grad():
        hidden, place = by.hidden(batch)
        layer = LastLayer(
            hidden, by.head.weight, by.head.bias, batch.inputs["tokens"].flatten()[place],
            batch.advantage.flatten()[place],
        )  # fmt: skip
        s, w = adam_shifts(layer, 0.05, {})
    torch.testing.assert_close(seen.inputs["policy_shift"].flatten()[place], s.square() / 2)
    objective = layer.advantage * (s + (s.square() - w) / 2)
    torch.testing.assert_close(seen.inputs["objective_shift"].flatten()[place], objective)
    outside = ~batch.mask
    assert not bool(seen.inputs["policy_shift"][outside].any()) and bool((shifts(seen) > 0).any())


def test_the_temperature_of_the_sampler_is_that_of_the_model():
    warm = roll(Sample(temperature=1.5))
    warm = warm.but(advantage=warm.mask.float())
    part = CurvatureAware(optimiser="sgd", **OPEN)
    cold = warm.but(inputs={n: v for n, v in warm.inputs.items() if n != "temperature"})
    a, b = (shifts(part.look(policy(), x, LEARNER)) for x in (warm, cold))
    assert bool((a != b).all())


def test_rates_scale_shifts_as_they_scale_the_step():
    part = CurvatureAware(optimiser="sgd", **OPEN)
    once, twice = (
        shifts(part.look(policy(), graded(), SimpleNamespace(rate=r))) for r in (0.01, 0.02)
    )  # fmt: skip
    torch.testing.assert_close(twice, 4 * once)


def test_the_model_remembers_the_steps_that_counted_and_only_those():
    by, batch = policy(), graded()
    limit = float(shifts(CurvatureAware(**OPEN).look(by, batch, LEARNER)).median())
    part = CurvatureAware(**{**OPEN, "policy": limit})
    part.look(by, batch, LEARNER)
    held = part.state_dict()
    every = CurvatureAware(**OPEN).fresh()
    every.look(by, batch, LEARNER)
    assert held["step"] == 1 and not torch.allclose(held["first"], every.state_dict()["first"])
    again = part.fresh()
    again.load_state_dict(held)
    ours, theirs = (shifts(p.look(by, graded(1), LEARNER)) for p in (part, again))
    assert torch.equal(ours, theirs)
    without = shifts(part.fresh().look(by, graded(1), LEARNER))
    assert not torch.allclose(ours, without)
    assert part.fresh().state_dict() == {}


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99))
def test_the_order_of_trajectories_does_not_matter(seed):
    batch = graded(seed)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    part = CurvatureAware(**OPEN)
    ours = part.fresh().look(policy(), batch, LEARNER).inputs["objective_shift"][order]
    theirs = part.fresh().look(policy(), batch[order], LEARNER).inputs["objective_shift"]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("probe", "steps"), [(ProbeBandit(), 20), (ProbeCredit(), 60)])
def test_it_learns_the_probes(probe, steps):
    loose = CurvatureAware(objective_low=-1.0, objective_high=1.0, policy=0.05)
    run = learn(CAPO.but(focus=loose), probe, steps=steps)
    assert run.metrics[0]["return"] < 0.45 and late(run) > 0.9
    assert 0 < sum(m["rejected"] for m in run.metrics) < steps


def test_a_run_stopped_and_resumed_is_the_run_that_was_never_stopped(tmp_path):
    recipe = CAPO.but(steps=4, batch_size=2, group_size=4, lr=1e-3)
    rows = resumed_alike(Config("capo", recipe, Arithmetic(level=1), Language(), Settings(seed=2000)), tmp_path)
    assert all({"policy_shift", "rejected"} <= row.keys() for row in rows)


def test_success_counts_only_while_few_tokens_are_rejected(tmp_path):
    import json

    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"rejected": r}) + "\n" for r in (0.1, 0.05)))
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps({"mean": m}) + "\n" for m in (0.2, 0.7)))
    assert within_budget(tmp_path) == {"value": 0.7, "success": 0.7, "rejected": pytest.approx(0.075)}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"rejected": 0.09}) + "\n")
    assert within_budget(tmp_path)["value"] == 0.0
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"loss": 0.09}) + "\n")
    assert within_budget(tmp_path)["value"] == 0.7


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"objective_low": 0.1, "objective_high": 0.1}, "focus.objective_high"), ({"policy": 0.0}, "focus.policy"),
        ({"optimiser": "lion"}, "focus.optimiser"), ({"top": 0}, "focus.top"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes, field):
    with pytest.raises(UserError, match=field):
        CurvatureAware(**changes)


def test_it_is_refused_in_control():
    from partita.policies.actor_critic import ActorCritic
    from partita.tasks.control.probes import ProbeAction

    task = ProbeAction()
    by = ActorCritic().build(task, False, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="focus: curvature_aware works in language"):
        train(recipe_of("reinforce").but(focus=CurvatureAware(), steps=1), by, task, Run(0))
    assert set(RECIPES) == {"capo", "dr_capo"}
