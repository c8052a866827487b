"""Losses on comparisons: worked cases, gradients, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.pairs import Pairs
from partita.parts.contrast import BradleyTerry, Direct, Kto, Likelihood, Orpo, Regression, SelfPlay, Simpo
from partita.parts.tether import Anchor

FEW = settings(max_examples=20, deadline=None, derandomize=True)
LOSSES = (
    Direct(), Direct(loss="hinge"), Direct(loss="ipo"), Direct(mean=True), Direct(label_smoothing=0.1), Simpo(), Orpo(),
    SelfPlay(beta=0.5), Likelihood(), BradleyTerry(centre=0.1),
)  # fmt: skip


def case(prefer=(1.0, 1.0)) -> tuple[Outputs, Pairs]:
    """Two prompts with two responses each, lengths 2, 1, 3, 2."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    logp = torch.tensor([[-0.5, -1.0, 9], [-2.0, 9, 9], [-0.1, -0.2, -0.3], [-1.5, -0.5, 9]], dtype=torch.float64)
    value = torch.tensor([[9, 0.4, 9], [-0.2, 9, 9], [9, 9, 0.1], [9, 0.3, 9]], dtype=torch.float64)
    ref = torch.tensor([-1.0, -1.8, -0.9, -2.2], dtype=torch.float64)
    batch = Batch(mask=mask, group=torch.tensor([0, 0, 1, 1]), outcome=torch.tensor([1.0, 0.0, 0.5, 0.5]).double())
    first, second = torch.tensor([0, 2]), torch.tensor([1, 3])
    label = torch.tensor([1.0, 0.0, 1.0, math.nan], dtype=torch.float64)
    pairs = Pairs(batch, first, second, torch.tensor(prefer, dtype=torch.float64), None, label, ref, torch.tensor(0.2))
    return Outputs(logp=logp * mask, value=value * mask), pairs


def log_s(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_direct_losses_on_a_worked_case():
    out, pairs = case()
    # log pi: -1.5, -2.0, -0.6, -2.0; ratios to ref: -0.5, -0.2, 0.3, 0.2; differences: -0.3, 0.1
    h = [0.1 * -0.3, 0.1 * 0.1]
    assert Direct(beta=0.1)(out, pairs).tolist() == pytest.approx([-log_s(x) for x in h])
    assert Direct(beta=0.1, loss="hinge")(out, pairs).tolist() == pytest.approx([1 - x for x in h])
    assert Direct(beta=0.1, loss="ipo")(out, pairs).tolist() == pytest.approx([(-0.3 - 5) ** 2, (0.1 - 5) ** 2])
    smooth = Direct(beta=0.1, label_smoothing=0.2)(out, pairs).tolist()
    assert smooth == pytest.approx([-0.8 * log_s(x) - 0.2 * log_s(-x) for x in h])
    mean = [-0.5 / 2 - -0.2 / 1, 0.3 / 3 - 0.2 / 2]
    assert Direct(beta=0.1, mean=True)(out, pairs).tolist() == pytest.approx([-log_s(0.1 * x) for x in mean])


def test_reference_free_losses_on_a_worked_case():
    out, pairs = case()
    mean = [-0.75, -2.0, -0.2, -1.0]
    gaps = [mean[0] - mean[1], mean[2] - mean[3]]
    assert Simpo(beta=2.0, gamma=0.5)(out, pairs).tolist() == pytest.approx([-log_s(2 * g - 0.5) for g in gaps])

    def log_odds(m: float) -> float:
        return math.log(math.exp(m) / (1 - math.exp(m)))

    want = [-mean[a] - 0.3 * log_s(log_odds(mean[a]) - log_odds(mean[b])) for a, b in ((0, 1), (2, 3))]
    assert Orpo(weight=0.3)(out, pairs).tolist() == pytest.approx(want)
    assert Likelihood()(out, pairs.but(label=None)).tolist() == pytest.approx([0.75, 0.2])
    assert Likelihood()(out, pairs).tolist() == pytest.approx([0.75, 0.2])  # the rows labelled 1: 0 and 2


def test_kto_on_a_worked_case():
    out, pairs = case()
    r, z = [-0.05, -0.02, 0.03], 0.1 * 0.2

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    want = [1.5 * (1 - s(r[0] - z)), 0.5 * (1 - s(z - r[1])), 1.5 * (1 - s(r[2] - z))]
    assert Kto(beta=0.1, desirable=1.5, undesirable=0.5)(out, pairs).tolist() == pytest.approx(want)
    below = pairs.but(drift=torch.tensor(-3.0))  # a negative reference point counts as none
    assert Kto(beta=0.1)(out, below).tolist()[0] == pytest.approx(1 - s(r[0]))


def test_self_play_on_a_worked_case():
    out, pairs = case(prefer=(0.9, 0.3))
    want = [(-0.5 - 0.8) ** 2 + (-0.2 + 0.8) ** 2, (0.3 + 0.4) ** 2 + (0.2 - 0.4) ** 2]
    assert SelfPlay(beta=0.5)(out, pairs).tolist() == pytest.approx(want)


def test_reward_models_read_the_last_token():
    out, pairs = case()
    assert BradleyTerry()(out, pairs).tolist() == pytest.approx([-log_s(0.6), -log_s(-0.2)])
    far = pairs.but(margin=torch.tensor([1.0, 0.0], dtype=torch.float64))
    want = [-log_s(0.6 - 0.5) + 0.1 * 0.2**2, -log_s(-0.2) + 0.1 * 0.4**2]
    assert BradleyTerry(margin_scale=0.5, centre=0.1)(out, far).tolist() == pytest.approx(want)
    assert Regression()(out, pairs).tolist() == pytest.approx([0.18, 0.02, 0.08, 0.02])


def test_the_anchor_is_the_likelihood_of_the_better_response():
    out, pairs = case(prefer=(1.0, 0.0))
    assert float(Anchor(weight=0.5)(out, pairs).mean()) == pytest.approx(0.5 * (0.75 + 1.0) / 2)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda part: f"{part.part_name()}-{getattr(part, 'loss', '')}")
