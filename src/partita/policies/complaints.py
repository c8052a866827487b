"""What servers of the OpenAI protocol say when they do not answer: complaints, waits, and lines that broke."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from dataclasses import dataclass, replace
from typing import Any

OPTIONAL = ("max_tokens", "max_completion_tokens", "temperature", "stop", "seed")  # what a server may not know
CONTEXT = re.compile(r"context.{0,20}(length|size|window)|(length|size|window).{0,20}context|too many tokens", re.I)
UNKNOWN = re.compile(r"unsupported|not supported|not permitted|unrecogni[sz]ed|unknown|unexpected|extra", re.I)


@dataclass(frozen=True)
class Complaint:
    """What a server says of a request that it turned down, on one line and without the key."""

    text: str
    code: str = ""
    param: str = ""

    @classmethod
    def of(cls, held: Any, text: str, key: str) -> Complaint:
        """From the body of a reply, in whichever of the usual forms."""
        inner = held.get("error", held) if isinstance(held, dict) else None
        if isinstance(inner, dict):
            said = inner.get("message") or inner.get("detail") or inner
            found = cls(str(said), str(inner.get("code") or inner.get("type") or ""), str(inner.get("param") or ""))
        else:
            found = cls(str(inner) if inner else text)
        hidden = found.text.replace(key, "***") if key else found.text
        return replace(found, text=plain(hidden, 200))

    def __str__(self) -> str:
        return f": {self.text}" if self.text else ""

    @property
    def context(self) -> bool:
        """Whether it is about the length of the context."""
        return "context" in self.code or bool(CONTEXT.search(self.text))

    def unknown(self, body: dict[str, Any]) -> str | None:
        """The optional setting in `body` that the server does not know, if that is what it says."""
        if not (self.code.startswith("unsupported") or UNKNOWN.search(self.text)):
            return None
        quoted = re.findall(r"['\"`](\w+)['\"`]", self.text)
        return next((n for n in (self.param, *quoted) if n in OPTIONAL and n in body), None)


def plain(text: str, most: int) -> str:
    """A text on one line, without what a terminal would act on, at most so long."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def inner_status(held: Any) -> int:
    inner = held.get("error") if isinstance(held, dict) and "choices" not in held else None
    code = inner.get("code") if isinstance(inner, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 0


def retry_after(text: str) -> float:
    """The seconds of `Retry-After`, a number or a date; 0 where there is none."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if 0 < seconds < math.inf else 0.0


def reason(error: BaseException) -> str:
    """Why a request did not get through, in words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        cause = cause.__cause__ or cause.__context__
    return re.sub(r"^\[Errno -?\d+\] ", "", plain(str(error), 120)) or type(error).__name__
