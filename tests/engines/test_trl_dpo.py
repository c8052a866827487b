"""Recipes on TRL's DPOTrainer: as TRL where the recipe is TRL's, as our parts say elsewhere, or refused in words."""

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from trl_runs import apart, trl

from partita.core import registry
from partita.core.batch import Batch, Outputs
from partita.core.errors import NonFinite, UserError
from partita.core.pairs import Pairs
from partita.papers.baselines.dpo import DPO
from partita.parts.contrast import Direct
from partita.parts.reference import Ema
from partita.policies.language import Language

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

from datasets import Dataset  # noqa: E402

from partita.engines.trl import PartitaDPOTrainer, dpo_config  # noqa: E402

ROWS = [
    {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": "no idea"[: a + 2]}
    for a in range(2, 6)
    for b in range(2, 8)
]


def settings(folder, **changes):
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 4,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "constant",
        "logging_steps": 1, "seed": 3,
    } | changes  # fmt: skip


def policy():
    return Language().build(None, False, torch.Generator())


def trainer(folder, recipe=None, kind=PartitaDPOTrainer, **changes):
    """A trainer on the little model, whose reference is another one: TRL's own without a recipe."""
    made, changes = policy(), settings(folder, **changes)
    made.tokenizer.split_special_tokens = False  # TRL writes the end of a response as text
    reference, g = copy.deepcopy(made.lm), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=g))
    more = {"train_dataset": Dataset.from_list(ROWS), "processing_class": made.tokenizer}
    if recipe is None:
        return trl.DPOTrainer(made.lm, reference, args=trl.DPOConfig(**changes), **more)
    return kind(made.lm, reference, dpo_config(recipe, **changes), recipe=recipe, **more)


def trained(*args, **kwargs):
    out = trainer(*args, **kwargs)
    out.train()
    return out


def moved(one):
    return apart(one.model, policy().lm)


SAME = {
    "dpo": {},
    "dpo by sgd": {"optim": "sgd", "learning_rate": 0.1},
    "f_dpo": {"f_divergence_type": "js_divergence"},
    "f_dpo_forward_kl": {"f_divergence_type": "forward_kl", "learning_rate": 3e-4},
    "slic": {"loss_type": "hinge"},
}


@pytest.mark.parametrize("case", SAME)
def test_it_is_trls_own_step_for_step(case, tmp_path):
    changes = dict(SAME[case])
    mine = {name: changes.pop(name) for name in ("optim", "learning_rate") if name in changes}
    recipe = registry.recipe(case.split()[0])
    recipe = recipe.but(objective=recipe.objective.but(beta=0.2))
    ours, theirs = trained(tmp_path, recipe, **mine), trained(tmp_path, beta=0.2, **mine, **changes)
    assert apart(ours.model, theirs.model) < 2e-6 < 1e-3 < moved(theirs)
    for one, other in zip(ours.state.log_history[:-1], theirs.state.log_history[:-1], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert one["rewards/margins"] == pytest.approx(other["rewards/margins"], abs=1e-5)
        assert {"partita/accuracy", "partita/margin", "partita/logp_better"} <= set(one)


def test_with_log_ratios_of_the_reference_that_are_given_it_is_the_same(tmp_path):
    """Other batches, other padding: the digits of float32 agree no further."""
    ours, asked = (trained(tmp_path, "rpo", precompute_ref_log_probs=given) for given in (True, False))
    assert apart(ours.model, asked.model) < 1e-4 < 1e-3 < moved(ours)


def test_a_moving_reference_is_trls(tmp_path):
    ours = trained(tmp_path, DPO.but(reference=Ema(decay=0.6)))
    theirs = trained(tmp_path, sync_ref_model=True, ref_model_mixup_alpha=0.4, ref_model_sync_steps=1)
    assert apart(ours.model, theirs.model) < 2e-6 < 1e-4 < apart(ours.model, trained(tmp_path, "dpo").model)
    assert apart(ours.ref_model, theirs.ref_model) < 2e-6


class Probe(PartitaDPOTrainer):
    """Works out losses by hand, from the recipe's parts and plain forward passes."""

    def _compute_loss(self, model, inputs, return_outputs):
        loss = super()._compute_loss(model, inputs, return_outputs)
        mask, tokens = inputs["completion_mask"][:, 1:].bool(), inputs["input_ids"]
        said = []
        for each in (self.model, self.ref_model):
            with torch.no_grad():
                logits = each.forward(input_ids=tokens, attention_mask=inputs["attention_mask"]).logits[:, :-1]
            said.append(logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0] * mask)
        count = len(mask) // 2
        rows = torch.arange(count)
        batch = Batch(mask=mask, group=rows.repeat(2))
        pairs = Pairs(batch, rows, rows + count, torch.ones(count), ref=said[1].sum(1))
        parts = (self.recipe.objective, *self.recipe.regularisers)
        self.losses.append((float(loss.detach()), float(sum(part(Outputs(said[0]), pairs).mean() for part in parts))))
        return loss


