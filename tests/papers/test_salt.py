import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import learnt, policy, roll, task

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.papers.agents.salt import TrajectoryGraph
from partita.papers.baselines.grpo import GRPO
from partita.papers.baselines.rloo import RLOO
from partita.parts.credit import GroupRelative, LeaveOneOut
from partita.parts.rollout import Sample
from partita.tasks.language.probes import ProbeTurns

ON_RLOO = TrajectoryGraph(base="rloo")
few = settings(max_examples=20, deadline=None, derandomize=True)


def graph(*rows, score, group=None, told=True):
    """Trajectories as turns (state, action), two tokens each and one of the world between them; the score at the end.

    told: actions are in the records, as rollouts in worlds have them; else they are in the tokens alone.
    """
    width = 3 * max(map(len, rows))
    mask, key = torch.zeros(len(rows), width, dtype=torch.bool), torch.zeros(len(rows), width, dtype=torch.int64)
    tokens, reward = torch.zeros_like(key), torch.zeros(len(rows), width, dtype=torch.float64)
    for i, row in enumerate(rows):
        for k, (state, action) in enumerate(row):
            own = slice(3 * k, 3 * k + 2)
            mask[i, own], key[i, own], tokens[i, own] = True, state, torch.tensor([ord(action), 10])
        reward[i, 3 * len(row) - 2] = score[i]
    records = tuple({"turns": tuple({"state": str(s), "action": a + "\n"} for s, a in row)} for row in rows)
    return Batch(
        mask=mask, reward=reward, turn=torch.arange(width).expand(len(rows), -1) // 3, state_key=key,
        group=torch.zeros(len(rows), dtype=torch.int64) if group is None else torch.tensor(group),
        inputs={"tokens": tokens}, records=records if told else None,
    )  # fmt: skip


def by_turn(x):
    """The advantage of each turn, having seen that its tokens share it and the world's have none."""
    assert torch.equal(x[:, 0::3], x[:, 1::3]) and not x[:, 2::3].any()
    return x[:, 0::3].tolist()


# All go a from 1; the first two part in 2, the last comes to 3, from where it goes on as the first did.
ROWS = ([(1, "a"), (2, "b"), (3, "c")], [(1, "a"), (2, "x")], [(1, "a"), (4, "b"), (3, "c")])
BATCH = graph(*ROWS, score=[1, 0, 0])


@pytest.mark.parametrize("told", [True, False])
def test_shared_steps_have_the_mean_by_hand(told):
    found = by_turn(ON_RLOO(graph(*ROWS, score=[1, 0, 0], told=told)))
    a = [1, -0.5, -0.5]  # leave one out
    assert found[0] == pytest.approx([0, a[0], (a[0] + a[2]) / 2])
    assert found[1] == pytest.approx([0, a[1], 0])
    assert found[2] == pytest.approx([0, a[2], (a[0] + a[2]) / 2])


def test_on_grpo_by_hand():
    r = torch.tensor([1, 0, 0], dtype=torch.float64)
    a = ((r - r.mean()) / (r.std() + 1e-6)).tolist()
    found = by_turn(TrajectoryGraph()(BATCH))
    assert found[0] == pytest.approx([0, a[0], (a[0] + a[2]) / 2], abs=1e-12)
    assert found[1][1] == pytest.approx(a[1]) and found[2][1] == pytest.approx(a[2])


def test_look_back_by_hand():
    """The step c from 3 was reached from elsewhere: with one step of history it is no longer shared."""
    found = by_turn(ON_RLOO.but(look_back=1)(BATCH))
    assert found[0] == pytest.approx([0, 1, 1]) and found[2] == pytest.approx([0, -0.5, -0.5])
    same_before = graph(
        [(1, "a"), (2, "b"), (3, "c")], [(1, "x"), (2, "b"), (3, "c")], [(2, "b"), (3, "c")], score=[1, 0, 0]
    )
    for look_back, want in ((0, [0, 0]), (1, [1, 0]), (2, [1, 1]), (9, [1, 1])):
        assert by_turn(ON_RLOO.but(look_back=look_back)(same_before))[0][1:] == pytest.approx(want, abs=1e-12)
    # The beginning counts as history: b from 2 at the first turn and later are different steps with look_back 1.
    assert by_turn(ON_RLOO.but(look_back=1)(same_before))[2][:2] == pytest.approx([-0.5, 0], abs=1e-12)


def test_a_step_taken_twice_counts_twice():
    batch = graph([(1, "a"), (1, "a"), (1, "b")], [(1, "a"), (1, "c")], score=[1, 0])
    assert by_turn(ON_RLOO(batch))[0] == pytest.approx([1 / 3, 1 / 3, 1])


@pytest.mark.parametrize(("part", "base"), [(TrajectoryGraph(), GroupRelative()), (ON_RLOO, LeaveOneOut())])
def test_without_shared_steps_it_is_its_base(part, base):
    states = graph([(1, "a"), (2, "b")], [(3, "a"), (4, "b")], [(5, "a")], score=[1, 0, 0.5])
    acts = graph([(1, "a"), (1, "b")], [(1, "c"), (1, "d")], [(1, "e")], score=[1, 0, 0.5])
    problems = graph([(1, "a")], [(2, "a")], [(1, "a")], [(2, "a")], score=[1, 0, 0.5, 0], group=[0, 0, 1, 1])
    unknown = BATCH.but(state_key=torch.zeros_like(BATCH.state_key))
    single = BATCH.but(state_key=None, turn=None, records=None)
    for batch in (states, acts, problems, unknown, single):
        assert torch.equal(part(batch), base(batch)) and base(batch).any()
    assert not torch.equal(part(BATCH), base(BATCH))


