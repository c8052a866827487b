"""Rollouts in control: groups of whole episodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.tasks.control.base import Control, Envs


def episodes(
    policy: Any,
    task: Control,
    problems: Any,
    group_size: int,
    generator: torch.Generator,
    greedy: bool = False,
) -> Batch:
    """Whole episodes, `group_size` from each starting point, as a batch (problems * group_size, longest)."""
    envs = task.envs(repeat(problems, group_size), generator, auto_reset=False, device=str(policy.device))
    n, device = envs.n, envs.obs.device
    rows: dict[str, list[Tensor]] = {k: [] for k in ("obs", "action", "head", "reward", "live", "over", "cut")}
    live = torch.ones(n, dtype=torch.bool, device=device)
    over = cut = ~live
    policy.begin(n)
    with torch.no_grad():
        for _ in range(task.horizon):
            obs, head = envs.obs, policy.head(envs.obs)
            action = policy.choose(head, None if greedy else policy.noise((n,), generator))
            after = envs.step(action)
            policy.seen(obs, action, after.reward)
            ended, stopped = after.terminated & live, after.truncated & live
            for name, column in zip(rows, (obs, action, head, after.reward, live, ended, stopped), strict=True):
                rows[name].append(column)
            over, cut = over | ended, cut | stopped
            live = ~(over | cut)
            if not bool(live.any()):
                break
        table = {name: torch.stack(values, 1) for name, values in rows.items()}
        check_finite(envs, obs=table["obs"].transpose(0, 1), reward=table["reward"].T)
        logp, entropy = policy.judge(table["head"], table["action"])
        mask = table["live"]
        value = bootstrap = None
        if policy.has_value:
            value = policy.value(table["obs"]) * mask
            bootstrap = policy.value(envs.obs)[:, None] * table["cut"]
    envs.close()
    return Batch(
        mask=mask, logp=logp * mask, reward=table["reward"] * mask, terminated=table["over"], truncated=table["cut"],
        value=value, bootstrap=bootstrap, entropy=entropy * mask,
        outcome=(table["reward"] * mask).sum(1),
        group=torch.arange(n // group_size, device=device).repeat_interleave(group_size),
        inputs={"obs": table["obs"], "action": table["action"]},
    )  # fmt: skip


def check_finite(envs: Envs, **tables: Tensor) -> None:
    """Raise UserError naming step and copy when an environment gave a number, (steps, N, ...), that is not finite."""
    for name, table in tables.items():
        if table.is_floating_point() and not bool(table.isfinite().all()):
            step, copy = (~table.isfinite()).nonzero()[0, :2].tolist()
            what = getattr(getattr(envs, "env", None), "part_name", lambda: type(envs).__name__)()
            raise UserError(
                f"task {what}: copy {copy}, step {step} of the rollout: {name} is not finite; repair the environment"
            )


def repeat(problems: Any, times: int) -> Any:
    """Each problem `times` times in a row, for tensors and lists."""
    if isinstance(problems, Tensor):
        return problems.repeat_interleave(times, 0)
    return [p for p in problems for _ in range(times)]
