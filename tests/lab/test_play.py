"""Playing a trained policy: the numbers printed, films, and every input that must be refused."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import tiny_runs
import torch

from partita.core import registry
from partita.core.errors import UserError
from partita.lab import play as module
from partita.lab.draw import HEIGHT, WIDTH, picture
from partita.lab.evaluate import evaluate
from partita.lab.play import film, play
from partita.lab.train import load_policy
from partita.tasks.control.classic import Acrobot, Cartpole, MountainCar, Pendulum
from partita.tasks.control.grid import Gridworld
from partita.tasks.control.gym import Gym

Image = pytest.importorskip("PIL.Image", reason="films need the extra `video`")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_runs.run(tiny_runs.ppo(), tmp_path_factory.mktemp("play") / "run").folder


def test_prints_what_evaluation_found(folder, capsys):
    play(folder, 7, 3, True, None, None)
    config, policy = load_policy(folder)
    greedy = evaluate(policy, config.task, 7, 3, True)
    assert capsys.readouterr().out == f"ppo on cartpole: greedy {greedy}, mean length {greedy.length:.1f} steps\n"
    play(folder, 7, 3, False, None, None)
    sampled = evaluate(policy, config.task, 7, 3, False)
    assert sampled != greedy
    assert capsys.readouterr().out == f"ppo on cartpole: sampled {sampled}, mean length {sampled.length:.1f} steps\n"


def test_gif_holds_an_episode(folder, tmp_path, capsys):
    target = tmp_path / "film.gif"
    play(folder, 2, 0, True, str(target), None)
    assert capsys.readouterr().out.endswith(f"wrote {target}\n")
    config, policy = load_policy(folder)
    frames = list(film(policy, config.task, 0, True))
    with Image.open(target) as image:
        assert image.size == (WIDTH, HEIGHT)
        assert image.info["loop"] == 0
        shown = 0
        for i in range(image.n_frames):
            image.seek(i)
            shown += image.info["duration"]
    assert shown == pytest.approx(40 * len(frames), abs=40)  # 25 frames a second, equal frames merged
    assert [p.name for p in tmp_path.iterdir()] == ["film.gif"]


def test_mp4_is_written(folder, tmp_path):
    reader = pytest.importorskip("imageio_ffmpeg")
    target = tmp_path / "film.mp4"
    play(folder, 2, 0, True, None, str(target))
    about = next(reader.read_frames(str(target)))
    assert about["size"] == (WIDTH, HEIGHT)
    assert about["fps"] == 25
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


def test_film_ends_with_its_episode(folder):
    config, policy = load_policy(folder)
    still = round(module.PAUSE * 25)
    whole = list(film(policy, config.task, 0, True))
    steps = int(evaluate(policy, config.task, 1, 0, True).length)
    assert len(whole) == 1 + math.ceil(steps / 2) + still  # 50 steps a second, every second one filmed
    assert all(np.array_equal(whole[-1], frame) for frame in whole[-still:])
    assert not np.array_equal(whole[0], whole[-1])
    again = list(film(policy, config.task, 0, True))
    assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))


def colour(frame: np.ndarray, text: str) -> np.ndarray:
    """Pixels (rows, columns) of a colour."""
    wanted = [int(text[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((frame == wanted).all(-1))


def draw(task, state) -> np.ndarray:
    frame = picture(task)[0](task, torch.tensor(state))
    assert frame.shape == (HEIGHT, WIDTH, 3)
    assert frame.dtype == np.uint8
    return frame


def test_a_positive_angle_leans_the_pole_to_the_right():
    pole = colour(draw(Cartpole(), [0.0, 0.0, 0.2, 0.0]), "#d1540b")
    assert pole[pole[:, 0].argmin(), 1] > WIDTH / 2 + 5
    right = colour(draw(Cartpole(), [2.0, 0.0, 0.0, 0.0]), "#2b2f33")
    assert right[:, 1].mean() > WIDTH / 2 + 100


def test_acrobot_hangs_and_passes_its_line():
    down = colour(draw(Acrobot(), [0.0, 0.0, 0.0, 0.0]), "#d1540b")
    assert down[:, 0].mean() > HEIGHT / 2 + 50
    frame = draw(Acrobot(), [math.pi, 0.0, 0.0, 0.0])
    line = colour(frame, "#12a06a")[:, 0].mean()
    assert colour(frame, "#d1540b")[:, 0].min() < line < HEIGHT / 2
    right = colour(draw(Acrobot(), [math.pi / 2, 0.0, 0.0, 0.0]), "#0b6cb3")
    assert right[:, 1].mean() > WIDTH / 2


def test_pendulum_is_upright_at_zero_and_turns_anticlockwise():
    assert colour(draw(Pendulum(), [0.0, 0.0]), "#d1540b")[:, 0].mean() < HEIGHT / 2
    assert colour(draw(Pendulum(), [math.pi / 2, 0.0]), "#d1540b")[:, 1].mean() < WIDTH / 2


def test_mountain_car_climbs():
    valley, top = (colour(draw(MountainCar(), [x, 0.0]), "#d1540b") for x in (-math.pi / 6, 0.4))
    assert top[:, 0].mean() < valley[:, 0].mean() - 50
    assert top[:, 1].mean() > valley[:, 1].mean() + 50


def test_gridworld_shows_walker_and_keys():
    task = Gridworld(layout="Sa.AG")
    start = draw(task, 0)
    assert colour(start, "#0b6cb3")[:, 1].mean() < WIDTH / 3
    assert len(colour(start, "#8a5a2b")) and len(colour(start, "#e3a81c"))
    holding = draw(task, 2 * 2 + 1)  # third cell, with the key
    assert colour(holding, "#0b6cb3")[:, 1].mean() == pytest.approx(WIDTH / 2, abs=2)
    assert not len(colour(holding, "#8a5a2b")) and not len(colour(holding, "#e3a81c"))


class Lamp(gymnasium.Env):
    """Five steps of a picture that brightens."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gymnasium.spaces.Box(0.0, 9.0, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None, broken=False):
        self.render_mode, self.broken = render_mode, broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(4, self.t, np.float32), 1.0, self.t == 5, False, {}

    def render(self):
        if self.broken:
            raise gymnasium.error.DependencyNotInstalled("no screen")
        return np.full((20, 30, 3), 40 * self.t, np.uint8)


