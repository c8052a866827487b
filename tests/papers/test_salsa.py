"""SALSA: mixtures of weights by hand, a soup that is one model, and runs that carry theirs along."""

import math
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from partita.core.batch import Outputs
from partita.core.errors import UserError
from partita.lab import checkpoint
from partita.lab.config import Config, Settings, decode, encode
from partita.lab.train import launch
from partita.loops import on_policy, preference
from partita.loops.preference import Preference
from partita.loops.run import Run
from partita.papers.baselines.rlhf import RECIPES as RLHF
from partita.papers.preference.salsa import SALSA, Soup, linear, measure, spherical
from partita.parts.reference import Frozen
from partita.parts.regularisers import KL
from partita.parts.reward import KLPenalty, Outcome
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.preferences.lab import Lab
from preferences import Liked
from resuming import Stop

tensor = partial(torch.tensor, dtype=torch.float64)


def made(seed: int = 0, value: bool = False, **shape) -> LanguagePolicy:
    config = tiny_config("qwen2", **{"hidden": 32, "layers": 1, "heads": 2, "context": 128, **shape})
    lm, g = tiny_model(config, seed), torch.Generator().manual_seed(seed)
    for weight in lm.parameters():
        weight.data.add_(0.2 * torch.randn(weight.shape, generator=g))
    return LanguagePolicy(lm, character_tokenizer(context=128), Language(), value)


@pytest.fixture
def models(tmp_path):
    """Folders of two models, seeds 1 and 2."""
    for seed in (1, 2):
        made(seed).save(tmp_path / str(seed) / "policy")
    return str(tmp_path / "1"), str(tmp_path / "2")


def started(policy, **settings) -> Soup:
    part = Soup(**settings).fresh()
    part.start(policy)
    part.on(policy)
    return part


def batch_of(policy):
    return policy.teach(["a", "bc"], ["xyz", "u"], torch.tensor([0, 1]))


def test_mixtures_by_hand():
    a, b, c = tensor([1.0, 0.0]), tensor([0.0, 2.0]), tensor([4.0, 4.0])
    assert linear((a, b, c), (0.5, 0.75, -0.25)).tolist() == [-0.5, 0.5]
    # a right angle: sin(pi / 6) of the one and sin(pi / 3) of the other
    torch.testing.assert_close(spherical((a, b), (1 / 3, 2 / 3)), tensor([0.5, math.sqrt(3)]))
    # sixty degrees, both of length 1: the middle of the arc has length 1, that of the chord cos 30
    d = tensor([0.5, math.sqrt(0.75)])
    torch.testing.assert_close(spherical((a, d), (0.5, 0.5)), tensor([math.sqrt(0.75), 0.5]))
    for second in (3 * a, -a, 0 * a):  # no arc
        assert torch.equal(spherical((a, second), (0.25, 0.75)), linear((a, second), (0.25, 0.75)))


@pytest.mark.parametrize("mix", [linear, spherical])
def test_mixtures_at_their_ends_order_and_dtype(mix):
    a, b = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mix((a, b), (1.0, 0.0)), a) and torch.equal(mix((a, b), (0.0, 1.0)), b)
    torch.testing.assert_close(mix((a, b), (0.3, 0.7)), mix((b, a), (0.7, 0.3)))
    assert mix((a.bfloat16(), b.bfloat16()), (0.5, 0.5)).dtype == torch.bfloat16


@pytest.mark.parametrize("shares", [(), (0.5, 0.2, 0.3), (-1.0, 2.0, 0.0)])
def test_the_soup_is_the_model_with_the_mixed_weights(models, shares):
    policy = made(value=True)
    now = {n: w.clone() for n, w in policy.state_dict().items()}
    soup = started(policy, models=models, shares=shares)
    expected = shares or (1 / 3, 1 / 3, 1 / 3)
    alone, held = made(), [dict(made(seed).lm.named_parameters()) for seed in (0, 1, 2)]
    for name, weight in alone.lm.named_parameters():
        weight.data.copy_(sum(s * w[name].detach().double() for s, w in zip(expected, held, strict=True)))
    batch = batch_of(policy)
    found = soup.logp(policy, batch)
    torch.testing.assert_close(found, alone.evaluate(batch).logp.detach(), rtol=1e-5, atol=1e-5)
    assert not found.requires_grad and (found - policy.evaluate(batch).logp).abs().max() > 0.1
    assert checkpoint.same(policy.state_dict(), now)


