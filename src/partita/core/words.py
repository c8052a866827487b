"""Words of a command line: taking options out of them and reading their values."""

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


def switch(words: list[str], flag: str) -> bool:
    """Remove `flag` from the words; whether it was there."""
    if flag in words:
        words.remove(flag)
        return True
    return False


def whole(flag: str, text: str | None, default: int = 0, least: int = 0) -> int:
    """A whole number of at least `least`; the default where there is no text."""
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise UserError(f"{flag}: expected a whole number{f' of {least} or more' if least else ''}, got {text!r}")
    return value


def no_flags(words: list[str], command: str) -> None:
    """Refuse flags that are still there."""
    for word in words:
        if word.startswith("-"):
            raise UserError(f"{command}: no flag {word}; see partita {command} --help")


def nothing_left(words: list[str], command: str) -> None:
    """Refuse words that are still there."""
    no_flags(words, command)
    if words:
        raise UserError(f"{command}: unexpected {words[0]!r}; see partita {command} --help")


def positional(words: list[str], command: str, names: str, count: int) -> list[str]:
    """The words, when there are just as many as the command takes."""
    no_flags(words, command)
    if len(words) != count:
        raise UserError(f"{command}: expected {names}, got {' '.join(words) or 'nothing'}")
    return words
