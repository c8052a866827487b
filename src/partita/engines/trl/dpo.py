"""`PartitaDPOTrainer`: recipes of the preference loop on `trl.DPOTrainer`."""

from __future__ import annotations

from typing import Any

from trl import DPOTrainer

from partita.core.batch import Outputs
from partita.core.errors import NonFinite
from partita.engines.trl.arguments import check_dpo, check_model, dpo_config
from partita.engines.trl.batches import compared
from partita.engines.trl.fits import resolved
from partita.engines.trl.hosted import Heard, TrainDataset, acting, watch
from partita.engines.trl.keeping import Keeping
from partita.loops.descent import blame
from partita.loops.preference import Preference, losses


class PartitaDPOTrainer(Keeping, DPOTrainer):
    """`trl.DPOTrainer` that learns what a recipe of the preference loop says.

        loss = mean_m objective_m + sum of mean_m regularisers_m

    over the comparisons m of a micro-batch; TRL averages micro-batches. TRL reads the data, tokenises, asks the
    reference, accumulates and steps. The data say which response is preferred, with certainty.

    recipe: the name of a recipe, or a recipe. args: by default `dpo_config(recipe)`. All else is as in DPOTrainer.

    Raises UserError where TRL cannot run the recipe, where an argument would not act or says otherwise than the recipe,
    and with more than one process; NonFinite for numbers that are not finite, naming slot and part.
    """

    precompute_ref_logps: bool

    def __init__(
        self, model: Any, ref_model: Any = None, args: Any = None, *rest: Any, recipe: str | Preference, **more: Any
    ) -> None:
        if args is None:
            args = dpo_config(recipe)
        found = resolved(recipe, Preference, TrainDataset())
        check_dpo(found, args)
        super().__init__(model, ref_model, args, *rest, **more)
        check_model(self)
        self.recipe = found.fresh()
        self.beta = getattr(found.objective, "beta", args.beta)  # by which TRL logs rewards

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        given = self.precompute_ref_logps
        if not given:
            chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        said: list[Any] = []

        def heard(**kwargs: Any) -> Any:
            said.append(model(**kwargs))
            return said[-1]

        self.precompute_ref_logps = True  # the reference has been asked
        try:
            theirs = super()._compute_loss(heard, inputs, return_outputs)  # for what it logs
        finally:
            self.precompute_ref_logps = given
        pairs = compared(inputs)
        mask, step = pairs.batch.mask, self.state.global_step + 1
        out = Outputs(said[0].log_probs[:, -mask.shape[1] :] * mask)
        loss, notes = losses(acting(self), Heard(out), pairs, pairs)
        if not bool(loss.isfinite()):
            suspects = [("reference", "ref", pairs.ref), ("policy", "logp", out.logp)]
            raise blame(suspects, step) or NonFinite(f"step {step}: objective: the loss is not finite; stopped")
        watch(self, {name: float(value) for name, value in notes.items()})
        return (loss, theirs[1]) if return_outputs else loss
