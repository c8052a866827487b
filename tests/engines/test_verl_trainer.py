"""Credit under our trainers of verl: values, states and partial scores reach it, and its returns the critic."""

# ruff: noqa: E402  (what needs verl is imported after the skip)

import pytest
import torch
from verl_rows import B, drawn, same, uids, within

from partita.core.errors import UserError
from partita.core.registry import part_class

pytest.importorskip("verl", reason="verl is not installed; `make peers` runs these")
pytest.importorskip("transfer_queue", reason="TransferQueue is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

from tensordict import NonTensorStack
from verl_trainers import credited, trainer

from partita.engines.verl.states import talk

CRITIC = [
    ("gae", {}), ("gae", {"discount": 0.9, "gae_lambda": 0.7}), ("gae", {"observations": "zero"}),
    ("extended_gae", {"value_lambda": 0.6}), ("t_ppo", {}), ("monte_carlo", {"critic": True}),
]  # fmt: skip
STATES = [
    ("group_in_group", {}), ("gigpo", {"step_weight": 0.5, "std": False}), ("trajectory_graph", {}),
    ("salt", {"base": "rloo"}), ("subgroup_relative", {}), ("treepo", {"weighting": "size"}),
]  # fmt: skip


def hydra_of(settings):
    return "+algorithm.partita={" + ",".join(f"{k}:{v}" for k, v in settings.items()) + "}"


@pytest.mark.parametrize(("name", "settings"), CRITIC)
def test_values_reach_the_credit_and_returns_the_critic(name, settings, monkeypatch):
    one, part = trainer(name, "critic.enable=true", hydra_of(settings)), part_class("credit", name)(**settings)
    for seed in range(3):
        batch = drawn(seed)
        advantage, returns, _ = credited(one, batch, monkeypatch)
        same(advantage, part(batch))
        same(returns * batch.mask, part.returns(batch.but(advantage=part(batch))) * batch.mask)


@pytest.mark.parametrize(("name", "settings"), STATES)
def test_states_are_told_apart_by_what_the_policy_has_read(name, settings, monkeypatch):
    one, part = trainer(name, hydra_of(settings)), part_class("credit", name)(**settings)
    apart = 0.0
    for seed in range(3):
        batch = drawn(seed)
        advantage, _, after = credited(one, batch, monkeypatch)
        same(advantage, part(batch))
        apart = max(apart, float((part(batch) - part(batch.but(state_key=None, turn=None))).abs().max()))
        assert {"turn", "state_key"} <= set(after.fields)  # so that they travel to the loss
    assert apart > 1e-3


def test_a_state_is_what_has_been_read_since_the_turn_before():
    prompt, response, mask = (
        torch.tensor([7, 8]),
        torch.tensor([5, 1, 2, 5, 6, 3, 5]),
        torch.tensor([0, 1, 1, 0, 0, 1, 0]),
    )
    turn, key, turns = talk(prompt, response, mask)
    assert turn.tolist() == [0, 0, 0, 0, 0, 1, 1] and turns is None

    def state(prompt, response, mask):
        return talk(torch.tensor(prompt), torch.tensor(response), torch.tensor(mask)).key[-1]

    assert key[1] == key[4] == state([7, 8, 5], [1], [1]) != key[5]
    assert key[5] == key[6] == state([9], [1, 5, 6, 1], [1, 0, 0, 1]) != state([9], [1, 6, 5, 1], [1, 0, 0, 1])
    assert key[1] != state([7, 9, 5], [1], [1])
    assert talk(prompt, response, 0 * mask).turn.tolist() == [0] * 7
    told = talk(prompt, response, mask, ["a", "b"])
    assert told.turns == [{"state": "a", "action": "[1, 2]"}, {"state": "b", "action": "[3]"}]


def told_by(batch):
    """What an agent loop tells of states: those of the batch, with other names."""
    rows = zip(batch.mask, batch.turn, batch.state_key, strict=True)
    names = [dict(zip(turn[mask].tolist(), key[mask].tolist(), strict=True)) for mask, turn, key in rows]
    return [{"partita": {"turn_states": [f"room {key}" for key in name.values()]}} for name in names]


@pytest.mark.parametrize("name", ["gigpo", "salt", "treepo"])
def test_states_may_be_told_by_the_agent_loop(name, monkeypatch):
    batch, part = drawn(1), part_class("credit", name)()
    other = batch.but(state_key=1 + (batch.state_key + torch.arange(B)[:, None]) % 2)
    advantage, _, _ = credited(trainer(name), batch, monkeypatch, extra_fields=NonTensorStack(*told_by(other)))
    same(advantage, part(other))
    assert (part(other) - part(batch)).abs().max() > 1e-3


def test_texts_of_states_may_be_nearly_equal(monkeypatch):
    batch, settings = drawn(1), {"similarity": 0.8}
    told = told_by(batch)
    texts = tuple({"turns": [{"state": text} for text in row["partita"]["turn_states"]]} for row in told)
    advantage, _, _ = credited(trainer("gigpo", hydra_of(settings)), batch, monkeypatch, extra_fields=told)
    part = part_class("credit", "gigpo")
    same(advantage, part(**settings)(batch.but(records=texts)))
    assert (advantage - part()(batch)).abs().max() > 1e-3


def test_a_state_is_told_for_each_turn(monkeypatch):
    told = told_by(drawn(1))
    told[0]["partita"]["turn_states"].pop()
    with pytest.raises(UserError, match=r"\['turn_states'\]: expected 3 states, one for each run of ones .*, got 2"):
        credited(trainer("gigpo"), drawn(1), monkeypatch, extra_fields=told)


def test_padding_is_left_out_of_what_is_passed_on(monkeypatch):
    """verl makes its rows of copies of a real one, so that they hold its states though they have no turns."""
    batch, real = drawn(1), torch.arange(B) < B - 1
    uid = [*uids(batch)[:-1].tolist(), "pad" + "0a" * 16]
    mask = within(batch, batch.mask.long() * real[:, None])
    more = {"uid": uid, "response_mask": mask, "extra_fields": told_by(batch)}
    advantage, returns, _ = credited(trainer("gigpo"), batch, monkeypatch, **more)
    same(advantage[real], part_class("credit", "gigpo")()(batch[real]))
    assert not advantage[-1].any() and not returns[-1].any()


def test_without_turns_there_are_no_states(monkeypatch):
    batch = drawn(0, wide=1)
    advantage, _, after = credited(trainer("salt"), batch, monkeypatch)
    same(advantage, part_class("credit", "salt")()(batch.but(state_key=None, turn=None)))
    assert "turn" not in after.fields


def test_partial_scores_reach_the_credit(monkeypatch):
    batch = drawn(0)
    scores = torch.rand(B, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tolist()
    parts = tuple({"parts": {"right": a, "tidy": b}} for a, b in scores)
    extra = [{"reward_extra_info": about["parts"]} for about in parts]
    part = part_class("credit", "bnpo")(components=("right", "tidy"))
    one = trainer("bnpo", "+algorithm.partita={components: [right, tidy]}")
    advantage, _, _ = credited(one, batch, monkeypatch, extra_fields=extra)
    same(advantage, part(batch.but(records=parts)))


def test_what_verl_does_around_the_estimator_stays_as_it_is(monkeypatch):
    """The divergence in the reward and the rollout's correction are verl's own, before our credit."""
    batch = drawn(0)
    one = trainer("leave_one_out", "algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.kl_coef=0.5")
    advantage, _, _ = credited(one, batch, monkeypatch)
    paid = batch.reward - 0.5 * (batch.logp - batch.ref_logp) * batch.mask
    same(advantage, part_class("credit", "leave_one_out")()(batch.but(reward=paid)))
