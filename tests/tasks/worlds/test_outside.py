"""Worlds in worker processes: what hangs, dies or raises costs its own episode, and nothing else."""

import json
import os
import signal
import time

import guessing
import pytest
import torch

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.base import Broken, Episode, Reply
from partita.tasks.worlds.hosts import Host, hosts, surroundings
from partita.tasks.worlds.stage import Answer, Stage, told
from partita.tasks.worlds.text_environment import TextEnvironment


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def world(trouble: str = "", **changes) -> TextEnvironment:
    return TextEnvironment(
        id="guessing:PartitaGuess-v0", kwargs={"trouble": trouble, "hint": True}, workers=1, **changes
    )


def never_seven(task, n: int) -> list[Problem]:
    """Problems whose digit is not 7, so that no episode ends by the fatal action being right."""
    env = guessing.Guess()
    return [p for p in task.problems(60, gen()) if env.reset(seed=p.data["seed"])[1]["state"][0] not in "0127"][:n]


@pytest.mark.parametrize(
    ("trouble", "words"), [("hang", "no answer within 3 s"), ("die", "its process died (exit code 3)")]
)
def test_a_world_that_hangs_or_dies_costs_its_own_episode_only(trouble, words):
    task = world(trouble, seconds=3.0)
    problems = never_seven(world(), 3)
    left, fatal, right = (task.open(p) for p in problems)
    before = [left.act("0\n"), right.act("1\n")]
    with pytest.raises(Broken) as caught:
        fatal.act("7\n")
    assert words in str(caught.value)
    # The others lived in the same process: they are played again, and go on where they were.
    after = [left.act("1\n"), right.act("2\n")]
    calm = [world().open(p) for p in (problems[0], problems[2])]
    assert before == [calm[0].act("0\n"), calm[1].act("1\n")]
    assert after == [calm[0].act("1\n"), calm[1].act("2\n")]
    assert [left.state, right.state] == [calm[0].state, calm[1].state]


def test_a_process_killed_from_outside_is_replaced():
    task = world()
    problem = never_seven(task, 1)[0]
    episode, other = task.open(problem), task.open(problem)
    first = episode.act("0\n")
    os.kill(hosts(task).next()._process.pid, signal.SIGKILL)
    with pytest.raises(Broken, match="signal 9"):
        other.act("0\n")
    assert (first.observation, first.parts) == ("up>", {"turns": 1.0})
    assert episode.act("1\n").parts == {"turns": 2.0}  # its first action was taken again before


def test_a_replay_that_is_interrupted_begins_again():
    task = world()
    episode = task.open(never_seven(task, 1)[0])
    for action in ("0\n", "1\n"):
        episode.act(action)
    host, told_off = hosts(task).next(), []
    host.end()
    call = host.call

    def once(op, given, born=None):
        if op == "act" and len(told_off) == 0 and given[1] == "1\n":
            told_off.append(given)
            host.end()  # another episode hangs in the same process while this one is played again
        return call(op, given, born)

    host.call = once
    try:
        assert episode.act("2\n").parts == {"turns": 3.0}
    finally:
        del host.call
    assert told_off


def test_a_worker_does_not_get_our_secrets(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("HF_TOKEN", "hf-1")
    monkeypatch.setenv("PARTITA_PLAIN", "yes")
    held = surroundings()
    assert "OPENAI_API_KEY" not in held and "HF_TOKEN" not in held and held["PARTITA_PLAIN"] == "yes"


def test_what_is_not_deterministic_is_found_when_it_is_played_again():
    task = world()
    problem = never_seven(task, 1)[0]
    episode = task.open(problem)
    episode.act("0\n")
    episode.state = "another"
    hosts(task).next().end()
    with pytest.raises(Broken, match="another way"):
        episode.act("1\n")


def test_what_a_world_prints_does_not_reach_the_answers():
    task = world("print")
    episode = task.open(never_seven(world(), 1)[0])
    assert episode.act("0\n").observation == "up>"


def test_memory_is_limited():
    task = world(memory_mb=20)
    with pytest.raises(UserError, match=r"could not start|died|MemoryError"):
        task.problems(1, gen())


def test_settings_must_be_sound_and_plain():
    for changes, words in (
        ({"workers": 0}, "workers"), ({"seconds": 0.0}, "seconds"), ({"memory_mb": -1}, "memory_mb"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            TextEnvironment(**changes)
    with pytest.raises(UserError, match="numbers, text, lists or tables"):
        TextEnvironment(id="x", kwargs={"a": object()}).problems(1, gen())


def test_the_same_settings_share_their_workers():
    assert hosts(world()) is hosts(world())
    assert hosts(world()) is not hosts(world("print"))


def test_a_worker_ends_with_its_parent(tmp_path):
    host = Host(world(), "partita.tasks.worlds.text_environment:TextEnvironment")
    host.call("problem", 3)
    child = host._process
    child.stdin.close()  # what a dead parent leaves behind
    assert child.wait(5) == 0


class Slow(Episode):
    """Answers after a while; raises on "bad"."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.state, self.closed = seconds, "s", False

    def act(self, action: str) -> Reply:
        time.sleep(self.seconds)
        if action == "bad":
            raise ValueError("no\nsuch thing")
        return Reply("o>", float("nan") if action == "nan" else 1.0, False)

    def close(self) -> None:
        self.closed = True


class Waits:
    """As much of a world as a stage asks for."""

    def __init__(self, slow: bool, patience: float = 1.0) -> None:
        self.slow, self.patience, self.opened = slow, patience, []

    def open(self, problem: Problem) -> Episode:
        if problem.prompt == "shut":
            raise OSError("closed today")
        self.opened.append(Slow(problem.data["seconds"]))
        return self.opened[-1]


def problem(seconds: float, prompt: str = "p") -> Problem:
    return Problem(prompt, {"seconds": seconds})


def test_a_slow_episode_does_not_hold_up_the_others():
    stage = Stage(Waits(True, patience=0.05), [problem(0.6), problem(0.0), problem(0.0)])
    for i in range(3):
        stage.act(i, "a")
    assert [i for i, _ in stage.answers()] == [1, 2]
    stage.act(1, "a")
    assert [i for i, _ in stage.answers()] == [1]
    assert [i for i, _ in stage.answers()] == [0]  # nobody else is under way: it is waited for
    assert stage.answers() == []
    stage.close()


def test_within_its_patience_everybody_is_waited_for():
    stage = Stage(Waits(True, patience=5.0), [problem(0.1), problem(0.0)])
    for i in (1, 0):
        stage.act(i, "a")
    assert [i for i, _ in stage.answers()] == [0, 1]
    stage.close()


@pytest.mark.parametrize("slow", [True, False])
def test_what_an_episode_raises_is_its_answer(slow):
    made = Waits(slow)
    stage = Stage(made, [problem(0), problem(0, "shut"), problem(0)])
    assert [a.failure for a in stage.openings] == ["", "OSError: closed today", ""]
    for i, action in ((0, "bad"), (2, "nan")):
        stage.act(i, action)
    (_, first), (_, second) = stage.answers()
    assert first == Answer("", Reply("", 0.0, True), "ValueError: no such thing")
    assert second.failure == "reward nan and score 0.0 must be finite"
    stage.close()
    assert all(e.closed for e in made.opened)


def test_an_exception_is_told_on_one_line():
    assert told(Broken("its process died")) == "its process died"
    assert told(KeyError()) == "KeyError"


def test_calls_are_json():
    assert json.loads(json.dumps(world().settings()))["id"] == "guessing:PartitaGuess-v0"
