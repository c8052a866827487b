"""Products by the other library are the same products, and only those that gain from it go there."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from partita.core import products
from partita.core.program import Program
from partita.policies.stack import Stack


@pytest.fixture
def wide(monkeypatch):
    """As on a processor where oneDNN is the faster one; everyone's torch has it."""
    monkeypatch.setattr(products, "wide", lambda: True)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_the_product(members, biased):
    x, y, bias = numbers(members, 50, 70), numbers(members, 60, 70, seed=1).mT, numbers(members, 1, 60, seed=2)
    expected = x.double() @ y.double() + (bias.double() if biased else 0)
    found = products.multiply(x, y, bias if biased else None)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-4)
    turned = products.multiply(x.mT.contiguous().mT, y.contiguous(), bias if biased else None)
    torch.testing.assert_close(turned, expected.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (numbers(48, 48), numbers(48, 48), True),
        (numbers(2, 48, 48), numbers(2, 48, 48), True),
        (numbers(47, 48), numbers(48, 48), False),
        (numbers(48, 47), numbers(47, 48), False),
        (numbers(48, 48), numbers(48, 47), False),
        (numbers(48, 48).double(), numbers(48, 48).double(), False),
        (numbers(48, 48).bfloat16(), numbers(48, 48).bfloat16(), False),
        (torch.empty(48, 48, device="meta"), torch.empty(48, 48, device="meta"), False),
    ],
)
def test_what_goes_there(wide, monkeypatch, x, y, expected):
    assert products.suits(x, y) is expected
    monkeypatch.setattr(products, "wide", lambda: False)
    assert not products.suits(x, y)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n\nvendor_id\t: other\n", True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\n", False),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 26\n", False),
        ("processor\t: 0\n", False),
        (None, False),
    ],
)
def test_the_processor_decides(monkeypatch, about, expected):
    class File:
        def __init__(self, path):
            assert path == "/proc/cpuinfo"

        def read_text(self):
            if about is None:
                raise FileNotFoundError
            return about

    monkeypatch.setattr(products, "Path", File)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert products.wide.__wrapped__() is expected
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not products.wide.__wrapped__()


CONSTANT = numbers(48, 64, seed=3)


def operations(x, y, b):
    """Every form of a product that is written anew, one of another one, and two that are not: scaled, too small."""
    large = torch.mm(x[0], y[0]), torch.addmm(b[0], x[0], y[0]), torch.bmm(x, y), torch.baddbmm(b, x, y)
    return *large, x[0] @ CONSTANT @ CONSTANT.T, torch.addmm(b[0], x[0], y[0], beta=2), torch.mm(x[0], y[0, :, :7])


def test_a_graph_is_written_anew(wide):
    given = numbers(2, 64, 48), numbers(2, 48, 80, seed=1), numbers(2, 1, 80, seed=2)
    graph = make_fx(operations)(*given)
    products.rewrite(graph.graph)
    graph.recompile()
    asked = [str(node.target) for node in graph.graph.nodes]
    assert asked.count("partita.product.default") == 1 + 1 + 2 + 2 + 2
    assert [name for name in asked if "mm" in name] == ["aten.addmm.default", "aten.mm.default"]
    for found, expected in zip(graph(*given), operations(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_program_of_such_products_moves_its_weights_as_the_update_does(wide):
    stack = Stack(2, [48, 64, 64, 1], "relu", torch.Generator().manual_seed(3))
    stack.fused = False
    weights = list(stack.parameters())

    def update(columns):
        loss = (stack(columns["x"])[..., 0] - columns["y"]).square().mean()
        for p, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            with torch.no_grad():
                p.sub_(0.1 * g)
        return {"loss": loss.detach()}

    columns = {"x": numbers(96, 48), "y": numbers(96, seed=1)}
    before = [p.detach().clone() for p in weights]
    program = Program(update, weights, [])
    found = program(columns)["loss"]
    after = [p.detach().clone() for p in weights]
    for p, b in zip(weights, before, strict=True):
        p.data.copy_(b)
    torch.testing.assert_close(found, update(columns)["loss"], rtol=1e-5, atol=1e-6)
    for p, a in zip(weights, after, strict=True):
        torch.testing.assert_close(p.detach(), a, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("members", [1, 2])
def test_a_stack_is_the_same_with_either_library(monkeypatch, members):
    stack = Stack(members, [50, 64, 64, 3], "relu", torch.Generator().manual_seed(3))
    x = numbers(members, 96, 50).requires_grad_()

    def answer(wide):
        monkeypatch.setattr(products, "wide", lambda: wide)
        out = stack(x)
        return out, *torch.autograd.grad(out.square().sum(), [x, *stack.parameters()])

    calls = []
    multiply = products.multiply
    monkeypatch.setattr(products, "multiply", lambda *given: calls.append(1) or multiply(*given))
    expected = answer(False)
    assert not calls
    for one, other in zip(answer(True), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2 + 2 + 2  # two layers: forwards, by weights, by inputs
