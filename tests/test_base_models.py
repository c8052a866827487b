"""The base models that come with the package: they load, read every task, and are neither hopeless nor perfect."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from partita.core.registry import part_class
from partita.parts.rollout import Sample
from partita.policies.language import Language, LanguagePolicy
from partita.policies.loading import SHIPPED
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model

MODELS = {"tiny-0.3m": (250_000, 400_000), "tiny-1.5m": (1_300_000, 1_800_000)}
SINGLE = ("arithmetic", "strings", "countdown", "programs")
WORLDS = ("keydoor", "lookup", "calculator")


def built(model: str) -> LanguagePolicy:
    return Language(model=model).build(None, False, torch.Generator().manual_seed(0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("model", MODELS)
def test_configuration_and_tokenizer_are_as_documented(model: str) -> None:
    policy = built(model)
    low, high = MODELS[model]
    assert low < policy.lm.num_parameters() < high
    assert policy.context == 512
    assert policy.lm.config.model_type == "llama"
    assert policy.lm.config.tie_word_embeddings
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in policy.lm.parameters())
    tokenizer, made = policy.tokenizer, character_tokenizer(context=512)
    assert tokenizer.get_vocab() == made.get_vocab()
    assert len(tokenizer) == policy.lm.get_input_embeddings().weight.shape[0]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    text = "347+589=7+9+0=16;#936\n{~}"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


@pytest.mark.parametrize("model", MODELS)
def test_the_folder_holds_what_made_it_and_loads_nowhere_else(model: str) -> None:
    folder = SHIPPED / model
    recipe = json.loads((folder / "recipe.json").read_text())
    assert list(recipe["models"]) == [model]
    assert set(recipe["tasks"]) == {*SINGLE, *WORLDS}
    assert sum(f.stat().st_size for f in folder.iterdir()) < 4_500_000
    assert not [f.name for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert str(Path.home()) not in (folder / "config.json").read_text()


@pytest.mark.parametrize("name", [*SINGLE, *WORLDS])
def test_every_character_of_every_task_is_in_the_vocabulary(name: str) -> None:
    tokenizer = character_tokenizer(context=512)
    task = part_class("task", name)()
    for level in (*task.levels, task.hard):
        here = task.but(level=level)
        for problem in here.problems(20, seeded(level)):
            for flaw in (None, *here.flaws):
                given = here.demonstrate(problem, seeded(3), flaw)
                text = problem.prompt + given if isinstance(given, str) else here.transcript(problem, given).text
                ids = tokenizer.encode(text)
                assert tokenizer.unk_token_id not in ids
                assert len(ids) <= 512


@pytest.mark.parametrize(("model", "low", "high"), [("tiny-0.3m", 0.10, 0.40)])
def test_greedy_success_on_arithmetic_leaves_room_to_learn(model: str, low: float, high: float) -> None:
    task = part_class("task", "arithmetic")()
    batch = Sample().sample(built(model), task, task.problems(64, seeded(5)), 1, seeded(6), greedy=True)
    assert low <= float((batch.need("outcome") >= 1).float().mean()) <= high


def test_samples_find_what_the_greedy_answer_misses() -> None:
    policy, task = built("tiny-0.3m"), part_class("task", "arithmetic")(level=2)
    problems = task.problems(32, seeded(7))
    greedy = Sample().sample(policy, task, problems, 1, seeded(8), greedy=True)
    sampled = Sample().sample(policy, task, problems, 64, seeded(8))
    found = (sampled.need("outcome") >= 1).view(32, 64).any(1)
    missed = greedy.need("outcome") < 1
    assert int(missed.sum()) >= 8
    assert float(found[missed].float().mean()) >= 0.9


def test_the_hard_slice_of_arithmetic_is_out_of_reach() -> None:
    policy, task = built("tiny-0.3m"), part_class("task", "arithmetic")(level=6)
    batch = Sample().sample(policy, task, task.problems(16, seeded(9)), 64, seeded(9))
    assert float((batch.need("outcome") >= 1).view(16, 64).any(1).float().mean()) <= 0.1


@pytest.mark.parametrize("name", [*SINGLE, *WORLDS])
@pytest.mark.parametrize("model", MODELS)
def test_what_was_measured_leaves_something_to_select_and_something_to_demonstrate(model: str, name: str) -> None:
    measured = json.loads((Path(__file__).parents[1] / "docs" / "models.json").read_text())
    assert measured["settings"]["samples"] == 64
    assert measured["settings"]["problems"] >= 32
    task, rows = part_class("task", name)(), measured["models"][model][name]
    assert list(rows) == ["all", *map(str, task.levels), "hard"]
    assert 0.10 <= rows["all"]["greedy"] <= 0.40
    for level in task.levels:
        first, _, most = rows[str(level)]["passes"]
        assert most >= 0.85, level
        assert first < 0.75, level
    assert rows["hard"]["greedy"] <= 0.02
    assert rows["hard"]["passes"][-1] <= 0.10


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_the_forward_pass_written_out_for_training_is_that_of_the_library(kv_heads: int) -> None:
    path = Path(__file__).parents[1] / "scripts" / "llama_bf16.py"
    spec = importlib.util.spec_from_file_location("llama_bf16", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lm = tiny_model(tiny_config("llama", hidden=32, layers=2, heads=4, kv_heads=kv_heads), 3)
    tokens = torch.randint(4, 99, (3, 11), generator=seeded(1))
    keep = torch.rand(3, 11, generator=seeded(2)) < 0.5
    with torch.no_grad():
        torch.testing.assert_close(module.logits(lm, tokens, keep), lm(tokens).logits[keep], rtol=1e-4, atol=1e-5)