@FEW
@given(st.floats(0, 1), st.floats(0, 1))
def test_a_comparison_turned_round_costs_the_same(loss, p, q):
    out, pairs = case(prefer=(p, q))
    pairs = pairs.but(label=None)
    turned = pairs.but(first=pairs.second, second=pairs.first, prefer=1 - pairs.prefer)
    assert torch.allclose(loss(out, pairs), loss(out, turned))


@pytest.mark.parametrize("loss", [*LOSSES, Kto(), Regression()], ids=lambda part: part.part_name())
def test_padding_changes_nothing(loss):
    out, pairs = case()
    wide = Outputs(*(torch.cat((x, torch.full((4, 2), 7.0).double()), 1) for x in (out.logp, out.logp, out.value)))
    mask = torch.cat((pairs.batch.mask, torch.zeros(4, 2, dtype=torch.bool)), 1)
    more = pairs.but(batch=pairs.batch.but(mask=mask))
    wide = Outputs(logp=wide.logp, value=wide.value)
    assert torch.allclose(loss(wide, more), loss(out, pairs))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda part: f"{part.part_name()}-{getattr(part, 'loss', '')}")
def test_the_gradient_makes_the_preferred_response_likelier(loss):
    out, pairs = case()
    pairs = pairs.but(label=None)
    logp, value = out.logp.clone().requires_grad_(), out.value.clone().requires_grad_()
    loss(Outputs(logp=logp * pairs.batch.mask, value=value), pairs).sum().backward()
    slope = value.grad if "value" in loss.needs else logp.grad
    assert (slope[pairs.first].sum(1) < 0).all()
    if not isinstance(loss, Likelihood):
        assert (slope[pairs.second].sum(1) > 0).all()


def test_the_gradient_of_dpo_is_its_closed_form():
    out, pairs = case()
    logp = out.logp.clone().requires_grad_()
    part = Direct(beta=0.3)
    part(Outputs(logp=logp), pairs).sum().backward()
    h = part.reward(out, pairs)
    weight = 0.3 * (h[pairs.second] - h[pairs.first]).sigmoid()  # eq. 7's gradient: beta * s(r_l - r_w)
    assert torch.allclose(logp.grad[pairs.first], -weight[:, None] * pairs.batch.mask[pairs.first])
    assert torch.allclose(logp.grad[pairs.second], weight[:, None] * pairs.batch.mask[pairs.second])


def test_rows_keep_their_comparisons():
    _, pairs = case()
    some = pairs.rows(torch.tensor([False, False, True, True]))
    assert (some.first.tolist(), some.second.tolist(), some.ref.tolist()) == ([0], [1], [-0.9, -2.2])
    assert len(pairs.rows(torch.tensor([True, False, True, False]))) == 0
    lonely = pairs.but(first=pairs.first[:1], second=pairs.second[:1], prefer=pairs.prefer[:1])
    assert len(lonely.only_compared().batch) == 3  # row 3 has neither a comparison nor a label


def test_labels_follow_from_comparisons():
    _, pairs = case(prefer=(1.0, 0.2))
    assert pairs.labelled() is pairs
    bare = pairs.but(label=None)
    assert bare.labelled().label.tolist() == [1.0, 0.0, 0.0, 1.0]
    one = bare.but(first=bare.first[:1], second=bare.second[:1], prefer=bare.prefer[:1]).labelled().label
    assert one[:2].tolist() == [1.0, 0.0] and one[2:].isnan().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Direct(beta=0), "objective.beta"), (lambda: Direct(loss="log"), "objective.loss"),
        (lambda: Direct(label_smoothing=0.5), "label_smoothing"), (lambda: Simpo(gamma=-1), "gamma"),
        (lambda: Orpo(weight=-1), "weight"), (lambda: Kto(desirable=math.nan), "desirable"),
        (lambda: SelfPlay(beta=-1), "beta"), (lambda: BradleyTerry(centre=-1), "centre"),
        (lambda: Anchor(weight=-1), "anchor.weight"),
    ],
)  # fmt: skip
def test_bad_settings_name_the_field(make, words):
    with pytest.raises(UserError, match=words):
        make()
