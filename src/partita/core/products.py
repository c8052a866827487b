"""Which library multiplies matrices.

torch's CPU build has two: MKL, which it asks for float32 products, and oneDNN, which it asks for bfloat16. MKL takes
instructions of 256 bits on processors that are not Intel's. AMD's have units of 512 since Zen 5, so that oneDNN, which
uses them, is twice as quick; torch's one entry to its float32 products is meant for linear layers. Each new shape costs
oneDNN some milliseconds and, for good, four megabytes: products whose shapes keep changing are not to go there.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LEAST = 48  # rows, columns and what is summed over, each: below that MKL is as quick
ZEN_5 = 26  # AMD's processor family
aten = torch.ops.aten


@functools.cache
def wide() -> bool:
    """Whether oneDNN's float32 products are faster than MKL's on this processor."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return False
    about = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in first.splitlines())}
    return about.get("vendor_id") == "AuthenticAMD" and int(about.get("cpu family", "0")) >= ZEN_5


def suits(x: Tensor, y: Tensor) -> bool:
    """Whether `multiply` is the faster way to x (..., N, D) times y (..., D, M)."""
    return wide() and x.dtype == torch.float32 and min(*x.shape[-2:], y.shape[-1]) >= LEAST and x.device.type == "cpu"


def multiply(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (K, N, D) times y (K, D, M), and bias (K, 1, M) added, by oneDNN; float32 without a gradient."""
    each = [_linear(*one) for one in zip(x, y, [None] * len(x) if bias is None else bias[:, 0], strict=True)]
    return each[0][None] if len(each) == 1 else torch.stack(each)


def _linear(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, y.t(), bias, "none", [], "")


def rewrite(graph: Any) -> None:
    """Let oneDNN compute those products of a traced graph that suit it, each matrix by itself."""
    for node in list(graph.nodes):
        if node.target not in _FORMS or node.kwargs:  # a keyword scales
            continue
        *bias, x, y = node.args
        if not suits(x.meta["val"], y.meta["val"]):
            continue
        with graph.inserting_before(node):
            call, size = graph.call_function, node.meta["val"].shape
            if len(size) == 2:
                found = call(_product(), (x, y))
            else:
                pairs = [tuple(call(aten.select.int, (z, 0, k)) for z in (x, y)) for k in range(size[0])]
                found = call(aten.stack.default, ([call(_product(), pair) for pair in pairs],))
            if bias:
                found = call(aten.add.Tensor, (found, *bias))
        found.meta["val"] = node.meta["val"]  # the next product may be of this one
        node.replace_all_uses_with(found)
        graph.erase_node(node)


_FORMS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)


@functools.cache
def _product() -> Any:
    """x (N, D) times y (D, M) by oneDNN, as an operation that torch's compiler can call from C++."""
    from torch._inductor import ir
    from torch._inductor.lowering import register_lowering
    from torch._inductor.mkldnn_ir import LinearUnary, _create_output_node

    torch.library.define("partita::product", "(Tensor x, Tensor y) -> Tensor")
    torch.library.impl("partita::product", "CPU", _linear)
    torch.library.register_fake("partita::product", lambda x, y: x.new_empty(x.shape[0], y.shape[1]))

    @register_lowering(torch.ops.partita.product.default, type_promotion_kind=None)
    def lower(x: Any, y: Any) -> Any:
        x = LinearUnary.require_contiguous(LinearUnary.realize_input(x))
        y = LinearUnary.realize_input(ir.PermuteView.create(LinearUnary.realize_input(y), [1, 0]))
        layout = ir.FixedLayout(x.get_device(), x.get_dtype(), [x.get_size()[0], y.get_size()[0]])
        return ir.TensorBox.create(_create_output_node(LinearUnary(layout, [x, y], [None, "none", [-1], ""])))

    return torch.ops.partita.product.default
