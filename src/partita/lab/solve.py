"""`partita solve`: from the words of a command line to the answer of a problem that is known."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from partita.core import registry
from partita.core.errors import UserError, nearest
from partita.lab.checkpoint import write_text
from partita.lab.flags import choose, known, part_named, read, task_named
from partita.loops.exact import Exact, Solved, problem_of, solve
from partita.tasks.finite.mdp import FiniteMDP

SHOWN = 40  # states of a table that is printed


@dataclass(frozen=True)
class Options:
    """What a command line says besides the solver and the problem.

    discount: of a finite process, then without end. out: a JSON file with numbers, curves and tables. json: print it.
    """

    seed: int = 0
    discount: float | None = None
    out: str | None = None
    json: bool = False


def main(argv: Sequence[str]) -> None:
    """Solve, and say what was found."""
    words = list(argv)
    recipes = {n: e for n, e in registry.index()["recipes"].items() if e["loop"] == "exact"}
    name = words.pop(0) if words and not words[0].startswith("-") else None
    if name is None or name not in recipes:
        said = "name a recipe" if name is None else f"{name}: no such exact recipe"
        if name in registry.index()["recipes"]:
            said = f"{name}: this recipe learns; use partita train {name}"
        raise UserError(f"solve: {said}; {nearest(name or '', recipes)}")
    recipe, task, options = parse(name, words)
    problem = problem_of(recipe.solver, task)
    if options.discount is not None:
        if not isinstance(problem, FiniteMDP):
            raise UserError(f"--discount {options.discount}: {task.part_name()} is no finite process; leave it out")
        problem = problem.but(discount=options.discount, horizon=None)
    found = solve(recipe, problem, options.seed)
    table = report(name, task, found)
    if options.out is not None:
        write_text(Path(options.out), json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1) if options.json else "\n".join(lines(table, problem)))
    if options.out is not None and not options.json:
        print(f"wrote {options.out}")


def parse(name: str, words: list[str]) -> tuple[Exact, Any, Options]:
    """The recipe, the task and the options that the words describe."""
    recipe = registry.recipe(name)
    chosen = choose(words, ("solver", "task"), set())
    if "solver" in chosen:
        recipe = recipe.but(solver=part_named("solver", chosen["solver"][0], recipe.solver))
    task = task_of(chosen["task"][0] if "task" in chosen else recipe.solver.example)
    held = [(n, type(p), field(default=p)) for n, p in (("solver", recipe.solver), ("task", task))]
    table = [row for row in held if any(f.init for f in dataclasses.fields(row[1]))]
    table += [(n, int, field(default=v)) for n, v in recipe.numbers().items()]
    hints = get_type_hints(Options)
    table += [(f.name, hints[f.name], field(default=f.default)) for f in dataclasses.fields(Options)]
    flags: Any = dataclasses.make_dataclass("solve", table, frozen=True)
    flags.__doc__ = described(recipe)
    known(words, flags, {"solver", "task"})
    found = read(flags, words, f"partita solve {name}")
    solver, task = getattr(found, "solver", recipe.solver), getattr(found, "task", task)
    options = Options(**{f.name: getattr(found, f.name) for f in dataclasses.fields(Options)})
    return recipe.but(solver=solver, **{n: getattr(found, n) for n in recipe.numbers()}), task, options


def task_of(name: str) -> Any:
    """The task of that name; a .json file is a finite process."""
    if name.endswith(".json"):
        return registry.part_class("task", "finite_file")(path=name)
    return task_named(name, None, "exact")


def described(recipe: Exact) -> str:
    """What --help says."""
    parts, out = registry.index()["parts"], ["Choose the solver and the problem by name, then set their fields:"]
    out.append(f"  --solver {{{','.join(parts['solver'])}}}")
    for kind in (Exact, Options):
        out += ["", *inspect.cleandoc(kind.__doc__ or "").splitlines()]
    return "\n".join(out)


def report(name: str, task: Any, found: Solved) -> dict[str, Any]:
    """Everything that was found, as JSON has it."""
    return {
        "recipe": name, "task": task.part_name(), "finished": found.finished, "sweeps": found.sweeps,
        "seconds": round(found.seconds, 4), "numbers": dict(found.solution.numbers),
        "tables": {n: np.asarray(t).tolist() for n, t in found.solution.tables.items()},
        "curves": {n: c.tolist() for n, c in found.curves.items()},
    }  # fmt: skip


def lines(table: dict[str, Any], problem: Any) -> list[str]:
    """The same for people: the numbers, and the tables of small problems."""
    out = [f"{table['recipe']} on {table['task']}: {table['sweeps']:,} sweeps in {table['seconds']:.3g} s"]
    if not table["finished"]:
        out[0] += ", stopped before the solver was done; give more --sweeps"
    width = max((len(n) for n in table["numbers"]), default=0)
    out += [f"  {n:{width}}  {v:.10g}" for n, v in table["numbers"].items()]
    values, policy = (np.asarray(table["tables"].get(name, [])) for name in ("values", "policy"))
    if not isinstance(problem, FiniteMDP) or values.shape != (problem.size,):
        return out
    if problem.size > SHOWN:
        return [*out, f"  {problem.size:,} states: --out FILE.json for the tables"]
    if policy.ndim == 2 and policy.dtype.kind == "i":  # of each decision in turn
        policy = policy[0]
    wide = len(problem.name(problem.size - 1))
    for state, value in enumerate(values):
        act = chosen_action(problem, policy[state]) if len(policy) else ""
        out.append(f"  {problem.name(state):{wide}}  {value:14.6f}  {act}".rstrip())
    return out


def chosen_action(problem: FiniteMDP, choice: Any) -> str:
    """What a policy does in a state, in words: an action, or the chances of all."""
    if np.ndim(choice):
        return " ".join(f"{p:.3f}" for p in choice)
    return problem.actions[int(choice)] if problem.actions else str(int(choice))
