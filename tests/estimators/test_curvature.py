"""What one step would do to the policy: by hand, against steps really taken, and however the rows are cut."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.estimators.curvature import LastLayer, adam_shifts, adam_update, gradient_shifts

f64 = torch.float64


def case(n=6, v=7, d=4, seed=0, per_row=True, bias=True):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(n, d, generator=g, dtype=f64), torch.randn(v, d, generator=g, dtype=f64)
    tau = 0.5 + torch.rand(n, generator=g, dtype=f64)
    return LastLayer(
        hidden, weight, torch.randn(v, generator=g, dtype=f64) if bias else None, torch.randint(v, (n,), generator=g),
        torch.randn(n, generator=g, dtype=f64), tau if per_row else 0.7,
    )  # fmt: skip


def logits(layer, i, weight):
    tau = layer.temperature[i] if isinstance(layer.temperature, torch.Tensor) else layer.temperature
    return (weight @ layer.hidden[i] + (0 if layer.bias is None else layer.bias)) / tau


def token_gradient(layer, i):
    """A grad log pi(a) in the weights of the last layer, by autograd."""
    weight = layer.weight.clone().requires_grad_()
    logits(layer, i, weight).log_softmax(0)[layer.targets[i]].backward()
    return layer.advantage[i] * weight.grad


def measured(layer, i, change):
    """s and w of a change of the last layer, plainly."""
    pi = logits(layer, i, layer.weight).softmax(0)
    dz = logits(layer, i, layer.weight + change) - logits(layer, i, layer.weight)
    return dz[layer.targets[i]] - pi @ dz, pi @ dz.square() - (pi @ dz).square()


def test_a_gradient_step_by_hand():
    # logits 0 and ln 3: pi = 1/4, 3/4; v = 3/4, -3/4; A = 2, rate 0.1, |h|^2 = 4 at temperature 2 is 1
    layer = LastLayer(
        torch.tensor([[2.0]], dtype=f64), torch.tensor([[1.0], [3.0]], dtype=f64).log(), None, torch.tensor([0]),
        torch.tensor([2.0], dtype=f64), 2.0,
    )  # fmt: skip
    s, w = gradient_shifts(layer, 0.1)
    assert float(s) == pytest.approx(0.1 * 2 * 9 / 8)
    assert float(w) == pytest.approx((0.1 * 2) ** 2 * (9 / 16 - (3 / 8) ** 2))


@pytest.mark.parametrize("per_row", [True, False])
def test_a_gradient_step_is_the_step_really_taken(per_row):
    layer = case(per_row=per_row, bias=per_row)
    s, w = gradient_shifts(layer, 0.3)
    for i in range(len(s)):
        ours = torch.stack((s[i], w[i]))
        torch.testing.assert_close(ours, torch.stack(measured(layer, i, 0.3 * token_gradient(layer, i))))


def test_they_are_the_change_of_log_probability_to_second_order():
    layer = case()
    errors = []
    for rate in (1e-2, 1e-3):
        s, w = gradient_shifts(layer, rate)
        worst = 0.0
        for i in range(len(s)):
            a = layer.targets[i]
            after = logits(layer, i, layer.weight + rate * token_gradient(layer, i)).log_softmax(0)[a]
            change = after - logits(layer, i, layer.weight).log_softmax(0)[a]
            worst = max(worst, abs(float(change - (s[i] - w[i] / 2))))
        errors.append(worst)
    assert errors[1] < errors[0] / 500  # an error of third order falls a thousandfold


def adam_after(layer, others, rate, betas, eps):
    """torch's Adam over the last layer after steps on the mean gradients of `others`."""
    weight = layer.weight.clone().requires_grad_()
    adam = torch.optim.Adam([weight], lr=rate, betas=betas, eps=eps, maximize=True)
    for other in others:
        weight.data.copy_(layer.weight)  # the gradients of `others` are taken at the same weights
        weight.grad = torch.stack([token_gradient(other, i) for i in range(len(other.targets))]).mean(0)
        adam.step()
    weight.data.copy_(layer.weight)
    return weight, adam


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_adam_step_is_the_one_that_torch_takes(steps):
    betas, eps, rate = (0.8, 0.95), 1e-6, 0.05
    layer = case()
    others = [case(n=5, seed=k + 1) for k in range(steps)]
    others = [LastLayer(o.hidden, layer.weight, layer.bias, o.targets, o.advantage, o.temperature) for o in others]
    moments = {}
    for other in others:
        moments = adam_update(other, moments, betas)
    s, w = adam_shifts(layer, rate, moments, betas, eps)
    for i in range(len(s)):
        weight, adam = adam_after(layer, others, rate, betas, eps)
        weight.grad = token_gradient(layer, i)
        adam.step()
        ours = torch.stack((s[i], w[i]))
        torch.testing.assert_close(ours, torch.stack(measured(layer, i, weight.detach() - layer.weight)))
    if steps:
        _, adam = adam_after(layer, others, rate, betas, eps)
        theirs = next(iter(adam.state.values()))
        torch.testing.assert_close(moments["first"], -theirs["exp_avg"])  # maximize turns gradients round
        torch.testing.assert_close(moments["second"], theirs["exp_avg_sq"])
        assert moments["step"] == steps


