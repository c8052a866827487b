"""The calculator world, its parser and its tool."""

import ast
import operator
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.calculator import STEPS, Calculator, run
from partita.tasks.worlds.integers import LONGEST, evaluate

TOTAL = settings(max_examples=25, deadline=None, derandomize=True)
MANY = settings(max_examples=200, deadline=None, derandomize=True)
PROBLEM = Problem("a=47;b=a*8;c=b-a;c?>", {"first": 47, "sums": [["*", 8], ["-", 47]], "answer": 329}, "sums2", 2)
SIGNS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_python(text: str) -> int | None:
    """The same language through Python's own grammar; None for whatever else the text is."""

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            return value(node.operand) * (-1 if isinstance(node.op, ast.USub) else 1)
        if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
            return SIGNS[type(node.op)](value(node.left), value(node.right))
        raise ValueError

    try:
        return value(ast.parse(text.strip(" "), mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def outcome(function, text: str) -> object:
    try:
        return function(text)
    except ZeroDivisionError:
        return "division by zero"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+3*4", 14), ("(2+3)*4", 20), ("7-2-1", 4), ("-7//2", -4), ("-7%3", 2), ("7//-2", -4), ("2--3", 5),
        ("100//7%5", 4), ("-(1+1)*3", -6), (" 1 + 2 ", 3), ("00", None), ("07", None), ("1/2", None), ("2**3", None),
        ("1 2", None), ("", None), ("(1", None), ("1)", None), ("1+", None), ("a", None), ("1_0", None), ("٣", None),
        ("1.5", None), ("0x1", None), ("1\n+2", None), ("1" * (LONGEST + 1), None),
    ],
)  # fmt: skip
def test_expressions_worked_out_by_hand(text, expected):
    assert evaluate(text) == expected


@MANY
@given(st.text("0123456789+-*/%() ", max_size=12) | st.text("12+-*()", min_size=1, max_size=20))
def test_parser_gives_what_python_gives(text):
    ours = outcome(evaluate, text)
    theirs = outcome(by_python, text)
    assert ours == (theirs if "00" not in text else ours)  # Python allows 00
    if re.fullmatch(r"[0-9+\-*() ]*", text) and "**" not in text and "* *" not in text and "00" not in text:
        assert (ours is None) == (theirs is None)


@MANY
@given(st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map("".join)
    | inner.map(lambda x: f"({x})") | inner.map(lambda x: f"-{x}"),
    max_leaves=6,
))  # fmt: skip
def test_parser_knows_every_expression_of_its_grammar(text):
    assert outcome(evaluate, text) == outcome(by_python, text)
    assert outcome(evaluate, text) is not None


def test_an_episode_worked_out_by_hand():
    written = Calculator().transcript(PROBLEM, ["py 47*8\n", "py 376-47\n", "ans 329\n", "ans 0\n"])
    assert written.text == "a=47;b=a*8;c=b-a;c?>py 47*8\n376>py 376-47\n329>ans 329\n"
    assert [written.text[a:b] for a, b in written.spans] == ["py 47*8\n", "py 376-47\n", "ans 329\n"]
    assert written.rewards == (0.0, 0.0, 1.0)
    assert (written.score, written.done) == (1.0, True)
    assert written.parts == {"calls": 2.0, "errors": 0.0, "needed": 2.0}


def test_a_wrong_answer_ends_the_episode_and_calls_cost():
    written = Calculator(call_cost=0.125).transcript(PROBLEM, ["py 1+1", "py x", "oh", "ans -329", "ans 329"])
    assert written.rewards == (-0.125, -0.125, 0.0, 0.0)
    assert (written.score, written.done, written.parts["errors"]) == (0.0, True, 1.0)


@pytest.mark.parametrize(
    "text", ["", "py\n", "py \n", "ans\n", "ans x\n", "ans 3.0\n", "47*8\n", "py 1\n+1", "ans ٣", "py " + "1" * 300]
)
def test_malformed_actions_are_answered(text):
    episode = Calculator().open(PROBLEM)
    before = episode.state
    reply = episode.act(text)
    assert (reply.observation, reply.valid, reply.done, reply.reward, reply.parts["calls"]) == (
        "?>",
        False,
        False,
        0,
        0,
    )
    assert episode.state == before


@TOTAL
@given(st.lists(st.text() | st.text(max_size=90).map(lambda x: f"py {x}"), max_size=5))
def test_any_text_is_an_action(texts):
    written = Calculator().transcript(PROBLEM, texts)
    assert [written.text[a:b] for a, b in written.spans] == texts[: len(written.spans)]


CALLS = st.lists(st.sampled_from(["1+1", "2*3", "0//0", "x"]), max_size=4)


