"""Sums too long to do in the head, and a Python tool to do them with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.base import MALFORMED, MARKER, Episode, Reply
from partita.tasks.worlds.generated import Dice, Generated
from partita.tasks.worlds.integers import evaluate

STEPS = {1: 1, 2: 2, 3: 3, 4: 5}
CODE = re.compile(r"py ([^\n]{1,200})")
ANSWER = re.compile(r"ans (-?[0-9]{1,30})")
SHOWN = 16  # characters of a result that are shown
RUNNER = """\
code = {code}
try:
    program = compile(code, "py", "eval")
except SyntaxError:
    exec(compile(code, "py", "exec"), {{}})
else:
    value = eval(program, {{}})
    if value is not None:
        print(value)
"""


@dataclass(frozen=True)
class Calculator(Generated):
    """Variables defined one by one, the last of which is asked for: `py 47*8` works a sum out, `ans 376` answers.

        a=47;b=a*8;c=b-a;c?>py 47*8
        376>py 376-47
        329>ans 329

    tool: "python" runs the line in a separate process with limits (`partita.tasks.sandbox`) and shows the first
    line that it prints, or the value if it is an expression, or `!` and the error; nothing is kept between calls.
    Expressions of whole numbers that `partita.tasks.worlds.integers.evaluate` knows give the same text without a
    process, thousands of times faster. "arithmetic" (the default: deterministic, no processes) knows only those and
    shows `!Syntax` for any other line.

    An answer ends the episode: reward and score 1 if right, else 0. Each call costs `call_cost`. Text that is
    neither is answered by `?`. Parts: "calls", "errors" (calls that failed), "needed" (calls of the expert).
    The state is what is known: the question, and the calls made with what they showed, in whatever order.
    Levels 1 to 3 have as many sums; the hard level 4 has five.
    """

    level: int = 0
    max_turns: int = 8
    tool: Literal["arithmetic", "python"] = "arithmetic"
    call_cost: float = 0.0
    seconds: float = 2.0
    memory_mb: int = 256

    max_tokens: ClassVar[int] = 24
    counts: ClassVar[tuple[str, ...]] = ("calls", "errors", "needed")
    levels: ClassVar[tuple[int, ...]] = (1, 2, 3)
    hard: ClassVar[int] = 4
    flaws: ClassVar[tuple[str, ...]] = ("random", "early", "mental", "wrong_operator", "miscopy")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tool not in ("arithmetic", "python"):
            raise UserError(f"tool: {self.tool!r} is no tool of calculator; choose arithmetic or python")
        if not 0 <= self.call_cost < float("inf"):
            raise UserError(f"call_cost: {self.call_cost} is not a finite cost of 0 or more; choose 0.05, say")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"seconds: {self.seconds} is no time limit; choose a number above 0, such as 2")
        if self.memory_mb < 1:
            raise UserError(f"memory_mb: {self.memory_mb} is no memory limit; choose 64 or more")

    @property
    def slow(self) -> bool:  # type: ignore[override]
        """A call of the Python tool takes a process."""
        return self.tool == "python"

    def turns(self, level: int) -> int:
        """A call a sum, and the answer."""
        return STEPS[level] + 1

    def _problem(self, level: int, dice: Dice) -> Problem:
        values = [dice.between(2, 99)]
        names = "abcdef"
        text, sums = f"a={values[0]};", []
        for i in range(STEPS[level]):
            sign, left = dice.choice("+-*"), values[-1]
            older = dice.below(i) if sign != "*" and i > 0 and dice.below(3) == 0 else None
            right = dice.between(2, 9) if sign == "*" else dice.between(2, 99) if older is None else values[older]
            sign = "+" if sign == "-" and right > left else sign
            shown = right if older is None else names[older]
            text += f"{names[i + 1]}={names[i]}{sign}{shown};"
            sums.append([sign, right])
            values.append({"+": left + right, "-": left - right, "*": left * right}[sign])
        data = {"first": values[0], "sums": sums, "answer": values[-1]}
        return Problem(f"{text}{names[len(sums)]}?{MARKER}", data, f"sums{len(sums)}", level)

    def open(self, problem: Problem) -> Desk:
        """A new episode of the question, no call made yet."""
        return Desk(self, problem)

    def _demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None) -> list[str]:
        """Works out one sum a call and answers (flaw None), or:

        random: any sum of two numbers, or answer; early: leaves the last sum out; mental: answers at once, one
        digit off; wrong_operator: takes another operator in one sum; miscopy: gets one digit of one sum wrong.
        """
        dice = Dice(generator)
        if flaw == "random":
            return _random(dice, self.max_turns)
        if flaw == "mental":
            return [f"ans {_slip(problem.data['answer'], dice)}\n"]
        sums = problem.data["sums"][:-1] if flaw == "early" else problem.data["sums"]
        odd = dice.below(len(sums)) if flaw in ("wrong_operator", "miscopy") else -1
        value, actions = problem.data["first"], []
        for i, (sign, right) in enumerate(sums):
            if i == odd and flaw == "wrong_operator":
                sign = dice.choice("+-*".replace(sign, ""))
            if i == odd and flaw == "miscopy":
                value = _slip(value, dice)
            actions.append(f"py {value}{sign}{right}\n")
            value = {"+": value + right, "-": value - right, "*": value * right}[sign]
        return [*actions, f"ans {value}\n"]


def run(world: Calculator, code: str) -> str:
    """What the tool shows for one line of code."""
    try:
        value = evaluate(code)
    except ZeroDivisionError:
        return "!ZeroDivision"
    if value is not None:
        return str(value)[:SHOWN]
    if world.tool == "arithmetic":
        return "!Syntax"
    from partita.tasks.sandbox import run_python

    result = run_python(RUNNER.format(code=ascii(code)), seconds=world.seconds, memory_mb=world.memory_mb)
    if result.status == "ok":
        return _plain(result.stdout)
    if result.status == "error":
        last = result.stderr.strip().rpartition("\n")[2].partition(":")[0].rpartition(".")[2]
        return _plain(f"!{last.removesuffix('Error')}")
    return f"!{result.status}"


def _plain(text: str) -> str:
    """The first line, as printable ASCII, cut to `SHOWN` characters."""
    line = text.strip().partition("\n")[0][:SHOWN]
    return "".join(c if " " <= c <= "~" else "." for c in line)


def _slip(number: int, dice: Dice) -> int:
    """The number with one digit changed."""
    digits = list(str(abs(number)))
    i = dice.below(len(digits))
    digits[i] = str((int(digits[i]) + dice.between(1, 9)) % 10)
    return int("".join(digits)) * (-1 if number < 0 else 1)


def _random(dice: Dice, turns: int) -> list[str]:
    actions: list[str] = []
    while len(actions) < turns and not (actions and actions[-1].startswith("ans")):
        if dice.below(2):
            actions.append(f"py {dice.below(100)}{dice.choice('+-*')}{dice.below(100)}\n")
        else:
            actions.append(f"ans {dice.below(1000)}\n")
    return actions


class Desk(Episode):
    """An episode of `Calculator`."""

    def __init__(self, world: Calculator, problem: Problem) -> None:
        self.world = world
        self.problem = problem
        self.calls = 0
        self.errors = 0
        self.seen: dict[str, str] = {}
        self.answer: int | None = None

    @property
    def state(self) -> str:  # type: ignore[override]
        """The question, the calls made with what they showed, and the answer once given."""
        known = "\n".join(f"{code}={shown}" for code, shown in sorted(self.seen.items()))
        return f"{self.problem.prompt}\n{known}\n{'' if self.answer is None else f'ans {self.answer}'}"

    def act(self, action: str) -> Reply:
        """One call of the tool, or the answer."""
        if self.answer is not None:
            return self._reply("", 0.0)
        command = action.strip()
        if found := CODE.fullmatch(command):
            self.calls += 1
            code = found[1].strip()
            shown = run(self.world, code)
            self.errors += shown.startswith("!")
            self.seen[code] = shown
            return self._reply(shown, -self.world.call_cost)
        if found := ANSWER.fullmatch(command):
            self.answer = int(found[1])
            return self._reply("", self._score())
        return self._reply(MALFORMED, 0.0, valid=False)

    def _score(self) -> float:
        return float(self.answer == self.problem.data["answer"])

    def _reply(self, text: str, reward: float, valid: bool = True) -> Reply:
        done = self.answer is not None
        needed = float(len(self.problem.data["sums"]))
        parts = {"calls": float(self.calls), "errors": float(self.errors), "needed": needed}
        return Reply("" if done else text + MARKER, reward, done, valid, self._score(), parts)
