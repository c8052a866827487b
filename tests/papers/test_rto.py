"""RTO: token rewards by hand, what they sum to, when they change nothing, and the theorem on a tree of tokens."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.pairs import Pairs
from partita.estimators import games
from partita.estimators.margins import response_logp
from partita.lab import checkpoint
from partita.lab.config import Config, Settings
from partita.lab.train import train as launched
from partita.loops import on_policy, preference
from partita.loops.run import Run
from partita.papers.baselines.dpo import DPO
from partita.papers.baselines.rlhf import RECIPES as RLHF
from partita.papers.preference import rto
from partita.papers.preference.rto import RTO, TokenReward, TokenTree, distance, loss, measure
from partita.parts.contrast import Direct
from partita.parts.reference import Ema, Frozen
from partita.parts.reward import KLPenalty, Outcome
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.preferences.lab import Lab
from preferences import Liked
from resuming import resumed_alike

tensor = partial(torch.tensor, dtype=torch.float64)


def made(seed: int = 0, value: bool = False, extra: str = "") -> LanguagePolicy:
    tokenizer = character_tokenizer(extra, context=128)
    lm = tiny_model(tiny_config("qwen2", vocab=len(tokenizer), hidden=32, layers=1, heads=2, context=128), seed)
    g = torch.Generator().manual_seed(seed)
    for weight in lm.parameters():
        weight.data.add_(0.1 * torch.randn(weight.shape, generator=g))
    return LanguagePolicy(lm, tokenizer, Language(), value)


@pytest.fixture
def model(tmp_path):
    made(1).save(tmp_path / "dpo" / "policy")
    return str(tmp_path / "dpo")


def said(logp, **settings) -> TokenReward:
    """The part, with a model that says this of any batch."""
    part = TokenReward(model="m", **settings).fresh()
    part._held["policy"] = SimpleNamespace(evaluate=lambda batch: Outputs(logp[: len(batch)]))
    return part


def case() -> Batch:
    mask = torch.tensor([[True, True, False], [True, False, True]])
    return Batch(
        mask=mask, reward=tensor([[0.0, 2.0, 0.0], [0.0, 0.0, -1.0]]),
        logp=tensor([[-1.0, -2.0, 0.0], [-1.0, 0.0, -1.0]]), ref_logp=tensor([[-1.0, -3.0, 0.0], [-2.0, -9.0, -1.0]]),
    )  # fmt: skip


DPO_SAYS = tensor([[-0.5, -4.0, -7.0], [-1.0, -5.0, -1.5]])


def test_token_rewards_by_hand():
    # log-ratios 0.5, -1 and 1, -0.5 where the policy acted
    assert said(DPO_SAYS, beta=0.5)(case()).tolist() == [[0.25, 1.5, 0.0], [0.5, 0.0, -1.25]]
    assert said(DPO_SAYS, beta=0.5, clip=0.3)(case()).tolist() == [[0.25, 1.7, 0.0], [0.3, 0.0, -1.25]]


def test_the_whole_reward_by_hand():
    """beta_1 log(pi_dpo / ref) - beta_2 log(pi / ref), and beta_3 r at the last token."""
    batch = case()
    for part in (Outcome(scale=2.0), said(DPO_SAYS, beta=0.5), KLPenalty(weight=0.1)):
        batch = batch.but(reward=part(batch))
    # log(pi / ref): 0, 1 and 1, 0
    torch.testing.assert_close(batch.reward, tensor([[0.25, 4 - 0.5 - 0.1, 0.0], [0.5 - 0.1, 0.0, -2 - 0.25]]))


def test_summed_they_are_what_dpo_says_of_the_response():
    batch, g = case(), torch.Generator().manual_seed(0)
    logp = -torch.rand(2, 3, generator=g, dtype=torch.float64)
    earned = (said(logp, beta=0.3)(batch) - batch.reward).sum(1)
    none = torch.zeros(0, dtype=torch.int64)
    pairs = Pairs(batch, none, none, none.double(), ref=response_logp(batch.ref_logp, batch.mask))
    torch.testing.assert_close(earned, Direct(beta=0.3).reward(Outputs(logp), pairs))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 5))
def test_padding_order_and_chunks_change_nothing(seed, chunk):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(4) < torch.randint(1, 5, (4, 1), generator=g)
    logp, ref, reward = torch.randn(3, 4, 4, generator=g, dtype=torch.float64) * mask
    batch = Batch(mask=mask, reward=reward, ref_logp=ref, inputs={"dpo": logp})

    def earned(batch):
        part = TokenReward(model="m").fresh()
        part._held["policy"] = SimpleNamespace(evaluate=lambda some: Outputs(some.inputs["dpo"]))
        return part(batch)

    expected = earned(batch)
    order = torch.randperm(4, generator=g)
    assert torch.equal(earned(batch[order]), expected[order])
    longer = Batch(torch.ones(1, 7, dtype=torch.bool), reward=torch.zeros(1, 7), ref_logp=torch.zeros(1, 7))
    wide = Batch.cat([batch, longer.but(inputs={"dpo": torch.zeros(1, 7)})])
    assert torch.equal(earned(wide)[:4, :4], expected) and not earned(wide)[:4, 4:].any()
    kept, rto.CHUNK = rto.CHUNK, chunk
    try:
        assert torch.equal(earned(batch), expected)
    finally:
        rto.CHUNK = kept


def test_the_model_of_the_folder_speaks_and_does_not_learn(model):
    policy, part = made(), TokenReward(model=model).fresh()
    part.start(policy, Liked(), torch.Generator())
    batch = policy.teach(["a", "bc"], ["xyz", "u"], torch.tensor([0, 1]))
    found = part.logp(batch)
    torch.testing.assert_close(found, made(1).evaluate(batch).logp.detach())
    assert not found.requires_grad and (found - batch.logp).abs().max() > 0.01


def trained(reward, steps=3):
    policy, run = made(value=True), Run(0)
    on_policy.train(RTO.but(reward=reward, steps=steps, batch_size=8, lr=3e-3), policy, Liked(), run)
    return policy, run.metrics


def test_without_weight_or_without_training_it_is_ppo_to_the_bit(model, tmp_path):
    made().save(tmp_path / "untrained")
    plain, metrics = trained((Outcome(), KLPenalty(0.01)))
    for part in (TokenReward(model, beta=0.0), TokenReward(str(tmp_path / "untrained"), beta=2.0)):
        policy, found = trained((Outcome(), part, KLPenalty(0.01)))
        assert found == metrics and checkpoint.same(policy.state_dict(), plain.state_dict())
    assert trained((Outcome(), TokenReward(model), KLPenalty(0.01)))[1] != metrics
    assert RTO.but(reward=(Outcome(), KLPenalty(0.05))) == RLHF["rlhf_ppo"]


def test_what_dpo_has_learnt_teaches_ppo_by_itself(tmp_path):
    compared = made()
    preference.train(DPO.but(steps=24, batch_size=6, lr=5e-3), compared, Liked(), Run(0))
    compared.save(tmp_path)
    rewards = (Outcome(scale=0.0), TokenReward(str(tmp_path), beta=0.5))
    recipe, run = RTO.but(reward=rewards, steps=16, batch_size=32, lr=3e-3), Run(0)
    on_policy.train(recipe, made(value=True), Liked(), run)
    gold = [row["return"] for row in run.metrics]
    assert sum(gold[-4:]) / 4 > sum(gold[:4]) / 4 + 0.5


def test_from_a_run_of_dpo_to_a_run_of_rto_that_can_be_resumed(tmp_path):
    made().save(tmp_path / "start")
    lab, start = Lab(size=16), Language(model=str(tmp_path / "start"))
    quick = {"steps": 3, "batch_size": 4, "lr": 2e-3, "eval_size": 0}
    launched("dpo", lab, start, tmp_path / "dpo", **quick)
    rewards = (Outcome(), TokenReward(str(tmp_path / "dpo")), KLPenalty(0.01))
    config = Config("custom", RTO.but(reward=rewards, steps=4, batch_size=4, lr=1e-3), lab, start, Settings())
    resumed_alike(config, tmp_path)


def test_advantages_on_a_tree_by_hand():
    # Two tokens of two, beta = 1, a uniform reference; the second token is worth log 3 after the first a, else 0.
    l2, l3 = math.log(2), math.log(3)
    reward = (tensor([[0.0, 0.0]]), tensor([[l3, 0.0], [0.0, 0.0]]))
    tree = TokenTree(reward, tuple(torch.full_like(table, -l2) for table in reward), beta=1.0)
    # V(a) = log (3 + 1) / 2 = log 2, V(b) = 0, V = log (2 + 1) / 2
    first, second = tree.advantage
    torch.testing.assert_close(first, tensor([[2 * l2 - l3, l2 - l3]]))
    torch.testing.assert_close(second, tensor([[l3 - l2, -l2], [0.0, 0.0]]))
    assert tree.along(reward).tolist() == [[0.0, l3], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("seed", range(3))
def test_the_tree_agrees_with_the_bandit_of_whole_responses(seed):
    tree = TokenTree.random(seed)
    best = games.kl_optimal(tree.along(tree.reward).sum(1), tree.along(tree.log_ref).sum(1), tree.beta)
    torch.testing.assert_close(tree.along(tree.advantage).sum(1) / tree.beta + tree.along(tree.log_ref).sum(1), best)
    policy = [a / tree.beta + ref for a, ref in zip(tree.advantage, tree.log_ref, strict=True)]
    for q, same in zip(tree.q(), tree.q(policy), strict=True):
        torch.testing.assert_close(q, same)


@pytest.mark.parametrize("seed", range(3))
def test_dpo_finds_advantages_which_need_no_foresight(seed):
    tree = TokenTree.random(seed)
    assert distance(seed) < 1e-6 and abs(loss(seed)) < 1e-9
    assert tree.myopic(tree.reward) > 1e-3  # the rewards themselves do
    shaped = tree.along(tree.token_reward).sum(1) - tree.along(tree.reward).sum(1)  # by minus V of the prompt
    torch.testing.assert_close(shaped, (-games.kl_value(tree.q()[0], tree.log_ref[0], tree.beta)).expand(27))


def test_settings_out_of_range_name_the_field():
    for changes, field in (({"beta": -0.1}, "beta"), ({"beta": float("nan")}, "beta"), ({"clip": 0.0}, "clip")):
        with pytest.raises(UserError, match=rf"reward\.token_reward\.{field}: expected"):
            TokenReward(**changes)


def test_recipes_and_models_that_do_not_fit_are_refused(model, tmp_path):
    assert "reward.token_reward.model: name the folder of a run of dpo" in TokenReward().refuses(RTO, None)
    assert "ema moves; use --reference frozen" in TokenReward(model).refuses(RTO.but(reference=Ema()), None)
    assert TokenReward(model).refuses(RTO.but(reference=Frozen()), None) is None
    made(extra="é").save(tmp_path / "foreign")
    for name, words in (("foreign", "the tokenizer of"), ("nowhere", "no folder")):
        with pytest.raises(UserError, match=rf"^reward\.token_reward\.model: {words}") as error:
            trained((Outcome(), TokenReward(str(tmp_path / name))))
        assert "\n" not in str(error.value)


def test_the_arms_tie_where_dpo_has_learnt_nothing():
    small = {"seed": 3, "steps": 2, "batch_size": 4, "lr": 1e-3}
    plain = measure("control", **small)
    assert measure("treatment", taught=0, **small) == plain == measure("control", begin="dpo", taught=0, **small)
    assert measure("treatment", taught=2, **small) != plain
    assert plain["value"] == pytest.approx((plain["before"] + plain["after"]) / 2)
