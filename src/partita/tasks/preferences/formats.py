"""Rows of preference data to examples: the common formats, told apart by their columns, and what makes a row useless.

    {prompt, chosen, rejected}               a pair; texts or messages; also without `prompt`, which is then what
                                             both answers begin with
    {prompt, completion, label}              one answer, wanted or not
    {prompt, completions, ranks or scores}   several answers in an order: rank 1 is best, a higher score is better

`margin`, or `score_chosen` and `score_rejected`, say by how much. A column that holds null counts as absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from partita.core.errors import nearest

Message = Mapping[str, Any]
Format = Literal["pair", "label", "ranking"]
COLUMNS = ("prompt", "chosen", "rejected", "completion", "label", "completions", "ranks", "scores")


class Unusable(Exception):
    """Why a row cannot be learnt from: its kind, in a word or two, and a sentence that names the column and the fix."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


@dataclass(frozen=True)
class Example:
    """What a row asks, the answers to it, and what it says of them.

    prompt and answers are texts, or messages that a chat template has yet to write out: `answers` then holds the
    assistant's. compared: (i, j, margin), answer i is preferred to j, by how much (nan: not said). labels: 1 or 0, or
    empty; scores: or empty.
    """

    format: Format
    prompt: str | tuple[Message, ...]
    answers: tuple[str, ...] | tuple[Message, ...]
    compared: tuple[tuple[int, int, float], ...] = ()
    labels: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()


def read(row: Mapping[str, Any]) -> Example:
    """The example that a row holds; raises Unusable."""
    if _has(row, "chosen") and _has(row, "rejected"):
        return _pair(row)
    if _has(row, "completions"):
        return _ranking(row)
    if _has(row, "completion"):
        return _single(row)
    for column, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if _has(row, column):
            raise Unusable("missing field", f"there is `{column}` but no `{other}`; {_near(other, row)}")
    raise Unusable("missing field", f"there is no `chosen`, `completion` or `completions`; {_near('chosen', row)}")


def _pair(row: Mapping[str, Any]) -> Example:
    asked = _speech(row["prompt"], "prompt") if _has(row, "prompt") else None
    prompt, answers = _parted(asked, [_speech(row[c], c) for c in ("chosen", "rejected")], ("chosen", "rejected"))
    if _text(answers[0]) == _text(answers[1]):
        raise Unusable("equal", "`chosen` and `rejected` are the same; leave the row out")
    scores = tuple(_number(row[c], c) for c in ("score_chosen", "score_rejected") if _has(row, c))
    scores = scores if len(scores) == 2 else ()
    margin = _number(row["margin"], "margin") if _has(row, "margin") else scores[0] - scores[1] if scores else math.nan
    if margin < 0:
        column = "margin" if _has(row, "margin") else "score_chosen"
        raise Unusable("contradictory", f"`{column}` says that `rejected` is better, by {-margin:g}; swap the two")
    return Example("pair", prompt, answers, ((0, 1, margin),), scores=scores)


def _single(row: Mapping[str, Any]) -> Example:
    if not _has(row, "label"):
        raise Unusable("missing field", f"there is `completion` but no `label`; {_near('label', row)}")
    label = row["label"]
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise Unusable("wrong type", f"`label` is {_brief(label)}; write true or false")
    answer = _speech(row["completion"], "completion")
    prompt, answers = _parted(_asked(row), [answer], ("completion",))
    return Example("label", prompt, answers, labels=(float(label),))


def _ranking(row: Mapping[str, Any]) -> Example:
    values = row["completions"]
    if not isinstance(values, list | tuple):
        raise Unusable("wrong type", f"`completions` is {_brief(values)}; write a list of answers")
    by = next((c for c in ("scores", "ranks") if _has(row, c)), None)
    if by is None:
        raise Unusable("missing field", f"there is `completions` but no `ranks` or `scores`; {_near('ranks', row)}")
    if not isinstance(row[by], list | tuple) or len(row[by]) != len(values):
        raise Unusable("wrong type", f"`{by}` is {_brief(row[by])}; write one number for each of the {len(values)}")
    order = tuple(_number(v, by) for v in row[by])
    names = [f"completions[{i}]" for i in range(len(values))]
    answers = [_speech(v, name) for v, name in zip(values, names, strict=True)]
    prompt, parted = _parted(_asked(row), answers, names)
    compared = []
    for i, j in combinations(range(len(parted)), 2):
        ahead = order[i] - order[j] if by == "scores" else order[j] - order[i]
        if ahead and _text(parted[i]) != _text(parted[j]):
            first, second = (i, j) if ahead > 0 else (j, i)
            compared.append((first, second, abs(ahead) if by == "scores" else math.nan))
    if not compared:
        raise Unusable("nothing to compare", f"`{by}` puts no answer above a different one; leave the row out")
    return Example("ranking", prompt, parted, tuple(compared), scores=order if by == "scores" else ())


