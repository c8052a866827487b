"""The key-and-door world: mazes, their solutions, and what an episode shows and pays."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.keydoor import LEVELS, Keydoor
from partita.tasks.worlds.maze import ACTIONS, Maze, parse

TOTAL = settings(max_examples=25, deadline=None, derandomize=True)

# Two rows of three cells and a third row out of reach; the key lies below the start, its door right of it:
#   a1 |k| b1 - c1 (goal)
#   a2 (key), open to a1
SMALL = Maze(3, 0, 2, (3,), ((0, 1),), ((0, 3), (1, 2)))


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**changes) -> tuple[Keydoor, Problem]:
    world = Keydoor(**changes)
    return world, Problem("a1#K.#.>", {"maze": SMALL.text})


def solvable_without(maze: Maze, key: int) -> bool:
    """Independent of the library's search: flood what can be reached when door `key` never opens."""
    reached, changed = {maze.start}, True
    while changed:
        changed = False
        held = {i for i, cell in enumerate(maze.keys) if cell in reached}
        ways = list(maze.passages) + [door for i, door in enumerate(maze.doors) if i in held and i != key]
        for a, b in ways:
            if (a in reached) != (b in reached):
                reached |= {a, b}
                changed = True
    return maze.goal in reached


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_every_maze_can_be_solved_and_needs_each_of_its_keys(level):
    size, keys, _, longest = LEVELS[level]
    for problem in Keydoor(level=level).problems(60, gen(level)):
        maze = parse(problem.data["maze"])
        assert (maze.size, len(maze.keys), len(maze.doors), problem.level) == (size, keys, keys, level)
        assert len(set(maze.keys)) == keys
        assert maze.start != maze.goal
        assert solvable_without(maze, key=-1)
        assert not any(solvable_without(maze, key) for key in range(keys))
        assert len(maze.plan(maze.first)) <= longest
        assert all(b - a in (1, maze.size) for a, b in maze.doors + maze.passages)
        assert all(b - a != 1 or b % maze.size for a, b in maze.doors + maze.passages)  # none wraps around


def test_solution_is_the_shortest_of_all_action_sequences():
    checked = 0
    for problem in Keydoor(level=1).problems(40, gen(3)):
        world = Keydoor(level=1)
        best = len(world.solve(problem))
        assert world.transcript(problem, world.solve(problem)).score == 1.0
        if best > 5:
            continue
        checked += 1
        for actions in itertools.product(ACTIONS, repeat=best - 1):
            assert world.transcript(problem, [f"{a}\n" for a in actions]).score == 0.0
    assert checked >= 3


def test_optimal_length_equals_a_search_through_episodes():
    """Breadth-first search that only acts and reads `state`, level 3 (two keys)."""
    world = Keydoor(level=3)
    for problem in world.problems(3, gen(5)):
        frontier, seen, depth = [()], set(), 0
        while True:
            depth += 1
            assert frontier
            following = []
            for done in frontier:
                for action in ACTIONS:
                    episode = world.open(problem)
                    reply = [episode.act(a) for a in (*done, action)][-1]
                    if reply.done:
                        break
                    if episode.state not in seen:
                        seen.add(episode.state)
                        following.append((*done, action))
                else:
                    continue
                break
            else:
                frontier = following
                continue
            break
        assert depth == len(world.solve(problem))


def test_an_episode_shows_and_pays_what_the_docstring_says():
    world, problem = small(milestone=0.25)
    episode = world.open(problem)
    said = [episode.act(f"{a}\n") for a in ("e", "s", "p", "o", "n", "o", "e", "e")]
    assert [r.observation for r in said] == [
        "a1#K.#.>",  # the door is closed
        "a2.##" + "#k>",
        "a2.###.k>",
        "a2.###.k>",  # no door beside
        "a1#K.#.k>",
        "a1#..#.K>",
        "b1#.#..K>",
        "",
    ]
    assert [r.reward for r in said] == [0, 0, 0.25, 0, 0, 0.25, 0, 1]
    assert [r.done for r in said] == [False] * 7 + [True]
    assert [r.score for r in said] == [0.0] * 7 + [1.0]
    assert said[-1].parts == {"keys": 1.0, "doors": 1.0}
    assert all(r.valid for r in said)
    after = episode.act("w\n")
    assert (after.reward, after.done, after.score) == (0.0, True, 1.0)


def test_reward_is_sparse_by_default():
    world, problem = small()
    assert world.transcript(problem, ["s", "p", "n", "o", "e", "e"]).rewards == (0, 0, 0, 0, 0, 1)


