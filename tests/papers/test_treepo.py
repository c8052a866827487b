import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import agrees, learnt, policy, roll, task

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.papers.reasoning.treepo import SegmentTree, SubgroupRelative
from partita.parts.credit import GroupRelative
from partita.parts.rollout import Sample, decoding
from partita.policies.tree import Tree
from partita.tasks.language.probes import ProbeCredit, ProbeDelayedVerifier

SMALL = SegmentTree(depth=8, first_most=3)


def _returns(values, keys, group=None):
    """Trajectories of as many steps as they have keys (0: none), a turn a step, earning `values` at the end."""
    key = torch.tensor(keys)
    mask, reward = key > 0, torch.zeros(key.shape, dtype=torch.float64)
    reward[torch.arange(len(values)), mask.sum(1) - 1] = torch.tensor(values, dtype=torch.float64)
    turn = torch.arange(key.shape[1]).expand(key.shape)
    names = torch.zeros(len(values), dtype=torch.int64) if group is None else torch.tensor(group)
    return Batch(mask=mask, reward=reward, turn=turn, state_key=key, group=names)


def test_subgroup_advantages_by_hand():
    # Two pairs that part after the first segment; the second pair stays together for one more.
    batch = _returns([1.0, 0.0, 1.0, 1.0], [[9, 1, 3], [9, 1, 4], [9, 2, 5], [9, 2, 5]])
    root, pair = [0.25, -0.75, 0.25, 0.25], [0.5, -0.5, 0.0, 0.0]
    want = [(root[0] + pair[0]) / 2, (root[1] + pair[1]) / 2, root[2] / 3, root[3] / 3]
    assert SubgroupRelative()(batch)[:, 0].tolist() == pytest.approx(want)
    sized = [(4 * root[0] + 2 * pair[0]) / 6, (4 * root[1] + 2 * pair[1]) / 6, 4 * root[2] / 8, 4 * root[3] / 8]
    assert SubgroupRelative(weighting="size")(batch)[:, 0].tolist() == pytest.approx(sized)
    varied = [*want[:2], root[2], root[3]]
    assert SubgroupRelative(skip_equal=True)(batch)[:, 0].tolist() == pytest.approx(varied)
    assert (SubgroupRelative()(batch).std(1) == 0).all()  # the same at every step


def test_without_shared_segments_it_is_the_centred_return():
    plain = GroupRelative(std=False)
    alone = _returns([1.0, 0.0, 0.5, 0.0], [[9, 1], [9, 2], [9, 3], [9, 0]])
    torch.testing.assert_close(SubgroupRelative()(alone), plain(alone))
    sampled = alone.but(turn=None, state_key=None)
    torch.testing.assert_close(SubgroupRelative()(sampled), plain(sampled))
    whole = _returns([1.0, 0.0, 0.5, 0.0], [[9, 1], [9, 1], [9, 1], [9, 1]])  # nobody parts: all sub-groups are one
    torch.testing.assert_close(SubgroupRelative()(whole), plain(whole))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_order_shift_scale_and_other_problems_do_not_matter(seed):
    g = torch.Generator().manual_seed(seed)
    keys = torch.cat((torch.full((8, 1), 9), torch.randint(1, 4, (8, 2), generator=g)), 1)
    keys[:, 2] += 10 * keys[:, 1]
    values = torch.rand(8, generator=g).tolist()
    batch = _returns(values, keys.tolist(), [0, 0, 0, 0, 1, 1, 1, 1])
    found = SubgroupRelative()(batch)
    order = torch.randperm(8, generator=g)
    torch.testing.assert_close(SubgroupRelative()(batch[order]), found[order])
    other = _returns([2 * v + 3 for v in values], keys.tolist(), [0, 0, 0, 0, 1, 1, 1, 1])
    torch.testing.assert_close(SubgroupRelative()(other), 2 * found)
    torch.testing.assert_close(SubgroupRelative()(batch[:4]), found[:4])  # states of other problems are other states
    assert float(found[:4, 0].abs().sum()) > 0


