"""Ensembles as policies: their heads, what else they do, and that runs with them survive a stop."""

from pathlib import Path

import pytest
import torch

from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.lab.config import Config, Settings
from partita.loops.preference import train
from partita.loops.run import Run
from partita.papers.preference.rm_ensembles import Conservative
from partita.parts.reward import KLPenalty
from partita.policies.ensemble import Ensemble, members, scorers
from partita.policies.language import Language, LanguagePolicy
from partita.policies.sampling import Sampling
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from preferences import Liked
from resuming import resumed_alike


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=64))
    LanguagePolicy(model, character_tokenizer(context=64), Language()).save(folder)
    return str(folder)


def drawn(base: str, seed: int = 0, **settings):
    return Ensemble(model=base, **settings).build(None, True, torch.Generator().manual_seed(seed))


def test_members_begin_alike_but_for_heads_of_their_own(base):
    policy = drawn(base, members=3)
    heads = torch.cat([judge.value_head.weight for judge in policy.judges]).detach()
    assert len({round(float(w), 6) for w in heads.flatten()}) == 96
    bound = 32**-0.5
    assert 0.9 * bound < float(heads.abs().max()) < bound and float(heads.std()) == pytest.approx(
        bound / 3**0.5, rel=0.2
    )
    assert not any(judge.value_head.bias.any() for judge in policy.judges)
    first, *others = [dict(judge.lm.named_parameters()) for judge in policy.judges]
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    again, another = drawn(base, members=3), drawn(base, 1, members=3)
    assert torch.equal(again.judges[2].value_head.weight, policy.judges[2].value_head.weight)
    assert not torch.equal(another.judges[2].value_head.weight, policy.judges[2].value_head.weight)
    assert len(policy.trainable()) == 3 * len(policy.judges[0].trainable())


def test_a_member_learns_from_its_own_responses_alone(base):
    policy = drawn(base, members=4)
    batch = policy.written(["x", "y", "z", "w"], ["ab", "c", "abc", "d"], torch.arange(4), ())
    member = [1, 2, 0, 1]
    out = policy.evaluate(batch.but(context={**batch.context, "member": torch.tensor(member)}), entropy=True)
    out.value.sum().backward()
    assert [judge.value_head.weight.grad is not None for judge in policy.judges] == [True, True, True, False]
    with torch.no_grad():
        each = [judge.evaluate(batch, entropy=True) for judge in policy.judges]
    for name in ("logp", "entropy", "value"):
        expected = torch.stack([getattr(each[k], name)[row] for row, k in enumerate(member)])
        torch.testing.assert_close(getattr(out, name), expected)


def test_adapters_of_their_own_over_one_base(base, tmp_path):
    policy = drawn(base, members=2, lora_rank=2)
    names = list(policy.trainable())
    assert len(names) == len(set(names)) and all("lora" in name or "value_head" in name for name in names)
    with torch.no_grad():
        for k, judge in enumerate(policy.judges, 1):
            for name, weight in judge.trainable().items():
                weight.add_(0.1 * k if "lora_B" in name else 0.0)
    policy.save(tmp_path / "policy")
    found = torch.stack([one.score(["x", "y"], ["ab", "cba"]) for one in scorers([str(tmp_path)], "models")])
    batch = policy.written(["x", "y"], ["ab", "cba"], torch.tensor([0, 1]), ())
    with torch.no_grad():
        values = [judge.evaluate(batch).value for judge in policy.judges]
    last = torch.stack([value[[0, 1], batch.lengths - 1] for value in values])
    torch.testing.assert_close(found, last)
    assert not torch.allclose(last[0], last[1])


def test_the_first_member_writes(base):
    policy, sampling = drawn(base, members=2), Sampling(max_tokens=6)
    texts = policy.generate(["ab", "c"], 2, sampling, torch.Generator().manual_seed(3)).texts
    assert texts == policy.judges[0].generate(["ab", "c"], 2, sampling, torch.Generator().manual_seed(3)).texts


def test_folders_come_in_the_order_of_their_numbers_and_may_be_of_several_runs(base, tmp_path):
    for name in ("member_10", "member_2", "member_1"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in members(tmp_path)] == ["member_1", "member_2", "member_10"]
    assert members(Path("nowhere")) == []
    drawn(base, members=2).save(tmp_path / "a" / "policy")
    drawn(base, 1, members=1).save(tmp_path / "b" / "policy")
    names = [str(tmp_path / "a"), str(tmp_path / "b" / "policy"), str(tmp_path / "a" / "policy" / "member_2")]
    heads = [one.policy.value_head.weight for one in scorers(names, "models")]
    assert len(heads) == 4 and torch.equal(heads[1], heads[3]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("name", ["reward_model", "reward_regression"])
def test_recipes_that_would_teach_the_mean_are_refused(base, name):
    recipe, task = recipe_of(name).but(steps=1, batch_size=4), Liked(labels=name == "reward_regression")
    with pytest.raises(UserError, match="its members learn from responses of their own; use rm_ensembles"):
        train(recipe, drawn(base, members=2), task, Run(0))


def test_training_an_ensemble_survives_a_stop(base, tmp_path):
    recipe = recipe_of("rm_ensembles").but(steps=4, batch_size=5, lr=1e-2)  # epochs of 12 prompts end within
    config = Config("rm_ensembles", recipe, Liked(), Ensemble(model=base, members=2), Settings())
    assert resumed_alike(config, tmp_path)[-1]["comparisons"] == 10


def test_training_against_an_ensemble_survives_a_stop(base, tmp_path):
    drawn(base, members=2).save(tmp_path / "judges" / "policy")
    reward = (Conservative((str(tmp_path / "judges"),), "uwo", standardise=8), KLPenalty(weight=0.01))
    recipe = recipe_of("rm_ensembles_uwo").but(reward=reward, steps=3, batch_size=4, lr=1e-2)
    resumed_alike(Config("rm_ensembles_uwo", recipe, Liked(), Language(model=base), Settings()), tmp_path, after=1)