@TOTAL
@given(CALLS, CALLS)
def test_states_are_equal_exactly_when_the_same_is_known(left, right):
    a, b = Calculator().open(PROBLEM), Calculator().open(PROBLEM)
    for code in left:
        a.act(f"py {code}\n")
    for code in right:
        b.act(f"py {code}\n")
    assert (a.state == b.state) == (set(left) == set(right))


def test_the_order_of_calls_does_not_matter():
    a, b = Calculator().open(PROBLEM), Calculator().open(PROBLEM)
    for forth, back in zip(("1+1", "2*3"), ("2*3", "1+1"), strict=True):
        a.act(f"py {forth}\n")
        b.act(f"py  {back}\n")
    assert a.state == b.state


def test_problems_ask_what_their_text_says():
    for level, steps in STEPS.items():
        for problem in Calculator(level=level).problems(60, gen(level)):
            *lines, question = problem.prompt.split(";")
            values: dict[str, int] = {}
            for line in lines:
                name, text = line.split("=")
                for known, value in values.items():
                    text = text.replace(known, str(value))
                values[name] = by_python(text)
                assert values[name] >= 0
            assert question == f"{lines[-1][0]}?>"
            assert values[lines[-1][0]] == problem.data["answer"]
            assert (len(lines), problem.level) == (steps + 1, level)
            assert len(problem.prompt) <= 48


def test_same_seed_same_problems_and_demonstrations():
    world = Calculator()
    problems = world.problems(30, gen(7))
    assert problems == world.problems(30, gen(7))
    assert problems != world.problems(30, gen(8))
    assert {p.level for p in problems} == {1, 2, 3}
    for flaw in (None, *world.flaws):
        assert world.demonstrate(problems[0], gen(1), flaw) == world.demonstrate(problems[0], gen(1), flaw)


def test_expert_always_succeeds_and_flawed_procedures_mostly_fail():
    for level, steps in STEPS.items():
        world = Calculator(level=level)
        for problem in world.problems(40, gen(level)):
            actions = world.demonstrate(problem, gen())
            written = world.transcript(problem, actions)
            assert (written.score, written.parts["calls"], written.parts["errors"]) == (1.0, steps, 0.0)
            assert max(map(len, actions)) <= world.max_tokens
    world, generator = Calculator(), gen(1)
    problems = world.problems(200, gen(2))
    for flaw in world.flaws:
        scores = [world.transcript(p, world.demonstrate(p, generator, flaw)).score for p in problems]
        assert sum(scores) / len(scores) < 0.1


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("2**10", "1024"), ("a=3;print(a*2)", "6"), ("7/2", "3.5"), ("x", "!Name"), ("1/0", "!ZeroDivision"),
        ("1+", "!Syntax"), ("None", ""), ("chr(233)", "."), ("print('ab');print('cd')", "ab"), ("'y'*99", "y" * 16),
        ("open('/etc/passwd').read()", "!refused"),
    ],
)  # fmt: skip
def test_the_python_tool_runs_in_the_sandbox(code, shown):
    pytest.importorskip("partita.tasks.sandbox")
    reply = Calculator(tool="python").open(PROBLEM).act(f"py {code}\n")
    assert (reply.observation, reply.valid, reply.parts["errors"]) == (shown + ">", True, float(shown.startswith("!")))


def test_a_program_that_does_not_end_is_an_observation():
    pytest.importorskip("partita.tasks.sandbox")
    assert run(Calculator(tool="python", seconds=1.0), "while 1: pass") == "!timeout"


def test_the_fast_path_shows_what_the_sandbox_shows(monkeypatch):
    pytest.importorskip("partita.tasks.sandbox")
    codes = ["-7//2*(3+4)", "5//0", "9" * 20, "12%-5"]
    fast = [run(Calculator(tool="python"), code) for code in codes]
    assert (
        fast == [run(Calculator(tool="arithmetic"), code) for code in codes] == ["-28", "!ZeroDivision", "9" * 16, "-3"]
    )
    monkeypatch.setattr("partita.tasks.worlds.calculator.evaluate", lambda code: None)
    assert fast == [run(Calculator(tool="python"), code) for code in codes]
    assert {run(Calculator(tool="arithmetic"), code) for code in codes} == {"!Syntax"}


@pytest.mark.parametrize(
    ("settings_", "word"),
    [
        ({"level": 7}, "level: 7"), ({"max_turns": 3}, "set 4 or more"), ({"call_cost": -1.0}, "call_cost: -1.0"),
        ({"tool": "bash"}, "tool: 'bash'"), ({"seconds": 0.0}, "seconds: 0.0"), ({"memory_mb": 0}, "memory_mb: 0"),
    ],
)  # fmt: skip
def test_bad_settings_name_the_field(settings_, word):
    with pytest.raises(UserError, match=word):
        Calculator(**settings_)
