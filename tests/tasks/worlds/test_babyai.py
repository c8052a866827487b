"""BabyAI and MiniGrid in words. Tests of levels are skipped where the package `minigrid` is missing."""

import importlib.util
import random

import pytest
import torch

from partita.core.errors import UserError
from partita.tasks.worlds.babyai import Babyai, Errand, make

needs_minigrid = pytest.mark.skipif(importlib.util.find_spec("minigrid") is None, reason="minigrid is not installed")


def empty(level: str = "MiniGrid-Empty-5x5-v0", seed: int = 0) -> Errand:
    return Errand(make(level), seed)


def put(errand: Errand, things: dict) -> None:
    for place, thing in things.items():
        errand.grid.grid.set(*place, thing)
    errand.picture = errand.grid.gen_obs()["image"]


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: Babyai().problems(1, torch.Generator()), lambda: make("BabyAI-GoToObj-v0")):
        with pytest.raises(UserError, match=r"minigrid is not installed; pip install 'partita\[worlds\]'"):
            call()


@pytest.mark.parametrize(
    ("settings", "word"), [({"id": "CartPole-v1"}, "id: 'CartPole-v1'"), ({"max_turns": 0}, "max_turns: 0")]
)
def test_bad_settings_name_the_field(settings, word):
    with pytest.raises(UserError, match=word):
        Babyai(**settings)


@needs_minigrid
def test_an_unknown_level_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean .*BabyAI-GoToObj-v0"):
        make("BabyAI-GoToObjj-v0")


@needs_minigrid
def test_an_episode_is_told_as_it_is():
    """3x3 free cells; the agent starts at the top left, looking east, the goal is at the bottom right."""
    errand = empty()
    assert errand.opening == "get to the green goal square\nwall 3f1l3r, goal 2f2r>"
    replies = [errand.act(f"{a}\n") for a in "ffrff"]
    assert [r.observation for r in replies] == [
        "wall 2f1l3r, goal 1f2r>",
        "wall 1f1l3r, goal 2r>",
        "wall 3f1l3r, goal 2f>",
        "wall 2f1l3r, goal 1f>",
        "",
    ]
    assert [r.reward for r in replies] == [0, 0, 0, 0, 1.0]
    assert (replies[-1].done, replies[-1].score, replies[-1].parts) == (True, 1.0, {"steps": 5.0})
    after = errand.act("f")
    assert (after.reward, after.done, after.score, after.parts) == (0.0, True, 1.0, {"steps": 5.0})


@needs_minigrid
def test_things_doors_and_what_is_carried_are_told():
    from minigrid.core.world_object import Ball, Box, Door, Floor, Key, Lava, Wall

    errand = empty("MiniGrid-Empty-8x8-v0")  # the agent at (1, 1) looks east; 6x6 free cells, the goal at (6, 6)
    put(errand, {(2, 1): Ball("red"), (3, 1): Box("grey"), (2, 3): Key("blue"), (1, 2): Lava(), (4, 4): Floor("red")})
    assert errand.seen() == "wall 6f1l, lava 1r, red ball 1f, grey box 2f, blue key 1f2r"
    errand.grid.see_through_walls = False
    put(errand, {(2, y): Wall() for y in range(2, 7)})
    put(errand, {(2, 1): Door("red"), (1, 2): None})
    assert errand.seen() == "wall 1l, closed red door 1f"  # and the box behind it is out of sight
    put(errand, {(2, 1): Door("red", is_locked=True)})
    assert errand.seen() == "wall 1l, locked red door 1f"
    put(errand, {(2, 1): Door("red", is_open=True)})
    assert errand.seen() == "wall 6f1l, open red door 1f, grey box 2f"
    assert "open red door here" in errand.act("f").observation
    put(errand, {(3, 1): Key("green")})
    assert errand.act("p\n").observation.endswith(", have green key>")
    assert "green key" in errand.act("d").observation and "have" not in errand.seen()
    put(errand, {(3, 1): Wall()})
    assert errand.seen().startswith("wall 1f")


@needs_minigrid
def test_malformed_actions_are_answered_and_change_nothing():
    for text in ("", "\n", "left\n", "ff", "F\n", "6", "l r\n"):
        errand = empty()
        before = errand.state
        reply = errand.act(text)
        assert (reply.valid, reply.reward, reply.done, reply.parts["steps"]) == (False, 0.0, False, 0.0)
        assert reply.observation == "?wall 3f1l3r, goal 2f2r>"
        assert errand.state == before


