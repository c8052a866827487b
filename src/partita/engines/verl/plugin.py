"""verl's plugin: on import, registers the parts that fit under `partita/NAME`, and trainers.

verl hides the errors of plugins; ours are told in one line of the log.
"""

from __future__ import annotations

import logging
from functools import partial

log = logging.getLogger(__name__)


def register() -> None:
    """Register estimators and policy losses in verl."""
    from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss

    from partita.engines.verl.credit import Estimator
    from partita.engines.verl.fits import fits
    from partita.engines.verl.objective import Loss
    from partita.engines.verl.parts import build

    for fit in fits():
        if fit.way == "none":
            continue
        apart = fit.why if fit.way == "trainer" else ""
        for name in fit.names:
            make = partial(build, fit.slot, fit.name)
            if fit.slot == "credit":
                register_adv_est(name)(Estimator(make, apart))
            else:
                register_policy_loss(name)(Loss(make, apart))


def register_trainers() -> None:
    """Register trainers in verl, which is done where they are defined."""
    import partita.engines.verl.trainer  # noqa: F401


def attempt() -> None:
    """Register all that can be registered, and tell what cannot."""
    try:
        register()
    except Exception as error:
        log.warning("partita: nothing is registered in verl: %s: %s", type(error).__name__, error)
        return
    try:
        register_trainers()
    except Exception as error:
        log.warning("partita: no trainers are registered in verl, parts are: %s: %s", type(error).__name__, error)


attempt()
