"""Errors that a user can act on: one line that names the field, the value and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The command line prints the message alone and exits with code 2."""


class NonFinite(UserError):
    """A loss, gradient or input stopped being finite; names the step, the slot and the tensor."""


def nearest(name: str, options: Iterable[str], count: int = 3) -> str:
    """A phrase that helps after a misspelling: the nearest names, or all of them when few.

    >>> nearest("grop", ["grpo", "ppo", "dapo"])
    'did you mean grpo?'
    """
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    if len(known) <= 12:
        return f"known: {', '.join(known) or 'none'}"
    return f"{len(known)} are known, among them {', '.join(known[:6])}"
