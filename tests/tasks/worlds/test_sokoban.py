"""Sokoban: rooms, their shortest solutions, what can no longer be solved, and what an episode shows and pays."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.rooms import MOVES, parse
from partita.tasks.worlds.sokoban import LEVELS, Sokoban, seen

TOTAL = settings(max_examples=25, deadline=None, derandomize=True)
STEPS = {"n": (-1, 0), "e": (0, 1), "s": (1, 0), "w": (0, -1)}
ROOM = "----/-$--/@-.-/----"


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def puzzle(text: str = ROOM, optimal: int = 5) -> Problem:
    return Problem(f"{text}\n{seen(*parse(text))}>", {"room": text, "optimal": optimal})


def moved(text: str, move: str) -> str:
    """A move in the drawing itself: independent of the library's cells and bits."""
    rows = [list(row) for row in text.split("/")]
    at = lambda r, c: rows[r][c] if 0 <= r < len(rows) and 0 <= c < len(rows[0]) else "#"  # noqa: E731
    r, c = next((r, c) for r, row in enumerate(rows) for c, sign in enumerate(row) if sign in "@+")
    dr, dc = STEPS[move]
    near, far = at(r + dr, c + dc), at(r + 2 * dr, c + 2 * dc)
    if near == "#" or (near in "$*" and far not in "-."):
        return text
    if near in "$*":
        rows[r + 2 * dr][c + 2 * dc] = {"-": "$", ".": "*"}[far]
    rows[r + dr][c + dc] = "+" if near in ".*" else "@"
    rows[r][c] = "." if rows[r][c] == "+" else "-"
    return "/".join("".join(row) for row in rows)


def fewest(text: str) -> int | None:
    """Moves of a shortest solution, None if there is none: a flood over drawings, nothing left out."""
    frontier, known, depth = {text}, {text}, 0
    while frontier:
        if any("$" not in drawing for drawing in frontier):
            return depth
        frontier = {moved(drawing, move) for drawing in frontier for move in MOVES} - known
        known |= frontier
        depth += 1
    return None


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_rooms_are_as_the_level_says(level):
    size, boxes, walls, shortest, longest = LEVELS[level]
    for problem in Sokoban(level=level).problems(30, gen(level)):
        text = problem.data["room"]
        rows = text.split("/")
        assert [len(row) for row in rows] == [size] * size
        assert [text.count(sign) for sign in "#$.@*+"] == [walls, boxes, boxes, 1, 0, 0]
        assert shortest <= problem.data["optimal"] <= longest
        assert (problem.level, problem.category) == (level, f"boxes{boxes}")
        room, (agent, _) = parse(text)
        assert len(room.reach((agent, 0))) == size**2 - walls  # in one piece


@pytest.mark.parametrize(("level", "count"), [(1, 30), (2, 12), (3, 2)])
def test_optimum_is_that_of_a_flood_over_drawings(level, count):
    world = Sokoban(level=level)
    for problem in world.problems(count, gen(10 + level)):
        assert problem.data["optimal"] == fewest(problem.data["room"])


def test_optimum_is_the_length_of_the_demonstration_which_solves():
    for level in LEVELS:
        world = Sokoban(level=level)
        for problem in world.problems(12, gen(level)):
            actions = world.demonstrate(problem, gen())
            written = world.transcript(problem, actions)
            assert (written.score, written.done, sum(written.rewards)) == (1.0, True, 1.0)
            assert len(actions) == problem.data["optimal"] == written.parts["optimal"] == len(written.spans)


def test_no_sequence_of_actions_is_shorter():
    checked = 0
    for problem in Sokoban(level=1).problems(40, gen(3)):
        best = problem.data["optimal"]
        if best > 5:
            continue
        checked += 1
        for moves in itertools.product(MOVES, repeat=best - 1):
            assert Sokoban().transcript(problem, moves).score == 0.0
    assert checked >= 5


@TOTAL
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3]), st.lists(st.sampled_from(MOVES), max_size=24))
def test_moves_and_states_are_those_of_the_drawing(seed, level, moves):
    """The state is the drawing, so that states are equal exactly when walls, goals, agent and boxes are."""
    world = Sokoban(level=level, view="room")
    problem = world.problems(1, gen(seed))[0]
    episode, text = world.open(problem), problem.data["room"]
    assert episode.state == text
    for move in moves:
        if "$" not in text:
            break
        text = moved(text, move)
        reply = episode.act(f"{move}\n")
        assert episode.state == text
        assert reply.observation == ("" if reply.done else f"{text}>")
        assert (reply.done, reply.parts["boxes"]) == ("$" not in text, text.count("*"))


def test_two_orders_lead_to_one_state():
    a, b = Sokoban().open(puzzle()), Sokoban().open(puzzle())
    for move in "ss":
        a.act(move)
    for move in "esnwsw":
        b.act(move)
    assert a.state == b.state == "----/-$--/--.-/@---"
    b.act("e")
    assert a.state != b.state


def test_an_episode_shows_and_pays_what_the_docstring_says():
    world = Sokoban(milestone=0.25)
    written = world.transcript(puzzle(), [f"{m}\n" for m in "nenes"])
    shown = "a3---.-###>n\na2-#$---##>e\nb2-#$----#>n\nb1##-----#>e\nc1##-#$.-->s\n"
    assert written.text == f"{ROOM}\n{shown}"
    assert written.rewards == (0, 0, 0, 0, 1.25)
    assert written.parts == {"boxes": 1.0, "pushes": 2.0, "deadlock": 0.0, "optimal": 5.0}


