"""Parts in verl: credit as advantage estimators, objectives as policy losses, trainers for those that read more.

verl imports `partita.engines.verl.plugin` by itself (entry-point group `verl.plugins`); everything else here is for
those who look (`fits`) or register parts of their own (`credit.Estimator`, `objective.Loss`). Raises UserError where
verl is not installed.
"""

import importlib.util

from partita.core.errors import UserError

if importlib.util.find_spec("verl") is None:
    raise UserError('partita.engines.verl: verl is not installed; pip install "partita[verl]"')

import verl  # noqa: F401  (it imports the plugin, and must be whole before modules here import from it)

from partita.engines.verl.fits import Fit, fits

__all__ = ["Fit", "fits"]
