"""The guessing game."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.reference import reference_scores
from partita.tasks.worlds.twenty import PROPERTIES, Twenty

# Bits from the right: n e s w p o. Properties n, e and p tell the things apart; s and w belong to some, o to none.
THINGS = [0, 1, 2, 3, 16 + 4, 17, 18 + 8, 19]
PROBLEM = Problem("h4##ll#.>", {"things": THINGS, "hidden": 6}, "things8", 2)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_game_worked_out_by_hand():
    written = Twenty(max_turns=4).transcript(PROBLEM, ["o\n", "n\n", "p\n", "e\n"])
    # n is not true of thing 6 (bits 26): left 0, 2, 20, 26. p is: left 20, 26. e is: left 26.
    assert written.text == "h4##ll#.>o\nh3##ll#.>n\nd2.#ll#.>p\nb1.###..>e\n"
    assert written.rewards == (0.0, 0.0, 0.0, 1.0)
    assert (written.score, written.done, written.parts) == (1.0, True, {"left": 1.0, "asked": 4.0})


def test_an_answer_keeps_what_shares_it_and_the_hidden_thing_decides_it():
    other = Problem(PROBLEM.prompt, {"things": THINGS, "hidden": 1})
    assert Twenty(max_turns=4).transcript(other, ["n", "p", "e"]).text == "h4##ll#.>nd3.#..#.>pb2.#....>e"
    game = Twenty().open(other)
    game.act("n")
    assert game.possible == [1, 3, 17, 19]


def test_questions_run_out():
    written = Twenty(max_turns=4).transcript(PROBLEM, ["o", "o", "n", "p", "e"])
    assert (len(written.spans), written.done, written.score, written.rewards) == (4, False, 0.0, (0.0,) * 4)
    assert written.text.endswith("b0.###..>")


@pytest.mark.parametrize("text", ["", "\n", "x\n", "ne\n", "nesw\n", "N\n", "n?\n", "8\n"])
def test_other_text_is_answered_and_costs_a_question(text):
    game = Twenty(max_turns=4).open(PROBLEM)
    reply = game.act(text)
    assert (reply.observation, reply.reward, reply.done, reply.valid) == ("?h3##ll#.>", 0.0, False, False)
    assert reply.parts == {"left": 8.0, "asked": 0.0}


def test_nothing_happens_after_the_end():
    game = Twenty(max_turns=9).open(PROBLEM)
    replies = [game.act(a) for a in "npe"]
    before = game.state
    after = game.act("o")
    assert replies[-1].done and (after.reward, after.done, after.score, after.observation) == (0.0, True, 1.0, "")
    assert game.state == before


def test_states_are_equal_when_what_is_left_is():
    def after(actions, problem=PROBLEM):
        game = Twenty(max_turns=5).open(problem)
        for action in actions:
            game.act(action)
        return game.state

    assert after("np") == after("pn") != after("ne")
    assert after("on") == after("nn")  # one question told nothing
    assert after("n") != after("no")
    assert after("", Problem("", {"things": THINGS, "hidden": 0})) != after("")


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), level=st.integers(1, 4))
def test_the_expert_halves_and_problems_are_as_their_level_says(seed, level):
    world = Twenty(level=level, max_turns=level + 1)
    problem = world.problems(1, gen(seed))[0]
    assert len(set(problem.data["things"])) == 1 << level + 1 == len(problem.data["things"])
    assert problem.prompt.count("#") >= level + 1 and len(problem.prompt) == 9
    actions = world.demonstrate(problem, gen(seed))
    written = world.transcript(problem, actions)
    assert (len(actions), written.score, sum(written.rewards)) == (level + 1, 1.0, 1.0)
    assert all(a[0] in PROPERTIES and a[1:] == "\n" for a in actions)


def test_the_same_generator_gives_the_same_problems_and_things_differ():
    draws = [Twenty().problems(20, gen(seed)) for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]
    assert len({tuple(p.data["things"]) for p in draws[0]}) > 15
    hidden = [p.data["hidden"] for p in Twenty(level=1).problems(200, gen(1))]
    assert all(30 < hidden.count(i) < 70 for i in range(4))  # 50 each; four standard deviations are 24


def test_flawed_procedures_do_worse_and_more_things_are_harder(capsys):
    table = reference_scores(Twenty(), n=150)
    assert all(row["expert"] == 1.0 and row["expert"] - row["random"] > 0.2 for row in table.values())
    assert all(row["repeat"] < row["random"] for row in table.values())
    scores = [row["random"] for row in table.values()]
    assert scores == sorted(scores, reverse=True)
    assert [row["turns"] for row in table.values()] == [2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"level": 5}, r"level: 5 is not a level of twenty; choose 1 to 4"),
        ({"level": 4, "max_turns": 4}, r"max_turns: 4 is too few, an expert needs up to 5 turns"),
    ],
)
def test_bad_settings_name_the_field(kwargs, message):
    with pytest.raises(UserError, match=message):
        Twenty(**kwargs)


def test_an_unknown_flaw_is_refused():
    with pytest.raises(UserError, match="flaw: twenty has no `early`"):
        Twenty().demonstrate(PROBLEM, gen(), "early")
