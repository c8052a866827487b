"""SEC: the bandit by hand, what it draws, its limits, resuming, and that it learns what is to be learnt."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.core.task import Outcome, Problem
from partita.lab import checkpoint
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.reasoning.sec import SelfEvolving, name
from partita.parts.credit import GroupRelative
from partita.parts.curriculum import EasyToHard
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.control.probes import ProbeAction
from partita.tasks.language.arithmetic import Arithmetic
from partita.tasks.language.probes import LOWER, LanguageProbe, ProbeBandit


@dataclass(frozen=True)
class Doors(LanguageProbe):
    """Level 1 wants a lower-case letter, level 2 cannot be solved, level 3 is always solved."""

    level: int = 0
    max_tokens: ClassVar[int] = 1
    levels: ClassVar[tuple[int, ...]] = (1, 2, 3)

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        levels = [self.level] * n if self.level else (torch.randint(3, (n,), generator=generator) + 1).tolist()
        return [Problem("?", {}, "", level) for level in levels]

    def verify(self, problem: Problem, response: str) -> Outcome:
        return Outcome(float(problem.level == 3 or (problem.level == 1 and response in LOWER)))


def answered(*rows, width=2):
    """A batch of trajectories: (level, category, advantages of its steps)."""
    mask = torch.tensor([[t < len(r[2]) for t in range(width)] for r in rows])
    advantage = torch.tensor([[*r[2], *[9.0] * (width - len(r[2]))] for r in rows], dtype=torch.float64)
    records = tuple({"prompt": "", "level": r[0], "category": r[1]} for r in rows)
    return Batch(mask=mask, advantage=advantage, records=records)


def with_gains(part, **gains):
    part.load_state_dict({key.lstrip("_"): value for key, value in gains.items()})
    return part


def test_gains_by_hand():
    part = with_gains(SelfEvolving(rate=0.25), _1=0.4, _2=0.8, _3=0.2)
    part.update(answered((1, "x", [1.0, -2.0]), (1, "y", [-0.5]), (2, "x", [0.0, 0.0])))
    expected = {"1": 0.75 * 0.4 + 0.25 * (1.5 + 0.5) / 2, "2": 0.75 * 0.8, "3": 0.2}
    assert part.state_dict() == pytest.approx(expected)
    assert part.metrics() == {f"gain_{k}": v for k, v in part.state_dict().items()}


def test_categories_without_problems_fade_only_if_asked():
    part = with_gains(SelfEvolving(rate=0.25, fade=True), _1=0.4, _2=0.8)
    part.update(answered((1, "", [1.0])))
    assert part.state_dict() == pytest.approx({"1": 0.75 * 0.4 + 0.25, "2": 0.75 * 0.8})


def test_chances_are_boltzmanns():
    part = with_gains(SelfEvolving(temperature=0.5), _1=0.0, _2=0.5, _3=1.0)
    weights = [math.exp(q / 0.5) for q in (0.0, 0.5, 1.0)]
    arms = part.choices(Doors())
    assert part.chances(arms).tolist() == pytest.approx([w / sum(weights) for w in weights])
    drawn = Counter(p.level for p in part.sample(Doors(), 3000, torch.Generator().manual_seed(0)))
    assert [drawn[k] / 3000 for k in (1, 2, 3)] == pytest.approx([w / sum(weights) for w in weights], abs=0.03)


def test_as_it_grows_hot_the_choice_is_uniform_and_as_it_cools_greedy():
    part = with_gains(SelfEvolving(temperature=1e9), _1=0.0, _2=5.0, _3=1.0)
    assert part.chances(part.choices(Doors())).tolist() == pytest.approx([1 / 3] * 3)
    cold = with_gains(SelfEvolving(temperature=1e-3), _1=0.0, _2=5.0, _3=1.0)
    assert {p.level for p in cold.sample(Doors(), 50, torch.Generator().manual_seed(0))} == {2}


def test_arms_are_levels_categories_or_both():
    task, g = Arithmetic(), torch.Generator().manual_seed(0)
    assert [name(a) for a in SelfEvolving().choices(task)] == ["1", "2", "3", "4"]
    kinds = ["addition", "subtraction", "multiplication"]
    assert [name(a) for a in SelfEvolving(arms="category").choices(task)] == kinds
    both = SelfEvolving(arms="both", levels=(2, 6), temperature=1e-3)
    assert [name(a) for a in both.choices(task)] == [f"{level}_{kind}" for level in (2, 6) for kind in kinds]
    both.load_state_dict({"6_subtraction": 1.0})
    drawn = both.sample(task, 20, g)
    assert {(p.level, p.category) for p in drawn} == {(6, "subtraction")}
    both.update(answered((6, "subtraction", [3.0]), (2, "addition", [1.0])))
    held = both.state_dict()
    assert held["6_subtraction"] == 2.0 and held["2_addition"] == 0.5 and held["2_subtraction"] == 0.0
    one = SelfEvolving(arms="category")
    one.sample(task, 4, g)
    one.update(answered((1, "addition", [2.0]), (4, "addition", [4.0])))
    assert one.state_dict() == {"addition": 1.5, "subtraction": 0.0, "multiplication": 0.0}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(right=st.integers(0, 16))
def test_with_grpo_the_gain_is_greatest_where_half_is_right(right):
    """mean |A| = 2 sqrt(p (1 - p)) for rewards of 0 and 1."""
    reward = (torch.arange(16) < right).double()[:, None]
    batch = Batch(mask=torch.ones_like(reward, dtype=torch.bool), reward=reward, group=torch.zeros(16).long())
    batch = batch.but(
        advantage=GroupRelative(eps=0.0 if 0 < right < 16 else 1.0, unbiased=False)(batch),
        records=({"prompt": "", "level": 1, "category": ""},) * 16,
    )
    part = with_gains(SelfEvolving(rate=1.0), _1=0.0)
    part.update(batch)
    p = right / 16
    assert part.state_dict()["1"] == pytest.approx(2 * math.sqrt(p * (1 - p)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_padding_order_and_signs_do_not_matter(seed):
    g = torch.Generator().manual_seed(seed)
    rows = [(1 + i % 3, "", torch.randn(1 + i % 2, generator=g).tolist()) for i in range(9)]
    states = []
    for these, width in [(rows, 2), (rows[::-1], 2), (rows, 5), ([(a, b, [-x for x in c]) for a, b, c in rows], 2)]:
        part = with_gains(SelfEvolving(), _1=0.3, _2=0.1, _3=0.0)
        part.update(answered(*these, width=width))
        states.append(part.state_dict())
    assert all(s == pytest.approx(states[0]) for s in states[1:])


def test_the_state_is_saved_and_a_fresh_part_has_none(tmp_path):
    part, g = SelfEvolving(temperature=0.2), torch.Generator().manual_seed(0)
    part.sample(Doors(), 4, g)
    part.update(answered((2, "", [1.5])))
    checkpoint.save(tmp_path / "state", part.state_dict())
    other = part.fresh()
    assert other.state_dict() == {} and other == part
    other.load_state_dict(checkpoint.load(tmp_path / "state"))
    drawn = [[p.level for p in c.sample(Doors(), 40, torch.Generator().manual_seed(1))] for c in (part, other)]
    assert drawn[0] == drawn[1] and other.metrics() == part.metrics()


def test_from_easy_to_hard():
    part, g, empty = EasyToHard(every=2), torch.Generator(), Batch(mask=torch.ones(1, 1, dtype=torch.bool))
    seen = []
    for _ in range(8):
        seen.append({p.level for p in part.sample(Doors(), 3, g)})
        part.sample(Doors(), 3, g)  # sampling twice for one update is one step
        part.update(empty)
    assert seen == [{1}, {1}, {2}, {2}, {3}, {3}, {3}, {3}]
    later = EasyToHard(every=2, levels=(3, 1))
    later.load_state_dict(part.state_dict())
    assert {p.level for p in later.sample(Doors(), 3, g)} == {1}


def test_it_goes_where_there_is_something_to_learn_and_learns_it():
    recipe = recipe_of("sec").but(batch_size=12, lr=1e-2, steps=16, curriculum=SelfEvolving(temperature=0.3))
    model = tiny_model(tiny_config("qwen2", hidden=32, layers=1, heads=2, context=32))
    policy, run, chosen = LanguagePolicy(model, character_tokenizer(context=32), Language()), Run(0), []
    log = run.log
    run.log = lambda step, metrics, batch: chosen.append(batch.records) or log(step, metrics, batch)
    train(recipe, policy, Doors(), run)
    middle = Counter(r["level"] for records in chosen[3:10] for r in records)
    assert middle[1] > 2 * max(middle[2], middle[3])
    assert run.metrics[4]["gain_1"] > 0.5 > run.metrics[4]["gain_2"] == run.metrics[4]["gain_3"] == 0.0
    late = [r["score"] for records in chosen[-4:] for r in records if r["level"] == 1]
    assert sum(late) / len(late) > 0.9


def test_bad_settings_and_misfits_are_refused():
    for bad, said in [
        ({"arms": "colour"}, "curriculum.arms: expected level, category or both, got 'colour'"),
        ({"rate": 0.0}, "curriculum.rate: expected a number above 0 and at most 1, got 0.0"),
        ({"temperature": 0.0}, "curriculum.temperature: expected a number above 0, got 0.0"),
        ({"arms": "category", "levels": (1,)}, "curriculum.levels: the arms are categories"),
    ]:
        with pytest.raises(UserError, match=said):
            SelfEvolving(**bad)
    with pytest.raises(UserError, match=r"curriculum.every: expected at least 1 step, got 0"):
        EasyToHard(every=0)
    sec = recipe_of("sec")
    assert "task probe_bandit has none" in SelfEvolving().refuses(sec, ProbeBandit())
    assert "leave out --task.level 2" in SelfEvolving().refuses(sec, Arithmetic(level=2))
    assert "9 is no level of arithmetic" in SelfEvolving(levels=(1, 9)).refuses(sec, Arithmetic())
    assert "has no categories" in SelfEvolving(arms="category").refuses(sec, Doors())
    kind = Arithmetic(category="addition")
    assert "--task.category addition" in SelfEvolving(arms="both").refuses(sec, kind)
    assert SelfEvolving(levels=(1, 6)).refuses(sec, Arithmetic()) is None
    with pytest.raises(UserError, match="curriculum: self_evolving works in language"):
        sec.settle(ProbeAction()).check(ProbeAction(), None)
