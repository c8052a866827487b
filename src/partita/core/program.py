"""`Program`: a computation written in plain torch, recorded once, compiled, and run as one call from then on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from partita.core import products
from partita.core.errors import UserError

Columns = Mapping[str, Tensor]
Update = Callable[[Columns], Columns]

DRAWS = frozenset({torch.randn, torch.rand, torch.randint})
NOTES, MOVES = 0.02, 0.1  # how far a program may be from what it was recorded of: rounding is, a wrong constant is not


class Program:
    """`update` as a compiled program: the same numbers up to rounding, and the same draws from the same generators.

    update: takes columns (tensors by name), changes tensors of `state` in place, returns others by name. It may call
    autograd and draw by torch.randn, rand or randint with a generator. It is recorded at the first call, operation by
    operation, backwards passes included; whatever is no tensor of columns or state (Python numbers, the way that an
    `if` went) stays as it was then. So it is recorded on columns that were tampered with, and must then do on the true
    ones what the update does: UserError where it does not, or where no compiler is found. name: what messages call it.
    """

    def __init__(
        self, update: Update, state: Sequence[Tensor], generators: Sequence[torch.Generator], name: str = "update"
    ) -> None:
        self.update, self.generators, self.name = update, generators, name
        self.state = list({id(x): x for x in state}.values())
        self.draws: list[Callable[[], Tensor]] = []
        self.names: list[str] = []
        self.compiled: Callable[..., Sequence[Tensor]] | None = None

    @torch.no_grad()
    def __call__(self, columns: Columns) -> dict[str, Tensor]:
        """One update; the shapes of columns must be those of the first call."""
        if self.compiled is None:
            self._record(columns)
        assert self.compiled is not None
        noise = [draw() for draw in self.draws]
        return dict(zip(self.names, self.compiled(*columns.values(), *noise, *self.state), strict=True))

    @property
    def bare(self) -> list[Tensor]:
        """The state's memory as it is now, without what autograd knows of it."""
        return [x.detach() for x in self.state]

    def _record(self, columns: Columns) -> None:
        """Compile the update, and see that it does what it should; leaves state and generators as they were."""
        before, seeds = [x.clone() for x in self.bare], [g.get_state() for g in self.generators]

        def again() -> list[Tensor]:
            found = [x.clone() for x in self.bare]
            for x, y in zip(self.bare, before, strict=True):
                x.copy_(y)
            for g, seed in zip(self.generators, seeds, strict=True):
                g.set_state(seed)
            return found

        try:
            with torch.enable_grad(), _Draws() as draws:
                notes = {name: note.detach().clone() for name, note in self.update(columns).items()}
            self.draws, self.names, after = draws.calls, sorted(notes), again()
            inputs = [_other(x) for x in columns.values()] + [draw() for draw in self.draws]
            with torch.enable_grad():
                graph = self._trace(list(columns), inputs)
            again()
            self.compiled = _compile(graph, [*inputs, *self.bare])
            found = self(columns)
        finally:
            moved = again()
        for name in self.names:
            if not _near(found[name], notes[name], NOTES):
                raise UserError(f"compile: compiled, the {self.name} has another {name} than without: {_WHY}")
        if not _near(_joined(moved, before), _joined(after, before), MOVES):
            raise UserError(f"compile: compiled, the {self.name} moves its networks elsewhere than without: {_WHY}")

    def _trace(self, names: list[str], inputs: list[Tensor]) -> Any:
        """The update's operations, as a graph whose inputs are the columns, the draws and the state."""
        from torch.fx.experimental.proxy_tensor import make_fx

        count = len(names)

        def update(*given: Tensor) -> list[Tensor]:
            with _Draws(given[count : len(inputs)]):
                notes = self.update(dict(zip(names, given[:count], strict=True)))
            return [notes[name].detach() for name in self.names]

        try:
            graph = make_fx(update)(*inputs, *self.state)
        except RuntimeError as error:
            if "tracing tensor" not in str(error):
                raise
            raise UserError(
                f"compile: the {self.name} cannot be recorded: it reads a tensor as a number; {_FIX}"
            ) from error
        graph.graph.eliminate_dead_code()
        products.rewrite(graph.graph)
        graph.recompile()
        held = {x.untyped_storage().data_ptr() for x in self.state}
        for node in graph.graph.nodes:
            node.meta.pop("val", None)  # the compiler makes its own, and stumbles over these
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise UserError(f"compile: the {self.name} draws by {node.target}, which cannot be repeated; {_FIX}")
            if node.op == "get_attr" and isinstance(x := getattr(graph, node.target), Tensor):
                if any(_writes(user, node) for user in node.users):
                    raise UserError(f"compile: the {self.name} changes a tensor that it keeps to itself; {_FIX}")
                if x.untyped_storage().data_ptr() in held:
                    raise AssertionError(f"a tensor of shape {tuple(x.shape)} shares the state's memory unasked")
        return graph


_FIX = "leave --compile out"
_WHY = f"it reads numbers that are no tensors; {_FIX}"


class _Draws(TorchFunctionMode):
    """Notes every random draw, or gives those that it was given in their place."""

    def __init__(self, given: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.calls: list[Callable[[], Tensor]] = []
        self.given = None if given is None else iter(given)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func not in DRAWS or named.get("generator") is None:
            return func(*args, **named)
        if self.given is not None:
            return next(self.given)
        self.calls.append(lambda: func(*args, **named))
        return func(*args, **named)


def _other(x: Tensor) -> Tensor:
    """Other numbers of the same kind, laid out alike."""
    laid = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return laid.copy_(x.flip(0) * 0.9 if x.is_floating_point() and x.dim() else x.flip(0) if x.dim() else x)


def _writes(operation: Any, node: Any) -> bool:
    """Whether an operation of a graph changes what a node of it stands for."""
    schema = getattr(operation.target, "_schema", None)
    return schema is not None and any(
        expected.alias_info is not None and expected.alias_info.is_write and given is node
        for expected, given in zip(schema.arguments, operation.args, strict=False)
    )


def _joined(now: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """How far everything went, in one vector."""
    return torch.cat([(x.double() - y.double()).flatten() for x, y in zip(now, before, strict=True)])


def _near(x: Tensor, y: Tensor, share: float) -> bool:
    return bool((x.double() - y.double()).norm() <= share * y.double().norm() + 1e-6)


def _in_one(graph: Any) -> bool:
    """Whether all operations can be called from one C++ function, without Python in between.

    The compiler (torch 2.13) makes such a function of any, but it crashes at those that are neither its own nor linked.
    """
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.lowering import fallbacks, lowerings
    from torchgen.aoti.fallback_ops import inductor_fallback_ops as linked  # type: ignore[import-untyped]

    own = {str(x) for x in (*select_decomp_table(), *lowerings) if x not in fallbacks}
    asked = {str(node.target) for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    return {name.replace("_.", ".") for name in asked} <= own | set(linked)


def _compile(graph: Any, inputs: list[Any]) -> Callable[..., Sequence[Tensor]]:
    from torch._inductor import compile as compiled
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    try:
        return compiled(graph, inputs, options={"cpp_wrapper": _in_one(graph)})
    except InductorError as error:
        if isinstance(error.inner_exception, InvalidCxxCompiler):
            raise UserError(f"compile: found no C++ compiler; install g++, or {_FIX}") from error
        raise
