"""Our trainer on a real TransferQueue, in a Ray of this machine: what it writes is found by the actor's loss."""

# ruff: noqa: E402  (what needs verl is imported after the skip)

import os

import pytest
import torch
from verl_rows import SIZE, B, composed, drawn, same, stored, uids

from partita.core.registry import part_class

pytest.importorskip("verl", reason="verl is not installed; `make peers` runs these")
tq = pytest.importorskip("transfer_queue", reason="TransferQueue is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

import partita.engines.verl.plugin  # noqa: F401
from partita.engines.verl.rows import read


@pytest.fixture
def config():
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    config = composed(
        "actor_rollout_ref.rollout.name=vllm", f"actor_rollout_ref.rollout.n={SIZE}", "trainer.v1.trainer_mode=partita",
        "algorithm.adv_estimator=partita/gigpo", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "transfer_queue.enable=true", "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    )  # fmt: skip
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        tq.init(config.transfer_queue)
        yield config
        tq.close()
    finally:
        ray.shutdown()


def test_advantages_and_states_are_found_where_the_loss_looks(config):
    batch = drawn(0)
    table = {name: column for name, column in stored(batch).items() if name != "advantages"}
    columns = {name: column.unbind() if torch.is_tensor(column) else column for name, column in table.items()}
    rows = [{name: column[i] for name, column in columns.items()} for i in range(B)]
    for i, row in enumerate(rows):
        row["extra_fields"] = {"reward_extra_info": {"right": float(i)}, "turn_scores": []}
    keys = [f"{uid}_{i % SIZE}_0" for i, uid in enumerate(uids(batch))]
    tags = [{"seq_len": 1} for _ in rows]
    put = tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(rows), tags=tags)

    after = get_trainer_cls("partita")(config=config)._compute_advantage(put, {})
    data = tq.kv_batch_get(keys=after.keys, partition_id="train", select_fields=after.fields)
    same(data["advantages"].to_padded_tensor(0), part_class("credit", "gigpo")()(batch))
    found = read(data)
    assert torch.equal(found["turn"], batch.turn) and torch.equal(found["group"], batch.group)
    names, keys = batch.state_key[batch.mask], found["state_key"][batch.mask]
    assert torch.equal(names[:, None] == names, keys[:, None] == keys)
    same(found["outcome"], batch.outcome)
    for ours in ("value", "ref_logp", "entropy", "logp"):  # verl computes them on the world's tokens as well
        same(found[ours] * batch.mask, getattr(batch, ours))
