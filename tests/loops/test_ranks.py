"""Several processes that train together end where one process does: weights and metrics, for every part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from partita.core import ranks, registry
from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.lab.config import Config
from partita.lab.flags import parse
from partita.lab.run import CLOCK, read_rows
from partita.lab.train import train
from partita.loops.on_policy import OnPolicy
from partita.policies import spread
from partita.policies.actor_critic import ActorCriticPolicy
from partita.policies.feed_forward import FeedForward
from partita.tasks.control.classic import Pendulum
from ranked import KNIFE_EDGE, compare, ranked, reopen, torchrun

# What a recipe needs beside its own name to run; {folder} has runs of other recipes. No adam_eps so small that
# gradients which are nothing but rounding become steps.
WORDS = {
    "pmoe_ppo": "--task pendulum --policy mixture_actor_critic",
    "archer": "--credit.warmup 0 --credit.updates 2",
    "rm_ensembles": "--policy ensemble --policy.members 2",
    "rm_ensembles_mean": "--task lab --reward.conservative.models {folder}/rm_ensembles",
    "rto": "--task lab --reward.token_reward.model {folder}/dpo",
    "salsa": "--reference.models {folder}/sft",
    "spo_proxy_lm": "--reward.outcome_part.name answer",
    "odice": "--task offline", "iql": "--task offline", "td3_bc": "--task offline", "bc": "--task offline",
    "decision_transformer": "--task offline", "sac": "--task pendulum", "pmoe": "--task pendulum",
}  # fmt: skip


def config(name, folder, *more):
    words = WORDS.get(name, "").format(folder=folder).split()
    found, _ = parse([name, *words, "--adam-eps", "1e-3", "--seed", "1", *more])
    return Config(name, found.recipe.small().but(adam_eps=1e-3), found.task, found.policy, found.settings)


def covering(loop, wanted):
    """As few registered recipes of a loop as have all the parts wanted."""
    recipes = {n: r for n in registry.index()["recipes"] if (r := registry.recipe(n)).loop == loop}
    held = {name: {(p.slot, p.part_name()) for p in recipe.parts()} & wanted for name, recipe in recipes.items()}
    left, chosen = set.union(*held.values()), []
    while left:
        chosen.append(max(held, key=lambda name: len(held[name] & left)))
        left -= held[chosen[-1]]
    return chosen, wanted - set.union(*held.values())


def parts(slots, loop):
    table = registry.index()["parts"]
    found = ((slot, name, registry.part_class(slot, name)) for slot in slots for name in table[slot])
    return {(slot, name) for slot, name, part in found if part.loop in ("", loop)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs that other recipes start from."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("rm_ensembles", "reward_model", "dpo", "sft"):
        small = config(name, root)
        train(small.recipe, small.task, small.policy, root / name, steps=1, eval_size=0)
    return root


def extra(folder):
    """Runs with the parts that no recipe has, by the part's name."""
    words = {
        "soft_overlong": "grpo --reward outcome,soft_overlong",
        "scaled_by_return": "ppo --reward outcome,scaled_by_return",
        "reward_model": "rlhf_rloo --task lab --reward reward_model --reward.reward_model.model "
        + f"{folder}/reward_model",
        "stale": "grpo --behaviour stale",
        "replayed": "grpo --behaviour replayed",
        "ema": "grpo_kl --reference ema",
        "reset": "grpo_kl --reference reset --reference.every 1",
        "proximal": "grpo_kl --reference proximal",
        "utterance_advantage": "gigpo --credit utterance_advantage",
    }
    return {part: config(line.split()[0], folder, *line.split()[1:]) for part, line in words.items()}


def test_every_part_of_the_on_policy_loop_is_the_same_on_two_ranks(folder, tmp_path):
    chosen, left = covering("on_policy", parts(OnPolicy.slots, "on_policy"))
    more = extra(folder)
    assert {name for _, name in left} == set(more), "parts that no recipe has: add a run with them to `extra`"
    configs = {name: config(name, folder) for name in chosen} | more
    compare(ranked(configs, 2, tmp_path / "two"), configs)


def test_four_ranks_with_fewer_rows_than_ranks_turns_and_trees(folder, tmp_path):
    names = ["grpo", "bapo", "gigpo", "treepo", "trpo", "reinforce"]
    configs = {name: config(name, folder) for name in names}
    configs["reinforce"] = config("reinforce", folder, "--batch-size", "3", "--epochs", "1")
    compare(ranked(configs, 4, tmp_path / "four"), configs)


