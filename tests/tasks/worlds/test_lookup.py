"""The look-up world."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.lookup import ENTITIES, HOPS, Lookup

TOTAL = settings(max_examples=25, deadline=None, derandomize=True)
SHIFTED = {r: ENTITIES[k:] + ENTITIES[:k] for r, k in (("x", 1), ("y", 2), ("z", 5))}
# From a: x leads one letter on (b), z five letters on from there (g).
PROBLEM = Problem("a.xz?>", {"start": "a", "path": "xz", "answer": "g", "table": SHIFTED}, "hops2", 2)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_episode_worked_out_by_hand():
    written = Lookup().transcript(PROBLEM, ["get a.x\n", "get b.z\n", "ans g\n", "ans g\n"])
    assert written.text == "a.xz?>get a.x\nb>get b.z\ng>ans g\n"
    assert [written.text[a:b] for a, b in written.spans] == ["get a.x\n", "get b.z\n", "ans g\n"]
    assert written.rewards == (0.0, 0.0, 1.0)
    assert (written.score, written.done, written.parts) == (1.0, True, {"calls": 2.0, "needed": 2.0})


def test_a_wrong_answer_ends_the_episode_with_nothing():
    written = Lookup().transcript(PROBLEM, ["ans b\n", "ans g\n"])
    assert (written.rewards, written.score, written.done) == ((0.0,), 0.0, True)


def test_look_ups_cost_what_is_set_and_the_score_does_not_change():
    written = Lookup(call_cost=0.25).transcript(PROBLEM, ["get a.x", "get a.x", "who?", "ans g"])
    assert written.rewards == (-0.25, -0.25, 0.0, 1.0)
    assert written.score == 1.0
    assert written.parts["calls"] == 2


def test_nothing_happens_after_the_answer():
    episode = Lookup().open(PROBLEM)
    episode.act("ans g\n")
    before = episode.state
    reply = episode.act("get a.x\n")
    assert (reply.observation, reply.reward, reply.done, reply.score) == ("", 0.0, True, 1.0)
    assert episode.state == before


@pytest.mark.parametrize(
    "text", ["", "get a\n", "get a.w\n", "get u.x\n", "ans\n", "ans gg\n", "GET a.x", "get a.x\nb"]
)
def test_malformed_actions_are_answered(text):
    reply = Lookup().open(PROBLEM).act(text)
    assert (reply.observation, reply.valid, reply.done, reply.reward, reply.parts["calls"]) == (
        "?>",
        False,
        False,
        0,
        0,
    )


@TOTAL
@given(st.lists(st.text() | st.text("get ans abxyz.?\n"), max_size=5))
def test_any_text_is_an_action(texts):
    written = Lookup().transcript(PROBLEM, texts)
    assert [written.text[a:b] for a, b in written.spans] == texts[: len(written.spans)]


CALLS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=4)


@TOTAL
@given(CALLS, CALLS)
def test_states_are_equal_exactly_when_the_same_is_known(left, right):
    a, b = Lookup().open(PROBLEM), Lookup().open(PROBLEM)
    for entity, relation in left:
        a.act(f"get {entity}.{relation}\n")
    for entity, relation in right:
        b.act(f"get {entity}.{relation}\n")
    assert (a.state == b.state) == (set(left) == set(right))


def test_the_order_of_look_ups_does_not_matter():
    facts = [f"get {entity}.{relation}" for entity in "abcde" for relation in "xyz"]
    a, b = Lookup().open(PROBLEM), Lookup().open(PROBLEM)
    for forth, back in zip(facts, reversed(facts), strict=True):
        a.act(forth)
        b.act(back)
    assert a.state == b.state


def test_the_state_holds_question_table_and_answer():
    other = Problem(PROBLEM.prompt, {**PROBLEM.data, "table": {**SHIFTED, "y": ENTITIES[3:] + ENTITIES[:3]}})
    longer = Problem("a.xzx?>", {**PROBLEM.data, "path": "xzx"})
    states = {Lookup().open(p).state for p in (PROBLEM, other, longer)}
    answered = Lookup().open(PROBLEM)
    answered.act("ans c\n")
    assert len(states | {answered.state}) == 4


def test_questions_follow_their_table_through_distinct_entities():
    for level, hops in HOPS.items():
        for problem in Lookup(level=level).problems(50, gen(level)):
            data = problem.data
            passed = [data["start"]]
            for relation in data["path"]:
                passed.append(data["table"][relation][ord(passed[-1]) - ord("a")])
            assert passed[-1] == data["answer"]
            assert len(set(passed)) == hops + 1
            assert problem.prompt == f"{data['start']}.{data['path']}?>"
            for row in data["table"].values():  # nothing stands in a relation to itself
                assert len(row) == len(ENTITIES)
                assert all(a != b for a, b in zip(row, ENTITIES, strict=True))


def test_same_seed_same_problems_and_demonstrations():
    world = Lookup()
    problems = world.problems(30, gen(7))
    assert problems == world.problems(30, gen(7))
    assert problems != world.problems(30, gen(8))
    assert {p.level for p in problems} == {1, 2, 3}
    for flaw in (None, *world.flaws):
        assert world.demonstrate(problems[0], gen(1), flaw) == world.demonstrate(problems[0], gen(1), flaw)


def test_expert_always_succeeds_and_flawed_procedures_mostly_fail():
    for level, hops in HOPS.items():
        world = Lookup(level=level)
        for problem in world.problems(40, gen(level)):
            written = world.transcript(problem, world.demonstrate(problem, gen()))
            assert (written.score, len(written.spans)) == (1.0, hops + 1)
    world, generator = Lookup(), gen(1)
    problems = world.problems(200, gen(2))
    for flaw in world.flaws:
        scores = [world.transcript(p, world.demonstrate(p, generator, flaw)).score for p in problems]
        assert sum(scores) / len(scores) < 0.2
        if flaw in ("early", "overshoot"):  # the entities of a chain differ; one more relation never leads back
            assert sum(scores) == 0


@pytest.mark.parametrize(
    ("settings_", "word"),
    [({"level": 7}, "level: 7"), ({"max_turns": 3}, "set 4 or more"), ({"call_cost": -1.0}, "call_cost: -1.0")],
)
def test_bad_settings_name_the_field(settings_, word):
    with pytest.raises(UserError, match=word):
        Lookup(**settings_)
