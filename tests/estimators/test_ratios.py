"""Ratios and divergence estimates: values by hand, and expectations against the exact divergence."""

import math

import pytest
import torch

from partita.estimators.ratios import kl_estimate, log_ratio, sequence_log_ratio

PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REF = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


def test_values_by_hand():
    logp, ref = torch.tensor([[math.log(0.5)]]).double(), torch.tensor([[math.log(0.2)]]).double()
    r = 0.2 / 0.5
    assert float(kl_estimate(logp, ref, "k1")) == pytest.approx(-math.log(r), rel=1e-7)
    assert float(kl_estimate(logp, ref, "k2")) == pytest.approx(math.log(r) ** 2 / 2, rel=1e-7)
    assert float(kl_estimate(logp, ref, "k3")) == pytest.approx(r - 1 - math.log(r), rel=1e-7)
    with pytest.raises(ValueError, match="estimator"):
        kl_estimate(logp, ref, "k4")  # type: ignore[arg-type]


def test_k1_and_k3_are_unbiased_estimates_of_the_divergence():
    exact = float((PI * (PI / REF).log()).sum())
    for estimator in ("k1", "k3"):
        mean = float((PI * kl_estimate(PI.log(), REF.log(), estimator)).sum())
        assert mean == pytest.approx(exact, abs=1e-12)
    assert bool((kl_estimate(PI.log(), REF.log(), "k3") >= 0).all())


def test_mean_gradients_of_the_estimates_as_losses():
    # Expected gradient through log pi of samples from pi, in closed form: k2 the divergence's, k1 zero, k3 the
    # gradient of the reverse divergence KL(ref || pi) (where supports agree).
    logits = PI.log().clone().requires_grad_()

    def gradient(loss):
        return torch.autograd.grad(loss, logits)[0]

    logp = logits.log_softmax(0)
    divergence = gradient((logp.exp() * (logp - REF.log())).sum())
    for estimator, expected in (("k1", torch.zeros(3)), ("k2", divergence), ("k3", PI - REF)):
        logp = logits.log_softmax(0)
        out = gradient((PI * kl_estimate(logp, REF.log(), estimator)).sum())
        torch.testing.assert_close(out, expected.double(), rtol=1e-10, atol=1e-12)


def test_log_ratio_and_its_clamp():
    logp, old = torch.tensor([[0.0, -1.0, -30.0]]), torch.tensor([[-2.0, -1.0, -1.0]])
    assert log_ratio(logp, old).tolist() == [[2.0, 0.0, -29.0]]
    assert log_ratio(logp, old, clamp=1.5).tolist() == [[1.5, 0.0, -1.5]]
    with pytest.raises(ValueError, match="behaviour_logp"):
        log_ratio(logp, old[:, :2])


def test_sequence_log_ratio_is_the_mean_over_the_mask():
    ratios = torch.tensor([[1.0, 2.0, 50.0], [4.0, 50.0, 50.0], [50.0, 50.0, 50.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert sequence_log_ratio(ratios, mask).tolist() == [[1.5], [4.0], [0.0]]
