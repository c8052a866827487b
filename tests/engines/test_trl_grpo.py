"""Recipes on TRL's GRPOTrainer: as TRL where the recipe is TRL's, as our parts say elsewhere, or refused in words."""

import importlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import partita
from partita.core import registry
from partita.core.batch import Batch, Outputs
from partita.core.errors import NonFinite, UserError
from partita.estimators.anchors import text_key
from partita.estimators.masked import put_last
from partita.papers.agents.gigpo import GroupInGroup
from partita.papers.baselines.grpo import GRPO
from partita.parts.aggregate import TokenMean
from partita.parts.credit import GroupRelative
from partita.parts.reference import Ema
from partita.parts.regularisers import KL, Entropy, Regulariser
from partita.parts.reward import KLPenalty, Outcome
from partita.parts.rollout import Sample
from partita.parts.select import Select
from partita.policies.language import Language

if find_spec("trl"):  # read when it is imported; other tests are to find the environment as it was
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TQDM_DISABLE="1")
trl = pytest.importorskip("trl", reason="TRL is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

from datasets import Dataset  # noqa: E402

from partita.engines.trl import PartitaGRPOTrainer, fits, grpo_config, unknown_to  # noqa: E402
from partita.engines.trl.arguments import check_grpo, check_model  # noqa: E402
from partita.engines.trl.batches import Scored, acted, sampled  # noqa: E402

MODEL = Path(partita.__file__).parent / "assets" / "models" / "tiny-0.3m"
PAGE = Path(__file__).parents[2] / "docs" / "engines" / "trl.md"
DATA = Dataset.from_dict({"prompt": [f"{a}+{b}=" for a in range(2, 8) for b in range(1, 8)]})
HOT = Sample(temperature=2.5)  # at 1 the little model answers alike, groups tie, and nothing would be compared
PLAIN = GRPO.but(rollout=HOT, group_size=4)
TRLS = PLAIN.but(credit=GroupRelative(eps=1e-4))  # the constant in TRL's code
ACCUMULATED = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 3}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3}


def score(completion_ids, **_):
    return [float(sum(ids) * 7919 % 11 > 4) + 0.25 * (len(ids) > 4) for ids in completion_ids]


def solved(completion_ids, **_):
    """Right or wrong, as verifiers say."""
    return [float(sum(ids) * 7919 % 11 > 4) for ids in completion_ids]


def settings(folder, **changes):
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "max_completion_length": 11, "max_steps": 3,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant",
        "logging_steps": 1, "seed": 3,
    } | changes  # fmt: skip


def policy():
    made = Language().build(None, False, torch.Generator())
    made.lm.config._name_or_path = str(MODEL)  # where TRL reads the reference again
    return made


def trainer(folder, recipe=None, kind=None, reward=score, rollout_func=None, **changes):
    """A trainer on the little model: TRL's own without a recipe."""
    made, changes = policy(), settings(folder, **changes)
    if recipe is None:
        theirs = {"num_generations": 4, "temperature": 2.5, "loss_type": "grpo"} | changes
        kind, more, args = trl.GRPOTrainer, {}, trl.GRPOConfig(**theirs)
    else:
        kind, more, args = kind or PartitaGRPOTrainer, {"recipe": recipe}, grpo_config(recipe, **changes)
    return kind(
        made.lm, reward, args=args, train_dataset=DATA, processing_class=made.tokenizer, rollout_func=rollout_func,
        **more,
    )  # fmt: skip


def trained(*args, **kwargs):
    out = trainer(*args, **kwargs)
    out.train()
    return out