@needs_minigrid
def test_lava_and_the_limit_of_steps_end_an_episode_without_reward():
    errand = empty("MiniGrid-LavaGapS5-v0")
    put(errand, {(2, 1): errand.grid.grid.get(2, 1) or errand.grid.grid.get(2, 2)})  # lava before the agent
    reply = errand.act("f")
    assert (reply.done, reply.reward, reply.score) == (True, 0.0, 0.0)
    errand = empty()
    replies = [errand.act("x") for _ in range(errand.grid.max_steps)]
    assert [r.done for r in replies] == [False] * 99 + [True]
    assert replies[-1].score == 0.0


@needs_minigrid
def test_states_are_equal_exactly_when_grid_agent_and_hands_are():
    from minigrid.core.world_object import Ball, Box, Key

    def after(actions: str, things: dict | None = None) -> str:
        errand = empty("MiniGrid-Empty-6x6-v0")
        put(errand, things or {})
        for action in actions:
            errand.act(action)
        return errand.state

    assert after("") == after("lr") == after("x") == after("llll") == after("frrfll")
    assert len({after(a) for a in ("", "l", "f", "ll", "rf")}) == 5
    key = lambda: {(2, 1): Key("red")}  # noqa: E731
    assert after("pd", key()) == after("", key())
    assert after("p", key()) != after("", key()) != after("", {(2, 1): Key("blue")})
    assert after("", {(3, 3): Box("red", Ball("blue"))}) != after("", {(3, 3): Box("red")})


@needs_minigrid
def test_states_tell_which_thing_a_mission_means():
    """Of two balls that look alike, "the ball on your left" is the one that was there when the episode began."""
    errand = next(e for e in (empty("BabyAI-PickupLoc-v0", s) for s in range(50)) if "on your" in e.mission)
    desc = errand.grid.instrs.desc
    thing, (x, y) = desc.obj_set[0], desc.obj_poss[0]
    before = errand.state
    twin = type(thing)(thing.color) if thing.type != "box" else type(thing)(thing.color, thing.contains)
    errand.grid.grid.set(x, y, twin)
    assert errand.state != before
    assert f"{thing.color} {thing.type}*0" in before


@needs_minigrid
def test_states_tell_which_half_of_a_mission_is_done():
    errand = next(e for e in (empty("BabyAI-GoToSeqS5R2-v0", s) for s in range(50)) if "then" in e.mission)
    before = errand.state
    errand.grid.instrs.a_done = "success"
    assert errand.state != before


@needs_minigrid
@pytest.mark.parametrize(
    ("level", "turns"),
    [
        (Babyai.id, Babyai.max_turns),
        ("BabyAI-GoToRedBallGrey-v0", 20),
        ("BabyAI-PickupLoc-v0", 20),
        ("BabyAI-OpenDoor-v0", 20),
        ("BabyAI-PutNextLocalS5N3-v0", 16),
    ],
)
def test_the_expert_succeeds_and_flawed_procedures_mostly_fail(level, turns):
    world = Babyai(id=level, max_turns=turns)
    problems = [world._problem(seed) for seed in range(12)]

    def mean(flaw):
        score = 0.0
        for k, problem in enumerate(problems):
            actions = world._script(problem, random.Random(k), flaw)
            assert len(actions) <= turns
            episode = world.open(problem)
            score += [episode.act(a) for a in actions][-1].score
        return score / len(problems)

    assert mean(None) == 1.0
    assert mean("random") < 0.5
    assert mean("forward") < 0.7


@needs_minigrid
def test_a_minigrid_level_has_no_expert():
    world = Babyai(id="MiniGrid-DoorKey-5x5-v0")
    problem = world._problem(0)
    with pytest.raises(UserError, match="id: MiniGrid-DoorKey-5x5-v0 has no expert"):
        world._script(problem, random.Random(0), None)
    assert len(world._script(problem, random.Random(0), "random")) == world.max_turns


@needs_minigrid
def test_a_problem_of_another_level_is_refused():
    problem = Babyai(id="BabyAI-GoToRedBallGrey-v0")._problem(3)
    with pytest.raises(UserError, match="begins otherwise"):
        Babyai().open(problem)


@needs_minigrid
def test_in_worker_processes_the_same_comes_out():
    world, gen = Babyai(workers=1), lambda: torch.Generator().manual_seed(5)
    problems = world.problems(3, gen())
    assert problems == world.problems(3, gen())
    for problem in problems:
        assert world._problem(problem.data["seed"]) == problem
        actions = world.demonstrate(problem, gen())
        written = world.transcript(problem, actions)
        assert (written.score, sum(written.rewards), written.done) == (1.0, 1.0, True)
        assert written.text.startswith(problem.prompt) and len(written.text) < 512
        assert world.demonstrate(problem, gen(), "random") == world.demonstrate(problem, gen(), "random")
        episode = world.open(problem)
        for action, state in zip(actions, written.states, strict=True):
            assert episode.state == state
            episode.act(action)
