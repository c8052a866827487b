"""`partita play`: what a trained policy does, in numbers, in samples, or as a film of one episode."""

from __future__ import annotations

import importlib
import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from partita.core.errors import UserError
from partita.core.limits import check_count
from partita.lab.draw import picture, pillow
from partita.lab.evaluate import evaluate
from partita.lab.train import load_policy, use_threads
from partita.loops.run import Generators

SHOWN = 3  # responses printed
FASTEST = 25.0  # frames a second; faster tasks are filmed with steps left out, at true speed
MOST = 3000  # frames of a film; a longer episode is cut
PAUSE = 1.0  # seconds for which the last frame stays


def play(folder: Path, episodes: int, seed: int, greedy: bool, gif: str | None, mp4: str | None) -> None:
    """Evaluate the policy of a run on fresh problems and print what it earned; film one episode if asked.

    `episodes` problems or episodes drawn from `seed`; actions are the policy's mode (`greedy`) or drawn from it.
    `gif` and `mp4` name files to write, whole or not at all (control only). UserError for bad settings, before
    anything is played or written.
    """
    check_count("--episodes", episodes)
    films = [_target(flag, name) for flag, name in (("gif", gif), ("mp4", mp4)) if name is not None]
    config, policy = load_policy(folder)
    use_threads(config.settings, config.task)
    if films:
        if config.task.domain != "control":
            raise UserError(f"--{films[0].suffix[1:]}: task {config.task.part_name()} is language; it has no pictures")
        _ready(films, config.task)
    found = evaluate(policy, config.task, episodes, seed, greedy)
    how = "on responses held out:" if found.metric == "accuracy" else "greedy" if greedy else "sampled"
    unit = "tokens" if config.task.domain == "language" else "steps"
    print(f"{config.name} on {config.task.part_name()}: {how} {found}, mean length {found.length:.1f} {unit}")
    for sample in found.samples[:SHOWN]:
        print(f"\nprompt    {_indent(sample['prompt'])}\nresponse  {_indent(sample['response'])}")
        print(f"score     {sample['score']:g}" + (f"  {sample['why']}" if sample.get("why") else ""))
    if films:
        for target in films:
            save = _gif if target.suffix == ".gif" else _mp4
            save(film(policy, config.task, seed, greedy), speed(config.task)[0], target)
            print(f"wrote {target}")


def speed(task: Any) -> tuple[float, int]:
    """Frames a second of a film at true speed, and the steps from one frame to the next."""
    rate = _frame_rate(task) if task.part_name() == "gym" else picture(task)[1]
    every = math.ceil(rate / FASTEST)
    return rate / every, every


def film(policy: Any, task: Any, seed: int, greedy: bool) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of one episode, first and last state included; at most MOST of them."""
    streams = Generators(seed)
    rate, every = speed(task)
    filmed = _filmed(task)
    envs = filmed.envs(
        filmed.problems(1, streams["evaluation/problems"]), streams["evaluation/actions"], auto_reset=False,
        device=str(policy.device),
    )  # fmt: skip
    try:
        yield (frame := _frame(envs, task))
        policy.begin(1)
        for t in range(1, min(filmed.horizon, MOST * every) + 1):
            obs = envs.obs
            action = _action(policy, obs, streams["evaluation/actions"], greedy)
            after = envs.step(action)
            policy.seen(obs, action, after.reward)
            over = bool(after.terminated[0] | after.truncated[0])
            if over or t % every == 0:
                yield (frame := _frame(envs, task))
            if over:
                break
        yield from [frame] * round(PAUSE * rate)
    finally:
        envs.close()


def _action(policy: Any, obs: torch.Tensor, generator: torch.Generator, greedy: bool) -> torch.Tensor:
    with torch.no_grad():
        return policy.act(obs, None if greedy else policy.noise((1,), generator))


def _frame(envs: Any, task: Any) -> np.ndarray:
    if task.part_name() == "gym":
        return _rendered(envs)
    return picture(task)[0](task, envs.state[0].cpu())


def _filmed(task: Any) -> Any:
    """The task with rendering on; native ones need none."""
    if task.part_name() != "gym":
        return task
    return replace(task, kwargs={**task.kwargs, "render_mode": "rgb_array"}, vectorisation="sync")


def _rendered(envs: Any) -> np.ndarray:
    try:
        return np.array(envs.render()[0], dtype=np.uint8)
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())
        raise UserError(f"{envs.name}: could not draw itself ({why}); install what it asks for") from error


def _frame_rate(task: Any) -> float:
    """Frames a second that a Gymnasium environment declares; FASTEST where it declares none."""
    from gymnasium.envs import registration

    spec = registration.registry.get(task.id.split(":")[-1])
    entry: Any = getattr(spec, "entry_point", None)
    try:
        maker: Any = registration.load_env_creator(entry) if isinstance(entry, str) else entry
        return float(maker.metadata["render_fps"])
    except (ImportError, AttributeError, KeyError, ValueError, TypeError):
        return FASTEST


def _target(flag: str, name: str) -> Path:
    """Where a film goes; UserError when it cannot go there."""
    path = Path(name)
    if path.suffix.lower() != f".{flag}":
        raise UserError(f"--{flag} {name}: expected a file that ends in .{flag}")
    if path.suffix != f".{flag}":
        path = path.with_suffix(f".{flag}")
    if path.is_dir():
        raise UserError(f"--{flag} {name}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"--{flag} {name}: the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--{flag} {name}: the folder {path.parent} cannot be written; choose another")
    return path


def _ready(films: list[Path], task: Any) -> None:
    """Fail now rather than after the evaluation when something that filming needs is missing."""
    if any(target.suffix == ".gif" for target in films) or task.part_name() != "gym":
        pillow("Image")
    if any(target.suffix == ".mp4" for target in films):
        _ffmpeg()
    if task.part_name() != "gym":
        picture(task)


def _ffmpeg() -> Any:
    try:
        return importlib.import_module("imageio_ffmpeg")
    except ImportError as error:
        raise UserError('--mp4: needs imageio-ffmpeg; install it with pip install "partita[video]"') from error


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its name at the end of the block, and is removed on failure."""
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield temporary
        temporary.rename(target)
    except OSError as error:
        raise UserError(f"--{target.suffix[1:]} {target}: cannot be written: {error}; choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def _gif(frames: Iterator[np.ndarray], rate: float, target: Path) -> None:
    image = pillow("Image")
    first = image.fromarray(next(frames)).quantize(64)
    rest = (image.fromarray(frame).quantize(64) for frame in frames)
    with _written(target) as path:
        first.save(path, save_all=True, append_images=rest, duration=max(20, round(1000 / rate)), loop=0)


def _mp4(frames: Iterator[np.ndarray], rate: float, target: Path) -> None:
    first = next(frames)
    height, width = (size - size % 2 for size in first.shape[:2])  # the codec wants even sizes
    with _written(target) as path:
        writer = _ffmpeg().write_frames(
            str(path), (width, height), fps=rate, codec="libx264", macro_block_size=2, ffmpeg_log_level="error"
        )
        try:
            writer.send(None)
            for frame in itertools.chain((first,), frames):
                writer.send(np.ascontiguousarray(frame[:height, :width]))
        finally:
            writer.close()


def _indent(text: str) -> str:
    """A text whose further lines stand below the first."""
    return str(text).rstrip("\n").replace("\n", "\n" + " " * 10)