def apart(a, b):
    """The largest difference between the weights of two models."""
    return max(float((x - y).detach().abs().max()) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def moved(one):
    return apart(one.model, policy().lm)


# -- the same as TRL --------------------------------------------------------------------------------------------------

SAME = {
    "sgd": ({}, {}),
    "accumulated, of unequal lengths": (ACCUMULATED | ADAM, {}),
    "two minibatches, two passes": (
        {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 6}, {"epochs": 2, "minibatches": 2},
    ),
    "responses cut at their length do not count": ({"mask_truncated_completions": True, "max_steps": 4}, {}),
    "an update of three generations": (ACCUMULATED | {"steps_per_generation": 1}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_grpo_is_trls_own_step_for_step(case, tmp_path):
    changes, numbers = SAME[case]
    ours, theirs = trained(tmp_path, TRLS.but(**numbers), **changes), trained(tmp_path, **changes)
    assert apart(ours.model, theirs.model) < 1e-6 and moved(theirs) > 1e-3
    for mine, other in zip(ours.state.log_history[:-1], theirs.state.log_history[:-1], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-6) and mine.get("reward") == other.get("reward")


def test_the_plain_recipe_differs_by_its_constant_alone(tmp_path):
    """Its eps is 1e-6, TRL's 1e-4."""
    ours, theirs = trained(tmp_path, PLAIN), trained(tmp_path)
    assert 0 < apart(ours.model, theirs.model) < 2e-6 and moved(theirs) > 1e-3


def test_with_a_divergence_it_is_trls(tmp_path):
    changes = ACCUMULATED | {"steps_per_generation": 6}
    kl = TRLS.but(regularisers=(KL(weight=0.04),), minibatches=2)
    theirs = trained(tmp_path, beta=0.04, use_bias_correction_kl=False, **changes)
    ours, without = trained(tmp_path, kl, **changes), trained(tmp_path, TRLS.but(minibatches=2), **changes)
    assert apart(ours.model, theirs.model) < 1e-6 < 1e-5 < apart(without.model, theirs.model)


def test_with_a_mean_over_tokens_it_is_trls_dapo_loss(tmp_path):
    ours = trained(tmp_path, TRLS.but(aggregate=TokenMean()), **ACCUMULATED)
    theirs = trained(tmp_path, loss_type="dapo", **ACCUMULATED)
    assert apart(ours.model, theirs.model) < 1e-6 < moved(theirs)


def test_an_entropy_bonus_is_trls(tmp_path):
    """TRL's is a mean over tokens whatever the loss."""
    ours = trained(tmp_path, TRLS.but(aggregate=TokenMean(), regularisers=(Entropy(weight=0.05),)))
    theirs = trained(tmp_path, loss_type="dapo", entropy_coef=0.05)
    without = trained(tmp_path, loss_type="dapo")
    assert apart(ours.model, theirs.model) < 1e-6 < 1e-5 < apart(without.model, theirs.model)


def test_a_moving_reference_is_trls(tmp_path):
    changes = {"max_steps": 4, "learning_rate": 0.2}
    kl = TRLS.but(regularisers=(KL(weight=0.5),))
    ours = trained(tmp_path, kl.but(reference=Ema(decay=0.6)), **changes)
    theirs = trained(
        tmp_path, beta=0.5, use_bias_correction_kl=False, sync_ref_model=True, ref_model_mixup_alpha=0.4,
        ref_model_sync_steps=1, **changes,
    )  # fmt: skip
    still = trained(tmp_path, kl, **changes)
    assert apart(ours.model, theirs.model) < 2e-6 < 2e-5 < apart(still.model, theirs.model)
    assert apart(ours.ref_model, theirs.ref_model) < 2e-6 < apart(ours.ref_model, ours.model)


def drawn_elsewhere(prompts, trainer):
    """Responses of a sampler that is not quite the policy, as vLLM's is."""
    tokenizer, g = trainer.processing_class, torch.Generator().manual_seed(trainer.state.global_step)
    ids = [
        torch.randint(5, 30, (int(n),), generator=g).tolist() for n in torch.randint(3, 8, (len(prompts),), generator=g)
    ]
    said = [(-3 - 2 * torch.rand(len(row), generator=g)).tolist() for row in ids]
    return {"prompt_ids": [tokenizer(p)["input_ids"] for p in prompts], "completion_ids": ids, "logprobs": said}


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_mask"])
def test_a_samplers_mismatch_is_corrected_as_trl_does(mode, tmp_path):
    done = []
    for recipe in (None, TRLS):
        one = trainer(
            tmp_path, recipe, rollout_func=drawn_elsewhere, vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_max=2.0,
        )  # fmt: skip
        one.use_vllm, one._last_loaded_step = True, -1
        one.vllm_generation = SimpleNamespace(sync_weights=lambda: None)
        one.train()
        done.append(one)
    assert apart(done[0].model, done[1].model) < 1e-6 < 1e-4 < moved(done[0])


# -- the same as our parts --------------------------------------------------------------------------------------------


class Probe(PartitaGRPOTrainer):
    """Works out advantages, weights and losses by hand, from the recipe's parts and a plain forward pass."""

    def said(self, inputs):
        ids = torch.cat((inputs["prompt_ids"], inputs["completion_ids"]), 1)
        seen = torch.cat((inputs["prompt_mask"], inputs["completion_mask"]), 1)
        place = (seen.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = self.model.forward(input_ids=ids, attention_mask=seen, position_ids=place).logits
        logits = (logits / self.temperature)[:, -inputs["completion_ids"].shape[1] - 1 : -1].log_softmax(-1)
        logp = logits.gather(-1, inputs["completion_ids"][..., None])[..., 0]
        return logp, -(logits.exp() * logits).sum(-1)

    def _generate_and_score_completions(self, inputs):
        made = super()._generate_and_score_completions(inputs)
        mask = acted(made)
        reward = torch.tensor(self.reward_funcs[0]([
            row[keep].tolist() for row, keep in zip(made["completion_ids"], mask, strict=True)
        ]))  # fmt: skip
        logp, entropy = self.said(made)
        batch = Batch(
            mask=mask, reward=put_last(reward, mask), outcome=reward, entropy=entropy * mask, logp=logp * mask,
            group=torch.arange(len(mask)) // self.num_generations,
        )  # fmt: skip
        batch = batch.but(advantage=self.parts.credit(batch))
        keep = self.parts.select(batch)
        weight = torch.zeros_like(logp)
        weight[keep] = self.parts.focus(batch[keep])
        own = {"hand_group": batch.group, "hand_outcome": reward}
        mine = own | {"hand_advantage": batch.advantage * keep[:, None], "hand_weight": weight, "hand_keep": keep}
        self.generations.append((made["advantages"], mine["hand_advantage"], keep, reward))
        return made | mine

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        logp, entropy = self.said(inputs)
        keep, mask = inputs["hand_keep"], acted(inputs)
        old = inputs.get("old_per_token_logps", logp)
        batch = Batch(
            mask=mask, logp=old * mask, advantage=inputs["hand_advantage"], weight=inputs["hand_weight"],
            group=inputs["hand_group"], outcome=inputs["hand_outcome"],
        )[keep]  # fmt: skip
        each = self.parts.objective(Outputs((logp * mask)[keep], (entropy * mask)[keep]), batch)
        hand = (self.parts.aggregate(batch) * batch.weight * each).sum()
        self.losses.append((float(loss.detach()), float(hand)))
        return loss


MINIBATCHES = {  # more than one, so that ratios are not 1 from the second update on
    "gigpo": 1, "bnpo": 1, "bapo": 2, "forking_tokens": 2, "dapo": 1, "gspo": 2, "clip_cov": 1, "nft": 2, "salt": 1,
    "topr": 1, "pacs": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", MINIBATCHES)
def test_a_recipe_trains_and_learns_what_its_parts_say(name, tmp_path):
    count = MINIBATCHES[name]
    recipe = registry.recipe(name).but(rollout=HOT, group_size=4, minibatches=count)
    changes = {"reward": solved, "per_device_train_batch_size": 12, "max_steps": 2 * count, **ADAM}
    one = trainer(tmp_path, recipe, Probe, **changes)
    one.parts, one.generations, one.losses = recipe.fresh(), [], []
    one.train()
    assert moved(one) > 1e-4 and len(one.generations) == 2 and len(one.losses) == 2 * count
    for ours, hand, keep, reward in one.generations:
        assert len(set(reward.tolist())) > 1 and keep.any() and hand.abs().max() > 0.1
        torch.testing.assert_close(ours, hand, rtol=1e-4, atol=1e-5)
    for ours, hand in one.losses:
        assert ours == pytest.approx(hand, rel=1e-3, abs=2e-5)
    assert max(abs(hand) for _, hand in one.losses) > 1e-3 or name in ("gigpo", "bnpo", "salt")  # there they are 0
    assert {"loss", "grad_norm", "reward", "partita/kl", "partita/degenerate"} <= set(one.state.log_history[0])


@dataclass(frozen=True)
class Likely(Regulariser):
    """A scalar for the whole minibatch: minus the mean log-likelihood of its responses."""

    def __call__(self, out, batch):
        return -0.05 * out.logp.sum() / len(batch)


def test_micro_batches_do_not_change_an_update(tmp_path):
    """Groups that are dropped leave micro-batches of different sizes, with different numbers of tokens."""
    recipe = registry.recipe("forking_tokens").but(
        rollout=HOT, group_size=4, whiten="minibatch", regularisers=(Likely(),)
    )
    changes = {"reward": solved, "num_generations": 4, "max_steps": 2}
    split, whole, batch = (
        trained(tmp_path, r, per_device_train_batch_size=36 // n, gradient_accumulation_steps=n, **changes)
        for r, n in ((recipe, 3), (recipe, 1), (recipe.but(whiten="none"), 3))
    )
    kept = [row["partita/kept"] for row in split.state.log_history if "partita/kept" in row]
    assert kept and all(0 < share < 1 for share in kept)
    assert apart(split.model, whole.model) < 1e-6 < 1e-4 < min(moved(whole), apart(split.model, batch.model))


# -- what a generation brings -----------------------------------------------------------------------------------------


def test_a_generation_becomes_a_batch():
    inputs = {
        "completion_ids": torch.tensor([[4, 5, 9, 0], [4, 5, 6, 7], [4, 9, 0, 0], [5, 5, 5, 5]]),
        "completion_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]),
        "old_per_token_logps": -torch.ones(4, 4),
    }
    values = torch.tensor([[1.0, torch.nan], [0.5, 2.0], [torch.nan, torch.nan], [1.0, 1.0]])
    rows = [{"prompt": "p", "answer": n} for n in range(4)]
    scored = Scored(values, torch.tensor([1.0, 10.0]), ("right", "neat"), ["p"] * 4, ["a", "b", "c", "d"])
    batch = sampled(inputs, rows, scored, 2, [9])
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    assert torch.equal(batch.mask, mask) and torch.equal(batch.logp, -mask.float())
    assert batch.outcome.tolist() == [1, 20.5, 0, 11] and batch.failed.tolist() == [False, False, True, False]
    assert batch.reward.tolist() == [[0, 0, 1, 0], [0, 0, 0, 20.5], [0, 0, 0, 0], [11, 0, 0, 0]]
    assert batch.group.tolist() == [0, 0, 1, 1] and batch.turn.tolist()[0] == [0, 0, 1, 1]
    assert batch.terminated.nonzero().tolist() == [[0, 2], [2, 1]] and batch.truncated.nonzero().tolist() == [[1, 3]]
    expected = {"prompt": "p", "answer": 1, "response": "b", "score": 20.5, "parts": {"right": 0.5, "neat": 2.0}}
    assert batch.records[1] == expected


def two_turns(prompts, trainer):
    """Two tokens, two of the world's, three tokens; the second turn begins in one of two rooms, and may be paid."""
    tokenizer, g = trainer.processing_class, torch.Generator().manual_seed(trainer.state.global_step)
    first, last = (torch.randint(5, 12, (len(prompts), n), generator=g).tolist() for n in (2, 3))
    return {
        "prompt_ids": [tokenizer(p)["input_ids"] for p in prompts], "logprobs": None,
        "completion_ids": [a + [20, 21] + b for a, b in zip(first, last, strict=True)],
        "env_mask": [[1, 1, 0, 0, 1, 1, 1] for _ in prompts],
        "turn_states": [[p, f"room {a[0] % 2}"] for p, a in zip(prompts, first, strict=True)],
        "turn_rewards": [[0.25 * (a[1] > 8), float(b[0] > 8)] for a, b in zip(first, last, strict=True)],
    }  # fmt: skip


def paid(turn_rewards, **_):
    return [sum(row) for row in turn_rewards]


def test_gigpo_sees_the_turns_of_a_rollout_function(tmp_path):
    gigpo = registry.recipe("gigpo").but(rollout=HOT, group_size=4)
    one, seen = trainer(tmp_path, gigpo, reward=paid, rollout_func=two_turns, **ADAM), []
    before = one._generate_and_score_completions
    one._generate_and_score_completions = lambda rows: seen.append((before(rows), rows)) or seen[-1][0]
    one.train()
    made, rows = seen[0]
    turn = torch.tensor([0, 0, 0, 0, 1, 1, 1]).expand(8, 7)
    states = torch.tensor([[text_key(text) for text in row["turn_states"]] for row in rows])
    rewards = torch.tensor([row["turn_rewards"] for row in rows])
    reward = torch.zeros(8, 7)
    reward[:, 1], reward[:, 6] = rewards.T
    mask = turn.new_tensor([1, 1, 0, 0, 1, 1, 1]).bool().expand(8, 7)
    batch = Batch(
        mask=mask, reward=reward, group=torch.arange(8) // 4, turn=turn, state_key=states.gather(1, turn) * mask
    )
    torch.testing.assert_close(made["advantages"], GroupInGroup()(batch))
    assert (made["advantages"][:, 0] - made["advantages"][:, 4]).abs().max() > 0.1 and moved(one) > 1e-4
    assert (made["advantages"][:, 2:4] == 0).all()


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("turn_states", ["once"], r"turn_states: row 0 tells of 1 turns, and its completion has 2; give one for each"),
        ("turn_rewards", [0.0, 9.0], r"turn_rewards: those of row 0 add up to 9, and its reward is .*; let a reward"),
    ],
)
def test_turns_that_do_not_add_up_are_refused(field, values, words, tmp_path):
    def rollout(prompts, trainer):
        return two_turns(prompts, trainer) | {field: [values for _ in prompts]}

    gigpo = registry.recipe("gigpo").but(rollout=HOT, group_size=4)
    with pytest.raises(UserError, match=words):
        trained(tmp_path, gigpo, reward=score, rollout_func=rollout)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_responses_of_which_nothing_is_known_are_left_out(tmp_path):
    def sometimes(completion_ids, **_):
        return [None if i % 4 == 1 else value for i, value in enumerate(score(completion_ids))]

    one, seen = trainer(tmp_path, PLAIN, reward=sometimes, max_steps=1), []
    before = one._generate_and_score_completions
    one._generate_and_score_completions = lambda rows: seen.append(before(rows)) or seen[-1]
    one.train()
    (made,) = seen
    rest = torch.tensor([i for i in range(8) if i % 4 != 1])
    reward = torch.tensor(score([r[m].tolist() for r, m in zip(made["completion_ids"], acted(made), strict=True)]))
    batch = Batch(mask=acted(made), reward=put_last(reward, acted(made)), group=torch.arange(8) // 4)[rest]
    torch.testing.assert_close(made["advantages"][rest], GroupRelative()(batch))
    assert made["partita_keep"].tolist() == [i % 4 != 1 for i in range(8)] and moved(one) > 1e-4
    assert one.state.log_history[0]["partita/failed"] == 2


@pytest.mark.parametrize("value", [None, 1.0])
def test_a_generation_that_teaches_nothing_moves_nothing(value, tmp_path):
    one = trained(
        tmp_path,
        registry.recipe("dapo").but(rollout=HOT, group_size=4),
        reward=lambda prompts, **_: [value] * len(prompts),
    )
    assert moved(one) == 0


@dataclass(frozen=True)
class Best(Select):
    """The best response of all."""

    rounds: int = 3

    def __call__(self, batch):
        return torch.arange(len(batch)) == batch.need("reward").sum(1).argmax()


def test_a_selection_does_not_sample_again(tmp_path):
    one = trained(tmp_path, PLAIN.but(select=Best()), max_steps=1)
    logged = one.state.log_history[0]
    assert (logged["partita/rounds"], logged["partita/kept"]) == (1, 1 / 8) and moved(one) > 1e-4


def test_a_price_in_the_reward_is_paid_token_by_token(tmp_path):
    """The reference is another model, so that there is a price; its sum is taken off each response's reward."""
    priced = TRLS.but(reward=(Outcome(), KLPenalty(weight=0.3)))
    one = trainer(tmp_path, priced, max_steps=1)
    with torch.no_grad():
        for p in one.ref_model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    seen, before = [], one._generate_and_score_completions
    one._generate_and_score_completions = lambda rows: seen.append(before(rows)) or seen[-1]
    one.train()
    (made,) = seen
    mask = acted(made)
    fresh = trainer(tmp_path, priced)
    with torch.no_grad():
        ids = torch.cat((made["prompt_ids"], made["completion_ids"]), 1)
        attend = torch.cat((made["prompt_mask"], made["completion_mask"]), 1)
        logp, _, _ = fresh._get_per_token_logps_and_entropies(fresh.model, ids, attend, mask.shape[1])
    price = ((logp - made["ref_per_token_logps"]) * mask).sum(1)
    reward = torch.tensor(score([r[m].tolist() for r, m in zip(made["completion_ids"], mask, strict=True)]))
    batch = Batch(mask=mask, reward=put_last(reward - 0.3 * price, mask), group=torch.arange(8) // 4)
    assert price.abs().min() > 1e-3
    torch.testing.assert_close(made["advantages"], GroupRelative(eps=1e-4)(batch), rtol=1e-3, atol=1e-4)


def test_numbers_that_are_not_finite_stop_the_run(tmp_path):
    with pytest.raises(NonFinite, match="step 1: reward: reward is not finite in"):
        trained(tmp_path, PLAIN, reward=lambda prompts, **_: [float("inf")] * len(prompts))


# -- evaluation and checkpoints ---------------------------------------------------------------------------------------

RISK = registry.recipe("riskpo").but(rollout=HOT, group_size=4)


def quantiles(one):
    return one.recipe.credit.state_dict()["quantiles"]


def test_an_evaluation_teaches_the_parts_nothing(tmp_path):
    one = trained(tmp_path, RISK, num_generations_eval=2, per_device_eval_batch_size=4)
    before = quantiles(one).clone()
    found = one.evaluate(DATA.select(range(4)))
    assert torch.equal(quantiles(one), before) and {"eval_loss", "eval_reward", "eval_partita/kl"} <= set(found)


def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path):
    """What the credit has tracked and where the reference has moved to come back with the weights."""
    recipe = RISK.but(regularisers=(KL(weight=0.5),), reference=Ema(decay=0.6))
    changes = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.2}
    whole = trained(tmp_path, recipe, **changes)
    place = tmp_path / "checkpoint-2" / "partita"
    assert sorted(p.name for p in place.iterdir()) == ["state.json", "state.safetensors"]
    resumed = trainer(tmp_path, recipe, **changes)
    resumed.train(resume_from_checkpoint=str(place.parent))
    assert apart(resumed.model, whole.model) == 0 == apart(resumed.ref_model, whole.ref_model)
    assert torch.equal(quantiles(resumed), quantiles(whole)) and apart(whole.ref_model, policy().lm) > 1e-3
    shutil.rmtree(place)
    with pytest.raises(UserError, match=r"remembers .*mixed_value_at_risk.*, and the checkpoint holds nothing; resume"):
        trainer(tmp_path, recipe, **changes).train(resume_from_checkpoint=str(place.parent))


# -- refusals ---------------------------------------------------------------------------------------------------------

ARGUMENTS = {  # what an argument is, and the word that its refusal must have beside its name and value
    "loss_type": ("dr_grpo", "aggregate"),
    "scale_rewards": ("none", "credit"),
    "multi_objective_aggregation": ("normalize_then_sum", "reward"),
    "importance_sampling_level": ("sequence", "sequence_ratio"),
    "delta": (2.0, "dual_clip"),
    "top_entropy_quantile": (0.2, "forking_tokens"),
    "entropy_coef": (0.01, "regularisers"),
    "use_adaptive_entropy": (True, "regularisers"),
    "off_policy_mask_threshold": (0.5, "select"),
    "epsilon": (0.3, "objective"),
    "epsilon_high": (0.28, "objective"),
    "num_generations": (2, "the recipe says 4"),
    "num_iterations": (2, "the recipe says 1"),
    "temperature": (1.0, "the recipe says 2.5"),
    "top_k": (5, "the recipe says 0"),
    "top_p": (0.9, "the recipe says 1.0"),
    "min_p": (0.1, "the recipe says None"),
    "beta": (0.04, "the recipe says 0.0"),
    "sync_ref_model": (True, "the recipe says False"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_would_not_act_or_say_otherwise_are_refused(name, tmp_path):
    value, word = ARGUMENTS[name]
    args = grpo_config(PLAIN, **settings(tmp_path, **{name: value}))
    with pytest.raises(UserError) as error:
        PartitaGRPOTrainer("no such model", score, args, recipe=PLAIN)
    said = str(error.value)
    assert said.startswith(f"args.{name}: ") and repr(value) in said and word in said and "leave it out" in said
    assert "\n" not in said


REFUSED = {
    "another loop": ("dpo", {}, "recipe: it belongs to the preference loop, and GRPOTrainer .*; use PartitaDPOTrainer"),
    "no trainer": ("sac", {}, r"recipe: it belongs to the replay loop.*; use Partita's own loop \(partita train\)"),
    "no recipe": (3, {}, "recipe: expected the name of a recipe or a recipe, got 3"),
    "a misspelling": ("grop", {}, "recipe grop: no such recipe; did you mean grpo"),
    "a tree": ("treepo", {}, "rollout segment_tree: GRPOTrainer writes each response whole and alone: no trees"),
    "a curriculum": ("sec", {}, "curriculum self_evolving: GRPOTrainer takes prompts .* in an order drawn before"),
    "a critic": ("ppo", {}, "credit gae: it needs a value head"),
    "single responses": (PLAIN.but(group_size=1), {}, "group_size: GRPOTrainer takes 2 or more .*, got 1; use 2"),
    "a reference that is mixed": (
        PLAIN.but(reward=(Outcome(), KLPenalty()), reference=registry.recipe("salsa").reference), {},
        "reference soup: TRL's reference is still, or follows the policy; use frozen, ema or reset",
    ),
    "a whole minibatch": (
        registry.recipe("bapo").but(group_size=4), {"gradient_accumulation_steps": 2},
        "gradient_accumulation_steps: objective balanced_clip looks at a whole minibatch, got 2; use 1",
    ),
    "whole groups": (
        registry.recipe("pacs").but(group_size=4), {"gradient_accumulation_steps": 2},
        "steps_per_generation: objective labelled_score needs whole groups.*, got 2; use 1",
    ),
    "windows that straddle": (
        PLAIN, {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
        "steps_per_generation: 3 micro-batches of a generation and 2 of an update .*; make one a multiple",
    ),
    "other minibatches": (
        PLAIN, {"steps_per_generation": 4},
        "steps_per_generation: 4 makes 4 updates of a batch, .* minibatches=1; use 1",
    ),
    "no end": (PLAIN, {"max_completion_length": None}, "max_completion_length: expected the most tokens .*, got None"),
    "a batch that does not divide": (
        PLAIN.but(batch_size=5, minibatches=3), {}, "batch_size: 5 prompts with 4 responses each do not divide into 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_the_reason(case, tmp_path):
    recipe, changes, words = REFUSED[case]

    def made():
        args = grpo_config(recipe, output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes)
        return PartitaGRPOTrainer("no such model", score, args, recipe=recipe)

    with pytest.raises(UserError, match=words) as error:
        made()
    assert "\n" not in str(error.value) and (case == "no recipe" or ";" in str(error.value))


def test_several_processes_are_refused(tmp_path, monkeypatch):
    args = grpo_config(PLAIN, **settings(tmp_path))
    monkeypatch.setattr(trl.GRPOConfig, "world_size", 2)
    with pytest.raises(UserError, match=r"processes: expected 1, got 2: .*; start one"):
        PartitaGRPOTrainer("no such model", score, args, recipe=PLAIN)


@pytest.mark.parametrize(
    ("model", "words"),
    [({"_is_vlm": True}, "processing_class: "), ({"aux_loss_enabled": True}, "router_aux_loss_coef: ")],
)
def test_models_of_which_something_would_be_left_out_are_refused(model, words):
    with pytest.raises(UserError, match=words):
        check_model(
            SimpleNamespace(**{"_is_vlm": False, "aux_loss_enabled": False, "router_aux_loss_coef": 0.1} | model)
        )


# -- which recipes there are ------------------------------------------------------------------------------------------

GROUPED = """
bapo bnpo cispo clip_cov dapo dr_grpo entropy_mechanism forking_rest forking_tokens gigpo gigpo_mean grpo grpo_kl gspo
nft pacs question_baseline rejection_tuning riskpo riskpo_centred rlhf_loss rlhf_rloo rloo salt salt_rloo spo_proxy_lm
topr topr_naive topr_positives topr_truncated
"""
PAIRED = "dpo dpo_normalised f_dpo f_dpo_alpha f_dpo_forward_kl ipo orpo rpo rpo_mean simpo slic"
REASONS = {
    "works in control": """
        mdpo pdppo pdppo_whole pmoe_ppo ppo_buffer ppo_fresh ppo_kl ppo_kl_fixed props ros spo_reward_model trpo""",
    "value head": "a2c archer_baseline otc_ppo ppo reward_model reward_regression rlhf_ppo salsa",
    "critic of its own": "archer archer_iql archer_small",
    "no trees, demonstrations or schedules": """
        aepo aepo_linear ead ead_dapo ead_short hpt latr latr_dapo latr_short luffy_mix otr sft sft_then_rl t_ppo treepo
        treepo_grpo""",
    "order drawn before training": """
        easy_to_hard grpo_on_a_pool random_curriculum sec single_stream_po single_stream_po_uniform""",
    "2 or more responses": "reinforce",
    "greedy response": "remax",
    "optimiser": "capo dr_capo",
    "gets ready": "rm_ensembles_mean rm_ensembles_uwo rm_ensembles_wco rto spo_minimax spo_minimax_lm",
    "task train_dataset has none": "otc simpletir",
    "responses of its data set": """
        hypo inpo inpo_every_pair iterated_dpo nash_mp online_dpo rm_ensembles rso rso_hinge rso_sft rso_sft_hinge
        rso_tournament sppo""",
    "labels of single responses": "kto",
}


@pytest.fixture(scope="module")
def listed():
    pytest.importorskip("scipy", reason="the recipes of control need SciPy")
    return fits()


def test_every_recipe_fits_or_has_its_reason(listed):
    """A recipe that is new belongs in one of these lists: trained here, or refused for a reason that holds."""
    known = {
        name for name, entry in registry.index()["recipes"].items() if entry["loop"] in ("on_policy", "preference")
    }
    reasons = {name: why for why, names in REASONS.items() for name in names.split()}
    assert set(listed) == known == {*GROUPED.split(), *PAIRED.split(), *reasons}
    for name, fit in listed.items():
        if name in reasons:
            assert not fit.trainer and reasons[name] in fit.why and "; use " in fit.why and "\n" not in fit.why, name
        else:
            assert fit == ("GRPOTrainer" if name in GROUPED.split() else "DPOTrainer", ""), name


def test_the_page_names_every_recipe(listed):
    page = PAGE.read_text()
    assert set(re.findall(r"`([a-z0-9_]+)`", page)) >= set(listed)


def test_arguments_are_filled_for_every_recipe_that_fits(listed, tmp_path):
    for name in GROUPED.split():
        args = grpo_config(name, output_dir=str(tmp_path), use_cpu=True, bf16=False)
        check_grpo(registry.recipe(name), args)
    recipe = PLAIN.but(batch_size=6, minibatches=2, epochs=2, lr=1e-3, steps=5, warmup=3, betas=(0.8, 0.9))
    args = grpo_config(recipe, output_dir=str(tmp_path), gradient_accumulation_steps=3, use_cpu=True, bf16=False)
    found = (args.per_device_train_batch_size, args.steps_per_generation, args.num_iterations, args.max_steps)
    assert found == (4, 6, 2, 20) and args.learning_rate == 1e-3 and args.warmup_steps == 12 and args.adam_beta1 == 0.8
    assert args.loss_type == "grpo" and not args.use_bias_correction_kl  # TRL's log then shows the recipe's numbers
    one = trainer(tmp_path, registry.recipe("dapo").but(rollout=HOT, group_size=4), epsilon_high=None)
    assert (one.epsilon_low, one.epsilon_high) == (0.2, 0.28)


# -- TRL itself -------------------------------------------------------------------------------------------------------


def test_without_trl_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("partita.engines.trl")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match=re.escape('pip install "partita[trl]"')):
        importlib.import_module("partita.engines.trl")


def test_a_hook_that_trl_no_longer_has_is_noticed():
    class Renamed:
        _compute_loss = _calculate_rewards = _get_per_token_logps_and_entropies = None
        _save_checkpoint = _load_optimizer_and_scheduler = None

    assert unknown_to(trl.GRPOTrainer, PartitaGRPOTrainer) == []
    assert unknown_to(Renamed, PartitaGRPOTrainer) == ["_generate_and_score_completions"]
