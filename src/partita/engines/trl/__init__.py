"""Recipes on TRL's trainers: TRL samples, feeds and steps, and a recipe says what is learnt.

    trainer = PartitaGRPOTrainer(model, reward_funcs, train_dataset=data, recipe="gigpo")
    trainer = PartitaDPOTrainer(model, train_dataset=pairs, recipe="rpo")

`fits()` lists which recipes can run so, and why the others cannot.
"""

import importlib.metadata
import importlib.util
import inspect

from partita.core.errors import UserError

if importlib.util.find_spec("trl") is None:
    raise UserError('partita.engines.trl: TRL is not installed; pip install "partita[trl]"')

from trl import DPOTrainer, GRPOTrainer

from partita.engines.trl.arguments import dpo_config, grpo_config
from partita.engines.trl.dpo import PartitaDPOTrainer
from partita.engines.trl.fits import Fit, fits, refusal
from partita.engines.trl.grpo import PartitaGRPOTrainer

__all__ = ["Fit", "PartitaDPOTrainer", "PartitaGRPOTrainer", "dpo_config", "fits", "grpo_config", "refusal"]


def unknown_to(theirs: type, ours: type) -> list[str]:
    """Methods by which `ours` means to change what `theirs` does, and which `theirs` does not have."""
    added = [base for base in ours.__mro__ if base.__module__.startswith(__name__)]
    return sorted({n for base in added for n, f in vars(base).items() if inspect.isfunction(f)} - {*dir(theirs)})


for _ours, _theirs in ((PartitaGRPOTrainer, GRPOTrainer), (PartitaDPOTrainer, DPOTrainer)):
    if _missing := unknown_to(_theirs, _ours):  # nobody would call them, and TRL's own loss would be trained
        raise UserError(
            f"trl {importlib.metadata.version('trl')}: {_theirs.__name__} has no {_missing[0]}, which a recipe takes "
            'the place of; pip install "partita[trl]"'
        )
