"""`PartitaGRPOTrainer`: recipes of the on-policy loop on `trl.GRPOTrainer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from partita.core.batch import Batch, Outputs
from partita.core.errors import NonFinite
from partita.engines.trl.arguments import check_grpo, check_model, clip, grpo_config
from partita.engines.trl.batches import OURS, Scored, packed, sampled, unpacked
from partita.engines.trl.fits import resolved
from partita.engines.trl.hosted import Heard, TrainDataset, acting, hosted, learnt, watch
from partita.engines.trl.keeping import Keeping
from partita.estimators.masked import whiten
from partita.loops.descent import blame, losses
from partita.loops.on_policy import OnPolicy
from partita.parts.credit import Constant
from partita.parts.reward import KLPenalty


class PartitaGRPOTrainer(Keeping, GRPOTrainer):
    """`trl.GRPOTrainer` that learns what a recipe of the on-policy loop says.

        loss = sum_it aggregate_it * (focus_it * objective_it + sum of regularisers_it)

    over the responses i of an update and their tokens t, `aggregate` being made of the whole update, however many
    micro-batches it is accumulated from. TRL samples, scores, accumulates and steps; rewards, credit, selection, focus
    and whitening are worked out over each generation batch, by the functions of Partita's loop. Where an update spans
    several generations it is the mean of theirs.

    recipe: the name of a recipe, or a recipe. args: by default `grpo_config(recipe)`. All else is as in GRPOTrainer,
    `rollout_func` included, whose fields `turn_states` and `turn_rewards` tell of turns (`batches.played`).

    A `select` that would sample again does not: batches become smaller, and an update of which nothing is left has no
    gradient (the optimiser's momentum still acts). Responses of which no reward function says anything are left out.

    Raises UserError where TRL cannot run the recipe, where an argument would not act or says otherwise than the recipe,
    and with more than one process; NonFinite for numbers that are not finite, naming slot and part.
    """

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, *rest: Any, recipe: str | OnPolicy, **more: Any
    ) -> None:
        if args is None:
            args = grpo_config(recipe)
        found = resolved(recipe, OnPolicy, TrainDataset(max_tokens=args.max_completion_length))
        check_grpo(found, args)
        super().__init__(model, reward_funcs, args, *rest, **more)
        check_model(self)
        self.recipe = hosted(found)
        self.epsilon_low, self.epsilon_high = clip(found, "clip_low"), clip(found, "clip_high")

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        found = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scored = Scored(found, self.reward_weights.to(found), self.reward_func_names, prompts, completions)
        return found

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        self._said = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self._said

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        made = super()._generate_and_score_completions(inputs)
        size = self.num_generations if self.model.training else self.num_generations_eval
        batch = evaluated(self, made, sampled(made, inputs, self._scored, size, self.eos_token_ids))
        kept, metrics = learnt(acting(self), batch, self.state.global_step + 1)
        watch(self, metrics)
        ours = packed(kept, len(batch))
        return {**made, **ours, "advantages": ours[OURS + "advantage"]}

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        super()._compute_loss(model, inputs)  # for what it logs; its forward pass is taken, its loss is not
        (logp, entropy, _), self._said = self._said, None
        recipe, (pieces, place, share) = acting(self), update_of(self, inputs)
        batches = [unpacked(piece) for piece in pieces]
        whole, mine, start = Batch.cat(batches), batches[place], sum(map(len, batches[:place]))
        if not len(mine):
            return logp.sum() * 0.0
        if recipe.whiten == "minibatch":
            whole = whole.but(advantage=whiten(whole.need("advantage"), whole.mask))
        rows, keep = slice(start, start + len(mine)), inputs[OURS + "keep"]
        micro, weights = whole[rows], recipe.aggregate(whole)[rows]
        old, vllm = inputs.get("old_per_token_logps", logp.detach()), inputs.get("importance_sampling_ratio")
        micro = micro.but(logp=old[keep] * micro.mask)
        if vllm is not None:
            micro = micro.but(weight=micro.need("weight") * vllm[keep])
        out = Outputs(logp[keep] * micro.mask, entropy[keep] * micro.mask)
        loss, notes = losses(recipe, Heard(out), micro, weights, len(mine) / len(whole), watch=True)
        if not bool(loss.isfinite()):
            raise diagnosed(recipe, out, micro, self.state.global_step + 1)
        watch(self, {name: float(value) for name, value in notes.items()})
        return loss * share


def evaluated(trainer: Any, made: Mapping[str, Any], batch: Batch) -> Batch:
    """The batch with the log-probabilities and entropies of the policy that wrote it, where a part reads them.

    One forward pass, and none where TRL has made it and entropies are not asked for.
    """
    recipe = trainer.recipe
    reads = {"logp", "entropy"} & recipe.needs()
    if any(isinstance(part, Constant | KLPenalty) for part in recipe.parts()):
        reads.add("logp")
    if not {name for name in reads if getattr(batch, name) is None}:
        return batch
    ids = torch.cat((made["prompt_ids"], made["completion_ids"]), 1)
    seen = torch.cat((made["prompt_mask"], made["completion_mask"]), 1)
    args, width = trainer.args, batch.mask.shape[1]
    size = args.per_device_train_batch_size if trainer.model.training else args.per_device_eval_batch_size
    with torch.no_grad():
        logp, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, seen, width, batch_size=size, compute_entropy=True
        )
    return batch.but(logp=logp * batch.mask if batch.logp is None else batch.logp, entropy=entropy * batch.mask)


def update_of(trainer: Any, inputs: Any) -> tuple[list[Any], int, float]:
    """The micro-batches of this update that come from this generation, the place of `inputs` among them, and their
    share in the update."""
    if not trainer.model.training:
        return [inputs], 0, 1.0
    size = min(trainer.args.steps_per_generation, trainer.args.gradient_accumulation_steps)
    first, place = divmod(trainer._step % trainer.args.steps_per_generation, size)
    pieces = trainer._buffered_inputs[first * size : (first + 1) * size]
    return pieces, place, size / trainer.current_gradient_accumulation_steps


def diagnosed(recipe: OnPolicy, out: Outputs, batch: Batch, step: int) -> NonFinite:
    """The error for a loss that is not finite: the first tensor along the step that is to blame."""
    with torch.no_grad():
        suspects = [("rollout", "logp", batch.logp), ("reference", "ref_logp", batch.ref_logp)]
        suspects += [("policy", "logp", out.logp), ("policy", "entropy", out.entropy)]
        suspects += [("objective", recipe.objective.part_name(), recipe.objective(out, batch))]
        suspects += [("regularisers", each.part_name(), each(out, batch)) for each in recipe.regularisers]
    return blame(suspects, step) or NonFinite(f"step {step}: aggregate: the loss is not finite; stopped")
