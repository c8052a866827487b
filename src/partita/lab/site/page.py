"""What every page of the site shares: its frame, the way between pages, badges of verdicts."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from partita.lab.markup import Markup, join, tag

ASSETS = Path(__file__).resolve().parents[2] / "assets"
MARKS = {"holds": "✓", "unclear": "?", "fails": "✗"}


def page(title: str, *body: Any, up: str = "", home: str | None = None, wide: bool = False, code: str = "") -> str:
    """A whole page. `up` leads to the folder of the index; `home` is a link (from there) to what the site is part of.

    The page may run `code`, the one script that its policy allows, and reaches nothing else.
    """
    style = "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", "site.css"))
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; " if code else ""
    policy = f"default-src 'none'; {allowed}style-src 'unsafe-inline'"
    ways = [tag("a", "Evidence", href=f"{up}index.html")]
    if home is not None:
        ways.append(tag("a", "Documentation", href=f"{up}{home}"))
    head = tag(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        Markup(f"<style>{style}</style>"),
    )
    nav = tag("nav", tag("b", "Partita"), *ways, class_="ways", aria_label="Site")
    main = tag("main", nav, *body, class_="wide" if wide else None)
    foot = Markup(f"<script>{code}</script>") if code else None
    whole = tag("html", head, tag("body", main, foot), lang="en")
    return f"<!doctype html>\n{whole}\n"


def link(words: Any, href: str) -> Markup:
    """A link."""
    return tag("a", words, href=href)


def code(words: Any) -> Markup:
    """Code in a line of text."""
    return tag("code", words)


def commas(items: Any) -> Markup:
    """Items with commas between them."""
    return Markup(", ".join(join((item,)) for item in items))


def badge(verdict: str) -> Markup:
    """A verdict, told by word, sign and colour."""
    return tag("span", f"{MARKS[verdict]} {verdict}", class_=f"badge {verdict}")


def count(number: int, word: str) -> str:
    """A number with its noun: 1 work, 2 works."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def anchor(entry: int) -> str:
    """The anchor of the nth piece of evidence on a page."""
    return f"evidence-{entry}"