def test_the_order_of_models_is_that_of_their_shares_only(models):
    policy = made()
    one = started(policy, models=models, shares=(0.2, 0.3, 0.5))
    other = started(policy, models=models[::-1], shares=(0.2, 0.5, 0.3))
    for name, weight in one.weights.items():
        torch.testing.assert_close(other.weights[name], weight)
    twice = started(policy, models=(models[0], models[0]), shares=(0.2, 0.3, 0.5))
    for name, weight in started(policy, models=models[:1], shares=(0.2, 0.8)).weights.items():
        torch.testing.assert_close(twice.weights[name], weight)


def test_the_divergence_pulls_towards_the_soup(models):
    """Of k3 = e^d - 1 - d with d = log ref - log pi the gradient by log pi is 1 - e^d; where the policy starts it is 0
    for the frozen reference and not for the soup."""
    policy, slopes = made(), []
    batch = batch_of(policy)
    for part in (Frozen(), Soup(models=models)):
        reference = part.fresh()
        reference.start(policy)
        ref = reference.logp(policy, batch)
        logp = policy.evaluate(batch).logp.detach().requires_grad_()
        loss = (KL(weight=2.0, estimator="k3")(Outputs(logp), batch.but(ref_logp=ref)) * batch.mask).sum()
        slopes.append(torch.autograd.grad(loss, logp)[0])
        torch.testing.assert_close(slopes[-1], 2.0 * (1 - (ref - logp.detach()).exp()) * batch.mask)
    assert not slopes[0].any() and slopes[1][batch.mask].all()


def trained(reference, steps=3) -> tuple[LanguagePolicy, list]:
    recipe = RLHF["rlhf_ppo"].but(reference=reference, reward=(Outcome(), KLPenalty(0.5)))
    recipe = recipe.but(steps=steps, batch_size=8, lr=3e-3)
    policy, run = made(value=True), Run(0)
    on_policy.train(recipe, policy, Liked(), run)
    return policy, run.metrics


def test_with_the_policy_alone_in_it_it_is_ppo_to_the_bit(models, tmp_path):
    made().save(tmp_path / "same")
    plain, metrics = trained(Frozen())
    for soup in (Soup(models=models, shares=(1.0, 0.0, 0.0)), Soup(models=(str(tmp_path / "same"),))):
        policy, found = trained(soup)
        assert found == metrics and checkpoint.same(policy.state_dict(), plain.state_dict())
    assert trained(Soup(models=models))[1] != metrics
    assert replace(SALSA, reference=Frozen()) == RLHF["rlhf_ppo"]


def test_ppo_learns_held_to_a_soup(models):
    soup = Soup(models=models, shares=(0.5, 0.25, 0.25))
    recipe = RLHF["rlhf_ppo"].but(reference=soup, reward=(Outcome(), KLPenalty(0.02)), steps=16, batch_size=32, lr=3e-3)
    run, policy = Run(0), made(value=True)
    on_policy.train(recipe, policy, Liked(), run)
    gold = [row["return"] for row in run.metrics]
    assert sum(gold[-4:]) > sum(gold[:4]) + 1.0
    assert run.metrics[0]["ref_kl"] > 0.05  # the policy is not the reference, from the first step on


def test_dpo_can_be_held_to_a_soup(models):
    run, policy = Run(0), made()
    preference.train(Preference(reference=Soup(models=models), steps=8, batch_size=6, lr=5e-3), policy, Liked(), run)
    first, last = run.metrics[0], run.metrics[-1]
    assert last["loss"] < first["loss"] and abs(first["margin"]) > 1e-3  # DPO's own margin begins at 0