def _asked(row: Mapping[str, Any]) -> str | list[Message]:
    if not _has(row, "prompt"):
        raise Unusable("missing field", f"there is no `prompt`; {_near('prompt', row)}")
    return _speech(row["prompt"], "prompt")


def _parted(
    asked: str | list[Message] | None, answers: Sequence[str | list[Message]], names: Sequence[str]
) -> tuple[str | tuple[Message, ...], tuple[Any, ...]]:
    """Prompt and answers, all text or all messages, with what the answers repeat of the prompt taken off them."""
    if not isinstance(asked, list) and all(isinstance(a, str) for a in answers):
        if asked is not None:
            return asked, tuple(answers)
        return _shared_text(*answers)  # type: ignore[arg-type]
    if asked is None and any(isinstance(a, str) for a in answers):
        raise Unusable("wrong type", f"`{names[0]}` and `{names[1]}` are a text and messages; write both alike")
    said = [[{"role": "assistant", "content": a}] if isinstance(a, str) else a for a in answers]
    prompt = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if isinstance(asked, list) and all(a[: len(asked)] == asked for a in said):
        said = [a[len(asked) :] for a in said]
    elif any(a[0]["role"] != "assistant" for a in said):
        if isinstance(asked, list):
            raise Unusable("wrong turns", f"`{names[0]}` begins unlike `prompt`; write the answer alone")
        count = 0
        while count < min(map(len, said)) - 1 and all(a[count] == said[0][count] for a in said):
            count += 1
        prompt, said = said[0][:count], [a[count:] for a in said]
    for answer, name in zip(said, names, strict=True):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise Unusable("wrong turns", f"`{name}` is more than one answer of the assistant after the prompt; cut it")
        if not answer[0]["content"].strip():
            raise Unusable("empty", f"`{name}` is empty; write an answer or leave the row out")
    if not prompt:
        raise Unusable("missing field", f"there is no `prompt`, and `{names[0]}` begins with an answer; add it")
    if prompt[-1]["role"] == "assistant":
        raise Unusable("wrong turns", "`prompt` ends with an answer of the assistant; end it with the user's message")
    if not prompt[-1]["content"].strip():
        raise Unusable("empty", "the last message of `prompt` is empty; write it or leave the row out")
    return tuple(prompt), tuple(a[0] for a in said)


def _shared_text(chosen: str, rejected: str) -> tuple[str, tuple[str, str]]:
    """What two texts begin with, up to the last whole word that leaves both something to say, and the rest of each.

    A space goes with the word after it, as tokenizers have it; other white space stays with the prompt.
    """
    if chosen == rejected:
        raise Unusable("equal", "`chosen` and `rejected` are the same; leave the row out")
    differ = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    for end in range(next(differ, min(len(chosen), len(rejected))), 0, -1):
        if chosen[end - 1].isspace():
            cut = end - 1 if chosen[end - 1] == " " else end
            if chosen[cut:].strip() and rejected[cut:].strip():
                if not chosen[:cut].strip():
                    break
                return chosen[:cut], (chosen[cut:], rejected[cut:])
    raise Unusable("missing field", "there is no `prompt`, and `chosen` and `rejected` begin with no words in common")


def _speech(value: Any, column: str) -> str | list[Message]:
    """A text that is not empty, or a list of messages."""
    if isinstance(value, str):
        _check_text(value, column)
        if not value.strip():
            raise Unusable("empty", f"`{column}` is empty; write a text or leave the row out")
        return value
    if not isinstance(value, list | tuple):
        raise Unusable("wrong type", f"`{column}` is {_brief(value)}; write a text or a list of messages")
    if not value:
        raise Unusable("empty", f"`{column}` has no messages; write some or leave the row out")
    for number, message in enumerate(value):
        where = f"{column}[{number}]"
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise Unusable("wrong type", f"`{where}` is {_brief(message)}; write {{role, content}}, both texts")
        _check_text(message["role"] + message["content"], where)
    return list(value)


def _check_text(text: str, column: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unusable("not Unicode", f"`{column}` holds half a surrogate pair; write whole characters") from None


def _number(value: Any, column: str) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise Unusable("wrong type", f"`{column}` holds {_brief(value)}; write a finite number")


def _text(answer: str | Message) -> str:
    return answer if isinstance(answer, str) else answer["content"]


def _has(row: Mapping[str, Any], column: str) -> bool:
    return row.get(column) is not None


def _near(column: str, row: Mapping[str, Any]) -> str:
    """What a missing column may be called in this row."""
    names = [str(name) for name in row if name not in COLUMNS and row[name] is not None]
    return nearest(column, names) if names else f"add `{column}`"


def _brief(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer too long to be written out
        text = "..."
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
