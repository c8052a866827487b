"""Any world in worker processes: it plays as it does here, and no trouble of its own is ours."""

import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import troubled
from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.core.task import Problem
from partita.tasks.worlds.base import Broken, Reply, World
from partita.tasks.worlds.generated import Generated
from partita.tasks.worlds.hosts import Proxy, hosts, surroundings

FILE = part_class("task", f"{troubled.__file__}:Troubled")  # as `--task troubled.py:Troubled` has it
ODD = Problem("p>", {"at": (1, 2), 3: {"x": None}, "mood": troubled.Mood("fail", 1)})


def worker(world: World):
    return hosts(world).next()


def closed(pid: int) -> bool:
    """Whether a process is gone, or waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("cls", [FILE, troubled.Troubled])
def test_a_world_plays_there_as_it_does_here(cls):
    world = cls()
    for problem in world.problems(3, None):
        here, there = world.open(problem), world.begin(problem)
        assert isinstance(there, Proxy) and not isinstance(here, Proxy)
        assert (there.observation, there.state) == (here.observation, here.state)
        for action in ("a", "bc", ""):
            assert there.act(action) == here.act(action)
            assert there.state == here.state
        there.close()
    here = world.transcript(problem, "abcd")
    assert (here.rewards, here.states) == ((11.0, 21.0, 31.0, 41.0), ("start", "1", "0", "1"))


def test_ours_play_in_our_process_and_others_when_they_say_so():
    assert not Generated.hosted

    class Trusted(troubled.Troubled):
        hosted = False

    world = Trusted()
    assert isinstance(world.begin(world.problems(1, None)[0]), troubled.Count)
    assert world.met(None) is world


def test_settings_and_problems_arrive_as_they_are():
    world = troubled.OddWorld(pair=(3, 4), table={5: (6,)})
    episode = world.begin(ODD)
    assert episode.act("").observation == f"{world.settings()} {ODD.data}>"
    assert episode.act("number") == Reply("a>", 0.5, False, score=0.5, parts={"n": 0.5})
    assert episode.act("nested").observation == "Odd>"  # a worker has no workers
    assert episode.state == troubled.OddWorld(pair=(5,)).begin(ODD).state  # one order of sets in all workers


@pytest.mark.parametrize(
    ("trouble", "turn", "words"),
    [
        ("sleep", -1, "no answer within 1 s"), ("hang", 1, "no answer within 1 s"),
        ("die", -1, "its process died (signal 9)"), ("die", 1, "its process died (signal 9)"),
        ("blow up", 1, "MemoryError"), ("exit", 1, "SystemExit: 3"), ("fail", -1, "RuntimeError: lost my keys"),
    ],
)  # fmt: skip
def test_trouble_costs_the_episode_that_makes_it(trouble, turn, words):
    world = FILE(trouble=trouble, turn=turn, seconds=1.0, memory_mb=512)
    calm, bad, other = world.problems(3, None)
    left, right = world.begin(calm), world.begin(other)
    before = [left.act("a"), right.act("b")]
    with pytest.raises(Broken, match=re.escape(words)):
        world.transcript(bad, "aa")
    # The others lived in the same process: where it was killed, they are played again and go on where they were.
    assert [*before, right.act("c")] == [world.open(calm).act("a"), *map(world.open(other).act, "bc")]


def test_a_process_that_stands_still_is_late_though_much_is_said_to_it():
    world = FILE(seconds=1.0)
    os.kill((pid := running(world)), signal.SIGSTOP)
    with pytest.raises(Broken, match="no answer within 1 s"):
        world.begin(Problem("p" * (1 << 20)))  # more than the pipe holds
    assert closed(pid)


def running(world: World) -> int:
    """The number of the world's process, which has been spoken to."""
    world.begin(world.problems(1, None)[0])
    return worker(world)._process.pid


