"""`partita evaluate RUN --certify`: what a policy that acts through noise must earn under attack, and what it does."""

from __future__ import annotations

import json
import math
from typing import Any

from partita.core.errors import UserError, nearest
from partita.core.words import switch, take, whole
from partita.lab.passk import opened
from partita.lab.train import use_threads
from partita.loops.run import Generators
from partita.papers.robust.attacks import Attack, Greedy, Smoothed, Steady, attacks, play
from partita.papers.robust.policy_smoothing import certify, returns_known
from partita.tasks.control.base import Control
from partita.tasks.control.noisy import Noisy

BUDGETS = "0,0.1,0.2,0.4,0.8"
ATTACKS = {"all": (Greedy, Steady), "greedy": (Greedy,), "steady": (Steady,), "none": ()}
SHARE = 50  # of the episodes that certify, one in so many is attacked


def main(argv: list[str]) -> None:
    """Certify the policy of the run that the words name, attack it, and print what was found."""
    words = list(argv)
    switch(words, "--certify")
    sigma = _number("--sigma", take(words, "--sigma"))
    budgets = [_number("--budgets", text) for text in (take(words, "--budgets") or BUDGETS).split(",")]
    alpha, lowest = _number("--alpha", take(words, "--alpha") or "0.05"), take(words, "--lowest")
    episodes = whole("--episodes", take(words, "--episodes"), 10_000, SHARE)
    seed = whole("--seed", take(words, "--seed"))
    attack, as_json = take(words, "--attack") or "all", switch(words, "--json")
    if attack not in ATTACKS:
        raise UserError(f"--attack {attack}: no such attack; {nearest(attack, ATTACKS)}")
    name, config, policy = opened(words)
    use_threads(config.settings, config.task)
    env, held = setting(config.task)
    noise = held if sigma is None else sigma
    if noise is None:
        raise UserError(f"--sigma: the policy learnt on {env.part_name()} without noise; say how much it acts through")
    known = bounds(env, lowest)
    found = certified(policy, env, noise, [b or 0.0 for b in budgets], known, alpha or 0.0, attack, episodes, seed)
    about = {"policy": name, "task": env.part_name(), **found}
    print(json.dumps(about, indent=1) if as_json else "\n".join(lines(about)))


def setting(task: Any) -> tuple[Control, float | None]:
    """The environment of a task without noise, and the deviation of the noise that the task adds, None without."""
    if task.domain != "control" or len(task.observation_shape) != 1:
        raise UserError(f"--certify: task {task.part_name()} has no vectors as observations, to which noise is added")
    return (task.environment, task.sigma) if isinstance(task, Noisy) else (task, None)


def bounds(env: Control, lowest: str | None) -> tuple[float, Any]:
    """The least return there can be, and all others where they are known; UserError where nobody says."""
    known = returns_known(env)
    if lowest is not None:
        least = _signed("--lowest", lowest)
        return least, None if known is None or least != known[0] else known[1]
    if known is None:
        raise UserError(f"--lowest: the least return that {env.part_name()} can give is not known; give it")
    return known


def certified(
    policy: Any, env: Control, sigma: float, budgets: list[float], known: tuple[float, Any], alpha: float, attack: str,
    episodes: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The certificate and the means under attack, with the policy's noise and without, as plain values.

    A mean under attack is that of the strongest attack, on one episode for every SHARE that certify; without attacks,
    or without a budget, that of episodes nobody attacks.
    """
    streams = Generators(seed)
    tried = [a for a in attacks(policy, env) if isinstance(a, ATTACKS[attack])]
    if attack != "none" and not tried:
        raise UserError(f"--attack {attack}: needs a policy that acts by the values of actions, as dqn's; use steady")
    victims = {
        "attacked": Smoothed(policy, sigma, streams["noise"]), "undefended": Smoothed(policy, 0.0, streams["noise"]),
    }  # fmt: skip
    clean = {who: play(victim, env, episodes, streams[f"{who}/clean"])[0] for who, victim in victims.items()}
    certificate = certify(clean["attacked"], sigma, *known, alpha=alpha)

    def left(who: str, budget: float) -> float | None:
        if budget == 0:
            return float(clean[who].mean())
        return min((_mean(victims[who], env, episodes // SHARE, streams, a, budget) for a in tried), default=None)

    rows = [
        {"budget": b, "certified": float(c), **{who: left(who, b) for who in victims}}
        for b, c in zip(budgets, certificate.mean(budgets), strict=True)
    ]
    return {
        "sigma": sigma, "alpha": alpha, "episodes": episodes, "attacks": len(tried), "seed": seed,
        "lowest": certificate.lowest, "clean": float(clean["attacked"].mean()), "rows": rows,
    }  # fmt: skip


def _mean(victim: Smoothed, env: Control, episodes: int, streams: Generators, attack: Attack, budget: float) -> float:
    return float(play(victim, env, episodes, streams["attacked"], attack, budget)[0].mean())


def _signed(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{flag}: expected a number, got {text!r}")
    return value


def _number(flag: str, text: str | None) -> float | None:
    if text is None:
        return None
    value = _signed(flag, text)
    if value < 0:
        raise UserError(f"{flag}: expected a number of at least 0, got {text!r}")
    return value


def lines(about: dict[str, Any]) -> list[str]:
    """The same for a terminal."""
    out = [
        f"{about['policy']} on {about['task']} through noise of {about['sigma']:g}: return {about['clean']:.3f} over "
        f"{about['episodes']} episodes, certified with confidence {1 - about['alpha']:g}",
        f"{'budget':>8}  {'certified':>10}  {'attacked':>10}  {'undefended':>10}",
    ]
    for row in about["rows"]:
        cells = (f"{row[who]:10.3f}" if row[who] is not None else f"{'-':>10}" for who in _COLUMNS)
        out.append("  ".join((f"{row['budget']:8g}", *cells)))
    out.append(
        f"attacked, undefended: with its noise and without, under the strongest of {about['attacks']} attacks, on "
        f"{about['episodes'] // SHARE} episodes each"
    )
    return out


_COLUMNS = ("certified", "attacked", "undefended")
