"""Reward models that score text: equal to the policy they were saved from, and refused when they are none."""

import pytest
import torch

from partita.core.errors import UserError
from partita.estimators.masked import last_value
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.baselines.rlhf import RECIPES
from partita.parts.reward import KLPenalty, RewardModel
from partita.policies.language import Language, LanguagePolicy
from partita.policies.scorer import Scorer
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from preferences import Liked


def made(value: bool) -> LanguagePolicy:
    torch.manual_seed(0)
    policy = LanguagePolicy(tiny_model(tiny_config("llama")), character_tokenizer(), Language(), value=value)
    if value:
        torch.nn.init.normal_(policy.value_head.weight)
    return policy


@pytest.fixture
def model(tmp_path):
    made(True).save(tmp_path / "run" / "policy")
    return tmp_path / "run"


def test_scores_are_the_value_at_the_last_token(model):
    policy, scorer = made(True), Scorer.load(str(model), "model", stop=("\n",))
    texts = ["ab", "c\n", "abcd"]
    batch = policy.written(["x", "yz", "x"], texts, torch.tensor([0, 1, 0]), ("\n",), [False, False, True])
    expected = last_value(policy.evaluate(batch).value, batch.mask)
    torch.testing.assert_close(scorer.score(["x", "yz", "x"], texts, [False, False, True]), expected)
    assert batch.lengths.tolist() == [3, 2, 4]  # closed, closed by itself, cut


def test_many_are_scored_as_few_are(model):
    scorer = Scorer.load(str(model), "model")
    prompts, texts = ["p" * (1 + i % 3) for i in range(150)], [chr(97 + i % 26) * (1 + i % 5) for i in range(150)]
    whole = scorer.score(prompts, texts)
    alone = torch.cat([scorer.score([p], [t]) for p, t in zip(prompts[:70:23], texts[:70:23], strict=True)])
    torch.testing.assert_close(whole[:70:23], alone)
    assert scorer.score([], []).shape == (0,)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "nowhere has no value_head.safetensors"),
        ("plain", "has no value_head.safetensors; give the folder of a run"),
    ],
)
def test_what_is_no_reward_model_is_refused(tmp_path, folder, message):
    made(False).save(tmp_path / "plain")
    with pytest.raises(UserError, match=f"reward.reward_model.model: .*{message}"):
        Scorer.load(str(tmp_path / folder), "reward.reward_model.model")


@pytest.mark.parametrize("name", ["rlhf_ppo", "rlhf_rloo", "rlhf_loss"])
def test_recipes_learn_what_a_reward_model_likes(model, name):
    """The reward model is fixed and random; its score of the policy's responses rises."""
    rewards = (RewardModel(model=str(model)), KLPenalty(weight=0.01))
    recipe = RECIPES[name].but(reward=rewards, steps=16, batch_size=32, lr=3e-3)
    policy, run = made("value" in recipe.needs()), Run(0)
    train(recipe, policy, Liked(), run)
    reward = [row["reward"] for row in run.metrics]
    assert sum(reward[-4:]) > sum(reward[:4]) + 1.0
    assert run.metrics[-1]["ref_kl"] > 0
