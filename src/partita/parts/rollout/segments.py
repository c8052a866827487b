"""Segments of the life of running environments: step by step, or in blocks of steps that are compiled programs."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.program import Columns, Program
from partita.parts.rollout.control import check_finite
from partita.policies.actor_critic import ActorCriticPolicy
from partita.tasks.control.base import Envs, NativeEnvs

WINDOW = 100  # episodes over which the running mean return is taken
BLOCK = 4  # steps of a compiled program


class Played(NamedTuple):
    """What happened in some steps of n environments, and what policy and task say of it.

    tables: (steps, n, ...) each, by name. place: (k, 2) int64, step and environment of every truncation; beyond:
    (k, ...), the observations that would have followed there.
    """

    tables: dict[str, Tensor]
    place: Tensor
    beyond: Tensor


def segment(
    policy: ActorCriticPolicy, live: dict[str, Any], steps: int, generator: torch.Generator, needs: Set[str]
) -> Batch:
    """`steps` steps of every environment in `live["envs"]`, as a batch (N, steps); storage is (steps, N, ...).

    live["program"]: what plays them; step by step without. Where a part needs "noise", `inputs` hold what the actions
    were drawn with.
    """
    envs: Envs = live["envs"]
    noise = policy.noise((steps, envs.n), generator)
    program = live.get("program")
    played = play(policy, envs, noise, needs) if program is None else program(envs, noise)
    table = played.tables
    reward, ended = table["reward"], table["terminated"] | table["truncated"]
    here = envs.obs.clone()
    check_finite(envs, obs=torch.cat((table["obs"], here[None])), reward=reward)
    if policy.has_value:
        with torch.no_grad():
            table["bootstrap"] = torch.zeros_like(reward)
            table["bootstrap"][-1] = policy.value(here) * ~ended[-1]
            if len(played.place):
                table["bootstrap"][played.place[:, 0], played.place[:, 1]] = policy.value(played.beyond)
    if "noise" in needs:
        table["noise"] = noise
    _count_episodes(live, reward, ended)
    rows: dict[str, Any] = {name: x.transpose(0, 1) for name, x in table.items()}
    inputs = {name: rows.pop(name) for name in ("obs", "action", "noise", "post", "post_reward") if name in rows}
    mask = torch.ones((envs.n, steps), dtype=torch.bool, device=here.device)
    rows |= {"mask": mask, "group": torch.arange(envs.n, device=here.device), "inputs": inputs}
    return Batch(**rows)


def play(policy: ActorCriticPolicy, envs: Envs, noise: Tensor, needs: Set[str]) -> Played:
    """One actor pass a step; log-probs, entropies and values are computed for the whole segment at once."""
    steps, n = noise.shape[:2]
    device = envs.obs.device
    obs = torch.empty((steps, *envs.obs.shape), dtype=envs.obs.dtype, device=device)
    table = {"obs": obs, "reward": torch.empty((steps, n), device=device)}
    table |= {name: torch.empty((steps, n), dtype=torch.bool, device=device) for name in ("terminated", "truncated")}
    if "post" in needs:
        table |= {"post": torch.empty_like(obs), "post_reward": torch.empty_like(table["reward"])}
    heads: list[Tensor] = []
    actions: list[Tensor] = []
    place, beyond = [torch.empty((0, 2), dtype=torch.int64, device=device)], [obs[:0, 0]]
    with torch.inference_mode():
        for t in range(steps):
            obs[t] = envs.obs
            head = policy.head(envs.obs)
            action = policy.choose(head, noise[t])
            heads.append(head)
            actions.append(action)
            if "post" in table:
                table["post"][t], table["post_reward"][t] = _post(envs, action)
            after = envs.step(action)
            table["reward"][t], table["terminated"][t] = after.reward, after.terminated
            table["truncated"][t] = after.truncated
            if after.final_obs is not None and bool(after.truncated.any()):
                rows = after.truncated.nonzero()[:, 0]
                place.append(torch.stack((torch.full_like(rows, t), rows), 1))
                beyond.append(after.final_obs[rows])
    table["action"] = torch.stack([a.clone() for a in actions])
    with torch.no_grad():
        table["logp"], table["entropy"] = policy.judge(torch.stack(heads), table["action"])
        if policy.has_value:
            table["value"] = policy.value(obs)
    return Played(table, torch.cat(place), torch.cat(beyond))


class Blocks:
    """Plays native environments in blocks of BLOCK steps (or the most that divides `steps`), each a compiled program.

    New states are drawn at every step, for what may end there; without a program only where something ended.
    """

    def __init__(self, policy: ActorCriticPolicy, envs: NativeEnvs, steps: int) -> None:
        self.size = max(k for k in range(1, BLOCK + 1) if steps % k == 0)

        @torch.no_grad()
        def block(given: Columns) -> dict[str, Tensor]:
            state, elapsed, obs = given["state"], given["elapsed"], given["obs"]
            rows: dict[str, list[Tensor]] = {}
            for noise in given["noise"]:
                head, value = policy.both(obs)
                action = policy.choose(head, noise)
                logp, entropy = policy.judge(head, action)
                said = {"obs": obs, "action": action, "logp": logp, "entropy": entropy}
                if value is not None:
                    said["value"] = value
                ahead = envs.ahead(state, elapsed, action)
                state, elapsed, obs, reward, terminated, truncated = envs.renewed(ahead)
                said |= {"reward": reward, "terminated": terminated, "truncated": truncated, "beyond": ahead.obs}
                for name, x in said.items():
                    rows.setdefault(name, []).append(x)
            after = {"state": state, "elapsed": elapsed, "now": obs}
            return {**{name: torch.stack(xs) for name, xs in rows.items()}, **after}

        networks = [*policy.module.parameters(), *policy.module.buffers()]
        self.program = Program(block, networks, [envs.generator], "step of an environment")

    @torch.no_grad()
    def __call__(self, envs: NativeEnvs, noise: Tensor) -> Played:
        blocks = []
        for piece in noise.split(self.size):
            now = {"obs": envs.obs, "state": envs.state, "elapsed": envs.elapsed}
            found = self.program({**now, "noise": piece})
            envs.obs, envs.state, envs.elapsed = (found.pop(name) for name in ("now", "state", "elapsed"))
            blocks.append(found)
        table = {name: torch.cat([found[name] for found in blocks]) for name in blocks[0]}
        beyond, place = table.pop("beyond"), table["truncated"].nonzero()
        return Played(table, place, beyond[place[:, 0], place[:, 1]])


def _post(envs: Envs, action: Tensor) -> tuple[Tensor, Tensor]:
    """Observation of the state that a decision leads to before chance has its say, and the reward of the decision."""
    assert isinstance(envs, NativeEnvs)
    state, reward = envs.env.post(envs.state, action)  # type: ignore[attr-defined]  # tasks that have it
    return envs.env.observe(state), reward


def _count_episodes(live: dict[str, Any], reward: Tensor, done: Tensor) -> None:
    """Keep (return, length) of the last WINDOW finished episodes, in order of the step at which they ended."""
    if "recent" not in live:
        live |= dict(running=torch.zeros_like(reward[0]), elapsed=torch.zeros_like(reward[0]), recent=[], episodes=0)
    earned = reward.cumsum(0) + live["running"]
    lived = torch.arange(1, reward.shape[0] + 1, device=reward.device)[:, None] + live["elapsed"]
    ends = done.nonzero()
    if len(ends):
        order = ends[:, 1] * reward.shape[0] + ends[:, 0]  # by environment, then by step
        rank = order.argsort()
        t, env = ends[rank, 0], ends[rank, 1]
        gained, length = earned[t, env], lived[t, env]
        first = torch.ones_like(env, dtype=torch.bool)
        first[1:] = env[1:] != env[:-1]
        before = torch.where(first, 0.0, gained.roll(1)), torch.where(first, 0.0, length.roll(1))
        back = rank.argsort()
        pairs = torch.stack([gained - before[0], length - before[1]], 1)[back].tolist()
        live["episodes"] += len(pairs)
        live["recent"] = [*live["recent"], *pairs][-WINDOW:]
        final = torch.ones_like(env, dtype=torch.bool)
        final[:-1] = first[1:]
        last = torch.zeros_like(live["running"]), torch.zeros_like(live["elapsed"])
        last[0][env[final]], last[1][env[final]] = gained[final], length[final]
        live["running"], live["elapsed"] = earned[-1] - last[0], lived[-1] - last[1]
    else:
        live["running"], live["elapsed"] = earned[-1].clone(), lived[-1].clone()