def test_what_a_killed_process_started_ends_with_it():
    world = troubled.OddWorld()
    episode = world.begin(ODD)
    child = int(episode.act("child").observation[:-1])
    assert not closed(child)
    with pytest.raises(Broken, match="no answer within 2 s"):
        episode.act("hang")
    end = time.monotonic() + 5
    while not closed(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert closed(child)


def test_a_signal_that_asks_the_run_to_stop_does_not_end_its_workers():
    world = FILE()
    episode = world.begin(world.problems(2, None)[1])
    pid = worker(world)._process.pid
    assert os.getpgid(pid) == pid != os.getpgid(0)  # Ctrl-C in a terminal goes to our group
    os.kill(pid, signal.SIGTERM)
    episode.act("a")
    assert not closed(pid) and worker(world)._process.pid == pid


def test_a_worker_goes_before_the_run_where_memory_runs_out():
    score = Path(f"/proc/{running(FILE())}/oom_score_adj")
    if not score.exists():
        pytest.skip("no such thing on this system")
    assert score.read_text().strip() == "1000"


def test_a_worker_does_not_get_our_secrets(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("HF_TOKEN", "hf-1")
    monkeypatch.setenv("PARTITA_PLAIN", "yes")
    held = surroundings()
    assert "OPENAI_API_KEY" not in held and "HF_TOKEN" not in held and held["PARTITA_PLAIN"] == "yes"


def test_a_worker_ends_with_its_parent():
    world = FILE(seconds=9.0)
    running(world)
    child = worker(world)._process
    child.stdin.close()  # what a dead parent leaves behind
    assert child.wait(5) == 0
    worker(world).end()


def test_the_same_settings_share_their_workers():
    assert hosts(FILE()) is hosts(FILE())
    assert hosts(FILE()) is not hosts(FILE(trouble="die"))
    assert hosts(troubled.Troubled()) is not hosts(FILE())


@dataclass(frozen=True)
class Unkept(troubled.Troubled):
    """Not what a worker can be given."""

    function: object = None


def test_what_no_worker_could_play_is_refused_before_anything_is_written(monkeypatch):
    class Hidden(troubled.Troubled):
        pass

    with pytest.raises(UserError, match=r"cannot import it from a script, a notebook or a function; .*hosted = False"):
        Hidden().met(None)
    monkeypatch.setattr(Unkept, "__module__", "__main__")
    with pytest.raises(UserError, match="cannot import it from a script"):
        Unkept().met(None)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"settings cannot be handed to a worker process .*hosted = False"):
        Unkept(function=lambda: 0).met(None)
    for changes in ({"workers": 0}, {"seconds": float("inf")}, {"memory_mb": -1}):
        with pytest.raises(UserError, match=next(iter(changes))):
            FILE(**changes).met(None)


def test_a_problem_that_cannot_be_handed_over_says_so():
    with pytest.raises(UserError, match=r"problem cannot be handed to a worker process .*hosted = False"):
        FILE().begin(Problem("p>", {"most": 1, "mood": lambda: 0}))


def test_a_world_that_cannot_be_imported_there_says_so(tmp_path):
    file = tmp_path / "gone.py"
    file.write_text(Path(troubled.__file__).read_text())
    world = part_class("task", f"{file}:Troubled")()
    file.unlink()
    with pytest.raises(UserError, match=r"its process could not start: .*gone\.py: no such file"):
        world.begin(world.problems(1, None)[0])


def test_the_world_in_the_docs_plays(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "worlds.md").read_text()
    (tmp_path / "my_world.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    world = part_class("task", f"{tmp_path}/my_world.py:Parrot")()
    problem = world.problems(1, torch.Generator().manual_seed(0))[0]
    played = world.transcript(problem, ["what\n", f"{problem.data['word']}\n"])
    assert (played.rewards, played.score, played.done) == ((0.0, 1.0), 1.0, True)
    assert played.text.startswith(f"{problem.prompt}what\n?>")
