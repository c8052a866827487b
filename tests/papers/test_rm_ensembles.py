"""Ensembles of reward models: what they agree on by hand, members as if trained alone, and what a policy is paid."""

import pytest
import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.estimators.masked import last_value
from partita.loops import on_policy
from partita.loops.preference import losses, train
from partita.loops.run import Run
from partita.papers.baselines.reward_model import RECIPES as REWARD_MODEL
from partita.papers.preference.rm_ensembles import ENSEMBLE, Conservative, OwnOrder, agreed, spread_of
from partita.parts.reward import KLPenalty
from partita.parts.rollout import Sample
from partita.policies.ensemble import Ensemble, EnsemblePolicy, members, scorers
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from preferences import Liked


def judge(seed: int) -> LanguagePolicy:
    torch.manual_seed(seed)
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=32))
    policy = LanguagePolicy(model, character_tokenizer(context=32), Language(), True)
    torch.nn.init.normal_(policy.value_head.weight, std=0.3)
    return policy


def ensemble(count: int = 3) -> EnsemblePolicy:
    return EnsemblePolicy([judge(seed) for seed in range(count)])


def test_what_models_agree_on_by_hand():
    scores = torch.tensor([[1.0, 4.0, -2.0], [3.0, 4.0, 0.0]])
    assert agreed(scores, "mean", 9.0).tolist() == [2.0, 4.0, -1.0]
    assert agreed(scores, "wco", 9.0).tolist() == [1.0, 4.0, -2.0]
    assert agreed(scores, "uwo", 0.5).tolist() == [2.0 - 0.5, 4.0, -1.0 - 0.5]  # variances 1, 0, 1
    assert agreed(scores[:1], "uwo", 0.5).tolist() == agreed(scores[:1], "wco", 0.0).tolist() == [1.0, 4.0, -2.0]


def test_the_order_of_members_and_one_scale_for_all():
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    moved = scores * torch.tensor([[1.0], [2.0], [5.0], [0.1]]) + torch.tensor([[0.0], [3.0], [-1.0], [7.0]])
    for how in ("mean", "wco", "uwo"):
        torch.testing.assert_close(agreed(scores.flip(0), how, 0.5), agreed(scores, how, 0.5))
        (a, b), (c, d) = spread_of(scores), spread_of(moved)
        torch.testing.assert_close(agreed((moved - c) / d, how, 0.5), agreed((scores - a) / b, how, 0.5))


def test_members_get_the_gradient_that_they_would_get_alone():
    task, together = Liked(), ensemble(2)
    recipe = ENSEMBLE.settle(task, together).fresh()
    pairs, _ = recipe.resample(together, task, 4, 1, torch.Generator().manual_seed(0))
    losses(recipe, together, pairs, pairs)[0].backward()
    prompts = [record["prompt"] for record in pairs.batch.records]
    assert len(prompts) == 16 and prompts[:8] != prompts[8:]
    for k in range(2):
        alone, mine = judge(k), pairs.rows(pairs.batch.context["member"] == k)
        losses(recipe, alone, mine, mine)[0].backward()
        both = zip(alone.module.parameters(), together.judges[k].module.parameters(), strict=True)
        for a, b in both:  # of a mean over twice as many comparisons
            torch.testing.assert_close(b.grad, a.grad / 2)


def test_members_differ_and_learn_who_is_better(tmp_path):
    task, policy, run = Liked(), ensemble(3), Run(0)
    train(ENSEMBLE.but(steps=24, batch_size=6, lr=1e-2), policy, task, run)
    assert run.metrics[-1]["accuracy"] > 0.9 > run.metrics[0]["accuracy"]
    policy.save(tmp_path / "policy")
    assert [folder.name for folder in members(tmp_path / "policy")] == ["member_1", "member_2", "member_3"]
    judges = scorers([str(tmp_path)], "models", "cpu", task.stop)
    given = task.given(task.prompt(1)).responses
    scores = torch.stack([found.score([task.prompt(1).prompt] * 2, given) for found in judges])
    assert bool((scores[:, 0] > scores[:, 1]).all()) and len({round(float(s), 4) for s in scores[:, 0]}) == 3
    again = Ensemble(model=str(tmp_path / "policy"), members=3).build(task, True, torch.Generator())
    for mine, theirs in zip(policy.judges, again.judges, strict=True):
        assert torch.equal(mine.value_head.weight, theirs.value_head.weight)
    with pytest.raises(UserError, match=r"policy.members: .* holds 3; give --policy.members 3"):
        Ensemble(model=str(tmp_path / "policy"), members=2).build(task, True, torch.Generator())


