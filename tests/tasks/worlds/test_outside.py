"""Worlds in worker processes: what hangs, dies or raises costs its own episode, and nothing else."""

import os
import signal

import guessing
import pytest
import torch

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.base import Broken
from partita.tasks.worlds.hosts import hosts
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
    left, fatal, right = (task.begin(p) for p in problems)
    before = [left.act("0\n"), right.act("1\n")]
    with pytest.raises(Broken) as caught:
        fatal.act("7\n")
    assert words in str(caught.value)
    # The others lived in the same process: they are played again, and go on where they were.
    after = [left.act("1\n"), right.act("2\n")]
    calm = [world().begin(p) for p in (problems[0], problems[2])]
    assert before == [calm[0].act("0\n"), calm[1].act("1\n")]
    assert after == [calm[0].act("1\n"), calm[1].act("2\n")]
    assert [left.state, right.state] == [calm[0].state, calm[1].state]


def test_a_process_killed_from_outside_is_replaced():
    task = world()
    problem = never_seven(task, 1)[0]
    episode, other = task.begin(problem), task.begin(problem)
    first = episode.act("0\n")
    os.kill(hosts(task).next()._process.pid, signal.SIGKILL)
    with pytest.raises(Broken, match="signal 9"):
        other.act("0\n")
    assert (first.observation, first.parts) == ("up>", {"turns": 1.0})
    assert episode.act("1\n").parts == {"turns": 2.0}  # its first action was taken again before


def test_a_replay_that_is_interrupted_begins_again():
    task = world()
    episode = task.begin(never_seven(task, 1)[0])
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


def test_what_is_not_deterministic_is_found_when_it_is_played_again():
    task = world()
    problem = never_seven(task, 1)[0]
    episode = task.begin(problem)
    episode.act("0\n")
    episode.state = "another"
    hosts(task).next().end()
    with pytest.raises(Broken, match="another way"):
        episode.act("1\n")


def test_what_a_world_prints_does_not_reach_the_answers():
    task = world("print")
    episode = task.begin(never_seven(world(), 1)[0])
    assert episode.act("0\n").observation == "up>"


def test_memory_is_limited():
    task = world(memory_mb=20)
    with pytest.raises(UserError, match=r"task text_environment: .* (failed|could not start)"):
        task.problems(1, gen())


def test_settings_must_be_sound_and_plain():
    for changes, words in (
        ({"workers": 0}, "workers"), ({"seconds": 0.0}, "seconds"), ({"memory_mb": -1}, "memory_mb"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            TextEnvironment(**changes)
    with pytest.raises(UserError, match=r"settings cannot be handed to a worker .* numbers, text, lists or tables"):
        TextEnvironment(id="x", kwargs={"a": lambda: 0}).problems(1, gen())
