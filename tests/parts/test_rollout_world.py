"""Conversations with a world: what earned what, in which state, and how each episode ended."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import pytest
import torch

import troubled
from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.core.task import Problem
from partita.estimators.anchors import text_key
from partita.lab.config import Config, Settings
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.baselines.grpo import GRPO
from partita.parts.rollout import Sample, conversation
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.worlds.base import Reply
from resuming import resumed_alike
from troubled import LENGTHS, Count, Troubled


@dataclass(frozen=True)
class Counting(Troubled):
    """Without trouble, in our process."""

    hosted = False


@pytest.fixture(scope="module")
def sampled():
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=64))
    policy = LanguagePolicy(model, character_tokenizer(context=64), Language())
    task = Counting()
    batch = Sample(max_tokens=3).sample(policy, task, task.problems(3, None), 2, torch.Generator().manual_seed(0))
    return policy, task, batch


def actions_of(policy, batch, row):
    """The positions and the text of every action of a row."""
    tokens, mask, turn = batch.inputs["tokens"][row], batch.mask[row], batch.turn[row]
    for number in range(int(turn[mask].max()) + 1):
        places = (mask & (turn == number)).nonzero()[:, 0]
        yield places, policy.decode(tokens[places][None], torch.ones(1, len(places), dtype=torch.bool))[0]


def test_rewards_and_states_stand_where_they_were_earned(sampled):
    policy, task, batch = sampled
    for row in range(len(batch)):
        episode = Count(LENGTHS[row // 2])
        reward, key = torch.zeros(batch.mask.shape[1]), torch.zeros(batch.mask.shape[1], dtype=torch.int64)
        for places, text in actions_of(policy, batch, row):
            key[places] = text_key(episode.state)
            reward[places[-1]] = episode.act(text).reward
        assert torch.equal(batch.reward[row], reward)
        assert torch.equal(batch.state_key[row], key)
        assert episode.turn == min(LENGTHS[row // 2], task.max_turns)


def test_ends_are_told_apart_and_stand_at_the_last_token(sampled):
    _, _, batch = sampled
    last = torch.arange(batch.mask.shape[1]).mul(batch.mask).amax(1)
    for row in range(len(batch)):
        over = LENGTHS[row // 2] <= 4
        assert batch.terminated[row].nonzero()[:, 0].tolist() == ([int(last[row])] if over else [])
        assert batch.truncated[row].nonzero()[:, 0].tolist() == ([] if over else [int(last[row])])
    assert batch.outcome.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_groups_share_their_prompt_and_records_tell_the_whole_exchange(sampled):
    policy, _, batch = sampled
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2]
    for row, record in enumerate(batch.records):
        tokens, there = batch.inputs["tokens"][row], batch.inputs["attend"][row]
        unread = "4>" if record["why"] == "turns" else ""  # the world's last word, which nobody acted on
        assert policy.decode(tokens[None], there[None])[0] + unread == record["response"]
        assert record["why"] == ("done" if LENGTHS[row // 2] <= 4 else "turns")


def test_log_probs_are_those_of_the_policy(sampled):
    policy, _, batch = sampled
    with torch.no_grad():
        assert torch.allclose(policy.evaluate(batch).logp, batch.logp, atol=1e-5)


def test_state_hashes_are_fixed_positive_and_differ():
    assert text_key("a") == text_key("a") != text_key("b")
    assert all(0 < text_key(str(i)) < 2**63 for i in range(1000))


class Moody(Count):
    """As `Count`, but slow or broken as its problem says: acts[turn] is seconds, or what to raise."""

    def __init__(self, most: int, acts: dict[int, float | str]) -> None:
        super().__init__(most)
        self.acts = acts

    def act(self, action: str) -> Reply:
        mood = self.acts.get(self.turn, 0.0)
        if isinstance(mood, str):
            raise RuntimeError(mood)
        time.sleep(mood)
        return super().act(action)


@dataclass(frozen=True)
class Moods(Counting):
    """A world with a mood for every problem."""

    acts: tuple[dict, ...] = ({}, {}, {})
    slow = True
    patience = 0.05

    def problems(self, n, generator):
        return [Problem(f"p{LENGTHS[i % 3]}>", {"most": LENGTHS[i % 3], "acts": self.acts[i % 3]}) for i in range(n)]

    def open(self, problem):
        return Moody(problem.data["most"], problem.data["acts"])


def test_who_waits_for_whom_changes_nothing_that_is_drawn(sampled):
    policy, _, batch = sampled
    task = Moods(acts=({}, {0: 0.3, 1: 0.1}, {1: 0.2}))
    late = Sample(max_tokens=3).sample(policy, task, task.problems(3, None), 2, torch.Generator().manual_seed(0))
    assert [r["response"] for r in late.records] == [r["response"] for r in batch.records]
    assert [r["turns"] for r in late.records] == [r["turns"] for r in batch.records]
    for name in ("mask", "reward", "state_key", "turn", "terminated", "truncated"):
        assert torch.equal(getattr(late, name) * late.mask, getattr(batch, name) * batch.mask), name
    torch.testing.assert_close(late.logp, batch.logp, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(policy.evaluate(late).logp, late.logp, atol=1e-5)


@pytest.mark.parametrize("slow", [True, False])
def test_an_episode_that_breaks_is_marked_and_the_others_go_on(sampled, slow):
    policy, _, batch = sampled
    task = Moods(acts=({}, {1: "lost my keys"}, {}))
    object.__setattr__(task, "slow", slow)
    found = Sample(max_tokens=3).sample(policy, task, task.problems(3, None), 2, torch.Generator().manual_seed(0))
    assert found.failed.tolist() == [False, False, True, True, False, False]
    assert found.outcome.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert [r["why"] for r in found.records][1:3] == ["done", "failed: RuntimeError: lost my keys"]
    assert [len(r["turns"]) for r in found.records] == [1, 1, 1, 1, 4, 4]
    for row in (0, 1, 4, 5):
        assert found.records[row] == batch.records[row]


def test_a_world_that_always_breaks_stops_the_run(sampled):
    policy, _, _ = sampled
    task = Moods(acts=({0: "gone"},) * 3)
    with pytest.raises(UserError, match="all 6 episodes failed: RuntimeError: gone"):
        Sample(max_tokens=3).sample(policy, task, task.problems(3, None), 2, torch.Generator().manual_seed(0))


def test_an_episode_cut_at_the_context_says_so():
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=12))
    policy = LanguagePolicy(model, character_tokenizer(context=12), Language())
    task = Counting()
    batch = Sample(max_tokens=3).sample(policy, task, task.problems(3, None), 1, torch.Generator().manual_seed(0))
    assert [r["why"] for r in batch.records] == ["done", "context", "context"]
    assert batch.truncated.any(1).tolist()[2]
    seen = conversation(batch.records)
    assert seen["cut_context"] > 0 and seen["cut_turns"] == 0
    assert seen["turns"] == sum(len(r["turns"]) for r in batch.records) / 3


def test_the_loop_leaves_broken_episodes_out_and_counts_them(sampled):
    policy, _, _ = sampled
    policy = copy.deepcopy(policy)
    task = Moods(acts=({}, {1: "lost my keys"}, {}))
    recipe = GRPO.but(steps=2, batch_size=3, group_size=2, rollout=Sample(max_tokens=3), lr=1e-3)
    run = Run(0)
    train(recipe, policy, task, run)
    assert [m["failed"] for m in run.metrics] == [2.0, 2.0]
    assert [m["samples"] for m in run.metrics] == [4.0, 4.0]


FILE = part_class("task", f"{troubled.__file__}:Troubled")  # as `--task troubled.py:Troubled` has it


def test_a_hosted_world_gives_the_same_bits(sampled):
    policy, _, batch = sampled
    task = FILE(workers=2)
    found = Sample(max_tokens=3).sample(policy, task, task.problems(3, None), 2, torch.Generator().manual_seed(0))
    assert found.records == batch.records and found.failed is None
    for name in ("mask", "reward", "logp", "state_key", "turn", "terminated", "truncated", "outcome"):
        assert torch.equal(getattr(found, name), getattr(batch, name)), name


@pytest.mark.parametrize(
    ("trouble", "turn", "why"),
    [
        ("sleep", -1, "no answer within 1.5 s"), ("hang", 1, "no answer within 1.5 s"),
        ("fail", -1, "RuntimeError: lost my keys"), ("fail", 1, "RuntimeError: lost my keys"),
        ("exit", 0, "SystemExit: 3"), ("blow up", 1, "MemoryError"), ("die", 1, "its process died (signal 9)"),
    ],
)  # fmt: skip
def test_trouble_in_a_users_world_costs_its_own_trajectory_and_the_run_goes_on(sampled, trouble, turn, why):
    policy, _, batch = sampled
    task = FILE(trouble=trouble, turn=turn, seconds=1.5, memory_mb=512, workers=2)
    found = Sample(max_tokens=3).sample(policy, task, task.problems(3, None), 2, torch.Generator().manual_seed(0))
    assert found.failed.tolist() == [False, False, True, True, False, False]
    assert {r["why"] for r in found.records[2:4]} == {f"failed: {why}"}
    assert [len(r["turns"]) for r in found.records] == [1, 1, max(turn, 0), max(turn, 0), 4, 4]
    for row in (0, 1, 4, 5):
        assert found.records[row] == batch.records[row]
    run = Run(0)
    recipe = GRPO.but(steps=2, batch_size=3, group_size=2, rollout=Sample(max_tokens=3), lr=1e-3)
    train(recipe, copy.deepcopy(policy), task, run)
    assert [(m["failed"], m["samples"]) for m in run.metrics] == [(2.0, 4.0)] * 2


def test_a_run_in_a_troubled_world_resumes_to_the_same_bits(tmp_path):
    recipe = GRPO.but(steps=4, batch_size=3, group_size=4, rollout=Sample(max_tokens=3), lr=1e-3)
    task = FILE(trouble="die", turn=1, workers=2)
    rows = resumed_alike(Config("grpo", recipe, task, Language(), Settings(seed=2000)), tmp_path)
    assert all(row["failed"] == 4.0 for row in rows)