def test_a_tree_is_what_it_says():
    batch = roll(SMALL, group=5)
    agrees(batch)
    size = -(-task().max_tokens // 8)
    columns = torch.arange(batch.mask.shape[1])
    assert torch.equal(batch.turn, (columns // size) * batch.mask)
    tokens, key = batch.inputs["tokens"], batch.state_key
    shared = 0
    for a in range(len(batch)):
        for b in range(a):
            same = batch.group[a] == batch.group[b]
            for j in range(0, min(batch.lengths[a], batch.lengths[b]), size):
                alike = bool(same) and bool((tokens[a, :j] == tokens[b, :j]).all())
                assert bool(key[a, j] == key[b, j]) == alike
                shared += alike and j > 0
    assert shared > 0 and (key[batch.mask] > 0).all() and (key[~batch.mask] == 0).all()
    assert batch.group.bincount().tolist() == [5, 5, 5] and batch.sampler_logp is None


def test_a_tree_that_forks_at_the_prompt_only_is_plain_sampling():
    plain = roll(Sample(), group=6)
    tree = roll(SegmentTree(first_least=6), group=6)
    assert torch.equal(plain.inputs["tokens"], tree.inputs["tokens"]) and torch.equal(plain.reward, tree.reward)
    torch.testing.assert_close(plain.logp, tree.logp, rtol=1e-4, atol=1e-4)
    assert torch.equal(plain.terminated, tree.terminated) and torch.equal(plain.truncated, tree.truncated)


@pytest.mark.parametrize("seed", range(3))
def test_costs_are_counted_once_for_what_is_shared(seed):
    rollout = SMALL.but(first_least=1, first_most=1)
    batch = roll(rollout, group=6, seed=seed)
    seen = rollout.metrics(batch)
    plain = decoding(batch)
    assert (seen["tokens_plain"], seen["kv_work_plain"]) == plain
    assert seen["tokens_decoded"] < plain[0] and seen["kv_work"] < plain[1]
    # No fewer than the distinct prefixes, and no more than what was resumed or forked at the segments allows.
    size = -(-task().max_tokens // 8)
    tokens, nodes, work = batch.inputs["tokens"].tolist(), set(), 0
    prompt = batch.context["prompt_mask"].sum(1).tolist()
    for i, n in enumerate(batch.lengths.tolist()):
        for t in range(n):
            start = t // size * size
            node = (int(batch.group[i]), tuple(tokens[i][:start]), tuple(tokens[i][start : t + 1]))
            work += 0 if node in nodes else prompt[i] + t
            nodes.add(node)
    assert seen["tokens_decoded"] >= len(nodes) and seen["kv_work"] >= work
    assert rollout.metrics(batch)["tokens_decoded"] == 0  # since it was last asked


def test_the_same_seed_grows_the_same_tree():
    first, second, other = (roll(SMALL, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.inputs["tokens"], second.inputs["tokens"]) and torch.equal(first.logp, second.logp)
    assert torch.equal(first.state_key, second.state_key)
    assert first.inputs["tokens"].tolist() != other.inputs["tokens"].tolist()


def test_shares_of_branches():
    even, none = SMALL.shares, torch.zeros(3)
    assert even(3, 6, none) == [2, 2, 2] and even(3, 3, none) == [1, 1, 1] and sum(even(3, 7, none)) == 7
    recent = torch.tensor([-3.0, -0.1, -0.2])
    assert SMALL.but(weigh="likely", weigh_temperature=0.05).shares(3, 6, recent)[1] > 2
    assert SMALL.but(weigh="unlikely", weigh_temperature=0.05).shares(3, 6, recent) == [4, 1, 1]
    assert min(SMALL.but(weigh="likely").shares(3, 4, recent)) == 1


@pytest.mark.parametrize("weigh", ["likely", "unlikely"])
def test_other_ways_to_deal_branches(weigh):
    batch = roll(SMALL.but(weigh=weigh), group=8)
    agrees(batch)
    assert batch.group.bincount().tolist() == [8, 8, 8]


def test_a_response_that_repeats_itself_is_cut(monkeypatch):
    rollout = SMALL.but(repeat_length=2, repeat_count=3)
    assert rollout._repeats("ababab") and not rollout._repeats("abab") and not rollout._repeats("abcdefg")
    cut = []
    monkeypatch.setattr(SegmentTree, "_repeats", lambda self, text: len(text) >= 10)
    monkeypatch.setattr(Tree, "close", lambda self, slots, close=Tree.close: (cut.extend(slots), close(self, slots)))
    batch = roll(rollout, group=4)
    agrees(batch)
    assert cut and int(batch.lengths.max()) <= 16 and bool(batch.truncated.any())


def test_what_is_resumed_was_finished_and_begins_a_segment(monkeypatch):
    resumed = []

    def watch(self, source, length, slots, resume=Tree.resume):
        resumed.append((length, bool(self.finished[source]), int(self.length[source])))
        return resume(self, source, length, slots)

    monkeypatch.setattr(Tree, "resume", watch)
    agrees(roll(SegmentTree(depth=16, first_least=1, first_most=1, branches=1), group=5))
    size = -(-task().max_tokens // 16)
    assert resumed and any(length for length, _, _ in resumed)
    assert all(length % size == 0 and (length == 0 or (whole and length < n)) for length, whole, n in resumed)


def test_recipes():
    for name, base in (("treepo", "dapo"), ("treepo_grpo", "grpo")):
        ours, theirs = recipe_of(name), recipe_of(base)
        assert ours.but(rollout=theirs.rollout, credit=theirs.credit, whiten="none") == theirs
        assert ours.whiten == "batch"
    rollout = recipe_of("treepo").rollout
    assert (rollout.depth, rollout.branches, rollout.first_least, rollout.first_most) == (14, 2, 2, 8)


@pytest.mark.parametrize(("probe", "steps"), [(ProbeCredit(), 80), (ProbeDelayedVerifier(), 30)])
def test_it_learns(probe, steps):
    rate = 3e-3 if isinstance(probe, ProbeCredit) else 1e-2  # whitening makes large steps of what noise is left
    assert learnt("treepo_grpo", probe, steps, lr=rate) > 0.9


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (SegmentTree, {"depth": 0}, "rollout.depth: expected 1 or more, got 0"),
        (SegmentTree, {"branches": 0}, "rollout.branches"),
        (SegmentTree, {"first_most": 1}, "rollout.first_most: expected 2 or more"),
        (SegmentTree, {"weigh": "x"}, "rollout.weigh: expected evenly, likely or unlikely"),
        (SegmentTree, {"weigh_temperature": 0.0}, "rollout.weigh_temperature"),
        (SegmentTree, {"temperature": 0.0}, "rollout.temperature"),
        (SegmentTree, {"max_tokens": 0}, "rollout.max_tokens"),
        (SubgroupRelative, {"weighting": "x"}, "credit.weighting: expected mean or size"),
    ],
)
def test_errors(part, settings, message):
    with pytest.raises(UserError, match=message):
        part(**settings)


def test_refusals():
    with pytest.raises(UserError, match="takes turns; use --rollout sample"):
        recipe_of("treepo").check(task("keydoor"), policy())
    with pytest.raises(UserError, match="use --group-size 2 or more"):
        recipe_of("treepo").but(group_size=1).check(task(), policy())
