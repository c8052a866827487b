"""A whole step of DPO and of KTO, from texts to gradients of the weights, by TRL's trainers and by the loop."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch

from partita.core import registry
from partita.loops.preference import Known, gather, losses, mismatched
from partita.loops.run import Generators
from partita.policies.language import Language
from partita.tasks.preferences.dataset import Comparisons

trl = pytest.importorskip("trl", reason="TRL is not installed; `make peers` runs these")
os.environ["HF_HUB_OFFLINE"] = "1"
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

PROMPTS = ("2+3=", "what is seven times six? ", "count to three: ", "x")
BETTER = ("5", "42", "1 2 3", "y z")
WORSE = ("23", "a hundred and one", "3", "?")


def policies():
    """A policy in float64, which has moved at random from where it was, and the model that it was."""
    policy = Language().build(None, False, torch.Generator())
    policy.lm.double()
    before = copy.deepcopy(policy.lm)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in policy.lm.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    return policy, before


def ours(name, rows, policy, before, folder):
    """The problems of a step in their order, its loss, and the gradient by every weight."""
    path = Path(folder) / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Comparisons(path=str(path), held_out=0.0).met(policy)
    recipe = registry.recipe(name).but(batch_size=len(rows), lr=1e-3).settle(task, policy).fresh()
    now = {k: v.clone() for k, v in policy.state_dict().items()}
    policy.load_state_dict({k: before.state_dict()[k.removeprefix("lm.")] for k in now})
    recipe.reference.start(policy)
    policy.load_state_dict(now)
    pairs, _ = gather(recipe, policy, task, Generators(0), 1, Known())
    if "drift" in recipe.needs():
        pairs = pairs.but(drift=mismatched(recipe.reference, policy, pairs))
    loss, _ = losses(recipe, policy, pairs, pairs)
    loss.backward()
    return [r["prompt"] for r in pairs.batch.records], loss.detach(), gradients(policy.lm)


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for p in model.parameters():
        p.grad = None
    return found


def theirs(kind, config, rows, policy, before, folder):
    """The same by a trainer of TRL."""
    from datasets import Dataset

    count = len(rows)
    args = config(
        output_dir=str(folder), per_device_train_batch_size=count, max_length=None, beta=0.1, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    model, tokenizer = copy.deepcopy(policy.lm), copy.deepcopy(policy.tokenizer)
    tokenizer.split_special_tokens = False  # it writes the end of sequence behind responses, as text
    data = Dataset.from_list(rows)
    trainer = kind(model, ref_model=before, args=args, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    model.train()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    return loss.detach(), gradients(model)


def close(mine, other):
    """TRL's head computes in float32, so that no more than its digits can agree."""
    torch.testing.assert_close(mine[0], other[0].to(mine[0]), rtol=1e-6, atol=1e-6)
    assert set(mine[1]) == set(other[1]) and mine[1]
    for name, gradient in mine[1].items():
        scale = gradient.abs().max()
        assert scale > 1e-6, name
        torch.testing.assert_close(gradient / scale, other[1][name] / scale, rtol=0, atol=1e-5, msg=name)


def test_a_step_of_dpo_is_the_same(tmp_path):
    policy, before = policies()
    rows = [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in zip(PROMPTS, BETTER, WORSE, strict=True)]
    _, *mine = ours("dpo", rows, policy, before, tmp_path)
    close(mine, theirs(trl.DPOTrainer, trl.DPOConfig, rows, policy, before, tmp_path))


def test_a_step_of_kto_is_the_same(tmp_path):
    """The mismatched responses are those of the next prompt, in the order of the batch, on both sides."""
    policy, before = policies()
    answers = (*BETTER[:2], *WORSE[2:])
    rows = [
        {"prompt": p, "completion": a, "label": i < 2} for i, (p, a) in enumerate(zip(PROMPTS, answers, strict=True))
    ]  # fmt: skip
    order, *mine = ours("kto", rows, policy, before, tmp_path)
    rows.sort(key=lambda row: order.index(row["prompt"]))
    close(mine, theirs(trl.KTOTrainer, trl.KTOConfig, rows, policy, before, tmp_path))


def test_the_end_of_sequence_is_letters_in_trl_where_a_tokenizer_spells_special_tokens_out(tmp_path):
    from datasets import Dataset

    policy, _ = policies()
    trainer = object.__new__(trl.DPOTrainer)
    trainer._tokenizer = policy.tokenizer
    config = trl.DPOConfig(output_dir=str(tmp_path), max_length=None, use_cpu=True, bf16=False, report_to="none")
    rows = Dataset.from_list([{"prompt": "x", "chosen": "y", "rejected": "z"}])
    row = trainer._prepare_dataset(rows, policy.tokenizer, config, "train")[0]
    end = policy.tokenizer.eos_token_id
    assert len(row["chosen_ids"]) > 2 and end not in row["chosen_ids"]
    batch = policy.written(["x"], ["y"], torch.zeros(1, dtype=torch.int64), ())
    assert batch.inputs["tokens"].tolist() == [[row["chosen_ids"][0], end]]
