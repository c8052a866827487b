"""`Part`: what fills a slot. A frozen dataclass of hyper-parameters whose call is a pure tensor function."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, Self

Unit = Literal["step", "trajectory", "group"]
Domain = Literal["control", "language"]


class Part:
    """Base of everything that fills a slot.

    Class attributes:
        slot: the slot that the part fills.
        needs: fields of `Batch` or `Outputs` that the loop must fill before the part is called, of
            "value", "ref_logp", "entropy", "logp_entropy" (entropy with gradients, in `Outputs`), "greedy" (the
            return of a greedy trajectory, in `baseline`), "post" (the post-decision state and its reward, in `inputs`),
            "old" (the action distribution before the update, for divergences in `Outputs`), "noise" (what actions were
            drawn with, in `inputs`).
        unit: "trajectory" when a minibatch must hold whole trajectories, "group" when whole groups.
        whole: true when the part looks at the whole minibatch, which then cannot be split into micro-batches.
        domains: where the part makes sense.
        abstract: a base for parts, which is no part itself and is not listed.
        copies: true when the part copies the policy's networks, which then cannot be sharded.
        teaches: settings of the one kind of policy that the part can teach (None: any).
        loop: the loop that has this slot, where another loop has one of the same name ("": any).

    State. A part that remembers (a value tracker, a bandit) keeps tensors and numbers in fields declared
    with `init=False`, changes them in place, and implements `state_dict()` and `load_state_dict()`; the
    loop works on `fresh()` copies, so that a recipe itself never changes.
    """

    slot: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[Unit] = "step"
    whole: ClassVar[bool] = False
    domains: ClassVar[tuple[Domain, ...]] = ("control", "language")
    abstract: ClassVar[bool] = False
    copies: ClassVar[bool] = False
    teaches: ClassVar[type[Any] | None] = None
    loop: ClassVar[str] = ""
    origin: ClassVar[str | None] = None  # how a part from a user's file is named: "file.py:Class"

    @classmethod
    def part_name(cls) -> str:
        """The name on the command line: the class name in snake case."""
        return cls.origin or snake_case(cls.__name__)

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters, in order."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init} if is_dataclass(self) else {}

    def but(self, **changes: Any) -> Self:
        """A copy with some hyper-parameters replaced."""
        return replace(self, **changes)  # type: ignore[type-var]

    def fresh(self) -> Self:
        """A copy with the state of a part that has not seen anything."""
        return replace(self) if is_dataclass(self) else self

    def settle(self, task: Any) -> Self:
        """A copy in which hyper-parameters left at None have the value that goes with the task's domain."""
        return self

    def adapt(self, policy: Any, batch: Any, step: int, total: int) -> dict[str, float]:
        """Change to what an on-policy update of `total` has come to; what to watch of that."""
        return {}

    def refuses(self, recipe: Any, task: Any) -> str | None:
        """Why the part cannot work in this recipe on this task, or None."""
        return None


def snake_case(name: str) -> str:
    """Class name to command-line name: GroupRelative -> group_relative, GAE -> gae."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def summary(obj: Any) -> str:
    """The first sentence of a docstring, on one line."""
    text = inspect.cleandoc(obj if isinstance(obj, str) else (obj.__doc__ or ""))
    return " ".join(text.split("\n\n")[0].split())


def equations(obj: Any) -> str:
    """The equations of a docstring: its blocks indented by four spaces that are not argument lists."""
    text = inspect.cleandoc(obj if isinstance(obj, str) else (obj.__doc__ or ""))
    blocks = []
    for before, block in re.findall(r"(?:^|\n)([^\n]*)\n\n((?:    [^\n]+\n?)+)", text + "\n"):
        if not before.startswith(">>>"):
            blocks.append(textwrap.dedent(block).rstrip())
    return "\n".join(blocks)