@pytest.mark.parametrize("name", ["rpo", "rpo_mean", "f_dpo", "f_dpo_alpha", "dpo_normalised", "simpo", "orpo", "ipo"])
def test_a_recipe_trains_and_learns_what_its_parts_say(name, tmp_path):
    one = trainer(tmp_path, name, Probe, learning_rate=1e-4)
    one.losses = []
    one.train()
    assert moved(one) > 5e-5 and len(one.losses) == 8 and len({hand for _, hand in one.losses}) == 8
    for ours, hand in one.losses:
        assert ours == pytest.approx(hand, rel=1e-4)
    assert {"loss", "grad_norm", "rewards/accuracies", "partita/logp_better"} <= set(one.state.log_history[0])


@dataclass(frozen=True)
class Counted(Direct):
    """Remembers how many comparisons it has seen."""

    _seen: dict = field(init=False, repr=False, compare=False, default_factory=dict)

    def __call__(self, out, pairs):
        self._seen["count"] = self._seen.get("count", 0) + len(pairs)
        return super().__call__(out, pairs) * (1 + self._seen["count"] / 100)

    def state_dict(self):
        return dict(self._seen)

    def load_state_dict(self, state):
        self._seen.update(state)


def test_an_evaluation_teaches_the_parts_nothing(tmp_path):
    one = trained(tmp_path, DPO.but(objective=Counted()), max_steps=1)
    found = one.evaluate(Dataset.from_list(ROWS[:6]))
    assert found["eval_loss"] > 0 and {"eval_partita/accuracy", "eval_rewards/margins"} <= set(found)
    assert one.recipe.objective.state_dict() == {"count": 6}


def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path):
    recipe = DPO.but(objective=Counted(), reference=Ema(decay=0.6))
    changes = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path, recipe, **changes)
    place = tmp_path / "checkpoint-2"
    resumed = trainer(tmp_path, recipe, **changes)
    resumed.train(resume_from_checkpoint=str(place))
    assert apart(resumed.model, whole.model) == 0 == apart(resumed.ref_model, whole.ref_model)
    assert resumed.recipe.objective.state_dict() == {"count": 24} and recipe.objective.state_dict() == {}
    with pytest.raises(
        UserError, match=r"the recipe remembers nothing, and the checkpoint holds part\.2\.counted, reference"
    ):
        trainer(tmp_path, "dpo", **changes).train(resume_from_checkpoint=str(place))


def test_numbers_that_are_not_finite_stop_the_run(tmp_path):
    one = trainer(tmp_path, "dpo")
    with torch.no_grad():
        one.model.lm_head.weight[5] = torch.nan
    with pytest.raises(NonFinite, match="step 1: policy: logp is not finite in"):
        one.train()


ARGUMENTS = {
    "loss_type": (["hinge"], "objective"),
    "loss_weights": ([2.0], "objective"),
    "label_smoothing": (0.1, "label_smoothing"),
    "f_divergence_type": ("js_divergence", "f_direct"),
    "ld_alpha": (0.5, "objective"),
    "use_weighting": (True, "objective"),
    "beta": (0.3, "objective"),
    "sync_ref_model": (True, "the recipe says False"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_would_not_act_or_say_otherwise_are_refused(name, tmp_path):
    value, word = ARGUMENTS[name]
    args = dpo_config("dpo", **settings(tmp_path, **{name: value}))
    with pytest.raises(UserError) as error:
        PartitaDPOTrainer("no such model", None, args, recipe="dpo")
    said = str(error.value)
    assert said.startswith(f"args.{name}: ") and repr(value) in said and word in said and "leave it out" in said
    assert "\n" not in said


REFUSED = {
    "another loop": ("grpo", "recipe: it belongs to the on_policy loop, and DPOTrainer .*; use PartitaGRPOTrainer"),
    "its own responses": ("online_dpo", "resample online: DPOTrainer learns from the responses of its data set"),
    "labels": ("kto", "objective kto: it learns from labels of single responses, and DPOTrainer reads pairs"),
    "a value head": ("reward_model", "objective bradley_terry: it needs a value head"),
    "several updates": (DPO.but(minibatches=2), "minibatches: DPOTrainer makes one update of a batch, got 2; use 1"),
    "a batch that does not divide": (DPO.but(batch_size=3), "batch_size: 3 prompts do not divide into micro-batches"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_the_reason(case, tmp_path):
    recipe, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as error:
        dpo_config(recipe, output_dir=str(tmp_path), gradient_accumulation_steps=2)
    assert "\n" not in str(error.value) and ";" in str(error.value)
    if case != "a batch that does not divide":
        with pytest.raises(UserError, match=words):
            PartitaDPOTrainer("no such model", recipe=recipe, args=SimpleNamespace(world_size=1))


def test_several_processes_are_refused(tmp_path, monkeypatch):
    args = dpo_config("dpo", **settings(tmp_path))
    monkeypatch.setattr(trl.DPOConfig, "world_size", 2)
    with pytest.raises(UserError, match=r"processes: expected 1, got 2: .*; start one"):
        PartitaDPOTrainer("no such model", None, args, recipe="dpo")


def test_arguments_are_filled(tmp_path):
    recipe = DPO.but(objective=Direct(beta=0.3), batch_size=6, lr=1e-3, steps=5, lr_schedule="linear", warmup=2)
    args = dpo_config(recipe, output_dir=str(tmp_path), gradient_accumulation_steps=2, use_cpu=True, bf16=False)
    assert (args.per_device_train_batch_size, args.max_steps, args.warmup_steps, args.beta) == (3, 5, 2, 0.3)
    assert args.learning_rate == 1e-3 and args.lr_scheduler_type == "linear"
