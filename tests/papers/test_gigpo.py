from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import learnt, policy, roll, task

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.core.task import Problem
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.agents.gigpo import GroupInGroup
from partita.papers.baselines.grpo import GRPO
from partita.parts.credit import GroupRelative
from partita.parts.rollout import Sample
from partita.tasks.language.probes import ProbeTurns
from partita.tasks.worlds.base import Episode, Reply, World

MEAN = GroupInGroup(std=False, eps=0.0)
few = settings(max_examples=20, deadline=None, derandomize=True)


def episodes(*rows, group=None):
    """Episodes given as turns (state, reward), two tokens each, and a token of the world between them; float64."""
    turns = max(map(len, rows))
    mask, reward = torch.zeros(len(rows), 3 * turns, dtype=torch.bool), torch.zeros(len(rows), 3 * turns).double()
    key, turn = torch.zeros_like(mask).long(), torch.arange(3 * turns).expand(len(rows), -1) // 3
    for i, row in enumerate(rows):
        for k, (state, r) in enumerate(row):
            mask[i, 3 * k : 3 * k + 2], key[i, 3 * k : 3 * k + 2], reward[i, 3 * k + 1] = True, state, r
    group = torch.zeros(len(rows), dtype=torch.int64) if group is None else torch.tensor(group)
    return Batch(mask=mask, reward=reward, turn=turn, state_key=key, group=group)


def by_turn(x):
    """The advantage of each turn, having seen that its tokens share it and the world's have none."""
    assert torch.equal(x[:, 0::3], x[:, 1::3]) and not x[:, 2::3].any()
    return x[:, 0::3].tolist()


# The first goes straight through state 7 to success; the second comes back to 7 first; the third fails from 7.
THREE = episodes([(1, 0), (7, 1)], [(1, 0), (7, 0), (2, 0), (7, 1)], [(1, 0), (7, 0)])


def test_step_advantages_by_hand():
    # At discount 1/2, state 1 sees 1/2, 1/8 and 0 to come; state 7 sees 1, 1/4, 1 and 0; state 2 was visited once.
    found = by_turn(MEAN.but(discount=0.5).step_advantage(THREE))
    one, seven = (0.5 + 0.125) / 3, (1 + 0.25 + 1) / 4
    assert found[0] == pytest.approx([0.5 - one, 1 - seven, 0, 0])
    assert found[1] == pytest.approx([0.125 - one, 0.25 - seven, 0, 1 - seven])
    assert found[2] == pytest.approx([-one, -seven, 0, 0])
    whole = by_turn(MEAN.but(discount=0.5, step_weight=3.0)(THREE))
    assert whole[0][:2] == pytest.approx([1 / 3 + 3 * (0.5 - one), 1 / 3 + 3 * (1 - seven)])
    assert whole[2][:2] == pytest.approx([-2 / 3 - 3 * one, -2 / 3 - 3 * seven])


def test_deviations_by_hand():
    found = by_turn(GroupInGroup(discount=0.5, eps=0.25).step_advantage(THREE))
    seven = torch.tensor([1, 0.25, 1, 0], dtype=torch.float64)
    z = ((seven - seven.mean()) / (seven.std() + 0.25)).tolist()  # std divides by n - 1
    assert [found[0][1], found[1][1], found[1][3], found[2][1]] == pytest.approx(z)
    assert found[1][2] == 0


def test_rewards_on_the_way_are_discounted_by_turns_and_not_by_tokens():
    batch = episodes([(1, 0.5), (2, 1)], [(1, 0.25), (3, 1)])
    found = by_turn(MEAN.but(discount=0.9).step_advantage(batch))
    assert found[0] == pytest.approx([0.125, 0]) and found[1] == pytest.approx([-0.125, 0])
    late = episodes([(1, 0), (2, 1)], [(1, 0)])
    assert by_turn(MEAN.but(discount=0.9).step_advantage(late))[0][0] == pytest.approx(0.9 - 0.45)


