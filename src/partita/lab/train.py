"""Training from a configuration: builds the policy, opens the folder, runs the loop, evaluates, reports."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from partita.core import ranks, registry
from partita.core.errors import UserError
from partita.core.policy import Policy
from partita.core.recipe import Recipe
from partita.core.task import Task
from partita.lab import environment
from partita.lab.config import Config, Settings
from partita.lab.evaluate import Evaluation, evaluable, evaluate
from partita.lab.run import FolderRun, read_rows
from partita.loops.run import Generators
from partita.policies.shard import shard
from partita.policies.spread import spread

ALONE = (
    "--shard: one process has nobody to share weights with; start it by torchrun --nproc-per-node N -m partita train, "
    "or leave --shard out"
)


@dataclass(frozen=True)
class Result:
    """What a finished (or interrupted) run left."""

    folder: Path
    policy: Policy
    metrics: list[dict[str, float]]
    before: Evaluation | None
    after: Evaluation | None
    finished: bool


def use_threads(settings: Settings, task: Task) -> None:
    """One thread for control (its tensors are small), all cores for language, unless asked otherwise."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    elif task.domain == "control":
        torch.set_num_threads(1)
    if task.domain == "control":
        keep_memory()


def keep_memory(limit: int = 64 * 2**20) -> None:
    """Ask the C library (glibc) to keep what was freed, in blocks of up to `limit` bytes, for what comes next.

    A hidden layer of a batch is half a megabyte: given back and asked for again at every update, its pages cost a tenth
    of the time. Elsewhere this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-3, limit)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 16 * limit)  # M_TRIM_THRESHOLD


def device_of(settings: Settings) -> torch.device:
    """The device that `settings.device` means here: of several, where there are ranks, the one of this rank."""
    if torch.cuda.is_available() and settings.device in ("auto", "cuda") and ranks.world() > 1:
        return torch.device("cuda", torch.cuda.current_device())
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {settings.device}: no CUDA device here; use --device cpu")
    return torch.device(settings.device)


def build_policy(config: Config) -> Policy:
    """The policy as it is before training."""
    if config.task.domain not in config.policy.domains:
        raise UserError(
            f"--policy {config.policy.part_name()}: works in {' and '.join(config.policy.domains)}, and task "
            f"{config.task.part_name()} is {config.task.domain}"
        )
    value = "value" in config.recipe.needs()
    settings = config.recipe.equip(config.policy, config.task)
    policy = settings.build(config.task, value, Generators(config.settings.seed)["init"])
    device = device_of(config.settings)
    if config.settings.shard and ranks.world() > 1:  # before the move: no device ever holds it whole
        policy = shard(policy, device)
    policy.module.to(device)
    return policy


def launch(config: Config, folder: Path, resume: bool = False, watchers: tuple[Any, ...] = ()) -> Result:
    """Carry out (or continue) the run of `config` in `folder`.

    `watchers` are objects with `start(run, config, total, before)`, `step(step, metrics, batch)` and `end(result)`:
    the progress line, trackers, the report.

    Under `torchrun` the processes train together (`core/ranks`), and the first one writes and watches. A run whose
    policy is sharded may be continued by one process, which then holds all of it.
    """
    ranks.start()
    first_rank = ranks.rank() == 0
    settings, task = config.settings, config.task
    if settings.shard and ranks.world() == 1 and not resume:
        raise UserError(ALONE)
    use_threads(settings, task)
    policy = spread(build_policy(config))
    task = task.met(policy)
    settle: Any = config.recipe
    config = replace(config, task=task, recipe=settle.settle(task, policy))
    settle = config.recipe
    settle.check(task, policy)
    run = FolderRun(folder, settings.seed, settings.save_every, settings.until, settings.samples, settings.seconds)
    run.open(None if resume else config.to_json())
    try:
        if first_rank:
            environment.record(folder)
        first = None
        if settings.eval_sampled:
            first = {name: weight.detach().clone() for name, weight in policy.state_dict().items()}

        def measure(step: int) -> Evaluation | None:
            if not settings.eval_size or not evaluable(task):
                return None
            held = [r for r in read_rows(folder / "evaluations.jsonl") if r["step"] == step]
            if (known := ranks.agreed(held[-1] if held else None)) is not None:
                return Evaluation(**{k: v for k, v in known.items() if k != "step"})
            seed, greedy = settings.seed + 1_000_003, not settings.eval_sampled
            found = evaluate(policy, task, settings.eval_size, seed, greedy, first)
            run.append("evaluations", {"step": step, **asdict(found)})
            return found

        before = measure(0)
        if settings.eval_every:

            def follow(step: int, row: dict[str, float], batch: Any) -> None:
                if step % settings.eval_every == 0:
                    measure(step)

            run.watch.append(follow)
        total = config.recipe.numbers()["steps"]
        for watcher in watchers if first_rank else ():
            watcher.start(run, config, total, before)
            run.watch.append(watcher.step)
        loop = importlib.import_module(f"partita.loops.{config.recipe.loop}")
        loop.train(config.recipe, policy, task, run)
        finished = run.reached or run.step >= total
        after = measure(run.step) if finished else None
        if finished and (first_rank or policy.sharded):  # all have parts of what the first one writes
            policy.save(folder / "policy")
        result = Result(folder, policy, run.metrics, before, after, finished)
        for watcher in watchers if first_rank else ():
            watcher.end(result)
        return result
    finally:
        run.close()


def load_policy(folder: Path) -> tuple[Config, Policy]:
    """The configuration of a run and its policy as of the last checkpoint, on the device there is here."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a run (it has no config.json)")
    config = Config.read(folder / "config.json")
    found = sorted(p for p in (folder / "checkpoints").glob("step_*") if p.is_dir())
    if not found:
        raise UserError(f"{folder}: has no checkpoint yet; continue it with --resume {folder}")
    config = replace(config, settings=replace(config.settings, device="auto", shard=False))
    return config, policy_at(config, found[-1])


