"""TextWorld's games as a world. Tests of games are skipped where the package `textworld` is missing."""

import importlib.util
import random
import re

import pytest
import torch

from partita.core.errors import UserError
from partita.tasks.worlds import textworld
from partita.tasks.worlds.textworld import BARRED, FOLDER, TYPED, Textworld, folder

needs_textworld = pytest.mark.skipif(importlib.util.find_spec("textworld") is None, reason="textworld is not installed")
SHORT = Textworld(games=3)


@pytest.fixture(scope="module")
def problem():
    return SHORT._problem(1)


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"textworld is not installed; pip install 'partita\[worlds\]'"):
        Textworld().problems(1, torch.Generator())


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"nb_rooms": 0}, "nb_rooms: 0"),
        ({"nb_objects": 0}, "nb_objects: 0"),
        ({"quest_length": 0}, "quest_length: 0"),
        ({"games": -1}, "games: -1"),
        ({"quest_length": 9}, "set 9 or more"),
        ({"seconds": 0.0}, "seconds: 0"),
    ],
)
def test_bad_settings_name_the_field(settings, word):
    with pytest.raises(UserError, match=word):
        Textworld(**settings)


def test_commands_to_the_interpreter_are_barred_and_commands_to_the_game_are_not():
    for text in ("save", "QUIT", "restore x", "script on", "again", "go north then save", "tw-print state", "undo"):
        assert BARRED.search(text)
    for text in ("take quilt from shelf", "go north", "examine shortcake", "unlock box with old key", "look"):
        assert TYPED.fullmatch(text) and not BARRED.search(text)
    for text in ("", "look. save", "look, save", "look; save", "#random 5", "look\nsave", "x" * 101, "naïve"):
        assert not TYPED.fullmatch(text)


def test_the_folder_is_made_once_and_found_by_workers(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr(textworld, "_owned", None)
    made = folder()
    assert made.is_dir() and folder() == made
    owned = textworld._owned
    assert owned is not None
    owned.cleanup()
    assert not made.exists() and folder() != made
    monkeypatch.undo()


@needs_textworld
def test_the_walkthrough_wins_and_what_is_shown_is_the_games_text(problem):
    assert problem.prompt.count("\n") >= 2
    assert re.search(r"\n-= .* =-\n", problem.prompt)
    assert re.search(r"\nYou can: .*look.*>$", problem.prompt)
    written = []
    episode = SHORT.open(problem)
    actions = SHORT._script(problem, random.Random(0), None)
    assert 1 <= len(actions) <= SHORT.quest_length
    for action in actions:
        assert action.strip() in episode.commands
        written.append(episode.act(action))
    assert [r.done for r in written] == [False] * (len(actions) - 1) + [True]
    assert [r.reward for r in written] == [0.0] * (len(actions) - 1) + [1.0]
    assert (written[-1].score, written[-1].observation) == (1.0, "")
    assert all(r.valid for r in written)
    for reply in written[:-1]:  # no status line, banner or empty line
        assert "   " not in reply.observation and "\n\n" not in reply.observation and "=-0/" not in reply.observation
    after = episode.act("look")
    assert (after.reward, after.done, after.score, after.observation) == (0.0, True, 1.0, "")


@needs_textworld
def test_inadmissible_commands_are_answered_by_the_game_and_are_not_valid(problem):
    episode = SHORT.open(problem)
    before = episode.state
    reply = episode.act("fly to the moon\n")
    assert (reply.valid, reply.reward, reply.done) == (False, 0.0, False)
    assert reply.observation.startswith("That's not a verb I recognise.\nYou can: ")
    assert reply.observation.endswith(">")
    barred = [episode.act(text) for text in ("save\n", "", "look. look\n", "look then look", "quit")]
    assert all(r.observation.startswith("?\nYou can: ") and not r.valid for r in barred)
    assert episode.state == before
    assert episode.act("LOOK\n").valid
    assert barred[-1].parts == {"turns": 1.0}


@needs_textworld
def test_an_abbreviation_that_does_something_is_valid(problem):
    way = next(c for c in SHORT.open(problem).commands if c.startswith("go "))
    long, short = SHORT.open(problem), SHORT.open(problem)
    replies = long.act(way), short.act(way[3])
    assert replies[1].valid and short.state == long.state
    assert replies[0].observation == replies[1].observation
    nowhere = next(way for way in ("north", "east", "south", "west") if f"go {way}" not in short.commands)
    assert not short.act(nowhere[0]).valid


@needs_textworld
def test_states_are_equal_when_the_facts_are(problem):
    """There and back again, with looks on the way; and two games side by side do not meet."""
    a, b = SHORT.open(problem), SHORT.open(problem)
    way = next(c for c in a.commands if c.startswith("go "))
    start = a.state
    a.act(way)
    assert a.state != start
    assert b.state == start
    back = next(c for c in a.commands if c.startswith("go "))
    a.act("look")
    a.act(back)
    assert a.state == b.state
    other = SHORT.open(SHORT._problem(2))
    assert other.state != start


@needs_textworld
def test_without_the_list_only_the_games_text_is_shown(problem):
    world = SHORT.but(admissible=False)
    bare = world._problem(1)
    assert bare.prompt == problem.prompt.rpartition("\nYou can: ")[0] + "\n>"
    assert world.open(bare).act("?").observation == "?\n>"
    with pytest.raises(UserError, match="begins otherwise"):
        SHORT.open(bare)


@needs_textworld
def test_games_are_numbered_and_flawed_procedures_fail(problem):
    assert SHORT._problem(4) == problem  # game 1 again
    assert SHORT._problem(2) != problem
    steps = SHORT._script(problem, random.Random(0), None)
    skipped = SHORT._script(problem, random.Random(0), "skip")
    assert sum(a != b for a, b in zip(steps, skipped, strict=True)) == 1

    def score(flaw, seed):
        actions = SHORT._script(problem, random.Random(seed), flaw)
        assert actions == SHORT._script(problem, random.Random(seed), flaw)
        episode = SHORT.open(problem)
        return [episode.act(a) for a in actions][-1].score

    assert [score("skip", seed) for seed in range(3)] == [0.0] * 3
    assert sum(score("random", seed) for seed in range(6)) <= 3


@needs_textworld
def test_in_worker_processes_the_same_comes_out(problem):
    world, gen = SHORT.but(workers=1), lambda: torch.Generator().manual_seed(5)
    problems = world.problems(4, gen())
    assert problems == world.problems(4, gen())
    for each in problems[:2]:
        assert world._problem(each.data["game"]) == each
        written = world.transcript(each, world.demonstrate(each, gen()))
        assert (written.score, written.done, sum(written.rewards)) == (1.0, True, 1.0)
        assert written.states[0] == SHORT.open(each).state
    assert any(folder().iterdir())
