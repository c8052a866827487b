"""A program does what its update does, draw for draw, and says why where it cannot."""

import pytest
import torch

from partita.core.errors import UserError
from partita.core.program import Program
from partita.policies.adam import Adam


class Fit:
    """Adam on a small network towards noisy targets: everything that an update may do."""

    def __init__(self, kernel: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.weight = torch.nn.Parameter(torch.randn(3, 2, generator=self.generator))
        self.mean = torch.zeros(2)
        self.adam = Adam({"weight": self.weight}, 0.01, 1.0, weight_decay=0.1)
        self.adam.kernel = kernel
        self.factor = 1.0

    def __call__(self, columns):
        noise = torch.randn(columns["y"].shape, generator=self.generator)
        pick = torch.randint(len(noise), (2,), generator=self.generator)
        error = (columns["x"] @ self.weight).tanh() - columns["y"] + 0.1 * noise
        loss = error.square().mean() * self.factor + 1e-3 * self.weight.square().sum()
        self.adam.move(["weight"], torch.autograd.grad(loss, [self.weight]))
        with torch.no_grad():
            self.mean.lerp_(error.mean(0), 0.1)
        return {"loss": loss, "picked": error[pick].detach()}

    def state(self):
        return [self.mean, *self.adam.tensors()]


def columns(seed):
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(6, 5, generator=g)[:, :3], "y": torch.randn(6, 2, generator=g)}


def test_a_program_does_what_its_update_does():
    plain, fit = Fit(kernel=True), Fit()
    program = Program(fit, fit.state(), [fit.generator])
    for seed in range(6):
        plain.adam.rate = fit.adam.rate = 0.01 / (1 + seed)  # a rate is read, not recorded
        expected, found = plain(columns(seed)), program(columns(seed))
        assert list(found) == ["loss", "picked"]
        for name, value in found.items():
            assert not value.requires_grad
            torch.testing.assert_close(value, expected[name].detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fit.weight, plain.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fit.mean, plain.mean, rtol=1e-5, atol=1e-6)
    for name, moment in plain.adam.moments["weight"].items():
        torch.testing.assert_close(fit.adam.moments["weight"][name], moment, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.rand(3, generator=fit.generator), torch.rand(3, generator=plain.generator))


class Measuring(Fit):
    """Takes a norm by an operation that compiled C++ cannot call."""

    def __call__(self, columns):
        found = super().__call__(columns)
        return {**found, "norm": torch._foreach_norm([self.weight.detach(), self.mean])[0]}


def test_a_program_calls_from_python_what_cannot_be_called_from_elsewhere():
    plain, fit = Measuring(kernel=True), Measuring()
    program = Program(fit, fit.state(), [fit.generator])
    for seed in range(2):
        torch.testing.assert_close(program(columns(seed))["norm"], plain(columns(seed))["norm"])


class Counting(Fit):
    """Reads its columns behind autograd's back."""

    def __call__(self, columns):
        self.factor = 1.0 + abs(float(columns["x"].detach().numpy().sum()))
        return super().__call__(columns)


class Asking(Fit):
    def __call__(self, columns):
        self.factor = 2.0 if float(columns["x"].sum()) > 0 else 1.0
        return super().__call__(columns)


class Dropping(Fit):
    def __call__(self, columns):
        return super().__call__({**columns, "x": torch.nn.functional.dropout(columns["x"])})


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (Counting, "the update has another loss than without: it reads numbers that are no tensors"),
        (Asking, "the update cannot be recorded"),
        (Dropping, "the update draws by"),
    ],
)
def test_what_a_program_cannot_do_is_refused_before_anything_is_done(update, message):
    fit = update()
    program = Program(fit, fit.state(), [fit.generator])
    before, place = fit.weight.detach().clone(), fit.generator.get_state()
    with pytest.raises(UserError, match=message):
        program(columns(0))
    assert torch.equal(fit.weight, before) and torch.equal(fit.generator.get_state(), place)


def test_a_state_that_was_not_given_is_found_out():
    fit = Fit()
    with pytest.raises(UserError, match="changes a tensor that it keeps to itself"):
        Program(fit, fit.adam.tensors(), [fit.generator])(columns(0))


def test_without_a_compiler_it_says_what_to_install():
    from torch._inductor import config

    fit, without = Fit(), {"cpp.cxx": (None, "no-such-compiler"), "fx_graph_cache": False}
    with (
        config.patch(without),
        pytest.raises(UserError, match=r"found no C\+\+ compiler; install g\+\+, or leave --compile out"),
    ):
        Program(fit, fit.state(), [fit.generator])(columns(0))