def test_step_weight_nought_is_grpo():
    for std in (True, False):
        for eps in (0.0, 1e-6):
            found = GroupInGroup(step_weight=0.0, std=std, eps=eps)(THREE)
            assert torch.equal(found, GroupRelative(std=std, eps=eps)(THREE))


def test_states_seen_once_leave_grpo():
    alone = episodes([(1, 0), (2, 1)], [(3, 0), (4, 0)], [(5, 1)])
    assert torch.equal(GroupInGroup()(alone), GroupRelative()(alone))
    unknown = THREE.but(state_key=torch.zeros_like(THREE.state_key))  # 0: no state is known
    assert torch.equal(GroupInGroup()(unknown), GroupRelative()(unknown))
    other = episodes([(1, 1)], [(2, 0)], [(1, 0)], [(2, 1)], group=[0, 0, 1, 1])  # equal states of other problems
    assert torch.equal(GroupInGroup()(other), GroupRelative()(other))


def test_a_response_without_turns_is_one_step_from_the_problem():
    batch = THREE.but(state_key=None, turn=None)
    torch.testing.assert_close(GroupInGroup(step_weight=0.5)(batch), 1.5 * GroupRelative()(batch))


def test_equal_episodes_are_told_apart_by_their_steps():
    # Both succeed, so that their group gives no signal; in state 7 the first episode lost time.
    batch = episodes([(7, 0), (7, 1)], [(7, 1)])
    assert not GroupRelative()(batch).any()
    (slow, again), (fast, _) = by_turn(GroupInGroup()(batch))
    assert slow < 0 < fast == again


@few
@given(st.integers(0, 10**6), st.booleans())
def test_invariances(seed, std):
    g = torch.Generator().manual_seed(seed)
    rows = [
        [(int(torch.randint(1, 4, (), generator=g)), float(torch.rand((), generator=g))) for _ in range(n)]
        for n in torch.randint(1, 5, (8,), generator=g).tolist()
    ]
    batch = episodes(*rows, group=[0, 0, 0, 0, 1, 1, 1, 1])
    part = GroupInGroup(std=std, eps=0.0)
    found = part(batch)
    order = torch.randperm(8, generator=g)
    torch.testing.assert_close(part(batch[order]), found[order])
    torch.testing.assert_close(part(batch[4:]), found[4:])  # other problems do not matter
    torch.testing.assert_close(part(batch.but(reward=3 * batch.reward)), found if std else 3 * found)
    renamed = batch.but(state_key=torch.tensor([0, 50, 3, 2**60])[batch.state_key])
    torch.testing.assert_close(part(renamed), found)


def test_nothing_is_gained_on_average_in_a_state():
    """Without deviations, step advantages of a state sum to zero over its visits."""
    found = MEAN.step_advantage(THREE)[:, 0::3]
    for state in (1, 2, 7):
        assert float(found[THREE.state_key[:, 0::3] == state].sum()) == pytest.approx(0, abs=1e-12)


def test_the_gradient_is_that_of_the_sum_of_both_levels():
    """d loss / d theta = - sum A dlogp on the sampling policy, with A from both levels, averaged by sequence."""
    logit = torch.zeros(THREE.mask.shape, dtype=torch.float64, requires_grad=True)
    logp = torch.nn.functional.logsigmoid(logit) * THREE.mask
    batch = THREE.but(logp=logp.detach(), advantage=GroupInGroup()(THREE), weight=THREE.mask.double())
    loss = (GRPO.objective(Outputs(logp), batch) * GRPO.aggregate(batch)).sum()
    (gradient,) = torch.autograd.grad(loss, logit)
    both = GroupRelative()(THREE) + GroupInGroup().step_advantage(THREE)
    want = -both * 0.5 / THREE.lengths[:, None] / len(THREE)
    torch.testing.assert_close(gradient, want * THREE.mask)


