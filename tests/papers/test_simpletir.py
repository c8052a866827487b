"""Void turns: which trajectories are left out, what stays as it was, and what a world shows of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import policy
from surrogates import late, learn

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.core.registry import recipe as recipe_of
from partita.lab.claims import arm_config
from partita.loops.on_policy import gather, train
from partita.loops.run import Generators, Run
from partita.papers.agents.simpletir import CLAIMS, DropVoid, punished
from partita.parts.rollout import Sample
from partita.parts.select import All
from partita.policies.language import Language
from partita.tasks.language.probes import ProbeBandit, ProbeTurns
from partita.tasks.worlds.lookup import Lookup


def turns(*valid):
    return tuple({"state": "s", "action": "a", "valid": v, "reward": 0.0} for v in valid)


def told(*rows):
    """Trajectories with (validity of turns, why they ended)."""
    records = tuple({"turns": turns(*valid), "why": why} for valid, why in rows)
    return Batch(mask=torch.ones(len(rows), 2, dtype=torch.bool), records=records)


def test_one_void_turn_anywhere_leaves_the_trajectory_out():
    batch = told(
        ([True, True], "done"),
        ([False, True], "done"),
        ([True, False], "done"),
        ([True, True], "turns"),
        ([], "context"),
    )
    assert DropVoid(overlong=False)(batch).tolist() == [True, False, False, True, True]


def test_trajectories_cut_at_the_context_are_left_out_and_those_out_of_turns_are_not():
    batch = told(([True], "context"), ([True], "turns"), ([True], "done"))
    assert DropVoid()(batch).tolist() == [False, True, True]
    assert DropVoid(overlong=False)(batch).tolist() == [True, True, True]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.booleans(), max_size=4), min_size=1, max_size=8), st.integers(0, 99))
def test_each_trajectory_is_judged_by_itself(valid, seed):
    batch = told(*((v, "done") for v in valid))
    keep = DropVoid()(batch)
    assert keep.tolist() == [False not in v for v in valid]
    order = torch.randperm(len(valid), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(DropVoid()(batch[order]), keep[order])


def rolled(select, temperature=1.6):
    world = Lookup(level=1)
    by = Language(model="tiny-0.3m").build(world, False, Generators(0)["init"])
    recipe = recipe_of("simpletir").but(
        select=select, rollout=Sample(temperature=temperature), batch_size=8, group_size=8, steps=1, lr=1e-3
    )
    return gather(recipe, by, world, Generators(3), 1)


def test_in_a_world_it_is_the_void_turns_that_are_left_out_and_advantages_stay():
    kept, seen, metrics = rolled(DropVoid())
    whole, _, _ = rolled(All())
    good = [all(t["valid"] for t in r["turns"]) and r["why"] != "context" for r in whole.records]
    assert 0 < sum(good) < len(good)
    rows = torch.tensor(good)
    assert len(seen) == len(whole) == 64 and metrics["kept"] == sum(good) / 64
    assert torch.equal(kept.inputs["tokens"], whole[rows].inputs["tokens"])
    assert torch.equal(kept.advantage, whole[rows].advantage)  # the group's mean is over all of it
    for record in whole.records:  # a void turn is one that the world answered with a question mark
        answers = record["response"]
        assert any(not t["valid"] for t in record["turns"]) == ("\n?>" in answers or answers.count("?") > 0)


def test_without_void_turns_it_is_grpo():
    world = Lookup(level=1)
    runs = []
    for name in ("simpletir", "grpo"):
        by = Language(model="tiny-0.3m").build(world, False, Generators(0)["init"])
        run = Run(0)
        train(recipe_of(name).but(steps=2, batch_size=2, group_size=4, lr=1e-3), by, world, run)
        runs.append((run.metrics, by.state_dict()))
    assert all("kept" not in row for row in runs[0][0])  # nothing was void
    assert all(torch.equal(runs[0][1][n], runs[1][1][n]) for n in runs[0][1])


def test_what_is_left_out_gives_no_gradient():
    """An update on the kept rows is the update on all of them with weight 0 for the others."""
    kept, _, _ = rolled(DropVoid())
    whole, _, _ = rolled(All())
    keep = DropVoid()(whole)
    by = Language(model="tiny-0.3m").build(Lookup(level=1), False, Generators(0)["init"])
    recipe = recipe_of("simpletir")
    found = []
    for batch, rows in ((kept, None), (whole, keep)):
        weights = recipe.aggregate(batch if rows is None else batch[rows])
        scale = weights if rows is None else torch.zeros(batch.mask.shape).index_put((rows.nonzero()[:, 0],), weights)
        loss = (scale * recipe.objective(by.evaluate(batch), batch)).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(by.trainable().values()))]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)
    assert float(found[0].norm()) > 0


def test_a_batch_of_void_trajectories_changes_nothing_and_does_not_stop_the_run():
    world, by, run = Lookup(level=1, max_turns=2), policy(scale=0.0), Run(0)
    before = {n: p.clone() for n, p in by.state_dict().items()}
    train(recipe_of("simpletir").but(steps=2, batch_size=2, group_size=4, lr=1e-2), by, world, run)
    assert [row["kept"] for row in run.metrics] == [0.0, 0.0]
    assert all(torch.equal(p, before[n]) for n, p in by.state_dict().items())


def test_the_batch_is_filled_again_only_when_asked_to():
    world, by = Lookup(level=1), Language(model="tiny-0.3m").build(Lookup(level=1), False, Generators(0)["init"])
    recipe = recipe_of("simpletir").but(
        select=DropVoid(rounds=3), rollout=Sample(temperature=1.6), batch_size=4, group_size=8, steps=1, lr=1e-3
    )
    kept, seen, metrics = gather(recipe, by, world, Generators(3), 1)
    assert len(kept) == 32 and len(seen) > 32 and metrics["rounds"] >= 2


def test_two_turns_are_learnt():
    run = learn("simpletir", ProbeTurns(), steps=25)
    assert run.metrics[0]["return"] < 0.3 and late(run) > 0.6  # enough to earn in both turns


def test_tasks_without_turns_and_bad_settings_are_refused():
    with pytest.raises(UserError, match="select drop_void judges the turns of a world, and task probe_bandit has none"):
        learn("simpletir", ProbeBandit(), steps=1)
    with pytest.raises(UserError, match=r"select\.rounds: expected 1 or more, got 0"):
        DropVoid(rounds=0)
    assert part_class("select", "simpletir") is DropVoid


def test_arms_differ_in_the_filter_alone_and_nothing_is_clipped():
    for place, (_, changes) in enumerate(CLAIMS[0].dial[1]):
        treated, control = (arm_config(CLAIMS[0], arm, changes).recipe for arm in ("treatment", "control"))
        assert treated.but(select=All()) == control and control.max_grad_norm is None
        assert control.rollout.temperature == (1.0, 1.5)[place]


def test_what_the_world_could_not_read_was_unlikely_and_its_gradient_is_larger():
    void, other = (punished(arm, 2000, batch_size=8) for arm in ("treatment", "control"))
    assert void["count"] > 0 and other["count"] > 0 and void["count"] + other["count"] < 64
    assert void["least logp"] < other["least logp"] and void["value"] > other["value"] > 0
    with pytest.raises(UserError, match=r"temperature: 0\.1 gives no such trajectory"):
        punished("treatment", 2000, batch_size=2, temperature=0.1)
