"""Optimal tool calls: r_tool by hand, the fewest calls that are known, and what the product rewards and does not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surrogates import learn
from torch.testing import assert_close

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.core.registry import recipe as recipe_of
from partita.loops.on_policy import train
from partita.loops.run import Generators, Run
from partita.papers.agents.habit import lessons, written
from partita.papers.agents.otc import CLAIMS, Otc, OtcPpo, efficiency, measure, saving
from partita.parts.credit import GroupRelative
from partita.parts.reward import Outcome
from partita.policies.language import Language
from partita.tasks.language.probes import ProbeBandit
from partita.tasks.worlds.lookup import Lookup


def played(scores, calls, group=None, starts=None, steps=3, counted="calls"):
    """Trajectories of as many steps, with these scores and calls; problem of each by its group, or by `starts`."""
    count = len(scores)
    names = torch.tensor(group or [0] * count)
    score = torch.tensor(scores, dtype=torch.float64)
    mask = torch.ones(count, steps, dtype=torch.bool)
    reward = torch.full((count, steps), -0.3, dtype=torch.float64)  # what the world paid along the way
    records = tuple(
        {"prompt": f"p{g}", "parts": {counted: float(m)}} for g, m in zip(names.tolist(), calls, strict=True)
    )
    key = None if starts is None else torch.tensor(starts)[:, None].expand(count, steps)
    return Batch(mask=mask, reward=reward, outcome=score, group=names, records=records, state_key=key)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_worth_of_few_calls_by_hand():
    # m = 0: cos 0; m = 1: cos(pi / 6); m = 2: cos(2 pi / 8); m = 4: cos(4 pi / 12)
    assert saving(tensor(0, 1, 2, 4), 4.0).tolist() == pytest.approx([1, math.sqrt(3) / 2, math.sqrt(0.5), 0.5])
    assert saving(tensor(1), 1.0).item() == pytest.approx(0.5)
    assert float(saving(tensor(1e9), 4.0)) < 1e-6


def test_nearness_to_the_fewest_calls_by_hand():
    # n = 2: f(1) = 4/3, f(2) = 2, f(4) = 8/3, f(6) = 3; r = sin(f pi / 4)
    want = [0.0, math.sin(math.pi / 3), 1.0, math.sin(2 * math.pi / 3), math.sin(3 * math.pi / 4)]
    assert efficiency(tensor(0, 1, 2, 4, 6), tensor(*[2] * 5), 1.0).tolist() == pytest.approx(want)
    assert_close(efficiency(tensor(0, 1, 3), tensor(0, 0, 0), 4.0), saving(tensor(0, 1, 3), 4.0))  # n = 0
    assert efficiency(tensor(0, 5), tensor(math.nan, math.nan), 4.0).tolist() == [1.0, 1.0]  # nothing is known


def test_rewards_of_a_group_by_hand():
    batch = played([1.0, 1.0, 0.0, 1.0, 0.0], [2, 4, 1, 3, 0])  # the fewest of right answers are 2, not 0 or 1
    reward = Otc(alpha=2.0, c=4.0)(batch)
    want = [2.0, 2 * math.sin(2 * math.pi / 3), 0.0, 2 * math.sin(3 / 5 * math.pi), 0.0]
    assert reward[:, -1].tolist() == pytest.approx(want) and not reward[:, :-1].any()
    ppo = OtcPpo(alpha=2.0, c=4.0)(batch)
    assert ppo[:, -1].tolist() == pytest.approx([2 * math.cos(m * math.pi / (2 * m + 4)) * r for m, r in
                                                 ((2, 1), (4, 1), (1, 0), (3, 1), (0, 0))])  # fmt: skip
    assert not ppo[:, :-1].any()


def test_the_fewest_calls_are_those_of_the_own_problem():
    batch = played([1.0, 1.0, 1.0, 1.0, 0.0, 0.5], [1, 2, 3, 4, 0, 2], group=[0, 0, 1, 1, 2, 2])
    part = Otc(c=4.0)
    known = part.fewest(batch, part.calls(batch))
    assert known[:4].tolist() == [1.0, 1.0, 3.0, 3.0] and bool(known[4:].isnan().all())
    assert float(part(batch)[5, -1]) == 0.5  # half right, and nobody knows with how many calls it could be whole


def test_what_was_seen_before_is_remembered_by_problem():
    part = Otc(c=4.0)
    part(played([1.0, 1.0], [1, 3], group=[0, 0], starts=[7, 7]))
    later = played([1.0, 1.0, 1.0, 1.0], [2, 3, 2, 3], group=[0, 0, 1, 1], starts=[8, 8, 7, 7])
    assert part.fewest(later, part.calls(later)).tolist() == [2.0, 2.0, 1.0, 1.0]
    forgetful = Otc(c=4.0, remember=0)
    forgetful(played([1.0, 1.0], [1, 3], group=[0, 0], starts=[7, 7]))
    assert forgetful.fewest(later, forgetful.calls(later)).tolist() == [2.0, 2.0, 2.0, 2.0]
    by_prompt = Otc(c=4.0)
    by_prompt(played([1.0, 0.0], [1, 3]))
    again = played([1.0, 1.0], [3, 3])
    assert by_prompt.fewest(again, by_prompt.calls(again)).tolist() == [1.0, 1.0]


def test_only_the_latest_problems_are_kept():
    part = Otc(c=4.0, remember=2)
    for start in (5, 6, 5, 7):
        part(played([1.0], [1], starts=[start]))
    assert list(part._fewest) == [5, 7]


def test_what_is_remembered_goes_through_a_checkpoint_and_not_into_a_fresh_part():
    part = Otc(c=4.0)
    part(played([1.0, 1.0], [1, 3], starts=[7, 7]))
    later = played([1.0, 1.0], [2, 3], starts=[7, 7])
    held = Otc(c=4.0)
    held.load_state_dict(part.state_dict())
    assert torch.equal(held(later), part(later))
    assert not torch.equal(part.fresh()(later), part(later)) and not part.fresh()._fewest


def test_alike_calls_are_grpo():
    batch = played([1.0, 0.0, 1.0, 0.0], [2, 2, 2, 2], steps=1).but(reward=tensor(1, 0, 1, 0)[:, None])
    assert_close(Otc(c=4.0)(batch), Outcome()(batch))
    credit = GroupRelative()
    assert_close(credit(batch.but(reward=OtcPpo(c=4.0)(batch))), credit(batch.but(reward=Outcome()(batch))), atol=1e-5,
                 rtol=1e-5)  # fmt: skip


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=2, max_size=8), st.floats(0.5, 9.0))
def test_fewer_calls_are_never_worth_less_and_wrong_answers_nothing(pairs, c):
    scores, calls = [float(s) for s, _ in pairs], [m for _, m in pairs]
    batch = played(scores, calls)
    for part in (Otc(c=c), OtcPpo(c=c)):
        earned = part(batch)[:, -1]
        assert bool(((earned >= -1e-12) & (earned <= 1)).all()) and not earned[batch.outcome == 0].any()
        right = sorted((m, float(r)) for m, r, s in zip(calls, earned, scores, strict=True) if s)
        assert all(a[1] >= b[1] - 1e-12 for a, b in zip(right, right[1:], strict=False))
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(len(pairs)))
        assert_close(part.fresh()(batch[order])[:, -1], part.fresh()(batch)[:, -1][order])


def test_scores_below_zero_are_not_eased_by_calls():
    assert Otc(c=4.0)(played([-1.0, 1.0], [9, 1]))[:, -1].tolist() == [-1.0, 1.0]


def test_in_a_world_calls_are_read_from_the_records():
    world, g = Lookup(level=1), torch.Generator().manual_seed(0)
    recipe = recipe_of("otc").but(steps=2, batch_size=2, group_size=4, lr=1e-4)
    assert recipe.settle(world).reward[0].c == world.max_turns
    run = Run(0)
    train(recipe, Language(model="tiny-0.3m").build(world, False, g), world, run)
    assert all(0 <= row["reward"] <= row["success"] for row in run.metrics)


def test_lessons_call_again_as_often_as_asked_and_are_written_as_the_policy_acts():
    world = Lookup(level=2, max_turns=12)
    generator = torch.Generator().manual_seed(0)
    told = lessons(world, world.problems(40, generator), 2, generator)
    scores, calls = [], []
    for prompt, turns in told:
        problem = next(p for p in world.problems(40, torch.Generator().manual_seed(0)) if p.prompt == prompt)
        replay = world.transcript(problem, [action for action, _ in turns])
        assert replay.text == prompt + "".join(a + o for a, o in turns)
        scores.append(replay.score)
        calls.append(replay.parts["calls"])
    assert sum(scores) == 20 and 3 < sum(calls[1::2]) / 20 < 5 and max(calls) <= 6
    policy = Language(model="tiny-0.3m").build(None, False, Generators(0)["init"])
    batch = written(policy, told)
    texts = policy.decode(batch.inputs["tokens"], batch.mask)
    assert list(texts) == ["".join(a for a, _ in turns) for _, turns in told]
    whole = policy.decode(batch.inputs["tokens"], batch.inputs["attend"])
    assert list(whole) == ["".join(a + o for a, o in turns) for _, turns in told]


def test_the_claim_measures_both_arms_from_the_same_start():
    small = {"taught": 1, "steps": 1, "batch_size": 2, "size": 9, "repeats": 1}
    treated, control = (measure(arm, 2000, **small) for arm in ("treatment", "control"))
    assert treated["calls before"] == control["calls before"] and treated["value"] == treated["calls"]
    assert measure("control", 2000, metric="success", **small)["value"] == control["success"]
    for claim in CLAIMS:  # what is stated is what `measure` returns
        metric = dict(claim.settings).get("metric", "calls")
        assert claim.metric.startswith(metric) and (claim.better == "equal") == (metric == "success")


def test_the_claim_is_measured_on_ppo_too_with_a_critic_of_the_same_start():
    small = {"taught": 1, "steps": 1, "batch_size": 4, "size": 9, "repeats": 1, "family": "ppo", "epochs": 1}
    treated, control = (measure(arm, 2000, minibatches=2, **small) for arm in ("treatment", "control"))
    assert treated["calls before"] == control["calls before"] and 0 <= treated["success"] <= 1


def test_a_world_without_such_counts_is_refused():
    with pytest.raises(UserError, match=r"reward\.otc\.counted: the world counts keys, not calls"):
        Otc(c=4.0)(played([1.0], [1], counted="keys"))
    assert float(Otc(c=4.0, counted="keys")(played([1.0], [1], counted="keys"))[0, -1]) == 1.0


def test_tasks_without_tools_and_lone_trajectories_are_refused():
    with pytest.raises(
        UserError, match="reward otc counts the tool calls of a world, and task probe_bandit has none; use"
    ):
        learn("otc", ProbeBandit(), steps=1)
    recipe = recipe_of("otc").but(group_size=1)
    assert "use --group-size 2 or more, or --reward otc_ppo" in Otc().refuses(recipe, Lookup())
    assert recipe_of("otc_ppo").reward[0].refuses(recipe_of("otc_ppo"), Lookup()) is None
    assert part_class("reward", "otc") is Otc and part_class("reward", "otc_ppo") is OtcPpo


@pytest.mark.parametrize("cls", [Otc, OtcPpo])
@pytest.mark.parametrize(("changes", "name"), [({"alpha": 0.0}, "alpha"), ({"c": 0.0}, "c"), ({"c": math.inf}, "c")])
def test_settings_out_of_range_name_the_field(cls, changes, name):
    with pytest.raises(UserError, match=rf"reward\.{cls.part_name()}\.{name}: expected a number above 0"):
        cls(**changes)


def test_a_negative_memory_is_refused():
    with pytest.raises(UserError, match=r"reward\.otc\.remember: expected 0 or more, got -1"):
        Otc(remember=-1)
