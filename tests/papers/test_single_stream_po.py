"""SPO: the tracker by hand, who is asked next, the baseline, resuming, and that it learns."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.core.task import Problem
from partita.lab import checkpoint
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.reasoning.single_stream_po import TrackedBaseline, ValueTracker, batches_an_hour
from partita.parts.credit import GreedyBaseline
from partita.parts.curriculum import Pool, Uniform
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.control.probes import ProbeAction
from partita.tasks.language.arithmetic import Arithmetic
from partita.tasks.language.probes import ProbeBandit


@dataclass(frozen=True)
class Letters(ProbeBandit):
    """The bandit with many prompts."""

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        return [Problem(chr(97 + i)) for i in torch.randint(26, (n,), generator=generator).tolist()]


class Told:
    """A policy that says what log-probabilities it has now."""

    def __init__(self):
        self.logp = {}

    def evaluate(self, batch, entropy=False):
        assert len(batch.group.unique()) == len(batch)  # no two rows share a prompt
        return Outputs(torch.tensor([[self.logp[t] for t in row] for row in batch.inputs["token"].tolist()]).double())


def answered(*rows):
    """A batch of one-token responses: (prompt, reward, log-probability, token)."""
    n = len(rows)
    return Batch(
        mask=torch.ones(n, 1, dtype=torch.bool), logp=torch.tensor([[r[2]] for r in rows], dtype=torch.float64),
        reward=torch.tensor([[float(r[1])] for r in rows], dtype=torch.float64), group=torch.arange(n),
        inputs={"token": torch.tensor([[r[3]] for r in rows])},
        records=tuple({"prompt": r[0], "category": "", "level": 0} for r in rows),
    )  # fmt: skip


def begun(**changes):
    """A tracker over the letters that has seen nothing."""
    part = ValueTracker(size=26, initial=0, **changes)
    part.start(None, Letters(), None, torch.Generator().manual_seed(0))
    return part


def counts(part, prompt):
    return part._held["counts"][:, part._held["place"][prompt]].tolist()


def test_the_tracker_by_hand():
    part, policy = begun(), Told()
    assert counts(part, "a") == [0.5, 0.5]
    policy.logp = {0: -1.0, 1: -2.0}
    part.learn(policy, answered(("a", 1, -1.3, 0), ("b", 0, -2.0, 1)))  # first visits: rho = 0.96
    assert counts(part, "a") == pytest.approx([0.48 + 1, 0.48]) and counts(part, "b") == pytest.approx([0.48, 1.48])
    assert counts(part, "c") == [0.5, 0.5]
    policy.logp = {0: -1.006, 2: -3.0}  # since then, the policy moved by 0.006 on the answer to a: a tenth of D_half
    part.learn(policy, answered(("a", 0, -2.9, 2)))
    rho = 2 ** (-0.006 / 0.06)
    assert counts(part, "a") == pytest.approx([rho * 1.48, rho * 0.48 + 1])
    policy.logp = {2: -3.6, 3: 0.0}  # by 0.6: everything would be forgotten, were it not for rho_min
    part.learn(policy, answered(("a", 1, 0.0, 3)))
    assert counts(part, "a") == pytest.approx([0.875 * rho * 1.48 + 1, 0.875 * (rho * 0.48 + 1)])
    assert part.metrics()["tracked_drift"] == pytest.approx(0.6)


def test_it_is_an_average_that_forgets_with_its_own_rate():
    part, policy = begun(rho_min=0.9, rho_max=0.9), Told()
    policy.logp = {0: 0.0}
    value, size = 0.5, 1.0
    for reward in (1, 1, 0, 1):
        part.learn(policy, answered(("a", reward, 0.0, 0)))
        value += (reward - value) / (0.9 * size + 1)
        size = 0.9 * size + 1
        assert counts(part, "a") == pytest.approx([size * value, size * (1 - value)])


def test_several_answers_to_a_problem_decay_it_once():
    part, policy = begun(), Told()
    policy.logp = {0: 0.0, 1: 0.0, 2: 0.0}
    part.learn(policy, answered(("a", 1, 0.0, 0), ("a", 0, 0.0, 1), ("a", 1, 0.0, 2), ("elsewhere", 1, 0.0, 2)))
    assert counts(part, "a") == pytest.approx([0.48 + 2, 0.48 + 1])
    part.learn(policy, answered(("a", 7, 0.0, 0), ("b", -3, 0.0, 0)))  # held to the range of rates
    assert counts(part, "a")[0] == pytest.approx(0.96 * 2.48 + 1) and counts(part, "b") == pytest.approx([0.48, 1.48])


def test_first_estimates_are_the_means_of_the_first_answers():
    part = ValueTracker(size=26, initial=4)

    def rollout(policy, task, problems, group_size, generator, needs):
        rewards = [float(ord(p.prompt) - 97 > 6 * k) for p in problems for k in range(group_size)]
        return Batch(mask=torch.ones(len(rewards), 1, dtype=torch.bool), reward=torch.tensor(rewards)[:, None])

    part.start(None, Letters(), rollout, torch.Generator().manual_seed(0))
    assert counts(part, "a") == [0.0, 8.0] and counts(part, "b") == [2.0, 6.0] and counts(part, "z") == [8.0, 0.0]
    batch = part.annotate(answered(("b", 1, 0.0, 0), ("z", 1, 0.0, 0), ("elsewhere", 1, 0.0, 0)))
    assert batch.baseline.tolist() == [0.25, 1.0, 0.5]
    greedy = batch.but(baseline=torch.ones(3))
    assert part.annotate(greedy) is greedy


def test_uncertain_problems_come_first():
    part = begun(gamma=0.5)
    part._held["counts"][:, :3] = torch.tensor([[4.0, 1.0, 8.0], [4.0, 3.0, 0.0]])
    weights = part.weights(26)
    assert weights[:4].tolist() == pytest.approx(
        [0.5 / math.sqrt(8) + 0.05, math.sqrt(3) / 4 / 2 + 0.05, 0.05, 0.5 + 0.05]
    )
    drawn = [p.prompt for _ in range(300) for p in part.sample(Letters(), 5, torch.Generator().manual_seed(_))]
    shares = torch.tensor([drawn.count(p.prompt) / len(drawn) for p in part._held["problems"]])
    assert shares[2] < 0.5 * shares[0] and shares[0] < 0.6 * shares[3:].mean()
    assert begun(prioritise=False).weights(3).tolist() == [1.0, 1.0, 1.0]


def test_a_pool_holds_the_same_problems_and_repeats_none_in_a_batch():
    pool, g = Pool(size=40), torch.Generator().manual_seed(3)
    task = Arithmetic(level=2)
    batches = [[p.prompt for p in pool.sample(task, 40, g)] for _ in range(2)]
    assert len(set(batches[0])) == 40 and sorted(batches[0]) == sorted(batches[1]) and batches[0] != batches[1]
    again = pool.fresh()
    again.load_state_dict(pool.state_dict())
    assert {p.prompt for p in again.sample(task, 40, g)} == set(batches[0])
    other = Pool(size=40)
    assert {p.prompt for p in other.sample(task, 40, g)} != set(batches[0])
    assert len(Pool(size=5).sample(task, 8, g)) == 8  # a batch larger than the set: with replacement


def test_the_baseline_by_hand():
    batch = Batch(
        mask=torch.tensor([[True, True], [True, False], [True, True]]),
        reward=torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64),
        baseline=torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64),
    )
    raw = torch.tensor([0.5, -0.25, 0.25], dtype=torch.float64)
    out = TrackedBaseline()(batch)
    torch.testing.assert_close(out[:, 0], (raw - raw.mean()) / (raw.std() + 1e-8))
    assert out[1, 1] == 0 and torch.equal(out[[0, 2], 0], out[[0, 2], 1])
    torch.testing.assert_close(TrackedBaseline(normalise=False)(batch), GreedyBaseline()(batch))
    assert TrackedBaseline()(batch[:1])[0, 0] == 0.5  # nothing to normalise with


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-3, 3))
def test_the_scale_and_a_common_shift_of_rewards_and_values_do_not_matter(seed, scale, shift):
    g = torch.Generator().manual_seed(seed)
    reward, value = torch.rand(2, 9, generator=g, dtype=torch.float64)
    batch = Batch(mask=torch.ones(9, 1, dtype=torch.bool), reward=reward[:, None], baseline=value)
    out = TrackedBaseline()(batch)
    moved = batch.but(reward=batch.reward * scale + shift, baseline=value * scale)
    torch.testing.assert_close(TrackedBaseline()(moved), out, rtol=1e-5, atol=1e-6)
    order = torch.randperm(9, generator=g)
    torch.testing.assert_close(TrackedBaseline()(batch[order]), out[order])


def policy_of():
    model = tiny_model(tiny_config("qwen2", hidden=32, layers=1, heads=2, context=32))
    return LanguagePolicy(model, character_tokenizer(context=32), Language())


def small(**changes):
    return recipe_of("single_stream_po").but(batch_size=12, lr=1e-2, curriculum=ValueTracker(size=20, **changes))


class Interrupted(Run):
    """A run whose state passes through a checkpoint after some steps, as when it is killed and resumed."""

    def __init__(self, folder, saving=None, loading=False):
        super().__init__(0)
        self.folder, self.saving, self.loading = folder, saving, loading

    def steps(self, count, state):
        first = 1
        if self.loading:
            held = checkpoint.load(self.folder)
            for name, part in state.items():
                part.load_state_dict(held[name])
            first = held["step"] + 1
        for step in range(first, count + 1):
            yield step
            if step == self.saving:
                checkpoint.save(self.folder, {"step": step, **{n: p.state_dict() for n, p in state.items()}})
                return


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    recipe, task = small(initial=2).but(steps=4), Letters()
    whole = policy_of()
    straight = Run(0)
    train(recipe, whole, task, straight)
    train(recipe, policy_of(), task, Interrupted(tmp_path / "held", saving=2))
    resumed, rest = policy_of(), Interrupted(tmp_path / "held", loading=True)
    train(recipe, resumed, task, rest)
    assert rest.metrics == straight.metrics[2:]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert recipe.curriculum.state_dict() == {"past": []}  # the recipe itself has seen nothing


def test_it_learns_and_its_estimates_follow():
    run = Run(0)
    train(small(initial=4).but(batch_size=48, steps=22), policy_of(), Letters(), run)
    assert run.metrics[0]["return"] < 0.45 and run.metrics[0]["tracked_value"] < 0.45
    assert sum(m["return"] for m in run.metrics[-3:]) / 3 > 0.9
    assert run.metrics[-1]["tracked_value"] > 0.7


def test_waiting_for_groups():
    even = [batches_an_hour(arm, 2000, 0.0, keep, 20) for arm in ("treatment", "control") for keep in (False, True)]
    assert even == pytest.approx([60.0, 120.0, 60.0, 120.0])  # minutes of one: half of the machines work for nothing
    single, grouped = (batches_an_hour(arm, 2000, 1.0, False, 50) for arm in ("treatment", "control"))
    assert single > 2 * grouped
    single, grouped = (batches_an_hour(arm, 2000, 1.0, True, 50) for arm in ("treatment", "control"))
    assert grouped < single < 1.2 * grouped


def test_bad_settings_and_misfits_are_refused():
    for bad, said in [
        ({"size": 0}, "curriculum.size: expected at least 1 problem, got 0"),
        ({"initial": -1}, "curriculum.initial"),
        ({"half": 0.0}, "curriculum.half: expected a number above 0, got 0.0"),
        ({"rho_min": 0.97}, "curriculum.rho_max: expected 0 <= rho_min <= rho_max"),
        ({"rho_min": 1.0, "rho_max": 1.0}, "rho_min below 1"),
        ({"epsilon": 0.0}, "curriculum.epsilon"),
        ({"gamma": 2.0}, "curriculum.gamma: expected a number between 0 and 1, got 2.0"),
    ]:
        with pytest.raises(UserError, match=said):
            ValueTracker(**bad)
    with pytest.raises(UserError, match="use --curriculum value_tracker"):
        recipe_of("single_stream_po").but(curriculum=Uniform()).settle(ProbeBandit()).check(ProbeBandit(), policy_of())
    task = ProbeAction()
    with pytest.raises(UserError, match="curriculum: value_tracker works in language"):
        recipe_of("single_stream_po").settle(task).check(task, policy_of())
