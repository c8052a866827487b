"""Recipes on TRL's GRPOTrainer: as TRL where the recipe is TRL's, and as our parts say elsewhere."""

import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from trl_runs import DATA, HOT, PLAIN, TRLS, apart, moved, policy, score, solved, trained, trainer

from partita.core import registry
from partita.core.batch import Batch, Outputs
from partita.core.errors import NonFinite, UserError
from partita.engines.trl import PartitaGRPOTrainer
from partita.engines.trl.batches import Scored, acted, sampled
from partita.estimators.anchors import text_key
from partita.estimators.masked import put_last
from partita.papers.agents.gigpo import GroupInGroup
from partita.parts.aggregate import TokenMean
from partita.parts.credit import GroupRelative
from partita.parts.reference import Ema
from partita.parts.regularisers import KL, Entropy, Regulariser
from partita.parts.reward import KLPenalty, Outcome
from partita.parts.select import Select

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

ACCUMULATED = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 3}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3}

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
