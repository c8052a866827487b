"""Words of a command line: taking an option out of them."""

from __future__ import annotations

from partita.core.errors import UserError


def take(words: list[str], flag: str) -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` from the words and return the value; None where the flag is not there."""
    for i, word in enumerate(words):
        if word == flag:
            if i + 1 >= len(words) or words[i + 1].startswith("--"):
                raise UserError(f"{flag}: a value is missing")
            value = words[i + 1]
            del words[i : i + 2]
            return value
        if word.startswith(flag + "="):
            del words[i]
            return word[len(flag) + 1 :]
    return None