def test_a_response_is_read_by_its_member():
    policy = ensemble(2)
    batch = policy.written(["x", "x", "y"], ["ab", "c", "abc"], torch.tensor([0, 0, 1]), ())
    named = batch.but(context={**batch.context, "member": torch.tensor([1, 0, 1])})
    each = [j.evaluate(batch).value for j in policy.judges]
    torch.testing.assert_close(policy.evaluate(named).value, torch.stack((each[1][0], each[0][1], each[1][2])))
    with torch.no_grad():
        torch.testing.assert_close(policy.evaluate(batch).value, (each[0] + each[1]) / 2)
    with pytest.raises(UserError, match="use rm_ensembles"):
        policy.evaluate(batch)


def test_another_policy_is_an_ensemble_of_one():
    task, one, other = Liked(), judge(0), judge(0)
    settings = dict(steps=3, batch_size=4, lr=1e-2)
    train(ENSEMBLE.but(**settings), one, task, Run(0))
    train(REWARD_MODEL["reward_model"].but(max_grad_norm=None, **settings), other, task, Run(0))
    for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(a, b)


def paid(tmp_path, **settings):
    ensemble(3).save(tmp_path / "policy")
    part = Conservative((str(tmp_path),), **settings)
    part.start(judge(7), Liked(), torch.Generator().manual_seed(0))
    records = tuple({"prompt": "p1>", "response": text} for text in ("aab", "c", "ba"))
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [True, True, True, False]])
    return part, Batch(mask=mask, reward=torch.zeros(3, 4), records=records)


@pytest.mark.parametrize("how", ["mean", "wco", "uwo"])
def test_a_policy_is_paid_what_they_agree_on_at_the_last_token(tmp_path, how):
    part, batch = paid(tmp_path, how=how, standardise=0, scale=2.0)
    found = part(batch)
    assert (found != 0).sum(1).tolist() == [1, 1, 1]
    alone = []
    for one in ensemble(3).judges:
        read = one.written(["p1>"] * 3, ["aab", "c", "ba"], torch.zeros(3, dtype=torch.int64), ())
        alone.append(last_value(one.evaluate(read).value, read.mask).detach())
    torch.testing.assert_close(last_value(found, batch.mask), 2.0 * agreed(torch.stack(alone), how, 0.5))


def test_scores_are_put_on_one_scale_over_the_first_policys_responses(tmp_path):
    part, batch = paid(tmp_path, standardise=64)
    raw = torch.stack([one(batch) for one in part._held["judges"]])
    torch.testing.assert_close(part.scores(batch), (raw - part._held["shift"]) / part._held["scale"])
    assert part._held["shift"].shape == (3, 1) and len({round(float(s), 5) for s in part._held["shift"]}) == 3
    g, task = torch.Generator().manual_seed(0), Liked()
    first = part.scores(Sample().sample(judge(7), task, task.problems(64, g), 1, g))
    torch.testing.assert_close(first.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.std(1), torch.ones(3))


def test_training_against_an_ensemble_raises_what_it_agrees_on(tmp_path):
    ensemble(2).save(tmp_path / "policy")
    reward = (Conservative((str(tmp_path),), standardise=16), KLPenalty(weight=0.01))
    recipe = recipe_of("rm_ensembles_wco").but(reward=reward, steps=16, batch_size=32, lr=3e-3)
    policy, run = judge(5), Run(0)
    on_policy.train(recipe, policy, Liked(), run)
    earned = [row["reward"] for row in run.metrics]
    assert sum(earned[-4:]) > sum(earned[:4]) + 1.0


def test_an_order_goes_on_from_its_state():
    task, policy = Liked(), ensemble(2)
    one, other, g = OwnOrder().fresh(), OwnOrder().fresh(), torch.Generator().manual_seed(0)
    first, _ = one(policy, task, 5, 1, g)
    assert first.batch.context["member"].tolist() == [0] * 10 + [1] * 10
    assert set(first.batch.need("group").tolist()) == set(range(10))
    other.load_state_dict(one.state_dict())
    state = g.get_state()
    a = [r["prompt"] for r in one(policy, task, 5, 2, g)[0].batch.records]
    b = [r["prompt"] for r in other(policy, task, 5, 2, torch.Generator().set_state(state))[0].batch.records]
    assert a == b


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Conservative(how="min"), r"reward\.conservative\.how: expected one of mean, wco, uwo, got 'min'"),
        (lambda: Conservative(uncertainty=-1.0), r"reward\.conservative\.uncertainty: expected 0 or more"),
        (lambda: Conservative(standardise=1), r"reward\.conservative\.standardise: expected 0, or 2 or more, got 1"),
        (lambda: Ensemble(members=0), r"policy\.members: expected 1 or more, got 0"),
        (lambda: Ensemble().build(None, False, torch.Generator()), "this recipe trains none; use rm_ensembles"),
        (lambda: scorers(["nowhere"], "models"), "models: nowhere has no value_head"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_models_must_be_named():
    assert "train one by partita train rm_ensembles" in Conservative().refuses(None, Liked())