@pytest.fixture
def lamp():
    gymnasium.register("PartitaLamp-v0", entry_point=Lamp)
    yield "PartitaLamp-v0"
    del gymnasium.registry["PartitaLamp-v0"]


def test_gymnasium_draws_itself(folder, lamp):
    _, policy = load_policy(folder)
    task = Gym(id=lamp)
    rate, every = module.speed(task)
    frames = list(film(policy, task, 0, True))
    assert (rate, every) == (10.0, 1)  # a class as entry point: its own rate is known too
    assert [int(f[0, 0, 0]) for f in frames[:6]] == [0, 40, 80, 120, 160, 200]
    assert frames[0].shape == (20, 30, 3)
    with pytest.raises(UserError, match=r"could not draw itself \(no screen\)"):
        list(film(policy, replace(task, kwargs={"broken": True}), 0, True))


def test_bad_settings_write_nothing(folder, tmp_path, monkeypatch):
    def refused(message, episodes=2, gif=None, mp4=None, run=folder):
        with pytest.raises(UserError, match=message):
            play(run, episodes, 0, True, gif, mp4)

    refused("--episodes: expected 1 or more, got 0", episodes=0)
    refused(r"not a run \(it has no config.json\)", run=tmp_path)
    refused("expected a file that ends in .gif", gif=str(tmp_path / "film.png"))
    refused("expected a file that ends in .mp4", mp4=str(tmp_path / "film.gif"))
    refused("does not exist; make it first", gif=str(tmp_path / "absent" / "film.gif"))
    (tmp_path / "folder.gif").mkdir()
    refused("is a folder; name a file", gif=str(tmp_path / "folder.gif"))
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    refused("cannot be written; choose another", gif=str(tmp_path / "film.gif"))
    assert [p.name for p in tmp_path.iterdir()] == ["folder.gif"]


def test_missing_packages_name_the_extra(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "PIL.Image", None)
        with pytest.raises(UserError, match=r"partita\[video\]"):
            play(folder, 2, 0, True, str(tmp_path / "film.gif"), None)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "imageio_ffmpeg", None)
        with pytest.raises(UserError, match=r"imageio-ffmpeg; install it with pip install \"partita\[video\]\""):
            play(folder, 2, 0, True, None, str(tmp_path / "film.mp4"))
    assert not list(tmp_path.iterdir())


def test_tasks_without_pictures_say_so(tmp_path):
    config = replace(tiny_runs.ppo(), task=registry.part_class("task", "probe_action")())
    result = tiny_runs.run(config, tmp_path / "run")
    with pytest.raises(UserError, match="there is no picture of it; tasks that have one: cartpole"):
        play(result.folder, 2, 0, True, str(tmp_path / "film.gif"), None)


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_failed_film_leaves_nothing(kind, folder, tmp_path, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")

    def fail(*args):
        raise UserError("broke in the middle")

    monkeypatch.setattr(module, "_action", fail)
    target = str(tmp_path / f"film.{kind}")
    with pytest.raises(UserError, match="broke"):
        play(folder, 2, 0, True, target if kind == "gif" else None, target if kind == "mp4" else None)
    assert not list(tmp_path.iterdir())


def test_language_prints_samples_and_has_no_pictures(tmp_path, capsys, monkeypatch):
    from partita.lab.evaluate import Evaluation

    sample = {"prompt": "1+1=", "response": "2\nthree", "score": 1.0, "why": "correct"}
    found = Evaluation("success", 0.5, 0.25, 0.75, 4, 3.0, (sample,) * 5)
    config = replace(tiny_runs.grpo(), task=registry.part_class("task", "arithmetic")())
    monkeypatch.setattr(module, "load_policy", lambda folder: (config, object()))
    monkeypatch.setattr(module, "evaluate", lambda *args: found)
    monkeypatch.setattr(module, "use_threads", lambda *args: None)
    play(tmp_path, 4, 0, False, None, None)
    out = capsys.readouterr().out
    assert out.startswith("grpo on arithmetic: sampled success 0.500 [0.250, 0.750] over 4, mean length 3.0 tokens\n")
    assert out.count("response  2\n          three\nscore     1  correct\n") == module.SHOWN
    with pytest.raises(UserError, match="--gif: task arithmetic is language; it has no pictures"):
        play(tmp_path, 4, 0, False, str(tmp_path / "film.gif"), None)
