"""Texts of the code as HTML: docstrings with their equations, Python source lightly coloured, settings."""

from __future__ import annotations

import io
import keyword
import re
import textwrap
import tokenize
from collections.abc import Mapping
from typing import Any

from partita.lab.markup import Markup, join, tag

SPECIAL = {tokenize.STRING: "s", tokenize.COMMENT: "c", tokenize.NUMBER: "n"}


def prose(text: str) -> Markup:
    """A docstring without its margin: paragraphs, `-` lists, `code`, and equations (blocks indented by four)."""
    out: list[Markup] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.splitlines()
        if not block.strip():
            continue
        if all(line.startswith("    ") for line in lines):
            out.append(tag("pre", textwrap.dedent(block), class_="equation"))
        elif lines[0].startswith("- "):
            items = re.split(r"\n(?=- )", block)
            out.append(tag("ul", *(tag("li", inline(" ".join(item[2:].split()))) for item in items)))
        else:
            out.append(tag("p", inline(" ".join(block.split()))))
    return join(out)


def inline(text: str) -> Markup:
    """Words in which `code` is code."""
    pieces = re.split(r"``?([^`]+)``?", text)
    return join(tag("code", piece) if i % 2 else piece for i, piece in enumerate(pieces))


def highlight(source: str) -> Markup:
    """Python source with its keywords, names defined, strings, numbers and comments marked; else as it stands."""
    starts = [0, *(found.end() for found in re.finditer("\n", source)), len(source)]
    out: list[Any] = []
    done, before = 0, ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            kind = SPECIAL.get(token.type)
            if token.type == tokenize.NAME:
                kind = "k" if keyword.iskeyword(token.string) else "d" if before in ("def", "class") else None
            start, end = (starts[min(row - 1, len(starts) - 1)] + column for row, column in (token.start, token.end))
            if token.type == tokenize.NAME:
                before = token.string
            if kind is not None and start >= done:
                out += [source[done:start], tag("span", source[start:end], class_=kind)]
                done = end
    except (tokenize.TokenError, SyntaxError):
        return join((source,))
    return join([*out, source[done:]])


def words(value: Any) -> str:
    """A value of JSON in one line of words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {words(v)}" if v is not True else str(k) for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(words(v) if not isinstance(v, list | tuple) else f"[{words(v)}]" for v in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def fields(table: Mapping[str, Any]) -> Markup:
    """Names and values, a row each; values that are not HTML already are put into words."""
    rows = (
        tag("tr", tag("th", name, scope="row"), tag("td", value if isinstance(value, Markup) else words(value)))
        for name, value in table.items()
    )
    return tag("table", tag("tbody", *rows), class_="fields")
