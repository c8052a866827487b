"""Examples made ready for a policy: written out, measured in its tokens, split, and the useless ones counted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.language.rows import Row
from partita.tasks.preferences.base import Given
from partita.tasks.preferences.chat import has_template, written_out
from partita.tasks.preferences.formats import Example, Format, Unusable, read

if TYPE_CHECKING:
    from partita.tasks.preferences.dataset import Comparisons

BLOCK = 512  # rows tokenised at once
SHOWN = 3  # rows named for each kind


@dataclass(frozen=True)
class Prepared:
    """What a file holds for a policy.

    train, held: problems to learn from and to evaluate on, of different prompts; `data["index"]` is the place in
    `given`. formats: of the usable rows. left_out: the numbers of useless rows by kind. first: what is wrong with the
    first of them. rows: of the file. cut: usable rows whose prompt or answers were cut. plain: whether messages were
    written without a chat template.
    """

    train: tuple[Problem, ...]
    held: tuple[Problem, ...]
    given: tuple[Given, ...]
    formats: tuple[Format, ...]
    left_out: dict[str, list[int]]
    first: str
    rows: int
    cut: int
    plain: bool

    @property
    def offers(self) -> tuple[str, ...]:
        """What training is offered: "compared" and "labels" if some row has them, "scores" if every row has."""
        some = [self.given[p.data["index"]] for p in self.train]
        return tuple(
            name for name, there in (
                ("compared", any(g.compared for g in some)), ("labels", any(g.labels for g in some)),
                ("scores", all(g.scores for g in some)),
            ) if there
        )  # fmt: skip

    def bad(self) -> str:
        """How many rows are left out, by kind; empty where all can be used."""
        count = sum(map(len, self.left_out.values()))
        kinds = ", ".join(f"{len(rows)} {kind} ({_numbers(rows)})" for kind, rows in self.left_out.items())
        return f"{count} of {self.rows} rows left out: {kinds}" if count else ""


def _numbers(rows: Sequence[int]) -> str:
    named = ", ".join(map(str, rows[:SHOWN])) + (", ..." if len(rows) > SHOWN else "")
    return f"row{'s' * (len(rows) > 1)} {named}"


class _Count:
    """Counts useless rows by kind; the first is an error where the task is strict."""

    def __init__(self, task: Comparisons) -> None:
        self.task, self.kinds = task, {}  # type: tuple[Comparisons, dict[str, list[int]]]
        self.first = ""

    def add(self, number: int, found: Unusable) -> None:
        said = f"row {number} of {self.task.path}: {found.why}"
        if self.task.strict or (found.kind == "too long" and self.task.too_long == "refuse"):
            flag = "--task.strict" if self.task.strict else "--task.too-long refuse"
            raise UserError(f"{said} (or leave out {flag})")
        self.first = self.first or said
        self.kinds.setdefault(found.kind, []).append(number)


def prepare(task: Comparisons, rows: Sequence[Row], policy: Any) -> Prepared:
    """Read, write out and measure every row; policy None: messages as plain lines, and lengths are not looked at.

    Raises UserError for the first useless row of a strict task, and where nothing is left to learn from.
    """
    count = _Count(task)
    examples: dict[int, Example] = {}
    for number, row in enumerate(rows, 1):
        try:
            examples[number] = _asked_as_set(task, read(row), number)
        except Unusable as found:
            count.add(number, found)
    chats = any(not isinstance(e.prompt, str) for e in examples.values())
    held = held_prompts([_key(e) for e in examples.values()], task.held_out)
    problems: tuple[list[Problem], list[Problem]] = ([], [])
    given: list[Given] = []
    formats: list[Format] = []
    cuts = 0
    for number, example, prompt, answers, unfinished, changed in _measured(task, examples, policy, count):
        cuts += changed
        problem = Problem(prompt, {"row": number, "index": len(given)})
        problems[_key(example) in held].append(problem)
        compared = tuple((i, j, 1.0, margin) for i, j, margin in example.compared)
        given.append(Given(answers, compared, example.labels, example.scores, unfinished))
        formats.append(example.format)
    train, kept = problems
    data = Prepared(
        tuple(train), tuple(kept), tuple(given), tuple(formats), count.kinds, count.first, len(rows), cuts,
        chats and not has_template(getattr(policy, "tokenizer", None)),
    )  # fmt: skip
    if not train:
        reason = f"{data.bad()}; first, {data.first}" if data.bad() else "all of it is held out"
        raise UserError(f"path: {task.path} leaves nothing to learn from: {reason}")
    return data


def held_prompts(keys: Sequence[str], share: float) -> set[str]:
    """The last `share` of the distinct prompts, in order of first appearance; at least one stays on either side."""
    distinct = list(dict.fromkeys(keys))
    count = min(math.ceil(share * len(distinct)), len(distinct) - 1)
    return set(distinct[len(distinct) - count :]) if count > 0 else set()


def _key(example: Example) -> str:
    return example.prompt if isinstance(example.prompt, str) else json.dumps(example.prompt, sort_keys=True)


def _asked_as_set(task: Comparisons, example: Example, number: int) -> Example:
    """The example with the task's template, or its system message and chat."""
    if isinstance(example.prompt, str):
        if not task.chat:
            if task.system:
                raise UserError(
                    f"system: row {number} of {task.path} is a text, not messages; add --task.chat to have it asked in "
                    "chat, or put the words into --task.template"
                )
            return replace(example, prompt=task.template.replace("{prompt}", example.prompt))
        prompt = task.template.replace("{prompt}", example.prompt)
        answers = tuple({"role": "assistant", "content": a} for a in example.answers)
        example = replace(example, prompt=({"role": "user", "content": prompt},), answers=answers)
    if task.system and example.prompt[0]["role"] != "system":  # type: ignore[index]
        example = replace(example, prompt=({"role": "system", "content": task.system}, *example.prompt))
    return example


