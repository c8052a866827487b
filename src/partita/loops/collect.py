"""Environments that a run of the replay loop lives in, written to its store step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.core.store import Store
from partita.parts.explore import Explore, anything
from partita.parts.rollout.segments import WINDOW
from partita.policies.agent import Agent
from partita.tasks.control.base import Envs


class Collector:
    """`envs` copies of a task's environment. lived: steps of all of them so far.

    What they earn is counted as the on-policy loop does: mean return of the last WINDOW episodes.
    """

    def __init__(self, task: Any, count: int, agent: Agent, store: Store, generator: torch.Generator) -> None:
        self.agent, self.store, self.generator, self.task = agent, store, generator, task
        self.envs: Envs = task.envs(task.problems(count, generator), generator, device=str(agent.policy.device))
        self.running = torch.zeros(count, device=agent.policy.device)
        self.elapsed = torch.zeros(count, device=agent.policy.device)
        self.recent: list[list[float]] = []
        self.lived = self.episodes = 0

    @torch.no_grad()
    def step(self, explore: Explore | None) -> None:
        """One step of every environment, by `explore`, or by uniform actions."""
        agent, obs, envs = self.agent, self.envs.obs, self.envs
        if explore is None:
            action = anything(agent.policy.space, envs.n, self.generator).to(obs.device)
        else:
            action = explore(agent, obs, self.lived, self.generator)
        after = envs.step(agent.policy.unscaled(action))
        ended = after.terminated | after.truncated
        following = after.obs if after.final_obs is None else after.final_obs
        self.store.add(obs, action, after.reward, following, after.terminated, ended)
        self.running += after.reward
        self.elapsed += 1
        self.lived += envs.n
        if after.final_obs is not None:
            self._finish(ended)

    def _finish(self, ended: Tensor) -> None:
        rows = ended.nonzero()[:, 0]
        pairs = torch.stack((self.running[rows], self.elapsed[rows]), 1).tolist()
        self.recent = [*self.recent, *pairs][-WINDOW:]
        self.episodes += len(pairs)
        self.running[rows] = 0
        self.elapsed[rows] = 0

    def check(self, since: int) -> None:
        """Raise UserError when an environment gave a number that is not finite in its last `since` steps."""
        store = self.store
        newest = (store.written - 1 - torch.arange(min(since, store.written, store.ring))) % store.ring + store.fixed
        rows = store.rows[newest.to(store.rows.device)]
        if not bool(rows.isfinite().all()):
            raise UserError(
                f"task {self.task.part_name()}: observation or reward is not finite; repair the environment"
            )

    def metrics(self) -> dict[str, float]:
        """Episodes so far, and return and length of the last of them."""
        out = {"episodes": float(self.episodes)}
        if self.recent:
            out["return"] = sum(gain for gain, _ in self.recent) / len(self.recent)
            out["length"] = sum(length for _, length in self.recent) / len(self.recent)
            out["window"] = float(len(self.recent))
        return out

    def state_dict(self) -> dict[str, Any]:
        state = self.envs.state_dict()
        if self.envs.restarts:
            self.running.zero_()
            self.elapsed.zero_()
            self.store.cut()
        kept = {"running": self.running, "elapsed": self.elapsed, "recent": self.recent, "episodes": self.episodes}
        return {"envs": state, "lived": self.lived, **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.envs.load_state_dict(state["envs"])
        self.running.copy_(state["running"])
        self.elapsed.copy_(state["elapsed"])
        self.recent, self.episodes, self.lived = state["recent"], state["episodes"], state["lived"]