def test_similar_states_are_one_anchor():
    texts = [["hall, 3 coins", "hall, 4 coins"], ["hall, 3 coins"], ["cellar, dark"]]
    batch = episodes([(1, 0), (2, 1)], [(1, 0)], [(3, 0)])
    batch = batch.but(records=tuple({"turns": tuple({"state": s} for s in row)} for row in texts))
    exact, near = MEAN.but(discount=1.0), MEAN.but(discount=1.0, similarity=0.9)
    assert by_turn(exact.step_advantage(batch))[0] == pytest.approx([0.5, 0])
    assert by_turn(near.step_advantage(batch))[0] == pytest.approx([1 / 3, 1 / 3])
    assert by_turn(near.step_advantage(batch))[2] == [0, 0]
    other = batch.but(group=torch.tensor([0, 1, 1]))  # texts are compared within a problem
    assert by_turn(near.step_advantage(other))[1] == [0, 0]
    with pytest.raises(UserError, match=r"credit.similarity: this rollout tells no texts"):
        near(batch.but(records=None))


def test_a_world_gives_what_it_reads():
    world = task("keydoor", level=1, max_turns=8)
    batch = roll(Sample(), group=4, on=world, by=policy(scale=0.0, context=256))
    exact = GroupInGroup().step_advantage(batch)
    torch.testing.assert_close(GroupInGroup(similarity=0.9999).step_advantage(batch), exact)
    assert GroupInGroup(similarity=0.0).step_advantage(batch).shape == exact.shape


@dataclass(frozen=True)
class Lingering(World):
    """A lower-case letter ends the episode with 1, at whatever turn; all else leaves everything as it is."""

    hosted: ClassVar[bool] = False
    max_turns: int = 6
    max_tokens: ClassVar[int] = 1
    stop: ClassVar[tuple[str, ...]] = ()

    def problems(self, n, generator):
        return [Problem("?")] * n

    def open(self, problem):
        return Waits()


class Waits(Episode):
    state = "here"

    def act(self, action):
        done = action.islower()
        return Reply("" if done else ">", float(done), done, score=float(done))


def turns_after(recipe, steps=12):
    run, by = Run(0), policy(scale=0.0, context=32, layers=1)
    train(recipe.but(batch_size=12, steps=steps, lr=1e-2), by, Lingering(), run)
    return [m["turns"] for m in run.metrics]


def test_it_learns_what_only_steps_tell():
    """Nearly every episode succeeds in the end; that a turn was lost shows in the state that comes back."""
    grpo, gigpo = turns_after(recipe_of("grpo")), turns_after(recipe_of("gigpo"))
    assert grpo[0] == gigpo[0] > 2
    assert sum(gigpo[-3:]) / 3 < 1.2 < sum(grpo[-3:]) / 3 - 0.1


def test_it_learns_two_turns():
    assert learnt("gigpo", ProbeTurns(), steps=25) > 0.65


def test_recipes():
    gigpo, mean = recipe_of("gigpo"), recipe_of("gigpo_mean")
    assert gigpo.but(credit=GRPO.credit) == GRPO == mean.but(credit=GRPO.credit)
    assert (gigpo.credit.step_weight, gigpo.credit.discount, gigpo.credit.std) == (1.0, 0.95, True)
    assert mean.credit == gigpo.credit.but(std=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_weight": -1.0}, "credit.step_weight: expected 0 or more, got -1.0"),
        ({"step_weight": float("inf")}, "credit.step_weight"),
        ({"discount": 1.5}, "credit.discount: expected a number between 0 and 1, got 1.5"),
        ({"similarity": -0.1}, "credit.similarity: expected a number between 0 and 1"),
        ({"eps": -1e-6}, "credit.eps"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(UserError, match=message):
        GroupInGroup(**settings)


def test_refusals():
    with pytest.raises(UserError, match="use --group-size 2 or more"):
        recipe_of("gigpo").but(group_size=1).check(task("keydoor"), policy())
    with pytest.raises(UserError, match=r"credit.similarity: task arithmetic takes no turns"):
        recipe_of("gigpo").but(credit=GroupInGroup(similarity=0.9)).check(task(), policy())
