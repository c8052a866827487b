"""What parts remember, and a reference that moves, in TRL's checkpoints: one safetensors and one JSON file beside its
own, no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from partita.core.errors import UserError
from partita.engines.trl.fits import THEIRS
from partita.lab.checkpoint import load, save

FOLDER = "partita"  # within a checkpoint


def remembered(trainer: Any) -> dict[str, Any]:
    """What must survive a kill and TRL does not keep, by name: parts, and the weights of a reference that moves."""
    parts, theirs = enumerate(trainer.recipe.parts()), {*THEIRS, "reference"}
    held = {f"part.{i}.{p.part_name()}": p for i, p in parts if p.slot not in theirs and hasattr(p, "state_dict")}
    return held | ({"reference": trainer.ref_model} if trainer.args.sync_ref_model else {})


class Keeping:
    """A trainer of TRL's with a `recipe`, whose state is saved and restored with its checkpoints."""

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        if self.args.should_save and (held := remembered(self)):
            place = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            save(place / FOLDER, {name: each.state_dict() for name, each in held.items()})

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        held, folder = remembered(self), Path(checkpoint) / FOLDER
        state = load(folder) if folder.is_dir() else {}
        if set(state) != set(held):
            mine, found = (", ".join(sorted(names)) or "nothing" for names in (held, state))
            raise UserError(
                f"{folder}: the recipe remembers {mine}, and the checkpoint holds {found}; resume with the recipe that "
                "wrote it, or from another checkpoint"
            )
        for name, each in held.items():
            each.load_state_dict(state[name])