@pytest.mark.parametrize("recipe", [SALSA.but(batch_size=4), Preference(batch_size=4)], ids=["ppo", "dpo"])
def test_a_resumed_run_brings_its_soup_along(models, tmp_path, recipe):
    made().save(tmp_path / "start")
    recipe = recipe.but(reference=Soup(models=models[:1], way="spherical"), steps=4, lr=1e-3)
    settings = Settings(eval_size=0, save_every=1, threads=1)
    config = Config("custom", recipe, Lab(size=16), Language(model=str(tmp_path / "start")), settings)
    whole = launch(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        launch(config, tmp_path / "stopped", watchers=(Stop(2),))
    shutil.rmtree(models[0])
    resumed = launch(config, tmp_path / "stopped", resume=True)
    assert checkpoint.same(whole.policy.state_dict(), resumed.policy.state_dict())
    with pytest.raises(UserError, match=r"reference\.soup\.models: no folder"):
        launch(config, tmp_path / "new")
    assert decode("reference", encode(config.recipe.reference)) == config.recipe.reference


def test_models_that_cannot_be_mixed_are_refused(tmp_path, models):
    made(layers=2).save(tmp_path / "deep")
    adapted = Language(lora_rank=2).build(None, False, torch.Generator())
    for policy, names, said in (
        (made(), (models[0], str(tmp_path / "deep")), r"\.models: .*deep is of another architecture \(model.layers.1"),
        (made(), (str(tmp_path / "nowhere"),), r"\.models: no folder"),
        (adapted, models, ": the average of adapters is not the average of models"),
    ):
        with pytest.raises(UserError, match=rf"^reference\.soup{said}") as error:
            started(policy, models=names)
        assert "\n" not in str(error.value)


def test_an_adapter_in_the_soup_counts_as_its_whole_model(tmp_path):
    base = made()
    base.save(tmp_path / "base")
    adapted = Language(model=str(tmp_path / "base"), lora_rank=2).build(None, False, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in adapted.trainable().values():
            weight.add_(0.05)
    adapted.save(tmp_path / "adapter")
    soup, batch = started(base, models=(str(tmp_path / "adapter"),), shares=(0.0, 1.0)), batch_of(base)
    assert not torch.allclose(base.evaluate(batch).logp, adapted.evaluate(batch).logp, atol=1e-2)
    torch.testing.assert_close(soup.logp(base, batch), adapted.evaluate(batch).logp.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"models": ("a",), "shares": (1.0,)}, "shares: expected 2 numbers, .* of each of 1 models, got 1"),
        ({"models": ("a",), "shares": (0.5, 0.6)}, "shares: expected numbers whose sum is 1"),
        ({"models": ("a",), "shares": (math.nan, 1.0)}, "shares: expected numbers whose sum is 1"),
        ({"models": ("a",), "way": "cubic"}, "way: expected linear or spherical"),
        ({"models": ("a", "b"), "way": "spherical"}, "way: spherical mixes the policy with one model, got 2"),
    ],
)
def test_settings_out_of_range_name_the_field(settings, said):
    with pytest.raises(UserError, match=rf"reference\.soup\.{said}"):
        Soup(**settings)


def test_a_soup_of_nothing_and_one_that_nobody_asks_for_are_refused():
    assert "reference.soup.models: name the models" in Soup().refuses(SALSA, None)
    assert "nothing in the recipe asks" in Soup(models=("a",)).refuses(SALSA.but(reward=(Outcome(),)), None)
    assert Soup(models=("a",)).refuses(SALSA, None) is Soup(models=("a",)).refuses(Preference(), None) is None


def test_the_arms_tie_where_both_models_are_one():
    small = {"seed": 3, "independent": False, "taught": 2, "size": 8, "steps": 2, "batch_size": 4, "lr": 1e-3}
    one, other = measure("treatment", **small), measure("control", **small)
    assert one == other and len(one["front"]) == 3 and one["front"][0][0] == pytest.approx(0, abs=1e-4)
    assert one["value"] == one["front"][-1][1]