def test_no_step_leaves_the_moments_alone():
    layer = case()
    moments = adam_update(layer, {}, (0.9, 0.999))
    none = layer[torch.zeros(6, dtype=torch.bool)]
    again = adam_update(none, moments, (0.9, 0.999))
    assert again["step"] == 1 and torch.equal(again["first"], moments["first"])
    assert adam_shifts(none, 0.1, moments)[0].shape == (0,) and gradient_shifts(none, 0.1)[1].shape == (0,)


def test_few_logits_are_the_likeliest_and_the_one_taken():
    layer = case(n=12)
    ids = torch.stack([logits(layer, i, layer.weight) for i in range(12)]).topk(3, dim=1).indices
    missing = ~(ids == layer.targets[:, None]).any(1)
    assert 0 < int(missing.sum()) < 12
    s, w = adam_shifts(layer, 0.05, {}, top=3)
    for i in range(12):
        follow = ids[i].tolist()
        if missing[i]:
            follow[-1] = int(layer.targets[i])
        pi = logits(layer, i, layer.weight).softmax(0)
        g = token_gradient(layer, i)
        change = 0.05 * g / (g.abs() + 1e-8)  # Adam's first step
        dz = (change @ layer.hidden[i] / layer.temperature[i])[follow]
        v = torch.nn.functional.one_hot(layer.targets[i], 7)[follow] - pi[follow]
        assert float(s[i]) == pytest.approx(float(v @ dz))
        assert float(w[i]) == pytest.approx(float(pi[follow] @ dz.square() - (pi[follow] @ dz).square()))


def test_all_logits_are_followed_where_there_are_no_more_than_that():
    layer = case()
    for a, b in zip(adam_shifts(layer, 0.05, {}, top=7), adam_shifts(layer, 0.05, {}, top=1000), strict=True):
        assert torch.equal(a, b)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99), chunk=st.integers(1, 9))
def test_rows_may_be_cut_and_ordered_at_will(seed, chunk):
    layer = case(seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    moments = adam_update(layer, {}, (0.9, 0.999), chunk)
    torch.testing.assert_close(moments["first"], adam_update(layer[order], {}, (0.9, 0.999))["first"])
    pairs = [
        (gradient_shifts(layer, 0.1), gradient_shifts(layer[order], 0.1, chunk)),
        (adam_shifts(layer, 0.1, moments), adam_shifts(layer[order], 0.1, moments, chunk=chunk)),
    ]
    for whole, cut in pairs:
        for a, b in zip(whole, cut, strict=True):
            torch.testing.assert_close(a[order], b)


def test_the_sign_of_the_advantage_turns_a_gradient_step_round():
    layer = case()
    other = LastLayer(layer.hidden, layer.weight, layer.bias, layer.targets, -layer.advantage, layer.temperature)
    (s, w), (t, x) = gradient_shifts(layer, 0.1), gradient_shifts(other, 0.1)
    torch.testing.assert_close(s, -t)
    torch.testing.assert_close(w, x)
    assert bool((s * layer.advantage > 0).all()) and math.isfinite(float(w.sum()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", torch.zeros(7, 3)), ("targets", torch.zeros(5, dtype=torch.int64)), ("advantage", torch.zeros(5)),
        ("bias", torch.zeros(6)), ("temperature", torch.ones(5)), ("temperature", 0.0), ("hidden", torch.zeros(6)),
    ],
)  # fmt: skip
def test_wrong_shapes_are_refused(name, value):
    layer = case()
    held = {n: getattr(layer, n) for n in ("hidden", "weight", "bias", "targets", "advantage", "temperature")}
    with pytest.raises(ValueError, match=f"^{name}: "):
        LastLayer(**{**held, name: value})
