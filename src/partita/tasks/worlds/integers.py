"""Whole-number expressions, worked out by a small parser of our own: the calculator's fast path."""

from __future__ import annotations

import re

LONGEST = 64  # characters of an expression; also bounds the depth of the parser
TOKEN = re.compile(r" *(0|[1-9][0-9]*|//|[-+*%()])")


def evaluate(expression: str) -> int | None:
    """The value of an expression of whole numbers, `+ - * // %`, signs and parentheses, exactly as Python has it.

    None where the text is anything else (other operators, names, leading zeros, more than `LONGEST` characters).
    Raises ZeroDivisionError as Python does.

    >>> evaluate("-7//2*(3+4)")
    -28
    """
    tokens = _tokens(expression)
    if not tokens:
        return None
    value, rest = _sum(tokens, 0)
    return value if rest == len(tokens) else None


def _tokens(expression: str) -> list[str] | None:
    expression = expression.strip(" ")
    if len(expression) > LONGEST or not expression.isascii():
        return None
    tokens, at = [], 0
    while at < len(expression):
        found = TOKEN.match(expression, at)
        if found is None or (found[1].isdigit() and expression[found.end() : found.end() + 1].isdigit()):
            return None
        tokens.append(found[1])
        at = found.end()
    return tokens


Parsed = tuple[int | None, int]  # a value and the index of the next token; (None, ...) where nothing could be read


def _sum(tokens: list[str], at: int) -> Parsed:
    value, at = _product(tokens, at)
    while value is not None and at < len(tokens) and tokens[at] in "+-":
        sign = tokens[at]
        right, at = _product(tokens, at + 1)
        if right is None:
            return None, at
        value = value + right if sign == "+" else value - right
    return value, at


def _product(tokens: list[str], at: int) -> Parsed:
    value, at = _factor(tokens, at)
    while value is not None and at < len(tokens) and tokens[at] in ("*", "//", "%"):
        sign = tokens[at]
        right, at = _factor(tokens, at + 1)
        if right is None:
            return None, at
        value = value * right if sign == "*" else value // right if sign == "//" else value % right
    return value, at


def _factor(tokens: list[str], at: int) -> Parsed:
    if at >= len(tokens):
        return None, at
    token = tokens[at]
    if token in ("+", "-"):
        value, at = _factor(tokens, at + 1)
        return (-value if token == "-" and value is not None else value), at
    if token == "(":
        value, at = _sum(tokens, at + 1)
        return (value, at + 1) if at < len(tokens) and tokens[at] == ")" else (None, at)
    return (int(token), at + 1) if token.isdigit() else (None, at)