def test_actions_are_their_text():
    """Blanks at the end do not make another action; tokens do not matter where there are texts, and capitals do."""
    batch = graph([(1, "a")], [(1, "a")], score=[1, 0])
    for other, shared in (("a", True), ("a \n", True), ("A\n", False), (" a\n", False), ("ab\n", False)):
        records = (batch.records[0], {"turns": ({"state": "1", "action": other},)})
        assert (float(ON_RLOO(batch.but(records=records)).abs().sum()) == 0) == shared
    tokens = batch.inputs["tokens"].clone()
    tokens[1, 0] = 7
    assert not ON_RLOO(batch.but(inputs={"tokens": tokens})).any()
    assert ON_RLOO(batch.but(inputs={"tokens": tokens}, records=None)).any()


def test_where_no_actions_are_told_none_are_shared():
    batch = BATCH.but(inputs={}, records=None)
    assert torch.equal(ON_RLOO(batch), LeaveOneOut()(batch))


@few
@given(st.integers(0, 10**6), st.integers(0, 2), st.sampled_from(["grpo", "rloo"]))
def test_invariances(seed, look_back, base):
    g = torch.Generator().manual_seed(seed)
    rows = [
        [(int(torch.randint(1, 3, (), generator=g)), "ab"[int(torch.rand((), generator=g) < 0.5)]) for _ in range(n)]
        for n in torch.randint(1, 5, (8,), generator=g).tolist()
    ]
    score = torch.rand(8, generator=g).tolist()
    made = {"group": [0, 0, 0, 0, 1, 1, 1, 1]}
    batch = graph(*rows, score=score, **made)
    part = TrajectoryGraph(base, look_back, eps=0.0)
    found = part(batch)
    order = torch.randperm(8, generator=g)
    torch.testing.assert_close(part(batch[order]), found[order])
    torch.testing.assert_close(part(batch[4:]), found[4:])
    torch.testing.assert_close(part(graph(*rows, score=score, told=False, **made)), found)
    moved = part(graph(*rows, score=[2 * s + 3 for s in score], **made))
    torch.testing.assert_close(moved, found if base == "grpo" else 2 * found)
    # What is shared is shared out: per problem, advantages by turn sum to what they did in the base.
    plain = (GroupRelative(eps=0.0) if base == "grpo" else LeaveOneOut())(batch)
    for rows_of in (slice(0, 4), slice(4, 8)):
        assert float(found[rows_of].sum()) == pytest.approx(float(plain[rows_of].sum()), abs=1e-9)


def test_the_gradient_of_a_shared_step_is_that_of_the_mean_advantage():
    """On the sampling policy: d loss / d logp = - A_t / |y| / B, zero where good and bad trajectories cancel."""
    logp = torch.zeros(BATCH.mask.shape, dtype=torch.float64, requires_grad=True)
    batch = BATCH.but(logp=logp.detach(), advantage=TrajectoryGraph()(BATCH), weight=BATCH.mask.double())
    loss = (GRPO.objective(Outputs(logp * BATCH.mask), batch) * GRPO.aggregate(batch)).sum()
    (gradient,) = torch.autograd.grad(loss, logp)
    torch.testing.assert_close(gradient, -batch.advantage / BATCH.lengths[:, None] / 3)
    assert gradient[:, :2].abs().max() < 1e-12 < gradient[0, 3].abs()


def test_a_world_gives_what_it_reads():
    world = task("keydoor", level=1, max_turns=8)
    batch = roll(Sample(), group=8, on=world, by=policy(scale=0.0, context=256))
    batch = batch.but(reward=torch.where(batch.truncated, torch.arange(len(batch))[:, None].double(), 0.0))
    found = ON_RLOO(batch)
    # Worked out the long way, from the records.
    a = LeaveOneOut()(batch)
    steps: dict[tuple, list] = {}
    for i, record in enumerate(batch.records):
        for k, turn in enumerate(record["turns"]):
            own = (batch.turn[i] == k) & batch.mask[i]
            edge = (int(batch.group[i]), turn["state"], turn["action"].rstrip())
            steps.setdefault(edge, []).append((i, own, float(a[i][own][0])))
    for visits in steps.values():
        mean = sum(value for _, _, value in visits) / len(visits)
        for i, own, _ in visits:
            assert found[i][own].tolist() == pytest.approx([mean] * int(own.sum()))
    assert max(map(len, steps.values())) > 1 and not torch.equal(found, a)


def test_it_learns():
    assert learnt("salt", ProbeTurns(), steps=25) > 0.65
    assert learnt("salt_rloo", ProbeTurns(), steps=25) > 0.65


def test_recipes():
    salt, on_rloo = recipe_of("salt"), recipe_of("salt_rloo")
    assert salt.but(credit=GRPO.credit) == GRPO and on_rloo.but(credit=RLOO.credit) == RLOO
    assert (salt.credit.base, on_rloo.credit.base, salt.credit.look_back) == ("grpo", "rloo", 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "ppo"}, "credit.base: expected grpo or rloo, got 'ppo'"),
        ({"look_back": -1}, "credit.look_back: expected 0 or more turns, got -1"),
        ({"eps": -1.0}, "credit.eps: expected 0 or more"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(UserError, match=message):
        TrajectoryGraph(**settings)


def test_refusals():
    with pytest.raises(UserError, match="use --group-size 2 or more"):
        recipe_of("salt").but(group_size=1).check(task("keydoor"), policy())