def policy_at(config: Config, folder: Path) -> Policy:
    """The policy of a run with the weights of its checkpoint in `folder`."""
    from partita.lab import checkpoint

    policy = build_policy(config)
    held = checkpoint.load(folder)
    try:
        policy.load_state_dict(held["policy"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{folder}: does not fit the policy of config.json ({error}); use the version that wrote it"
        ) from error
    return policy


def default_policy(task: Task, recipe: Recipe) -> Any:
    """The policy settings that a recipe's loop has for a task's domain."""
    return registry.part_class("policy", recipe.policies.get(task.domain, "language"))()


def train(
    recipe: str | Recipe, task: str | Task, policy: Any = None, out: str | Path | None = None, **changes: Any
) -> Result:
    """Train by recipe from Python: `train("grpo", "arithmetic", steps=50, seed=1)`.

    `changes` go to the recipe, or to the run's settings where they are named there.
    """
    name = recipe if isinstance(recipe, str) else "custom"
    chosen: Any = registry.recipe(recipe) if isinstance(recipe, str) else recipe
    target: Any = registry.part_class("task", task)() if isinstance(task, str) else task
    mine = {k: changes.pop(k) for k in list(changes) if k in Settings.__dataclass_fields__}
    config = Config(name, chosen.but(**changes), target, policy or default_policy(target, chosen), Settings(**mine))
    return launch(config, Path(out) if out is not None else free_folder(config))


def free_folder(config: Config, root: Path = Path("runs")) -> Path:
    """A folder under `root` that no run has taken, named after the recipe, the task and the seed."""
    stem = f"{config.name}-{config.task.part_name()}-seed{config.settings.seed}"
    for i in range(1, 10_000):
        folder = root / (stem if i == 1 else f"{stem}-{i}")
        if not (folder / "config.json").exists():
            return folder
    raise UserError(f"{root}: too many runs named {stem}; choose a folder with --out")
