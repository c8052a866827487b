"""`partita export`: the right weights in a folder that others load, whole or not at all, and every refusal."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_runs
import torch
from transformers import AutoModelForCausalLM

from partita import cli
from partita.core import registry
from partita.core.errors import UserError
from partita.lab import export as module
from partita.lab.config import Config, Settings
from partita.lab.export import main
from partita.lab.model_card import public
from partita.lab.source import opened, source
from partita.lab.train import load_policy
from partita.parts.rollout import Sample
from partita.policies.language import Language

TOKENS = torch.arange(4, 20)[None]


def trained(folder: Path, recipe="grpo", task="arithmetic", model="tiny-0.3m", **changes) -> Path:
    """The folder of two steps in language, with an adapter."""
    made = registry.recipe(recipe).but(steps=2, batch_size=2, lr=0.05, **changes)
    policy = Language(model=model, lora_rank=2)
    config = Config(recipe, made, registry.part_class("task", task)(), policy, Settings(eval_size=0, save_every=1))
    return tiny_runs.run(config, folder).folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    how = Sample(temperature=0.8, top_p=0.9, max_tokens=24)
    return trained(tmp_path_factory.mktemp("runs") / "first", group_size=4, rollout=how)


@pytest.fixture
def run(first, tmp_path):
    return shutil.copytree(first, tmp_path / "run")


@torch.no_grad()
def logits(lm):
    return lm(input_ids=TOKENS).logits


def read(folder):
    """The logits of a folder, loaded as anyone does."""
    return logits(AutoModelForCausalLM.from_pretrained(folder))


def export(capsys, *words):
    main([str(word) for word in words])
    return capsys.readouterr().out


def test_the_last_checkpoint_as_transformers_loads_it(run, capsys):
    said = export(capsys, run, "--to", "hf")
    out = run / "hf_step_00000002"
    assert said.startswith(f"wrote {out}: read back by transformers, its logits are at most ")
    _, policy = load_policy(run)
    expected = logits(policy.lm)
    with policy.adapter.disable_adapter():
        assert float((logits(policy.lm) - expected).abs().max()) > 0.1
    torch.testing.assert_close(read(out), expected, rtol=0, atol=1e-3)
    assert {p.name for p in out.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert len({p.stat().st_mode for p in out.iterdir()}) == 1


def test_a_checkpoint_by_its_step(run, tmp_path, capsys):
    export(capsys, run, "--checkpoint", 1)
    export(capsys, run, "--checkpoint", 2, "--out", tmp_path / "second")
    assert float((read(run / "hf_step_00000001") - read(tmp_path / "second")).abs().max()) > 1e-3


@pytest.mark.parametrize("where", ["run without checkpoints", "its saved policy", "a saved policy by itself"])
def test_a_saved_policy_is_as_good(run, tmp_path, capsys, where):
    export(capsys, run, "--out", tmp_path / "whole")
    shutil.rmtree(run / "checkpoints")
    folder = {"run without checkpoints": run, "its saved policy": run / "policy"}.get(where)
    if folder is None:
        folder = (run / "policy").rename(tmp_path / "moved")
    export(capsys, folder, "--out", tmp_path / "again")
    assert torch.equal(read(tmp_path / "again"), read(tmp_path / "whole"))
    same = (tmp_path / "again" / "README.md").read_text() == (tmp_path / "whole" / "README.md").read_text()
    assert same == (where != "a saved policy by itself")


def test_an_export_is_exported_with_its_own_dtype(run, tmp_path, capsys):
    export(capsys, run, "--dtype", "bfloat16", "--out", tmp_path / "half")
    export(capsys, tmp_path / "half", "--out", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"
    assert torch.equal(read(tmp_path / "half"), read(tmp_path / "again"))


def test_sampling_is_that_of_the_run(run, capsys):
    export(capsys, run)
    held = json.loads((run / "hf_step_00000002" / "generation_config.json").read_text())
    expected = {
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 0,
        "max_new_tokens": 24,
        "eos_token_id": 2,
    }
    assert held.items() >= expected.items()


def test_recipes_without_a_rollout_sample_plainly(tmp_path):
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert module.sampling(None) == plain
    dpo = tiny_runs.grpo()
    dpo = replace(dpo, recipe=registry.recipe("dpo"), task=registry.part_class("task", "lab")())
    assert module.sampling(dpo) == {**plain, "max_new_tokens": dpo.task.max_tokens}


def test_the_card_says_what_it_is_and_nothing_of_this_machine(first, tmp_path, capsys):
    base = opened(source(first))[0]
    base.save(tmp_path / "base", merged=True)
    run = trained(tmp_path / "run", model=str(tmp_path / "base"), group_size=2)
    export(capsys, run, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for row in ("recipe | grpo", "task | arithmetic", "step | 2", "base model | a local model", "LoRA of rank 2"):
        assert f"| {row}" in card
    assert 'tags: [partita, "grpo"]' in card and '`"\\n"`' in card and "base_model:" not in card
    for file in (tmp_path / "out").glob("*[nd]"):  # .json and .md
        assert str(tmp_path) not in file.read_text()


def test_names_of_base_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "last").mkdir(parents=True)
    assert public("tiny-0.3m") == "tiny-0.3m"
    assert public("gpt2") == "gpt2" and public("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert public("/home/me/model") is None and public("models/mine/last") is None and public("mine/last") is None


def test_what_is_there_is_kept_unless_it_is_an_export_and_forced(run, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()  # an empty folder may be taken
    export(capsys, run, "--checkpoint", 1, "--out", out)
    before = read(out)
    with pytest.raises(UserError, match=f"--out {out}: holds an exported model; .* --force to replace it"):
        main([str(run), "--out", str(out)])
    assert torch.equal(read(out), before)
    export(capsys, run, "--out", out, "--force")
    assert not torch.equal(read(out), before)
    assert {p.name for p in tmp_path.iterdir()} == {"run", "out"}


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), KeyboardInterrupt(), UserError("no")])
def test_nothing_half_written_stays(run, tmp_path, capsys, monkeypatch, raised):
    export(capsys, run, "--out", tmp_path / "old")
    before = read(tmp_path / "old")

    def fails(policy, folder, *settings):
        (folder / "model.safetensors").write_text("half")
        raise raised

    monkeypatch.setattr(module, "write", fails)
    for name, more in (("old", ["--force"]), ("new", [])):
        with pytest.raises(KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else UserError):
            main([str(run), "--out", str(tmp_path / name), *more])
    assert {p.name for p in tmp_path.iterdir()} == {"run", "old"}
    assert torch.equal(read(tmp_path / "old"), before)


def test_policies_that_do_not_write_are_refused(tmp_path):
    control = tiny_runs.run(tiny_runs.ppo(), tmp_path / "control").folder
    moved = shutil.copytree(control / "policy", tmp_path / "moved")
    for folder, saved in ((control, control / "policy"), (control / "policy", control / "policy"), (moved, moved)):
        with pytest.raises(UserError, match=f"only language models are exported; .*{saved / 'policy.safetensors'}"):
            main([str(folder)])
    judge = trained(tmp_path / "judge", "reward_model", "lab")
    for folder in (judge, judge / "policy"):
        with pytest.raises(UserError, match=r"holds a reward model \(reward_model\), which judges and does not write"):
            main([str(folder)])
    (tmp_path / "ensemble" / "member_1").mkdir(parents=True)
    with pytest.raises(UserError, match="an ensemble of reward models"):
        main([str(tmp_path / "ensemble")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "export: expected DIR, got nothing"),
        (["nowhere"], "nowhere: no such folder"),
        (["run", "more"], "expected DIR, got run more"),
        (["run", "--to", "gguf"], "--to: expected hf, got 'gguf'"),
        (["run", "--dtype", "int8"], "--dtype: expected float32, bfloat16 or float16, got 'int8'"),
        (["run", "--checkpoint", "7"], "--checkpoint 7: run holds 1 and 2"),
        (["run", "--checkpoint", "last"], "--checkpoint: expected a whole number of 1 or more"),
        (["run/policy", "--checkpoint", "1"], "--checkpoint 1: run/policy is not a run"),
        (["empty"], "empty: neither a run nor a saved policy"),
        (["broken"], "broken/config.json: cannot be read as JSON"),
        (["run", "--out", "empty/no/out"], "the folder empty/no does not exist; make it first"),
        (["run", "--out", "broken", "--force"], "--out broken: exists and is no exported model"),
        (["run", "--out", "run", "--force"], "--out run: is what is exported"),
        (["run", "--out", "run/config.json", "--force"], "exists and is no exported model"),
        (["run", "--ot", "x"], "export: no flag --ot"),
    ],
)
def test_bad_words_get_one_line_and_write_nothing(words, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        main(words)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_with_nothing_to_export(run):
    shutil.rmtree(run / "policy")
    state = run / "checkpoints" / "step_00000002" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged checkpoint"):
        main([str(run)])
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet; continue it with: partita train --resume"):
        main([str(run)])
    assert not list(run.glob("*hf*"))


@pytest.mark.parametrize("command", ["export", "serve"])
def test_the_command_line_has_it(command, capsys):
    cli.main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"partita {command} DIR")
    cli.main(["--help"])
    assert f"partita {command} DIR" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "a", "b"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"partita: {command}: expected DIR, got a b\n"
