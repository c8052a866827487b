"""Ranks that each keep a part of a model's layers end where one process does, and hold no more than their part."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from partita.core.errors import UserError
from partita.lab import checkpoint
from partita.lab.config import Config
from partita.lab.flags import parse
from partita.lab.run import CLOCK, read_rows
from partita.lab.train import build_policy, launch, train
from partita.loops.on_policy import gather
from partita.loops.run import Generators
from partita.policies.layers import decoder_layers
from partita.policies.shard import shard
from ranked import KNIFE_EDGE, compare, ranked, reopen, torchrun

SMALL = "--task arithmetic --steps 2 --batch-size 3 --group-size 2"
# Every way in which a loop reads, exchanges or moves weights. Of the 9 rows of "unlike" one rank reads prompts once for
# all responses, in a pass of its own, and the other does not.
WORDS = {
    "unlike": "grpo_kl --task calculator --steps 2 --batch-size 3 --group-size 3",
    "critic": f"ppo {SMALL} --epochs 1 --behaviour stale --behaviour.lag 1 --behaviour.refresh 1",
    "clipped": f"grpo_kl {SMALL} --epochs 2 --minibatches 2 --micro-batch 2 --max-grad-norm 0.01 --reference ema",
    "recomputed": f"grpo {SMALL} --policy.gradient-checkpointing",
    "adapter": "grpo_kl --task calculator --steps 2 --batch-size 2 --group-size 5 --policy.lora-rank 4",
    "preferences": "dpo --steps 2 --batch-size 5 --micro-batch 4",
}


def config(words, *more):
    return parse([*words.split(), "--seed", "1", "--adam-eps", "1e-3", *more])[0]


def test_parts_of_a_model_learn_what_the_whole_learns(tmp_path):
    configs = {name: config(words, "--shard") for name, words in WORDS.items()}
    found = ranked(configs, 2, tmp_path / "two")
    assert min(row["grad_norm"] for row in found["clipped"].metrics) > 0.01
    alone = compare(found, configs)
    for name in ("unlike", "adapter", "preferences"):  # weights and both moments of every layer, and the rest whole
        whole, part = alone[name].held, found[name].held
        assert set(whole) == set(part) and any("/exp_avg" in key for key in part)
        for key, count in whole.items():
            inside = ".layers." in key and not key.endswith("/step")
            assert part[key] == (count // 2 if inside else count), (name, key)


def test_a_sharded_run_goes_on_with_any_ranks_and_leaves_a_whole_model(tmp_path):
    words = {"steps": 4, "batch_size": 4, "group_size": 4, "seed": 3, "adam_eps": 1e-3, "eval_size": 8}
    alone = train("grpo_kl", "arithmetic", out=tmp_path / "alone", **words)
    flags = [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    folder, single = tmp_path / "many", tmp_path / "single"
    first = torchrun(2, "train", "grpo_kl", "--task", "arithmetic", *flags, "--save-every", "2", "--samples", "32",
                     "--shard", "--quiet", "--out", str(folder))  # fmt: skip
    assert first.returncode == 0, first.stderr[-8000:]
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == [1, 2]
    reopen(folder)
    shutil.copytree(folder, single)
    text = json.loads((folder / "config.json").read_text())
    text["run"]["shard"] = False  # a run of whole models may be sharded later
    (folder / "config.json").write_text(json.dumps(text))
    second = torchrun(3, "train", "--resume", str(folder), "--quiet", "--shard")  # 3: parts of unlike sizes
    assert second.returncode == 0, second.stderr[-8000:]
    held = Config.read(single / "config.json")
    assert held.settings.shard and launch(held, single, True).finished
    parts = folder / "checkpoints" / "step_00000002" / "parts"  # what a rank holds of layers, and a sum of it
    assert {path.suffixes[-1] for path in parts.iterdir()} == {".safetensors", ".sha256"}
    assert (
        len(list(parts.glob("*.safetensors"))) == 2 and len(list((parts / "../../step_00000004").rglob("shard*"))) == 6
    )
    for end in (folder, single):
        for one, several in zip(alone.metrics, read_rows(end / "metrics.jsonl"), strict=True):
            for key in set(one) - set(CLOCK) - KNIFE_EDGE:
                np.testing.assert_allclose(several[key], one[key], rtol=1e-4, atol=1e-5, err_msg=f"{end}: {key}")
        for read in (last_checkpoint, trained):
            mine, theirs = read(tmp_path / "alone"), read(end)
            assert set(mine) == set(theirs)
            for key, value in mine.items():
                torch.testing.assert_close(theirs[key], value, rtol=0, atol=1e-5, msg=f"{end}: {key}")
    damaged = next(parts.glob("*.safetensors"))
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(UserError, match=rf"parts/{damaged.name} does not match its checksum; remove that folder"):
        checkpoint.load(parts.parent)


def last_checkpoint(folder):
    """All tensors of the last checkpoint, by name."""
    tensors: dict[str, torch.Tensor] = {}
    checkpoint.flatten(checkpoint.load(folder / "checkpoints" / "step_00000004"), tensors)
    return tensors


def trained(folder):
    return load_file(folder / "policy" / "model.safetensors")


def test_passes_that_answer_no_rows_change_nothing():
    found = config(WORDS["unlike"])
    policy, rng = build_policy(found), Generators(1)
    batch = gather(found.recipe, policy, found.task, rng, 1)[0]
    ends = []
    for agree in (None, lambda made: made + 2):
        policy.agree = agree
        logp = policy.evaluate(batch).logp
        logp.sum().backward()
        ends.append((logp.detach(), *(p.grad for p in policy.trainable().values())))
        policy.module.zero_grad()
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("words", "why"), [
    ("ppo --task cartpole", "this policy has no decoder layers"),
    ("rm_ensembles --task lab --policy ensemble --policy.members 2", "this policy holds several models"),
])  # fmt: skip
def test_what_cannot_be_sharded_is_refused_by_name(words, why):
    with pytest.raises(UserError, match=f"--shard: .*{why}.*leave --shard out"):
        shard(build_policy(config(words)), torch.device("cpu"))


def test_models_and_parts_that_cannot_be_sharded_are_refused_by_name():
    found = config("archer")
    policy = build_policy(found)
    policy.sharded = True
    with pytest.raises(UserError, match="--shard: credit hierarchical_credit copies the layers"):
        found.recipe.check(found.task, policy)
    policy.lm.config.num_hidden_layers = 7
    with pytest.raises(UserError, match="--shard: a model of type llama has no list of 7 layers"):
        decoder_layers(policy.lm)


def test_one_process_begins_no_sharded_run(tmp_path):
    with pytest.raises(UserError, match="--shard: one process has nobody to share weights with"):
        train("grpo", "arithmetic", shard=True, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()
