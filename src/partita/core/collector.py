"""Python's collector of reference cycles, and when it should rest."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unswept() -> Iterator[None]:
    """Within the block cycles are not looked for; what there is at its end counts as old, as if they had been.

    For imports, which make what lasts: looking for garbage in it takes a fifth of the time that transformers needs.
    """
    resting = not gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not resting:
            if not gc.get_freeze_count():  # what someone else froze stays so
                gc.freeze()
                gc.unfreeze()  # into the oldest generation, which is looked through least
            gc.enable()
