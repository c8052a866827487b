"""What a recipe says of TRL's arguments, and which arguments it leaves nothing to do.

TRL's own loss is computed for what it logs, and the recipe's takes its place. An argument that acts in TRL's loss alone
is therefore refused where it is set; one that says otherwise than the recipe is too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trl import DPOConfig, GRPOConfig

from partita.core.errors import UserError
from partita.engines.trl.fits import resolved
from partita.engines.trl.hosted import TrainDataset
from partita.loops.learned import Batched
from partita.loops.on_policy import OnPolicy
from partita.loops.preference import Preference
from partita.parts.reference import Ema, Reset
from partita.parts.rollout import Sample

Idle = dict[str, tuple[tuple[Any, ...], str]]  # an argument, the values that ask for nothing, what acts in its place

GRPO_IDLE: Idle = {
    "loss_type": (("dapo", "grpo"), "objective and aggregate"),
    "scale_rewards": (("group",), "credit"),
    "multi_objective_aggregation": (("sum_then_normalize",), "reward and credit"),
    "importance_sampling_level": (("token",), "objective (sequence_ratio)"),
    "delta": ((None,), "objective (clipped_surrogate with dual_clip)"),
    "top_entropy_quantile": ((1.0,), "focus (forking_tokens)"),
    "entropy_coef": ((0.0,), "regularisers (entropy)"),
    "use_adaptive_entropy": ((False,), "regularisers"),
    "off_policy_mask_threshold": ((None,), "select and focus"),
}
DPO_IDLE: Idle = {
    "loss_type": ((["sigmoid"],), "objective and regularisers"),
    "loss_weights": ((None,), "objective and regularisers"),
    "label_smoothing": ((0.0,), "objective (direct with label_smoothing)"),
    "f_divergence_type": (("reverse_kl",), "objective (f_direct)"),
    "ld_alpha": ((None,), "objective"),
    "use_weighting": ((False,), "objective"),
}


def grpo_config(recipe: str | OnPolicy, **changes: Any) -> GRPOConfig:
    """A GRPOConfig with what a recipe says, under TRL's names: groups, passes, sampling, reference, optimiser.

    changes: other arguments, or other values where the recipe says nothing. Where the recipe has no batch size, a
    micro-batch is one group. Raises UserError where TRL cannot run the recipe, or its batch cannot be divided.
    """
    found = resolved(recipe, OnPolicy, TrainDataset(max_tokens=changes.get("max_completion_length", 512)))
    filled = {**learned(found), **grpo_says(found), "loss_type": "grpo", "use_bias_correction_kl": False}
    filled |= {"epsilon": clip(found, "clip_low"), "epsilon_high": clip(found, "clip_high")}
    pieces = found.minibatches * changes.get("gradient_accumulation_steps", 1)
    if "generation_batch_size" not in changes:
        filled["steps_per_generation"] = pieces
    rows, left = divmod((found.batch_size or pieces) * found.group_size, pieces)
    if left:
        raise UserError(
            f"batch_size: {found.batch_size} prompts with {found.group_size} responses each do not divide into "
            f"{pieces} micro-batches; choose another"
        )
    return GRPOConfig(**{**filled, "per_device_train_batch_size": rows, **changes})


def dpo_config(recipe: str | Preference, **changes: Any) -> DPOConfig:
    """A DPOConfig with what a recipe says, under TRL's names: beta, reference, optimiser, batch size.

    changes: other arguments, or other values where the recipe says nothing. Raises UserError where TRL cannot run the
    recipe, or its batch cannot be divided.
    """
    found = resolved(recipe, Preference, TrainDataset())
    filled = {**learned(found), **reference_says(found), "beta": getattr(found.objective, "beta", 0.1)}
    if found.batch_size is not None:
        filled["per_device_train_batch_size"], left = divmod(
            found.batch_size, changes.get("gradient_accumulation_steps", 1)
        )
        if left:
            raise UserError(f"batch_size: {found.batch_size} prompts do not divide into micro-batches; choose another")
    return DPOConfig(**{**filled, **changes})


def check_grpo(recipe: OnPolicy, args: GRPOConfig) -> None:
    """Raise UserError for arguments with which GRPOTrainer would not do what the recipe says."""
    alone(args)
    idle(args, GRPO_IDLE | {
        "epsilon": ((0.2, clip(recipe, "clip_low")), "objective"),
        "epsilon_high": ((None, clip(recipe, "clip_high")), "objective"),
    })  # fmt: skip
    agreed(args, grpo_says(recipe))
    generation, update = args.steps_per_generation, args.gradient_accumulation_steps
    if generation % update and update % generation:
        raise UserError(
            f"steps_per_generation: {generation} micro-batches of a generation and {update} of an update "
            "(gradient_accumulation_steps) do not divide; make one a multiple of the other"
        )
    if (updates := max(1, generation // update)) != recipe.minibatches:
        raise UserError(
            f"steps_per_generation: {generation} makes {updates} updates of a batch, and the recipe has "
            f"minibatches={recipe.minibatches}; use {recipe.minibatches * update}, or change the recipe"
        )
    for part in recipe.parts():
        if part.whole and update != 1:
            raise UserError(
                f"gradient_accumulation_steps: {part.slot} {part.part_name()} looks at a whole minibatch, got "
                f"{update}; use 1"
            )
        if part.unit == "group" and generation != 1:
            raise UserError(
                f"steps_per_generation: {part.slot} {part.part_name()} needs whole groups, and GRPOTrainer shuffles "
                f"responses before it splits a generation, got {generation}; use 1"
            )


def check_dpo(recipe: Preference, args: DPOConfig) -> None:
    """Raise UserError for arguments with which DPOTrainer would not do what the recipe says."""
    alone(args)
    idle(args, DPO_IDLE | {"beta": ((0.1, getattr(recipe.objective, "beta", 0.1)), "objective")})
    agreed(args, reference_says(recipe))


def check_model(trainer: Any) -> None:
    """Raise UserError for models of which this engine would leave something out."""
    if trainer._is_vlm:
        raise UserError("processing_class: this engine reads texts, got a processor of images too; use a tokenizer")
    if trainer.aux_loss_enabled:
        raise UserError(
            f"args.router_aux_loss_coef: the balancing loss of experts is not carried over, got "
            f"{trainer.router_aux_loss_coef}; use 0"
        )


def grpo_says(recipe: OnPolicy) -> dict[str, Any]:
    """The arguments of GRPOConfig that a recipe decides."""
    rollout = recipe.rollout or Sample()
    assert isinstance(rollout, Sample)
    prices = [getattr(part, "weight", 0.0) or 1.0 for part in recipe.parts() if "ref_logp" in part.needs]
    says = {
        "num_generations": recipe.group_size, "num_iterations": recipe.epochs, "temperature": rollout.temperature,
        "top_k": rollout.top_k, "top_p": rollout.top_p, "min_p": rollout.min_p or None,
        "beta": prices[0] if prices else 0.0,  # anything but 0 makes TRL keep a reference; the parts weigh it
    }  # fmt: skip
    if rollout.max_tokens is not None:
        says["max_completion_length"] = rollout.max_tokens
    return {**says, **reference_says(recipe)}


def reference_says(recipe: OnPolicy | Preference) -> dict[str, Any]:
    """How TRL's reference moves: ref <- (1 - alpha) ref + alpha policy, every so many updates."""
    reference, updates = recipe.reference, recipe.epochs * recipe.minibatches
    if not recipe.needs() & {"ref", "ref_logp"}:
        return {"sync_ref_model": False}
    if isinstance(reference, Ema):
        return {"sync_ref_model": True, "ref_model_mixup_alpha": 1 - reference.decay, "ref_model_sync_steps": updates}
    if isinstance(reference, Reset):
        steps = reference.every * updates
        return {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": steps}
    return {"sync_ref_model": False}


def learned(recipe: Batched) -> dict[str, Any]:
    """The numbers of the optimiser, under the names of TrainingArguments."""
    updates = recipe.epochs * recipe.minibatches
    schedule = "constant_with_warmup" if recipe.lr_schedule == "constant" and recipe.warmup else recipe.lr_schedule
    out = {
        "max_grad_norm": recipe.max_grad_norm or 0.0, "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.betas[0], "adam_beta2": recipe.betas[1], "adam_epsilon": recipe.adam_eps,
        "lr_scheduler_type": schedule, "warmup_steps": recipe.warmup * updates,
    }  # fmt: skip
    given = {"learning_rate": recipe.lr, "max_steps": None if recipe.steps is None else recipe.steps * updates}
    return out | {name: value for name, value in given.items() if value is not None}


def clip(recipe: OnPolicy, name: str) -> float:
    """A bound of the recipe's clip, by which TRL counts clipped tokens."""
    return getattr(recipe.objective, name, 0.2)


def alone(args: Any) -> None:
    """Refuse several processes."""
    if args.world_size > 1:
        raise UserError(
            f"processes: expected 1, got {args.world_size}: advantages and weights are those of a whole batch, which "
            "this engine works out in one process; start one"
        )


def idle(args: Any, table: Idle) -> None:
    """Refuse arguments that would silently do nothing."""
    for name, (nothing, instead) in table.items():
        if (given := getattr(args, name)) not in nothing:
            raise UserError(
                f"args.{name}: {given!r} acts in TRL's own loss, and the recipe's takes its place; leave it out, and "
                f"change the recipe's {instead}"
            )


def agreed(args: Any, says: Mapping[str, Any]) -> None:
    """Refuse arguments that say otherwise than the recipe."""
    for name, value in says.items():
        given = getattr(args, name)
        close = isinstance(given, float) and isinstance(value, float) and math.isclose(given, value, rel_tol=1e-6)
        if not close and (given or None) != (value or None):
            raise UserError(
                f"args.{name}: the recipe says {value!r}, got {given!r}; leave it out, or change the recipe"
            )
