"""The flags of `partita evaluate --endpoint`, and what it prints."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from partita.core import registry
from partita.core.errors import UserError, nearest
from partita.core.words import switch, take, whole
from partita.lab import statistics, tools
from partita.lab.endpoint import Asked, Played, Report, play
from partita.lab.evaluate import interval
from partita.lab.flags import parse
from partita.policies.endpoint import Endpoint, Traffic, served

FLAGS = (
    "--endpoint", "--model", "--world", "--task", "--size", "--seed", "--temperature", "--json", "--jobs", "--timeout",
    "--retries", "--backoff", "--chat", "--completions", "--max-tokens", "--api-key-env", "--no-stop", "--manual",
    "--show", "--metric",
)  # fmt: skip
KEY = "OPENAI_API_KEY"
NAMED = 10  # failed episodes that are named on a terminal


def main(argv: list[str]) -> None:
    """Let the model of an endpoint play what the words name, and print how it did."""
    words = list(argv)
    as_json, show = switch(words, "--json"), whole("--show", take(words, "--show"))
    if (metric := take(words, "--metric")) not in (None, "success", *tools.METRICS):
        raise UserError(f"--metric {metric}: an endpoint is measured by success and the use of tools; leave it out")
    where: dict[str, Any] = {
        "url": take(words, "--endpoint") or "", "model": take(words, "--model") or "", "chat": _protocol(words),
        "timeout": _number("--timeout", take(words, "--timeout"), 60.0, above=True),
        "retries": whole("--retries", take(words, "--retries"), 4),
        "backoff": _number("--backoff", take(words, "--backoff"), 0.5),
        "connections": whole("--jobs", take(words, "--jobs"), 8, 1), **_key(take(words, "--api-key-env")),
    }  # fmt: skip
    asked = _asked(words)
    if not where["model"]:
        names = served(Endpoint(**{**where, "model": "?"}))
        known = f"{where['url']} serves {', '.join(names[:12])}" if names else "as the server names it"
        raise UserError(f"--model: is missing; name the model, {known}")
    endpoint = Endpoint(**where)
    with shown(asked.size) as progress:
        report = play(endpoint, asked, progress)
    found = summary(endpoint, asked, report)
    examples = [p.text for p in report.played[:show]]
    if as_json:
        for row in found["values"]:
            row |= {end: row[end] if math.isfinite(row[end]) else None for end in ("low", "high")}
        results = [{k: v for k, v in asdict(p).items() if k != "text"} for p in report.played]
        print(json.dumps({**found, "results": results, "transcripts": examples}, indent=1))
        return
    print("\n".join(lines(found)))
    for p in report.played[:show]:
        print(f"\nproblem {p.problem}: score {p.score:g} after {p.turns} turns, {p.why}\n{_legible(p.text)}")


def _asked(words: list[str]) -> Asked:
    """What is played, from the words that say so; refuses those that are left."""
    size, seed = whole("--size", take(words, "--size"), 200, 1), whole("--seed", take(words, "--seed"))
    temperature = _number("--temperature", take(words, "--temperature"), 0.0)
    limit = take(words, "--max-tokens")
    tokens = None if limit is None else whole("--max-tokens", limit, least=1)
    stop, text = not switch(words, "--no-stop"), _manual(take(words, "--manual"))
    world, task = take(words, "--world"), take(words, "--task")
    if world and task:
        raise UserError(f"--world {world} and --task {task}: give one of them")
    if not (name := world or task):
        raise UserError("--world: is missing; name a world or a language task, --world keydoor, say")
    fields = ["--task." + w[8:] if w.startswith("--world.") else w for w in words]
    for i, word in enumerate(fields):
        flag = word.partition("=")[0]
        if flag.startswith("--task."):
            continue
        if flag.startswith("-") and not _is_number(flag):
            raise UserError(f"evaluate: no flag {flag}; {nearest(flag, FLAGS)}")
        if i == 0 or not fields[i - 1].startswith("--task.") or "=" in fields[i - 1]:
            raise UserError(f"evaluate: {word!r} and --endpoint; give the folder of a run, or an endpoint")
    return Asked(_task("--world" if world else "--task", name, fields), size, seed, temperature, tokens, stop, text)


def _task(flag: str, name: str, fields: list[str]) -> Any:
    known = registry.index()["parts"]["task"]
    language = [n for n, entry in known.items() if "language" in entry["domains"]]
    if name in known and name not in language:
        raise UserError(f"{flag} {name}: a served model acts in words, and {name} is control; {nearest('', language)}")
    if name not in known and not name.endswith(".jsonl") and ":" not in name:
        raise UserError(f"{flag} {name}: no such world or language task; {nearest(name, language)}")
    config, _ = parse(["grpo", "--task", name, *fields])
    if config.task.domain != "language":
        raise UserError(f"{flag} {name}: a served model acts in words, and {name} is control")
    return config.task


def _protocol(words: list[str]) -> bool:
    """Whether to speak in messages."""
    chat, plain = switch(words, "--chat"), switch(words, "--completions")
    if chat and plain:
        raise UserError("--chat and --completions: give one of them")
    return not plain


def _key(name: str | None) -> dict[str, str]:
    key = os.environ.get(name or KEY, "").strip()
    if name is not None and not key:
        raise UserError(f"--api-key-env {name}: that variable is not set; set it to the key")
    return {"key": key, "key_env": name or KEY}


def _manual(path: str | None) -> str | None:
    try:
        return None if path is None else Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text in UTF-8"
        raise UserError(f"--manual {path}: cannot be read ({why}); name a text file") from error


def _number(flag: str, text: str | None, default: float, above: bool = False) -> float:
    value = default if text is None else float(text) if _is_number(text) else math.nan
    if not (value > 0 if above else value >= 0) or value == math.inf:
        raise UserError(f"{flag}: expected a number {'above 0' if above else 'of 0 or more'}, got {text!r}")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def summary(endpoint: Endpoint, asked: Asked, report: Report) -> dict[str, Any]:
    """All the numbers; those of episodes leave out the ones that failed, which stand in `failed`.

    values: success, and where the world counts the uses of tools, "tool_calls" and "tool_productivity", as of
    `partita.lab.tools`.
    """
    whole = [p for p in report.played if not p.failed]
    metric, mean, low, high = interval([p.score for p in whole])
    values = {metric: statistics.Estimate(mean, low, high), **_tools(whole)}
    turns = sum(p.turns for p in whole)
    found: dict[str, Any] = {
        "policy": endpoint.model, "endpoint": endpoint.shown, "protocol": endpoint.path,
        "task": asked.task.part_name(), "settings": asked.task.settings(), "problems": asked.size, "seed": asked.seed,
        "temperature": asked.temperature, "max_tokens": asked.asking(endpoint.chat, None).max_tokens,
        "values": [
            {"metric": name, "k": None, "value": e.value, "low": e.low, "high": e.high}
            for name, e in values.items()
        ],
        "episodes": len(whole), "ended": dict(Counter(p.why for p in whole)), "turns": turns / len(whole),
        "actions": turns, "malformed": sum(p.malformed for p in whole) / max(turns, 1),
    }  # fmt: skip
    found["failed"] = [{"problem": p.problem, "why": p.why.removeprefix("failed: ")} for p in report.played if p.failed]
    traffic = report.traffic
    return found | {**asdict(traffic), "left_out": list(report.left_out), "seconds": report.seconds}


def lines(found: dict[str, Any]) -> list[str]:
    """What was found, for a terminal."""
    failed = found["failed"]
    out = [
        f"{found['policy']} at {found['endpoint']} ({found['protocol']}) on {found['task']}: {found['problems']} "
        f"problems, temperature {found['temperature']:g}",
        *(f"{v['metric']:17} {v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for v in found["values"]),
        f"{'turns':17} {found['turns']:.1f} an episode; "
        + ", ".join(f"{n} {WHY[why]}" for why, n in sorted(found["ended"].items())),
        f"{'malformed':17} {found['malformed']:.1%} of {found['actions']} actions",
    ]
    t = Traffic(**{name: found[name] for name in Traffic.__dataclass_fields__})
    tokens = f"{t.prompt_tokens} tokens read, {t.completion_tokens} written"
    if t.uncounted:
        tokens += f" ({t.uncounted} of {t.answered} answers uncounted)"
    out.append(f"{'requests':17} {t.requests}, {t.retries} of them retries; {tokens}; {found['seconds']:.1f} s")
    if t.cut:
        out.append(f"{'cut':17} {t.cut} answers reached {found['max_tokens']} tokens; --max-tokens gives more")
    if found["left_out"]:
        out.append(f"{'left out':17} {', '.join(found['left_out'])}: the server does not know it")
    if failed:
        out.append(f"{'failed':17} {len(failed)} of {found['problems']}, which no number of episodes above includes:")
        out += [f"  problem {f['problem']}: {f['why']}" for f in failed[:NAMED]]
        if len(failed) > NAMED:
            out.append(f"  and {len(failed) - NAMED} more; --json names them all")
    return out


WHY = {"done": "came to an end", "turns": "took all turns", "context": "filled the context"}


def _tools(played: list[Played]) -> dict[str, statistics.Estimate]:
    """What tools cost, where the world counts their uses."""
    if not any(tools.COUNTED in p.parts for p in played):
        return {}
    calls = [p.parts.get(tools.COUNTED, 0.0) for p in played]
    found = {"tool_calls": tools.mean_calls(calls)}
    if any(calls):
        found["tool_productivity"] = tools.productivity([float(p.score >= 1) for p in played], calls)
    return found


def _legible(text: str) -> str:
    """A text without what a terminal would act on."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


@contextmanager
def shown(size: int) -> Iterator[Callable[[int], None]]:
    """A progress line on a terminal; the function to call with the number of episodes that are over."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("episodes", total=size)
        yield lambda done: bar.update(task, completed=done)