def _measured(
    task: Comparisons, examples: dict[int, Example], policy: Any, count: _Count
) -> Iterator[tuple[int, Example, str, tuple[str, ...], tuple[bool, ...], bool]]:
    """The rows that can be used: number, example, prompt, answers, which of these were cut, whether anything was."""
    for block in _blocks(list(examples.items())):
        texts: list[tuple[int, Example, str, tuple[str, ...]]] = []
        for number, example in block:
            try:
                if isinstance(example.prompt, str):
                    texts.append((number, example, example.prompt, example.answers))
                else:
                    tokenizer = getattr(policy, "tokenizer", None)
                    texts.append((number, example, *written_out(tokenizer, example.prompt, example.answers)))
            except Unusable as found:
                count.add(number, found)
        if policy is not None:  # all at once, which is much faster; they are remembered
            policy.tokens([prompt for _, _, prompt, _ in texts], True, keep=True)
            policy.tokens([a for *_, answers in texts for a in answers], False, keep=True)
        for number, example, prompt, answers in texts:
            unfinished, asked = (False,) * len(answers), prompt
            try:
                if policy is not None:
                    prompt, answers, unfinished = fit(task, policy, asked, answers)
                if any(answers[i] == answers[j] for i, j, _ in example.compared):
                    raise Unusable("equal", "two answers that are compared are the same once they are written out")
            except Unusable as found:
                count.add(number, found)
                continue
            yield number, example, prompt, answers, unfinished, prompt != asked or any(unfinished)


def _blocks(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), BLOCK):
        yield items[start : start + BLOCK]


def fit(
    task: Comparisons, policy: Any, prompt: str, answers: tuple[str, ...]
) -> tuple[str, tuple[str, ...], tuple[bool, ...]]:
    """Prompt and answers within `max_prompt`, `max_response` and the policy's context, and which answers were cut.

    Counted in tokens, with what the tokenizer puts before a prompt and the end of sequence behind an answer. Raises
    Unusable for what is too long and may not be cut.
    """
    asked = len(policy.tokens([prompt], True, keep=True)[0])
    lengths = [length(policy, a) for a in answers]
    context = math.inf if policy.context is None else policy.context
    most = math.inf if task.max_prompt is None else task.max_prompt
    longest = math.inf if task.max_response is None else task.max_response
    whole = (False,) * len(answers)
    if asked <= most and max(lengths) <= longest and asked + max(lengths) <= context:
        return prompt, answers, whole
    room = min(most, context - max(lengths))
    if task.too_long == "cut_prompt_left" and max(lengths) <= longest:
        before = asked - len(policy.tokens([prompt], False)[0])
        if room > before and (short := cut(policy, prompt, int(room) - before, left=True)).strip():
            return short, answers, whole
    room = min(longest, context - asked)
    if task.too_long == "cut_response_right" and asked <= most and room >= 1:
        over = tuple(n > room for n in lengths)
        short_ones = tuple(
            cut(policy, a, int(room), left=False) if o else a for a, o in zip(answers, over, strict=True)
        )
        if all(a.strip() for a in short_ones):
            return prompt, short_ones, over
    raise Unusable("too long", _why(asked, max(lengths), most, longest, context))


def _why(asked: int, answer: int, most: float, longest: float, context: float) -> str:
    if asked > most:
        return f"the prompt has {asked} tokens, max_prompt is {most:g}; shorten it"
    if answer > longest:
        return f"an answer has {answer} tokens, max_response is {longest:g}; shorten it"
    return f"prompt and answer have {asked} + {answer} tokens, the model's context is {context:g}; shorten them"


def length(policy: Any, answer: str) -> int:
    """Tokens of an answer with its end of sequence."""
    ids, eos = policy.tokens([answer], False, keep=True)[0], policy.tokenizer.eos_token_id
    return len(ids) + (eos is not None and (not len(ids) or ids[-1] != eos))


def cut(policy: Any, text: str, room: int, left: bool) -> str:
    """The longest end of a text (`left` cuts its beginning off), or beginning, that has at most `room` tokens."""
    try:
        found = policy.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    except NotImplementedError:
        raise UserError("too_long: this model's tokenizer cannot say where its tokens are; use drop") from None
    spans = found["offset_mapping"]
    for keep in range(min(room, len(spans)), 0, -1):
        piece = text[spans[-keep][0] :] if left else text[: spans[keep - 1][1]]
        if len(policy.tokens([piece], False)[0]) <= room:  # a piece may be cut into tokens otherwise than the whole
            return piece
    return ""