def test_milestones_are_taken_back_when_a_box_leaves_its_goal():
    text = "@$.-/--$./----"
    world = Sokoban(milestone=0.5)
    episode = world.open(puzzle(text, 5))
    replies = [episode.act(m) for m in "ee"]  # on the goal, and off again into the corner
    assert [r.reward for r in replies] == [0.5, -0.5]
    assert [r.parts["boxes"] for r in replies] == [1.0, 0.0]
    assert [r.parts["deadlock"] for r in replies] == [0.0, 1.0]
    assert not replies[-1].done


@TOTAL
@given(st.integers(0, 10**6), st.sampled_from([1, 2]), st.lists(st.sampled_from(MOVES), min_size=4, max_size=16))
def test_deadlock_says_exactly_that_no_solution_is_left(seed, level, moves):
    world = Sokoban(level=level)
    problem = world.problems(1, gen(seed))[0]
    written = world.transcript(problem, moves)
    episode = world.open(problem)
    for move in moves:
        episode.act(move)
    assert written.parts["deadlock"] == float(fewest(episode.state) is None)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("@---/-$$-/-$--/-.../----", False),
        ("@---/-$$-/-$$-/..../----", True),  # four boxes in a square, each box by itself could be pushed
        ("@---/-$--/----/--$-/.--.", False),
        ("@--#/$--./----/----", True),  # along the west wall the box never leaves it
        ("@.--/.$$-/----", False),
    ],
)
def test_deadlock_of_several_boxes(text, lost):
    reply = Sokoban().open(puzzle(text)).act("?")
    assert reply.parts["deadlock"] == float(lost) == float(fewest(text) is None)


def test_a_lost_game_goes_on():
    world = Sokoban(max_turns=24)
    written = world.transcript(puzzle("@$--/----/--.-"), "ee" + "ws" * 20)
    assert (len(written.spans), written.done, written.score) == (24, False, 0.0)
    assert written.parts["deadlock"] == 1.0


def test_malformed_actions_are_answered_and_change_nothing():
    for text in ("", "\n", "north\n", "nn\n", "N\n", "?", "n\nn\n", "p\n"):
        episode = Sokoban().open(puzzle())
        reply = episode.act(text)
        assert (reply.observation, reply.valid, reply.reward, reply.done) == ("?a3---.-###>", False, 0.0, False)
        assert episode.state == ROOM
    bump = Sokoban().open(puzzle()).act("w\n")
    assert (bump.observation, bump.valid) == ("a3---.-###>", True)


def test_an_action_after_the_end_changes_nothing():
    episode = Sokoban().open(puzzle())
    for move in "nenes":
        episode.act(move)
    state = episode.state
    after = episode.act("n")
    assert (after.reward, after.done, after.score, after.observation, episode.state) == (0.0, True, 1.0, "", state)


@TOTAL
@given(st.lists(st.text(), max_size=5))
def test_any_text_is_an_action(texts):
    written = Sokoban().transcript(puzzle(), texts)
    assert [written.text[a:b] for a, b in written.spans] == texts[: len(written.spans)]


def test_what_is_seen_is_what_lies_there():
    assert seen(*parse("-.-/*@#/#$-")) == "b2.###$#*#"
    assert seen(*parse("#-.$*-+/-------")) == "g1##" + "##" + "-#" + "-*"


def test_text_reads_back():
    for problem in Sokoban(level=4).problems(10, gen(4)):
        room, place = parse(problem.data["room"])
        assert room.text(place) == problem.data["room"]


def test_same_seed_same_problems_and_demonstrations():
    world = Sokoban()
    first, again = world.problems(30, gen(7)), world.problems(30, gen(7))
    assert first == again
    assert first != world.problems(30, gen(8))
    assert {p.level for p in first} == {1, 2, 3}
    for flaw in (None, *world.flaws):
        assert world.demonstrate(first[0], gen(1), flaw) == world.demonstrate(first[0], gen(1), flaw)


def test_flawed_procedures_fail_more_the_harder_the_level():
    share = {}
    for level in (1, 3):
        world, generator = Sokoban(level=level), gen(1)
        problems = world.problems(40, gen(2))
        for flaw in world.flaws:
            written = [world.transcript(p, world.demonstrate(p, generator, flaw)) for p in problems]
            share[level, flaw] = sum(w.score for w in written) / len(written)
            if flaw == "greedy" and level == 3:
                assert sum(w.parts["deadlock"] for w in written) >= 5
    assert share[1, "random"] <= 0.3 and share[3, "random"] <= 0.05
    assert share[3, "greedy"] < share[1, "greedy"] < 1
    assert 0.2 < share[3, "slip"] < 0.8
    assert share[3, "wander"] < share[1, "wander"]


def test_transcripts_fit_into_a_small_context():
    world, generator = Sokoban(level=4), gen(1)
    for problem in world.problems(10, gen(0)):
        assert len(world.transcript(problem, world.demonstrate(problem, generator, "random")).text) <= 400


@pytest.mark.parametrize(
    ("settings_", "word"),
    [
        ({"level": 5}, "level: 5"),
        ({"max_turns": 17}, "set 18 or more"),
        ({"level": 4, "max_turns": 23}, "set 24 or more"),
        ({"view": "far"}, "view: 'far'"),
        ({"milestone": float("inf")}, "milestone"),
    ],
)
def test_bad_settings_name_the_field(settings_, word):
    with pytest.raises(UserError, match=word):
        Sokoban(**settings_)


def test_unknown_flaw_names_the_nearest():
    with pytest.raises(UserError, match="greedy"):
        Sokoban().demonstrate(puzzle(), gen(), "greed")
