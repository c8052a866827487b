"""The look-up world."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.lookup import ENTITIES, HOPS, LETTERS, RELATIONS, Lookup, look_up

TOTAL = settings(max_examples=25, deadline=None, derandomize=True)
LINKS = {"aa.x": "ab", "ab.z": "bg"}
PROBLEM = Problem("aa.xz?>", {"start": "aa", "path": "xz", "answer": "bg", "links": LINKS, "table": 7}, "hops2", 2)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_episode_worked_out_by_hand():
    written = Lookup().transcript(PROBLEM, ["get aa.x\n", "get ab.z\n", "ans bg\n", "ans bg\n"])
    assert written.text == "aa.xz?>get aa.x\nab>get ab.z\nbg>ans bg\n"
    assert [written.text[a:b] for a, b in written.spans] == ["get aa.x\n", "get ab.z\n", "ans bg\n"]
    assert written.rewards == (0.0, 0.0, 1.0)
    assert (written.score, written.done, written.parts) == (1.0, True, {"calls": 2.0, "needed": 2.0})


def test_a_wrong_answer_ends_the_episode_with_nothing():
    written = Lookup().transcript(PROBLEM, ["ans ab\n", "ans bg\n"])
    assert (written.rewards, written.score, written.done) == ((0.0,), 0.0, True)


def test_look_ups_cost_what_is_set_and_the_score_does_not_change():
    written = Lookup(call_cost=0.25).transcript(PROBLEM, ["get aa.x", "get aa.x", "who?", "ans bg"])
    assert written.rewards == (-0.25, -0.25, 0.0, 1.0)
    assert written.score == 1.0
    assert written.parts["calls"] == 2


def test_nothing_happens_after_the_answer():
    episode = Lookup().open(PROBLEM)
    episode.act("ans bg\n")
    before = episode.state
    reply = episode.act("get aa.x\n")
    assert (reply.observation, reply.reward, reply.done, reply.score) == ("", 0.0, True, 1.0)
    assert episode.state == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "get aa\n",
        "get aa.w\n",
        "get a.x\n",
        "get au.x\n",
        "ans\n",
        "ans a\n",
        "ans aaa\n",
        "GET aa.x",
        "get aa.x\nb",
    ],
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
@given(st.lists(st.text() | st.text("get ans aabbxyz.?\n"), max_size=5))
def test_any_text_is_an_action(texts):
    written = Lookup().transcript(PROBLEM, texts)
    assert [written.text[a:b] for a, b in written.spans] == texts[: len(written.spans)]


CALLS = st.lists(st.tuples(st.sampled_from(["aa", "ab", "ba"]), st.sampled_from("xyz")), max_size=4)


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
    facts = [f"get {entity}.{relation}" for entity in ("aa", "ab", "ba", "tt") for relation in "xyz"]
    a, b = Lookup().open(PROBLEM), Lookup().open(PROBLEM)
    for forth, back in zip(facts, reversed(facts), strict=True):
        a.act(forth)
        b.act(back)
    assert a.state == b.state


def test_the_state_holds_question_table_and_answer():
    other = Problem(PROBLEM.prompt, {**PROBLEM.data, "table": 8})
    longer = Problem("aa.xzx?>", {**PROBLEM.data, "path": "xzx"})
    linked = Problem("aa.xz?>", {**PROBLEM.data, "links": {**LINKS, "ab.z": "bh"}})
    states = {Lookup().open(p).state for p in (PROBLEM, other, longer, linked)}
    answered = Lookup().open(PROBLEM)
    answered.act("ans ac\n")
    assert len(states | {answered.state}) == 5


def test_questions_follow_their_table_through_distinct_entities():
    for level, hops in HOPS.items():
        for problem in Lookup(level=level).problems(50, gen(level)):
            data = problem.data
            passed = [data["start"]]
            for relation in data["path"]:
                passed.append(look_up(problem, passed[-1], relation))
            assert passed[-1] == data["answer"]
            assert len(set(passed)) == hops + 1
            assert problem.prompt == f"{data['start']}.{data['path']}?>"


def test_relations_lead_from_every_entity_to_any_other_but_itself():
    assert len(set(ENTITIES)) == len(ENTITIES) == len(LETTERS) ** 2 == 400
    problem, other = Lookup(level=2).problems(2, gen(1))
    rows = [[look_up(p, e, r) for e in ENTITIES] for p in (problem, other) for r in RELATIONS]
    for row in rows:
        assert all(a != b for a, b in zip(row, ENTITIES, strict=True))
        assert set(row) <= set(ENTITIES)
        # 400 draws of 399: 400 / e = 147 are expected to be missed, with a standard deviation of about 6
        assert abs(len(ENTITIES) - len(set(row)) - 147) < 40
    for i, row in enumerate(rows):  # relations and tables have nothing to do with one another
        assert all(sum(a == b for a, b in zip(row, later, strict=True)) < 10 for later in rows[i + 1 :])
    assert rows[0] == [look_up(problem, e, "x") for e in ENTITIES]


def test_the_table_is_the_same_everywhere():
    # blake2b of "7/tt.y", 8 bytes, is 0x703d446c3375d222; modulo 399 that is 59, so 60 places after tt, the last entity
    assert look_up(PROBLEM, "tt", "y") == "ct"
    assert look_up(PROBLEM, "aa", "x") == "ab"


def test_guessing_is_hopeless():
    world, generator = Lookup(), gen(3)
    problems = world.problems(1000, gen(4))
    right = sum(world.transcript(p, world.demonstrate(p, generator, "guess")).score for p in problems)
    assert right <= 12  # expected 2.5


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
