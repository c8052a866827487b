"""Credit as verl's advantage estimators: what verl computes of its rows is what our parts compute of ours."""

# ruff: noqa: E402  (what needs verl is imported after the skip)

import pytest
import torch
from verl_rows import B, drawn, proto, same

from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.parts.credit import LeaveOneOut

pytest.importorskip("verl", reason="verl is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage

import partita.engines.verl.plugin  # noqa: F401
from partita.engines.verl.credit import Estimator
from partita.engines.verl.fits import fits
from partita.engines.verl.rows import beside

SEEDS = pytest.mark.parametrize("seed", range(4))
PLAIN = [name for fit in fits() if fit.slot == "credit" and fit.way == "signature" for name in fit.names]
SETTINGS = [
    ("group_relative", {"std": False}), ("group_relative", {"eps": 0.1, "unbiased": False}),
    ("constant", {"value": 2.5}), ("monte_carlo", {"discount": 0.7}), ("beta_normalised", {"alpha": 2.0, "beta": 1.5}),
    ("topr", {"baseline": 0.3}), ("riskpo", {"bundle": 2, "baseline": "mean"}), ("hybrid", {"std": True}),
]  # fmt: skip


def estimated(name, data, **settings):
    """Advantages and returns that verl's own function comes to."""
    config = OmegaConf.create({"gamma": 1.0, "partita": settings} if settings else {"gamma": 1.0})
    found = compute_advantage(data, adv_estimator=name, config=config).batch
    return found["advantages"], found["returns"]


def renewed(name):
    """Let the registered estimator forget what it has seen."""
    get_adv_estimator_fn(name)._made = None


@SEEDS
@pytest.mark.parametrize("name", PLAIN)
def test_advantages_are_ours_and_padding_gets_none(seed, name):
    batch = drawn(seed)
    renewed(name)
    advantage, returns = estimated(name, proto(batch))
    same(advantage[:B], part_class("credit", name.removeprefix("partita/"))()(batch))
    assert not advantage[B:].any() and torch.equal(advantage, returns)


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_settings_travel_with_the_configuration(name, settings):
    batch, part = drawn(1), part_class("credit", name)
    renewed(f"partita/{name}")
    advantage, _ = estimated(f"partita/{name}", proto(batch), **settings)
    same(advantage[:B], part(**settings)(batch))
    assert (part(**settings)(batch) - part()(batch)).abs().max() > 1e-3


def test_padding_would_change_credit_that_looks_at_the_whole_batch():
    batch = drawn(0)
    with_padding = proto(batch)
    with_padding.non_tensor_batch["uid"][B:] = "a group"
    for name in ("partita/bnpo", "partita/riskpo"):
        renewed(name)
        right, _ = estimated(name, proto(batch))
        renewed(name)
        wrong, _ = estimated(name, with_padding)
        assert (right - wrong)[:B].abs().max() > 1e-3


@pytest.mark.parametrize("name", PLAIN)
def test_rows_may_come_in_any_order(name):
    batch = drawn(2)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    renewed(name)
    advantage, _ = estimated(name, proto(batch[order]))
    rows = batch[order]
    number = {g: i for i, g in enumerate(dict.fromkeys(rows.group.tolist()))}  # groups in the order they come
    rows = rows.but(group=torch.tensor([number[g] for g in rows.group.tolist()]))
    same(advantage[:B], part_class("credit", name.removeprefix("partita/"))()(rows))


def test_rejected_rows_and_the_precision_of_verl_are_kept():
    batch = drawn(0)
    data = proto(batch)
    data.batch["response_mask"][1] = 0
    data.batch["token_level_rewards"] = data.batch["token_level_rewards"].float()
    advantage, _ = estimated("partita/leave_one_out", data)
    rejected = batch.but(mask=batch.mask & (torch.arange(B) != 1)[:, None])
    torch.testing.assert_close(advantage[:B], LeaveOneOut()(rejected).float())


def test_what_a_part_remembers_lasts_from_step_to_step():
    name, part = "partita/riskpo", part_class("credit", "riskpo")()
    renewed(name)
    for seed in range(3):
        same(estimated(name, proto(drawn(seed)))[0][:B], part(drawn(seed)))
    fresh = part_class("credit", "riskpo")()(drawn(2))
    assert (estimated(name, proto(drawn(2)))[0][:B] - fresh).abs().max() > 1e-3


def test_other_settings_make_another_part():
    name, batch = "partita/constant", drawn(0)
    for value in (2.0, 3.0, 3.0):
        same(estimated(name, proto(batch), value=value)[0][:B], value * batch.mask.double())


def test_a_part_of_one_s_own_needs_a_line():
    batch = drawn(0)
    data = proto(batch)
    advantage, _ = Estimator(LeaveOneOut)(
        data.batch["token_level_rewards"], data.batch["response_mask"], index=data.non_tensor_batch["uid"]
    )
    same(advantage[:B], LeaveOneOut()(batch))
    alone, _ = Estimator(LeaveOneOut)(data.batch["token_level_rewards"], data.batch["response_mask"])
    same(alone[:B], batch.reward.sum(1, keepdim=True) * batch.mask)  # without names every row is its own group


@pytest.mark.parametrize("fit", [fit for fit in fits() if fit.slot == "credit" and fit.way == "trainer"])
def test_what_verl_does_not_pass_on_is_asked_for(fit):
    for name in fit.names:
        with pytest.raises(
            UserError, match=rf"credit {fit.name} reads .*; train with trainer\.v1\.trainer_mode=partita"
        ):
            estimated(name, proto(drawn(0)))


def test_values_are_asked_for_where_settings_want_them():
    batch = drawn(0)
    with pytest.raises(UserError, match=r"credit monte_carlo reads values .* critic\.enable=true"):
        estimated("partita/monte_carlo", proto(batch), critic=True)
    with beside({}), pytest.raises(UserError, match=r"credit gae reads values .* critic\.enable=true"):
        estimated("partita/gae", proto(batch))


def test_settings_that_a_part_refuses_are_told():
    data = proto(drawn(0))
    with pytest.raises(UserError, match="credit has no field `sdt`; did you mean std"):
        estimated("partita/group_relative", data, sdt=False)
    with pytest.raises(UserError, match=r"credit\.baseline: expected a number from -1 to 1, got 3"):
        estimated("partita/topr", data, baseline=3)
