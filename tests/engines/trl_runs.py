"""Short runs of TRL's GRPOTrainer on the little model: its own, and with a recipe of ours."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import partita
from partita.papers.baselines.grpo import GRPO
from partita.parts.credit import GroupRelative
from partita.parts.rollout import Sample
from partita.policies.language import Language

if find_spec("trl"):  # read when it is imported; other tests are to find the environment as it was
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TQDM_DISABLE="1")
trl = pytest.importorskip("trl", reason="TRL is not installed; `make peers` runs these")

from datasets import Dataset  # noqa: E402

from partita.engines.trl import PartitaGRPOTrainer, grpo_config  # noqa: E402

MODEL = Path(partita.__file__).parent / "assets" / "models" / "tiny-0.3m"
DATA = Dataset.from_dict({"prompt": [f"{a}+{b}=" for a in range(2, 8) for b in range(1, 8)]})
HOT = Sample(temperature=2.5)  # at 1 the little model answers alike, groups tie, and nothing would be compared
PLAIN = GRPO.but(rollout=HOT, group_size=4)
TRLS = PLAIN.but(credit=GroupRelative(eps=1e-4))  # the constant in TRL's code


def score(completion_ids, **_):
    return [float(sum(ids) * 7919 % 11 > 4) + 0.25 * (len(ids) > 4) for ids in completion_ids]


def solved(completion_ids, **_):
    """Right or wrong, as verifiers say."""
    return [float(sum(ids) * 7919 % 11 > 4) for ids in completion_ids]


def settings(folder, **changes):
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "max_completion_length": 11, "max_steps": 3,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant",
        "logging_steps": 1, "seed": 3,
    } | changes  # fmt: skip


def policy():
    made = Language().build(None, False, torch.Generator())
    made.lm.config._name_or_path = str(MODEL)  # where TRL reads the reference again
    return made


def trainer(folder, recipe=None, kind=None, reward=score, rollout_func=None, **changes):
    """A trainer on the little model: TRL's own without a recipe."""
    made, changes = policy(), settings(folder, **changes)
    if recipe is None:
        theirs = {"num_generations": 4, "temperature": 2.5, "loss_type": "grpo"} | changes
        kind, more, args = trl.GRPOTrainer, {}, trl.GRPOConfig(**theirs)
    else:
        kind, more, args = kind or PartitaGRPOTrainer, {"recipe": recipe}, grpo_config(recipe, **changes)
    return kind(
        made.lm, reward, args=args, train_dataset=DATA, processing_class=made.tokenizer, rollout_func=rollout_func,
        **more,
    )  # fmt: skip


def trained(*args, **kwargs):
    out = trainer(*args, **kwargs)
    out.train()
    return out


def apart(a, b):
    """The largest difference between the weights of two models."""
    return max(float((x - y).detach().abs().max()) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def moved(one):
    return apart(one.model, policy().lm)
