"""Our trainers of verl in this process: configurations, a queue of one table, workers that note what they get."""

from types import SimpleNamespace

import transfer_queue as tq
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils import tensordict_utils as tu
from verl_rows import SIZE, B, composed, drawn, stored, uids

import partita.engines.verl.plugin  # noqa: F401

LEAST = (
    "actor_rollout_ref.rollout.name=vllm", f"actor_rollout_ref.rollout.n={SIZE}",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
)  # fmt: skip
OBJECTIVE = "actor_rollout_ref.actor.policy_loss.loss_mode=partita/"
KEYS = [f"{uid}_{i % SIZE}_0" for i, uid in enumerate(uids(drawn(0)))]
SEPARATE = (
    "data.train_batch_size=16", "actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
)  # fmt: skip


def trainer(credit="leave_one_out", *overrides, mode="partita"):
    """A trainer as verl's launcher makes it, whose credit has not seen anything."""
    name = credit if credit == "grpo" else f"partita/{credit}"
    config = composed(*LEAST, f"algorithm.adv_estimator={name}", f"trainer.v1.trainer_mode={mode}", *overrides)
    if credit != "grpo":
        get_adv_estimator_fn(name)._made = None
    return get_trainer_cls(config.trainer.v1.trainer_mode)(config=config)


class Queue:
    """A TransferQueue of this process: one table."""

    def __init__(self, batch, without=("advantages",), **more):
        self.table = {k: v for k, v in {**stored(batch), **more}.items() if k not in without}

    def get(self, keys, partition_id, select_fields):
        return tu.get_tensordict({k: self.table[k] for k in select_fields if k in self.table})

    def put(self, keys, partition_id, fields=None, tags=None):
        self.table.update(dict(fields.items()))
        return meta(keys, fields=list(self.table))


def meta(keys=KEYS, **more):
    """Rows of the queue, by name."""
    tags = [{"seq_len": 10 + i * i} for i in range(len(keys))]
    return tq.KVBatchMeta(keys=list(keys), tags=tags, partition_id="train", **more)


def credited(one, batch, monkeypatch, **queue):
    """Advantages and returns that a trainer leaves in the queue, (B, T), and what it hands on."""
    held = Queue(batch, **queue)
    monkeypatch.setattr(tq, "kv_batch_get", held.get)
    monkeypatch.setattr(tq, "kv_batch_put", held.put)
    after = one._compute_advantage(meta(), {})
    width = batch.mask.shape[1]
    return *(held.table[n].to_padded_tensor(0, (B, width)) for n in ("advantages", "returns")), after


def workers(ranks):
    """What a trainer asks of its workers; `given` is what they are handed."""
    one = SimpleNamespace(given={}, _dispatch_info={"actor": list(range(ranks))})
    one.set_loss_fn = lambda loss_fn: one.given.update(loss=loss_fn)
    one.update_actor = lambda batch: one.given.update(batch=batch) or tu.get_tensordict({}, {"metrics": {"mfu": [0.0]}})
    return one


def started(objective, *overrides, ranks=1):
    """A trainer with such workers."""
    one = trainer("grpo", f"actor_rollout_ref.actor.policy_loss.loss_mode={objective}", *overrides)
    one.actor_rollout_wg, one.global_steps, one.distillation_config = workers(ranks), 0, None
    one.checkpoint_manager = SimpleNamespace(update_weights=lambda steps: None)
    one.tokenizer = SimpleNamespace(eos_token_id=0)
    return one
