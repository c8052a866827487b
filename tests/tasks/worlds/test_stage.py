"""Episodes side by side: who is waited for, and what comes of one that breaks."""

import asyncio
import threading
import time

import pytest

from partita.core.task import Problem
from partita.tasks.worlds.base import Broken, Episode, Reply
from partita.tasks.worlds.stage import Answer, Stage, told

RAISES = {"bad": ValueError("no\nsuch thing"), "exit": SystemExit(2), "cancelled": asyncio.CancelledError()}


class Slow(Episode):
    """Answers after a while; some actions go wrong."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.state, self.closed = seconds, "s", False

    def act(self, action: str) -> Reply:
        self.thread = threading.current_thread()
        time.sleep(self.seconds)
        if action in RAISES:
            raise RAISES[action]
        return Reply(7 if action == "seven" else "o>", float("nan") if action == "nan" else 1.0, False)

    def close(self) -> None:
        self.closed = True


class Waits:
    """As much of a world as a stage asks for."""

    def __init__(self, slow: bool, patience: float = 1.0, hosted: bool = False) -> None:
        self.slow, self.patience, self.hosted, self.opened = slow, patience, hosted, []

    def begin(self, problem: Problem) -> Episode:
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


def test_a_hosted_world_that_is_not_slow_is_waited_for():
    made = Waits(False, patience=0.01, hosted=True)
    stage = Stage(made, [problem(0.3), problem(0.0)])
    for i in range(2):
        stage.act(i, "a")
    assert [i for i, _ in stage.answers()] == [0, 1]
    assert threading.main_thread() not in {e.thread for e in made.opened}  # side by side all the same
    stage.close()


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("exit", "SystemExit: 2"), ("cancelled", "CancelledError"), ("seven", "its observation is int, not text"),
        ("nan", "reward nan and score 0.0 must be finite"),
    ],
)  # fmt: skip
def test_what_a_rollout_could_not_use_is_a_failure(slow, action, words):
    made = Waits(slow)
    stage = Stage(made, [problem(0), problem(0)])
    made.opened[1].state = ("a", 1)
    stage.act(0, action)
    stage.act(1, "a")
    assert [a.failure for _, a in stage.answers()] == [words, "its state is tuple, not text"]
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
