"""Gymnasium's text interface as a world, against the small environments of `guessing`."""

import gymnasium
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.tasks.worlds.reference import reference_scores
from partita.tasks.worlds.text_environment import TextEnvironment

TOTAL = settings(max_examples=25, deadline=None, derandomize=True)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def world(trouble: str = "", **changes) -> TextEnvironment:
    kwargs = {"trouble": trouble} | changes
    return TextEnvironment(id="guessing:PartitaGuess-v0", kwargs=kwargs, workers=1)


def digit(problem) -> int:
    return int(gymnasium.make("guessing:PartitaGuess-v0").unwrapped.reset(seed=problem.data["seed"])[1]["state"][0])


def test_an_episode_reads_steps_and_pays_as_the_environment_does():
    task = world()
    problem = next(p for p in task.problems(50, gen()) if digit(p) == 4)
    assert problem.prompt == "digit? even>"
    written = task.transcript(problem, ["0\n", "9\n", "12\n", "4\n", "4\n"])
    assert written.text == "digit? even>0\nup>9\ndown>12\n?>4\n"
    assert [written.text[a:b] for a, b in written.spans] == ["0\n", "9\n", "12\n", "4\n"]
    assert written.rewards == (-0.5, -0.5, 0.0, 2.0)
    assert (written.score, written.done) == (1.0, True)
    assert written.states == ("4.0", "4.1", "4.2", "4.2")  # the malformed action was not stepped


def test_score_is_the_return_where_the_environment_names_no_success():
    task = world(hint=False)
    problem = next(p for p in task.problems(50, gen()) if digit(p) == 4)
    assert task.transcript(problem, ["0", "4"]).score == 1.5


def test_truncation_ends_the_episode_and_closes_the_environment():
    task = world()
    problem = next(p for p in task.problems(50, gen()) if digit(p) == 4)
    episode = task.begin(problem)
    replies = [episode.act("0\n") for _ in range(6)]
    assert [r.done for r in replies] == [False] * 4 + [True] * 2
    assert (replies[4].reward, replies[5].reward) == (-0.5, 0.0)
    here = task.open(problem)
    for _ in range(5):
        here.act("0\n")
    assert here.env.unwrapped.closed


def test_state_is_the_observation_where_the_environment_gives_none():
    task = world("stateless")
    problem = task.problems(1, gen())[0]
    episode = task.begin(problem)
    assert episode.state == problem.prompt.removesuffix(">")


def test_same_seed_same_problems():
    assert world().problems(20, gen(3)) == world().problems(20, gen(3))
    assert world().problems(20, gen(3)) != world().problems(20, gen(4))


@TOTAL
@given(st.lists(st.text() | st.sampled_from("0123456789"), max_size=6))
def test_any_text_is_an_action(texts):
    task = world()
    problem = task.problems(1, gen(1))[0]
    written = task.transcript(problem, texts)
    assert [written.text[a:b] for a, b in written.spans] == texts[: len(written.spans)]


def test_demonstrations_and_reference_scores(capsys):
    task = world()
    table = reference_scores(task, n=20)
    assert table[0]["expert"] == 1.0
    assert table[0]["turns"] == 1.0
    assert 0.0 < table[0]["random"] < 1.0
    assert "expert" in capsys.readouterr().out
    problem = task.problems(1, gen())[0]
    assert task.demonstrate(problem, gen(2), "random") == task.demonstrate(problem, gen(2), "random")
    mute = TextEnvironment(id="guessing:PartitaMute-v0", workers=1)
    with pytest.raises(UserError, match="no method `expert"):
        mute.demonstrate(mute.problems(1, gen())[0], gen())
    assert list(reference_scores(mute, n=5)[0]) == ["random"]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("observations", ["observations of guessing:PartitaGuess-v0 are Discrete", "Text"]),
        ("actions", ["actions of guessing:PartitaGuess-v0 are Discrete"]),
        ("make", ["PartitaGuess-v0 could not be made", "RuntimeError: no licence"]),
        ("reset", ["RuntimeError: no file", "reset"]),
        ("number", ["int 5", "reset"]),
    ],
)
def test_what_is_wrong_from_the_start_is_said_when_problems_are_drawn(trouble, words):
    with pytest.raises(UserError) as caught:
        world(trouble).problems(2, gen())
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("step", ["PartitaGuess-v0", "KeyError", "turn 2", "'9'"]),
        ("nan", ["PartitaGuess-v0", "reward", "turn 1", "'0'"]),
        ("none", ["PartitaGuess-v0", "reward", "turn 1"]),
        ("text", ["PartitaGuess-v0", "int 7", "turn 1"]),
        ("success", ["PartitaGuess-v0", "success", "turn 1"]),
    ],
)
def test_what_goes_wrong_on_the_way_names_environment_turn_and_action(trouble, words):
    task = world(trouble)
    problem = next(p for p in world().problems(50, gen()) if digit(p) == 4)
    with pytest.raises(UserError) as caught:
        task.transcript(problem, ["0\n", "9\n"])
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_reset_that_ignores_its_seed_is_found():
    task = world("seed")
    with pytest.raises(UserError, match="starts differently"):
        task.begin(task.problems(1, gen())[0])


def test_bad_settings_name_the_field():
    with pytest.raises(UserError, match="did you mean PartitaGuess-v0"):
        TextEnvironment(id="guessing:PartitaGues-v0", workers=1).problems(1, gen())
    with pytest.raises(UserError, match="id: the environment has no name"):
        TextEnvironment(workers=1).problems(1, gen())
    with pytest.raises(UserError, match="max_turns: 0"):
        TextEnvironment(max_turns=0)
    with pytest.raises(UserError, match="could not be made"):
        TextEnvironment(id="no_such_module_here:Env-v0", workers=1).problems(1, gen())
