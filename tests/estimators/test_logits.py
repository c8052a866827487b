import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.estimators.logits import gather_logp_entropy


def _case(n=7, v=11, d=5, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(v, d, generator=g, dtype=torch.float64).to(dtype)
    bias = torch.randn(v, generator=g, dtype=torch.float64).to(dtype)
    targets = torch.randint(v, (n,), generator=g)
    tau = 0.5 + torch.rand(n, generator=g, dtype=torch.float64)
    return hidden, weight, bias, targets, tau


def _plain(hidden, weight, bias, targets, tau):
    z = hidden @ weight.T + (0 if bias is None else bias)
    logp = (z / (tau[:, None] if isinstance(tau, torch.Tensor) else tau)).log_softmax(1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(1)


def test_two_tokens_by_hand():
    # logits 0 and ln 3 give probabilities 1/4 and 3/4
    hidden = torch.tensor([[1.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0], [3.0]], dtype=torch.float64).log()
    logp, entropy = gather_logp_entropy(hidden, weight, None, torch.tensor([1]), entropy=True)
    quarter = torch.tensor(0.25, dtype=torch.float64)
    torch.testing.assert_close(logp[0], (3 * quarter).log())
    torch.testing.assert_close(entropy[0], -(quarter * quarter.log() + 3 * quarter * (3 * quarter).log()))


@pytest.mark.parametrize("chunk", [0, 1, 3, 7, 50])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_equal_the_plain_computation(chunk, per_row, with_bias):
    hidden, weight, bias, targets, tau = _case()
    tau = tau if per_row else 0.7
    tensors = [hidden, weight] + ([bias] if with_bias else [])
    coefficients = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got, want = [], []
    for function, out in ((gather_logp_entropy, got), (_plain, want)):
        leaves = [t.clone().requires_grad_() for t in tensors]
        args = (leaves[0], leaves[1], leaves[2] if with_bias else None, targets, tau)
        logp, entropy = function(*args, True, chunk) if function is gather_logp_entropy else function(*args)
        (coefficients[0] @ logp + coefficients[1] @ entropy).backward()
        out += [logp.detach(), entropy.detach(), *(x.grad for x in leaves)]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("entropy", [False, True])
def test_gradcheck(entropy):
    hidden, weight, bias, targets, tau = _case(n=5, v=6, d=3)

    def function(h, w, b):
        logp, ent = gather_logp_entropy(h, w, b, targets, tau, entropy, chunk=2)
        return (logp, ent) if entropy else logp

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in (hidden, weight, bias)])


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, _, targets, _ = _case()
    gather_logp_entropy(hidden.requires_grad_(), weight, None, targets)[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_half_precision_is_reduced_in_float32():
    hidden, weight, bias, targets, tau = _case(n=64, v=300, d=16, dtype=torch.bfloat16)
    leaf = weight.clone().requires_grad_()
    logp, entropy = gather_logp_entropy(hidden, leaf, bias, targets, tau, True, chunk=16)
    assert logp.dtype == entropy.dtype == torch.float32
    assert leaf.grad is None
    (logp.sum() + entropy.sum()).backward()
    assert leaf.grad.dtype == torch.bfloat16
    want, want_entropy = _plain(hidden.double(), weight.double(), bias.double(), targets, tau)
    torch.testing.assert_close(logp.double(), want, rtol=0.02, atol=0.1)
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=0.05, atol=0.1)


def test_no_rows():
    _, weight, bias, _, _ = _case()
    leaf = weight.requires_grad_()
    logp, entropy = gather_logp_entropy(
        torch.zeros(0, 5, dtype=torch.float64), leaf, bias, torch.zeros(0, dtype=torch.int64), 1.0, True
    )
    logp.sum().backward()
    assert logp.shape == entropy.shape == (0,)
    assert leaf.grad.abs().sum() == 0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 100), chunk=st.integers(1, 9))
def test_a_shift_of_all_logits_changes_nothing(shift, seed, chunk):
    hidden, weight, bias, targets, tau = _case(seed=seed)
    a = gather_logp_entropy(hidden, weight, bias, targets, tau, True, chunk)
    b = gather_logp_entropy(hidden, weight, bias + shift, targets, tau, True)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_wrong_input_is_named():
    hidden, weight, bias, targets, _ = _case()
    with pytest.raises(ValueError, match=r"targets: expected \(N,\) or \(N, K\) = \(7,\)"):
        gather_logp_entropy(hidden, weight, bias, targets[:3])
    with pytest.raises(ValueError, match="weight: expected"):
        gather_logp_entropy(hidden, weight[:, :2], bias, targets)
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        gather_logp_entropy(hidden, weight, bias, targets, 0)
    with pytest.raises(ValueError, match="hidden: expected a floating-point"):
        gather_logp_entropy(hidden.long(), weight, bias, targets)


def test_several_tokens_a_row_are_each_as_if_asked_for_alone():
    hidden, weight, bias, targets, tau = _case()
    several = torch.stack((targets, (targets + 1) % 5, targets), 1)  # one of them twice
    leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    logp, entropy = gather_logp_entropy(*leaves, several, tau, True, chunk=3)
    alone = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    each = [gather_logp_entropy(*alone, several[:, k], tau, True, chunk=3) for k in range(3)]
    torch.testing.assert_close(logp, torch.stack([l for l, _ in each], 1))
    torch.testing.assert_close(entropy, each[0][1])
    c = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (c * logp).sum().backward()
    sum((c[:, k] * each[k][0]).sum() for k in range(3)).backward()
    for a, b in zip(leaves, alone, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)