@pytest.mark.parametrize(("loop", "names"), [
    ("preference", ["dpo", "rpo", "hypo", "kto", "inpo_every_pair", "rm_ensembles", "simpo", "rso"]),
    ("replay", ["sac", "td3_bc", "iql", "dqn", "odice", "decision_transformer"]),
])  # fmt: skip
def test_other_loops_are_the_same_on_three_ranks(loop, names, folder, tmp_path):
    configs = {name: config(name, folder) for name in names}
    assert {c.recipe.loop for c in configs.values()} == {loop}
    compare(ranked(configs, 3, tmp_path / "three"), configs)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    words = ["train", "grpo", "--task", "arithmetic", "--steps", "4", "--batch-size", "4", "--group-size", "4",
             "--save-every", "2", "--adam-eps", "1e-3", "--seed", "3", "--eval-size", "8", "--quiet"]  # fmt: skip
    alone = train("grpo", "arithmetic", steps=4, batch_size=4, group_size=4, adam_eps=1e-3, seed=3, eval_size=8,
                  out=tmp_path / "alone")  # fmt: skip
    folder = tmp_path / "many"
    first = torchrun(2, *words, "--samples", "32", "--out", str(folder))
    assert first.returncode == 0, first.stderr[-8000:]
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == [1, 2]
    assert first.stdout.count("finished") == 1  # one of them speaks
    config = Config.read(folder / "config.json")
    assert config.settings.samples == 32
    reopen(folder)
    second = torchrun(3, "train", "--resume", str(folder), "--quiet")
    assert second.returncode == 0, second.stderr[-8000:]
    for one, several in zip(alone.metrics, read_rows(folder / "metrics.jsonl"), strict=True):
        for key in set(one) - set(CLOCK) - KNIFE_EDGE:
            np.testing.assert_allclose(several[key], one[key], rtol=1e-4, atol=1e-5, err_msg=key)
    assert len(read_rows(folder / "evaluations.jsonl")) == 3


def test_what_several_ranks_cannot_do_is_refused_by_one_line(tmp_path):
    done = torchrun(2, "train", "grpo", "--task", "arithmetic", "--steps", "0", "--out", str(tmp_path / "no"))
    assert done.returncode != 0 and not (tmp_path / "no").exists()
    assert done.stderr.count("partita: ") == 1 and "partita: steps: expected 1" in done.stderr
    done = torchrun(2, "evaluate", "tiny-0.3m")
    assert done.stderr.count("partita: evaluate: runs as one process") == 1


def test_compiled_updates_and_mapped_stores_are_for_one_process(monkeypatch):
    monkeypatch.setattr("partita.loops.replay.world", lambda: 2)
    policy = FeedForward(hidden=(8,))
    for name in ("compile", "mapped"):
        recipe = registry.recipe("sac").but(**{name: True}).settle(Pendulum())
        built = recipe.equip(policy, Pendulum()).build(Pendulum(), False, torch.Generator().manual_seed(0))
        with pytest.raises(UserError, match=f"{name}: not with several ranks"):
            recipe.check(Pendulum(), built)


@pytest.mark.parametrize(("rank", "count", "own"), [(0, 5, [0, 1]), (1, 5, [2, 3, 4]), (1, 1, [0]), (0, 1, [0])])
def test_a_rank_asks_its_networks_for_its_own_rows_alone(rank, count, own, monkeypatch):
    asked = []

    class Counting(ActorCriticPolicy):
        def evaluate(self, batch, entropy=False):
            asked.extend(batch.inputs["obs"][:, 0, 0].int().tolist())
            return Outputs(batch.inputs["obs"][..., 0])

    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    monkeypatch.setattr(spread, "world", lambda: 2)
    gathered = []
    monkeypatch.setattr(spread, "gathered", lambda x, n: gathered.append(x) or torch.zeros(n, *x.shape[1:]))
    policy = spread.spread(object.__new__(Counting))
    obs = torch.arange(float(count))[:, None, None].expand(count, 2, 1)
    out = policy.evaluate(Batch(mask=torch.ones(count, 2, dtype=torch.bool), inputs={"obs": obs}))
    assert asked == own and out.logp.shape == (count, 2) and len(gathered) == 1


def test_alone_nothing_is_shared_out():
    x = torch.arange(6.0).view(3, 2).requires_grad_()
    assert ranks.world() == 1 and ranks.rank() == 0 and ranks.share(5) == slice(0, 5)
    assert ranks.gathered(x, 3) is x and ranks.agreed({"a": 1}) == {"a": 1} and ranks.largest(4) == 4
    assert ranks.alike([x])


def test_environments_that_start_anew_at_a_checkpoint_do_so_on_every_rank(tmp_path):
    pytest.importorskip("gymnasium")
    words = ["ppo", "--env", "gym:CartPole-v1", "--steps", "4", "--batch-size", "3", "--rollout.steps", "8",
             "--adam-eps", "1e-3", "--seed", "3", "--eval-size", "0", "--save-every", "1", "--quiet"]  # fmt: skip
    for name, count in (("one", 1), ("two", 2)):
        done = torchrun(count, "train", *words, "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr[-8000:]
    one, two = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for mine, theirs in zip(one, two, strict=True):
        for key in set(mine) - set(CLOCK) - KNIFE_EDGE:
            np.testing.assert_allclose(theirs[key], mine[key], rtol=1e-4, atol=1e-5, err_msg=key)