def test_prompt_names_goal_and_keys_and_the_view_of_the_start():
    for problem in Keydoor(level=2).problems(20, gen(2)):
        maze = parse(problem.data["maze"])
        name = lambda cell: "abcd"[cell % 4] + "1234"[cell // 4]  # noqa: E731
        first, second = problem.prompt.split("\n")
        assert first == f"*{name(maze.goal)} k{name(maze.keys[0])}"
        assert second.startswith(name(maze.start))
        assert second.endswith(">")
    blind = Keydoor(level=2, hints=False).problems(20, gen(2))
    assert [p.prompt for p in blind] == [p.prompt.split("\n")[1] for p in Keydoor(level=2).problems(20, gen(2))]


def test_malformed_actions_are_answered_and_change_nothing():
    world, problem = small()
    for text in ("", "\n", "north\n", "nn\n", "N\n", "?", "n\nn\n"):
        episode = world.open(problem)
        reply = episode.act(text)
        assert (reply.observation, reply.valid, reply.reward, reply.done) == ("?a1#K.#.>", False, 0.0, False)
        assert episode.state == world.open(problem).state


@TOTAL
@given(st.lists(st.text(), max_size=5))
def test_any_text_is_an_action(texts):
    world, problem = small()
    written = world.transcript(problem, texts)
    assert [written.text[a:b] for a, b in written.spans] == texts[: len(written.spans)]


@TOTAL
@given(
    st.lists(st.sampled_from(ACTIONS), max_size=14), st.lists(st.sampled_from(ACTIONS), max_size=14), st.integers(0, 9)
)
def test_states_are_equal_exactly_when_nothing_can_tell_them_apart(left, right, seed):
    """Equal states answer alike for ever; different ones differ in cell, keys or doors, all of which are shown."""
    world = Keydoor(level=1)
    problem = world.problems(1, gen(seed))[0]
    a, b = world.open(problem), world.open(problem)
    seen_a = [a.act(x).observation for x in left][-1:] or [problem.prompt.split("\n")[1]]
    seen_b = [b.act(x).observation for x in right][-1:] or [problem.prompt.split("\n")[1]]
    assert (a.state == b.state) == (seen_a == seen_b)


def test_two_orders_lead_to_one_state_and_other_mazes_to_others():
    world, problem = small()
    a, b = world.open(problem), world.open(problem)
    for action in ("s", "p", "n"):
        a.act(action)
    for action in ("o", "s", "s", "p", "n", "w"):
        b.act(action)
    assert a.state == b.state
    b.act("o")
    assert a.state != b.state
    longer = Maze(3, 0, 8, (3,), ((0, 1),), ((0, 3), (1, 2), (2, 5), (5, 8)))
    assert world.open(problem).state != world.open(Problem("", {"maze": longer.text})).state


def test_maze_text_reads_back():
    for problem in Keydoor(level=4).problems(20, gen(4)):
        maze = parse(problem.data["maze"])
        assert maze.text == problem.data["maze"]


def test_same_seed_same_problems_and_demonstrations():
    world = Keydoor()
    first, again = world.problems(30, gen(7)), world.problems(30, gen(7))
    assert first == again
    assert first != world.problems(30, gen(8))
    assert {p.level for p in first} == {1, 2, 3}
    for flaw in (None, *world.flaws):
        assert world.demonstrate(first[0], gen(1), flaw) == world.demonstrate(first[0], gen(1), flaw)


def test_expert_always_succeeds_and_flawed_procedures_mostly_fail():
    for level in LEVELS:
        world = Keydoor(level=level)
        problems = world.problems(40, gen(level))
        assert all(world.transcript(p, world.demonstrate(p, gen())).score == 1.0 for p in problems)
    world, generator = Keydoor(), gen(1)
    problems = world.problems(80, gen(2))
    for flaw in world.flaws:
        written = [world.transcript(p, world.demonstrate(p, generator, flaw)) for p in problems]
        mean = sum(w.score for w in written) / len(written)
        assert mean < 0.5
        if flaw in ("forget_key", "forget_open"):
            assert mean == 0
            assert all(w.parts["doors"] == 0 for w in written)
        if flaw == "forget_key":
            assert all(w.parts["keys"] == 0 for w in written)
        if flaw == "forget_open":
            assert all(w.parts["keys"] >= 1 for w in written)
        if flaw in ("greedy", "wander"):
            assert mean > 0.1


def test_observations_and_transcripts_are_short():
    world = Keydoor(level=4)
    generator = gen(1)
    for problem in world.problems(40, gen(0)):
        assert len(problem.prompt) <= 40
        written = world.transcript(problem, world.demonstrate(problem, generator, "random"))
        assert len(written.text) <= 320
        assert max(b[0] - a[1] for a, b in itertools.pairwise(written.spans)) <= 12


@pytest.mark.parametrize(
    ("settings_", "word"),
    [
        ({"level": 5}, "level: 5"),
        ({"level": -1}, "level: -1"),
        ({"max_turns": 13}, "set 14 or more"),
        ({"level": 4, "max_turns": 19}, "set 20 or more"),
        ({"milestone": float("nan")}, "milestone"),
    ],
)
def test_bad_settings_name_the_field(settings_, word):
    with pytest.raises(UserError, match=word):
        Keydoor(**settings_)


def test_unknown_flaw_names_the_nearest():
    world, problem = small()
    with pytest.raises(UserError, match="forget_key"):
        world.demonstrate(problem, gen(), "forgetkey")
