"""Messages to text: by the tokenizer's chat template, or plainly where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from partita.tasks.preferences.formats import Message, Unusable

MARK = "\u2060answer\u2060"  # stands for an answer where a template is asked what it puts before one


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer says how a conversation is written."""
    return bool(getattr(tokenizer, "chat_template", None))


def written_out(tokenizer: Any, prompt: Sequence[Message], answers: Sequence[Message]) -> tuple[str, tuple[str, ...]]:
    """The text of a conversation up to the assistant's turn, and the text of each answer that may follow.

    By the chat template of the tokenizer, with its generation prompt; an answer holds what closes the turn, except the
    end of sequence and what the template puts after it, since whoever tokenises an answer closes it. Tokens that the
    tokenizer itself puts before every text are taken off the prompt. Without a template each message is a line
    `role: content`, the last one `assistant:`. Raises Unusable for what the template refuses.
    """
    if not has_template(tokenizer):
        lines = [f"{m['role']}: {m['content']}" for m in prompt]
        return "\n".join([*lines, "assistant:"]), tuple(" " + a["content"] for a in answers)
    head = _apply(tokenizer, prompt, True)
    whole = [_apply(tokenizer, [*prompt, answer], False) for answer in answers]
    if not all(text.startswith(head) for text in whole):  # the turn opens differently once it is over
        head = _apply(tokenizer, [*prompt, {"role": "assistant", "content": MARK}], False).partition(MARK)[0]
        if not all(text.startswith(head) for text in whole):
            raise Unusable("chat template", "the chat template writes the prompt differently after each answer")
    texts = tuple(_without_end(text[len(head) :], tokenizer.eos_token) for text in whole)
    if not all(texts):
        raise Unusable("empty", "the chat template leaves nothing of an answer")
    return head.removeprefix(lead(tokenizer)), texts


def lead(tokenizer: Any) -> str:
    """What the tokenizer puts before every text, in words: the beginning of sequence, mostly."""
    ids = list(tokenizer("")["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id != tokenizer.bos_token_id:
        ids.pop()
    return tokenizer.decode(ids) if ids else ""


def _apply(tokenizer: Any, messages: Sequence[Message], open_turn: bool) -> str:
    try:
        return tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=open_turn
        )
    except Exception as error:  # a template is a program of the model's author, and may raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise Unusable("chat template", f"the chat template refuses the messages: {reason}") from None


def _without_end(text: str, eos: str | None) -> str:
    """The text up to the end of sequence that it closes with, white space behind it included."""
    closed = text.rstrip()
    return closed.removesuffix(eos) if eos and closed.endswith(eos) else text
