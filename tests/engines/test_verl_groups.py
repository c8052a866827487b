"""The loss that our trainers give to workers, and groups that stay whole on the way there."""

# ruff: noqa: E402  (what needs verl is imported after the skip)

import pickle

import pytest
import torch
from verl_rows import SIZE, B, drawn, moved, ours, same, theirs

from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.papers.baselines.grpo import GRPO
from partita.parts.aggregate import SequenceMean

pytest.importorskip("verl", reason="verl is not installed; `make peers` runs these")
pytest.importorskip("transfer_queue", reason="TransferQueue is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl_trainers import KEYS, meta, started

from partita.engines.verl.groups import keep_whole
from partita.engines.verl.objective import Loss


def test_workers_are_given_a_loss_that_passes_on_what_rows_hold():
    one, batch = started("partita/pacs", "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean"), drawn(0)
    one.on_init_end()
    sent = pickle.loads(pickle.dumps(one.actor_rollout_wg.given["loss"]))  # as it travels to the workers
    mine = ours(GRPO.but(objective=part_class("objective", "pacs")(), aggregate=SequenceMean()), batch, moved(batch))
    other = theirs(None, batch, moved(batch), 1, lambda _, said, data: sent(model_output=said, data=data), group=SIZE)
    same(mine[1], other[1])


def test_so_they_are_for_a_part_of_one_s_own(monkeypatch):
    monkeypatch.setitem(POLICY_LOSS_REGISTRY, "mine", Loss(part_class("objective", "pacs")))
    one = started("mine")
    one.on_init_end()
    assert one.actor_rollout_wg.given["loss"].keywords["config"].policy_loss.loss_mode == "mine" and one.whole_groups


def test_verl_s_own_objectives_keep_verl_s_loss():
    one = started("vanilla")
    one.on_init_end()
    assert not one.actor_rollout_wg.given


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_and_micro_batches_hold_whole_groups(ranks):
    one = started("partita/pacs", ranks=ranks)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(3)).tolist()
    batch = meta([KEYS[i] for i in order])
    batch = one._balance_batch(batch, {})
    group = [key.split("_")[0] for key in batch.keys]
    assert sorted(batch.keys) == sorted(KEYS)
    assert all(len(set(group[i : i + SIZE])) == 1 for i in range(0, B, SIZE))
    one._update_actor(batch, {})
    assert one.actor_rollout_wg.given["batch"].extra_info["force_group_size"] == SIZE


def test_shares_of_ranks_cost_about_the_same():
    batch = meta()
    keep_whole(batch, 2, SIZE, 4)
    costs = [sum(tag["seq_len"] for tag in batch.tags[half]) for half in (slice(0, B // 2), slice(B // 2, B))]
    assert abs(costs[0] - costs[1]) == 108  # 396 in the order in which they came


def test_other_objectives_leave_the_order_to_verl():
    one = started("partita/reinforce")
    turned = KEYS[::2] + KEYS[1::2]
    batch = one._balance_batch(meta(turned), {})
    one._update_actor(batch, {})
    assert batch.keys == turned
    assert "force_group_size" not in one.actor_rollout_wg.given["batch"].extra_info


@pytest.mark.parametrize(("keys", "ranks", "minibatch", "told"), [
    (KEYS[1:], 1, 4, "group 7f has 2 rows"), (KEYS, 3, 3, "4 of them, and 3 a mini-batch"),
    (KEYS, 2, 3, r"\(actor.ppo_mini_batch_size\), must divide evenly by 2"),
])  # fmt: skip
def test_groups_that_cannot_be_kept_whole_are_refused(keys, ranks, minibatch, told):
    with pytest.raises(UserError, match=told):
        keep_whole(meta(keys), ranks, SIZE, minibatch)
