"""Units: what minibatches and micro-batches must keep together."""

from dataclasses import dataclass

import pytest
import torch

from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.loops.descent import micro_batches
from partita.loops.on_policy import gather
from partita.loops.run import Generators
from partita.loops.update import minibatches
from partita.papers.baselines.grpo import GRPO
from partita.parts.objective import Reinforce
from partita.parts.rollout import Demonstrations, Sample
from partita.policies.actor_critic import ActorCritic
from partita.policies.language import Language
from partita.tasks.control.probes import ProbeContinuous


@dataclass(frozen=True)
class ByGroup(Reinforce):
    """Asks for whole groups."""

    unit = "group"


@dataclass(frozen=True)
class Whole(Reinforce):
    """Asks for the whole minibatch."""

    whole = True


def gathered(**changes):
    task = ProbeContinuous()
    recipe = GRPO.but(steps=1, batch_size=6, group_size=4, objective=ByGroup(), **changes)
    policy = ActorCritic(hidden=(8,)).build(task, False, torch.Generator().manual_seed(0))
    recipe = recipe.settle(task, policy).fresh()
    batch, _, _ = gather(recipe, policy, task, Generators(0), 1)
    return recipe, policy, batch.but(weight=batch.mask.float())


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_minibatches_hold_whole_groups_and_each_group_once_an_epoch(count):
    recipe, policy, batch = gathered(minibatches=count, epochs=2)
    seen = [(m.group.bincount(minlength=6), last) for m, last in minibatches(recipe, policy, batch, Generators(0))]
    assert len(seen) == 2 * count and [last for _, last in seen].count(True) == 2
    for sizes, _ in seen:
        assert set(sizes.tolist()) <= {0, 4} and int(sizes.sum()) == 24 // count
    for epoch in (seen[:count], seen[count:]):
        assert sum(sizes for sizes, _ in epoch).tolist() == [4] * 6


@pytest.mark.parametrize(("size", "pieces"), [(24, 1), (8, 3), (5, 6), (1, 6)])
def test_micro_batches_hold_whole_groups(size, pieces):
    recipe, _, batch = gathered(micro_batch=size)
    found = list(micro_batches(recipe, batch, batch.weight))
    assert len(found) == pieces
    assert all(set(m.group.bincount().tolist()) <= {0, 4} for m, _ in found)
    assert sum(len(m) for m, _ in found) == 24


def test_more_minibatches_than_groups_are_refused():
    task = ProbeContinuous()
    recipe = GRPO.but(steps=1, batch_size=2, group_size=4, objective=ByGroup(), minibatches=3)
    policy = ActorCritic(hidden=(8,)).build(task, False, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="minibatches: 3 are more than the 2 groups"):
        recipe.settle(task, policy).check(task, policy)


def test_a_part_that_looks_at_the_whole_minibatch_refuses_micro_batches():
    task = ProbeContinuous()
    policy = ActorCritic(hidden=(8,)).build(task, False, torch.Generator().manual_seed(0))
    recipe = GRPO.but(steps=1, objective=Whole(), micro_batch=2).settle(task, policy)
    with pytest.raises(UserError, match="micro_batch: objective whole looks at a whole minibatch"):
        recipe.check(task, policy)


def test_demonstrations_are_the_right_answers_with_the_policys_own_log_probs():
    policy = Language().build(None, False, torch.Generator().manual_seed(0))
    task = part_class("task", "arithmetic")(level=1)
    problems = task.problems(5, torch.Generator().manual_seed(1))
    batch = Demonstrations()(policy, task, problems, 2, torch.Generator().manual_seed(2), frozenset())
    assert batch.outcome.tolist() == [1.0] * 10 and batch.source.tolist() == [1] * 10
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [r["response"] for r in batch.records][::2] == [r["response"] for r in batch.records][1::2]
    texts = policy.decode(batch.inputs["tokens"], batch.mask)
    assert list(texts) == [r["response"] for r in batch.records]
    assert batch.terminated.sum(1).tolist() == [1] * 10 and not batch.truncated.any()
    torch.testing.assert_close(policy.evaluate(batch).logp.detach(), batch.logp)
    # what the policy writes itself, taught back to it, is the same batch
    own = Sample().sample(policy, task, problems, 1, torch.Generator().manual_seed(3), greedy=True)
    back = policy.teach([p.prompt for p in problems], [r["response"] for r in own.records], own.group)
    own = own[own.terminated.any(1)]
    rows = torch.tensor([i for i in range(5) if i in own.group.tolist()])
    width = own.mask.shape[1]
    torch.testing.assert_close(back.logp[rows][:, :width][own.mask], own.logp[own.mask], rtol=1e-4, atol=1e-4)


def test_demonstrations_that_do_not_fit_or_do_not_exist_are_refused():
    policy = Language().build(None, False, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="demonstration 0: 603 tokens exceed the context of 512"):
        policy.teach(["1"], ["1" * 600 + "\n"], torch.tensor([0]))
    task = part_class("task", "keydoor")()
    with pytest.raises(UserError, match="needs worked answers, and task keydoor gives none"):
        GRPO.but(rollout=Demonstrations()).settle(task).check(task, policy)
