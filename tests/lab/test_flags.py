"""Words to configurations and back: every flag reaches its field, every mistake gets one line."""

from __future__ import annotations

import json

import pytest

from partita.core.errors import UserError
from partita.core.registry import index, recipe
from partita.lab.config import Config
from partita.lab.flags import parse
from partita.parts.credit import GAE, GroupRelative, LeaveOneOut
from partita.parts.regularisers import KL, Entropy


def config(*words: str) -> Config:
    return parse(list(words))[0]


def test_numbers_and_fields_reach_their_places():
    found = config(
        "grpo", "--credit.eps", "1e-4", "--credit.no-std", "--steps", "7", "--objective.clip_high", "0.3",
        "--seed", "5",
        "--betas", "0.8", "0.9", "--rollout.temperature", "0.7", "--policy.lora-rank", "4", "--task.level", "2",
    )  # fmt: skip
    assert found.recipe.credit == GroupRelative(eps=1e-4, std=False)
    assert found.recipe.steps == 7
    assert found.recipe.objective.clip_high == 0.3
    assert found.recipe.betas == (0.8, 0.9)
    assert found.recipe.rollout.temperature == 0.7
    assert (found.settings.seed, found.policy.lora_rank, found.task.level) == (5, 4, 2)


def test_a_slot_takes_another_part_and_then_its_fields():
    found = config("grpo", "--credit", "gae", "--credit.gae-lambda", "0.5")
    assert found.recipe.credit == GAE(discount=1.0, gae_lambda=0.5), "None is settled by the domain"
    assert config("grpo", "--credit=leave_one_out").recipe.credit == LeaveOneOut()
    kept = config("ppo", "--credit", "gae").recipe.credit
    assert kept == recipe("ppo").credit.but(discount=0.99), "naming the part that is there keeps its settings"


def test_regularisers_are_chosen_together():
    found = config("grpo", "--regularisers", "kl,entropy", "--regularisers.kl.weight", "0.1")
    assert found.recipe.regularisers == (KL(weight=0.1), Entropy())
    assert config("ppo", "--regularisers", "none").recipe.regularisers == ()


def test_a_users_part_among_several_has_flags_under_its_class(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom partita.parts.reward import Reward\n\n\n@dataclass(frozen=True)\n"
        "class FlatTax(Reward):\n    rate: float = 0.1\n\n    def __call__(self, batch):\n"
        "        return batch.reward - self.rate\n"
    )
    words = ("--reward", f"outcome,{file}:FlatTax", "--reward.flat-tax.rate", "0.5")
    assert [p.settings() for p in config("ppo", *words).recipe.reward] == [{"scale": 1.0}, {"rate": 0.5}]


def test_environments_datasets_and_their_policies(tmp_path):
    assert config("ppo", "--env", "gym:Pendulum-v1").task.id == "Pendulum-v1"
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "1+1=", "answer": "2"}) + "\n")
    found = config("grpo", "--task", str(data), "--model", "somewhere")
    assert (found.task.path, found.policy.model, found.policy.part_name()) == (str(data), "somewhere", "language")
    assert config("grpo", "--task", "cartpole").policy.part_name() == "actor_critic"


@pytest.mark.parametrize("name", sorted(n for n, e in index()["recipes"].items() if e["loop"] != "exact"))
@pytest.mark.parametrize("task", ["cartpole", "arithmetic"])
def test_every_recipe_survives_its_own_configuration(name, task, tmp_path):
    found = config(name, "--task", task, "--seed", "3", "--lr", "0.01")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(found.to_json()))
    assert Config.read(path) == found
    assert parse(["--config", str(path)])[0] == found
    assert parse(["--config", str(path), "--seed", "4"])[0].settings.seed == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grop"], "did you mean grpo"),
        ([], "name a recipe"),
        (["ppo", "--credt", "gae"], "--credt: no such flag; did you mean credit"),
        (["ppo", "--lr", "abc"], "--lr: cannot read 'abc'; expected float"),
        (["ppo", "--lr", "-1"], "lr: expected a number above 0"),
        (["ppo", "--steps", "1.5"], "--steps: cannot read '1.5'; expected int"),
        (["ppo", "--seed"], "--seed: a value is missing"),
        (["ppo", "--credit"], "--credit: a value is missing"),
        (["ppo", "--whiten", "maybe"], "'none', 'batch', 'minibatch'"),
        (["ppo", "--credit.gae-lambda", "3"], "credit.gae_lambda: expected a number between 0 and 1, got 3"),
        (["ppo", "--objective", "gae"], "fills the slot `credit`; use --credit gae"),
        (["ppo", "--credit", "gae", "--credit", "monte_carlo"], "--credit: takes one part"),
        (["ppo", "--regularisers", "kl,klk"], "--regularisers klk: no such part"),
        (["ppo", "--task", "cartpol"], "did you mean cartpole"),
        (["ppo", "5"], "5"),
        (["ppo", "--device", "tpu"], "--device: expected auto, cpu, cuda"),
        (["ppo", "--config", "x.json"], "give one of them"),
        (["--config", "/nowhere.json"], "cannot be read: No such file"),
    ],
)
def test_mistakes_get_one_line(words, said):
    with pytest.raises(UserError) as error:
        parse(words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "nothing"}, "no such recipe"),
        ({"stepz": 3}, "no field `stepz`; did you mean steps"),
        ({"credit": {"part": "gae", "lambda": 1}}, "credit has no field `lambda`"),
        ({"credit": "gae"}, 'expected {"part": NAME'),
        ({"run": {"sed": 1}}, "run has no field `sed`"),
    ],
)
def test_configuration_files_that_are_wrong(change, said, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config("ppo").to_json(), **change}))
    with pytest.raises(UserError) as error:
        Config.read(path)
    assert said in str(error.value)
    path.write_text("{not json")
    with pytest.raises(UserError, match="not JSON"):
        Config.read(path)
