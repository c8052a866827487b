import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import agrees, learnt, policy, roll, task

from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.estimators.edit import edit_distance
from partita.papers.reasoning.latr import GOAL, LookaheadTree, _Branches, steps_to_goal
from partita.parts.focus import TruncatedImportance
from partita.parts.rollout import Sample, decoding
from partita.policies.sampling import Sampling
from partita.policies.tree import Tree
from partita.tasks.language.probes import ProbeBandit, ProbeDelayedVerifier

EAGER = LookaheadTree(absolute=0.02, relative=0.9, alike=0.4, lookahead=(3, 5))


def _watched(monkeypatch):
    """What is pruned, with the tokens of branch and parent: [(length, branch, parent), ...]."""
    seen = []

    def prune(self, tree, known, now, prune=LookaheadTree._prune):
        before = {s: (q, b) for s, (q, b) in known.parent.items()}
        texts, state = tree.tokens.clone(), tree.state.clone()
        prune(self, tree, known, now)
        for s, (q, born) in before.items():
            if q >= 0 and now - born in self.lookahead and state[s] != 0:
                seen.append((s in known.parent, texts[s, born:now], texts[q, born:now], born))

    monkeypatch.setattr(LookaheadTree, "_prune", prune)
    return seen


def _forced_tree(rollout, logits, width=4, steps=6):
    """Two steps of a tree on a policy whose next token is always drawn from `logits` (V,)."""
    by = policy()
    tree = Tree(by, ["1+1="], width, Sampling(max_tokens=steps), torch.Generator().manual_seed(0))
    tree.head = lambda hidden: logits.expand(len(hidden), -1).clone()
    rollout.grow(tree, torch.Generator().manual_seed(0))
    return tree


def test_branching_by_hand():
    probs = torch.full((99,), 1e-9)
    probs[10], probs[11], probs[12] = 0.45, 0.35, 0.2
    never = LookaheadTree(lookahead=(6,), horizon=2, alike=0.0)
    tree = _forced_tree(never, probs.log())  # 0.35 > 0.25 and 0.45 - 0.35 < 0.15
    assert sorted(map(tuple, tree.tokens[:, :2].tolist())) == [(10, 10), (10, 11), (11, 10), (11, 11)]
    for wide in (never.but(absolute=0.36), never.but(relative=0.09)):
        tree = _forced_tree(wide, probs.log())
        assert tree.tokens[0, :2].tolist() == [10, 10]  # the likeliest, and no branch: the group is filled by sampling
        assert (tree.sampler_logp[0, :2] == 0).all() and (tree.sampler_logp[1:, :2] < 0).all()
    three = _forced_tree(never.but(candidates=3, absolute=0.1, relative=0.3), probs.log())
    assert sorted(three.tokens[:, 0].tolist())[1:] != [10, 10, 11] and 12 in three.tokens[:, 0]


def test_forced_tokens_have_the_policys_probability():
    probs = torch.full((99,), 1e-9)
    probs[10], probs[11] = 0.55, 0.45
    tree = _forced_tree(LookaheadTree(lookahead=(6,), horizon=2, alike=0.0), probs.log())
    for row in range(4):
        want = [0.55 if t == 10 else 0.45 for t in tree.tokens[row, :2].tolist()]
        assert tree.logp[row, :2].exp().tolist() == pytest.approx(want, rel=1e-4)
    assert (tree.sampler_logp[:, :2] == 0).all()
    torch.testing.assert_close(tree.sampler_logp[:, 2:], tree.logp[:, 2:])  # drawn after the horizon


@pytest.mark.parametrize("rest", ["likeliest", "drawn"])
def test_reevaluated_responses_have_the_recorded_logp(rest):
    rollout = EAGER.but(rest=rest)
    batch = roll(rollout, group=8)
    agrees(batch)
    assert batch.group.bincount().tolist() == [8, 8, 8]
    forced = (batch.sampler_logp == 0) & (batch.logp < -1e-3) & batch.mask
    assert bool(forced.any())
    drawn = batch.mask & ~forced & (batch.logp < -1e-3)
    assert torch.equal(batch.sampler_logp[drawn], batch.logp[drawn])
    assert TruncatedImportance()(batch.but(advantage=batch.logp))[forced].max() < 1


def test_pruned_are_those_that_stay_alike(monkeypatch):
    seen = _watched(monkeypatch)
    strict = EAGER.but(alike=0.9)
    roll(strict, group=8)
    assert {kept for kept, *_ in seen} == {True, False}
    for kept, mine, theirs, _ in seen:
        assert mine[0] != theirs[0]  # they part where the branch was born
        alike = int(edit_distance(mine[None], theirs[None])) / len(mine) < strict.alike
        if alike:
            assert not kept
    before = len(seen)
    roll(EAGER.but(alike=0.0), group=8)
    assert all(kept for kept, *_ in seen[before:])


def test_what_grew_from_a_pruned_branch_goes_too():
    known = _Branches({0: (-1, 0), 1: (0, 2), 2: (1, 3), 3: (2, 4), 4: (0, 4)})
    assert known.births() == [2, 3, 4, 4]
    assert sorted(known.remove([1])) == [1, 2, 3] and list(known.parent) == [0, 4]


def test_no_share_for_trees_is_plain_sampling():
    plain, tree = roll(Sample(), group=6), roll(EAGER.but(share=0.0), group=6)
    assert torch.equal(plain.inputs["tokens"], tree.inputs["tokens"]) and torch.equal(plain.reward, tree.reward)
    torch.testing.assert_close(plain.logp, tree.logp, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tree.sampler_logp, tree.logp)


def test_the_share_of_trees_falls_over_training():
    rollout = LookaheadTree(half_life=40.0)
    counts = []
    for step in (0, 40, 80, 400):
        rollout.begin(step)
        counts.append(rollout.grown(8))
    assert counts == [8, 4, 2, 0]
    assert rollout.fresh().grown(8) == 8
    rollout.begin(1000)
    plain, tree = roll(Sample(), group=4), roll(rollout, group=4)
    assert torch.equal(plain.inputs["tokens"], tree.inputs["tokens"])


def test_a_tree_of_equal_doubts_holds_every_response_once():
    probs = torch.full((99,), 1e-9)
    probs[10], probs[11] = 0.55, 0.45
    tree = LookaheadTree(lookahead=(6,), alike=0.0)
    texts = [tuple(row) for row in _forced_tree(tree, probs.log(), width=8, steps=3).tokens.tolist()]
    assert len(set(texts)) == 8
    plain = [tuple(row) for row in _forced_tree(tree.but(share=0.0), probs.log(), width=8, steps=3).tokens.tolist()]
    assert len(set(plain)) < 8


def test_costs_are_what_was_computed(monkeypatch):
    calls = []
    advance = Tree.advance
    monkeypatch.setattr(
        Tree, "advance", lambda self, forced=None: (calls.append(int(self.open.sum())), advance(self, forced))[1]
    )
    batch = roll(EAGER, group=8)
    seen = EAGER.metrics(batch)
    assert seen["tokens_decoded"] == sum(calls) and seen["tokens_plain"] == decoding(batch)[0]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 1000))
def test_trees_of_other_problems_do_not_matter(seed):
    """A problem's tree is the same alone and among others, as long as it takes the likeliest tokens."""
    rollout = EAGER.but(horizon=6, max_tokens=6)
    by, on = policy(), task()
    problems = on.problems(3, torch.Generator().manual_seed(seed))
    together = rollout(by, on, problems, 6, torch.Generator().manual_seed(1), frozenset())
    alone = rollout(by, on, problems[:1], 6, torch.Generator().manual_seed(1), frozenset())
    ours, theirs = together[:6], alone
    for a, b, forced in zip(ours.inputs["tokens"], theirs.inputs["tokens"], (theirs.sampler_logp == 0), strict=True):
        if forced.all():
            assert torch.equal(a[: len(b)], b)


def test_recipes():
    for name, base in (("latr", "grpo"), ("latr_dapo", "dapo"), ("latr_short", "grpo")):
        ours, theirs = recipe_of(name), recipe_of(base)
        assert ours.but(rollout=theirs.rollout) == theirs
    r = recipe_of("latr").rollout
    assert (r.absolute, r.relative, r.alike, r.lookahead, r.candidates) == (0.25, 0.15, 0.4, (20, 30, 50), 2)


@pytest.mark.parametrize(("probe", "steps"), [(ProbeBandit(), 20), (ProbeDelayedVerifier(), 35)])
def test_it_learns(probe, steps):
    assert learnt("latr_short", probe, steps, rollout=EAGER.but(absolute=0.0, half_life=10.0)) > 0.9


def test_steps_to_the_goal(tmp_path):
    rows = [{"step": s, "mean": m} for s, m in ((0, 0.1), (3, GOAL), (6, 0.9))]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert steps_to_goal(tmp_path) == 3
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert steps_to_goal(tmp_path) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"absolute": 1.5}, "rollout.absolute: expected a number between 0 and 1"),
        ({"lookahead": ()}, "rollout.lookahead: expected numbers of tokens from 1"),
        ({"lookahead": (0,)}, "rollout.lookahead"),
        ({"candidates": 1}, "rollout.candidates: expected 2 or more"),
        ({"horizon": 0}, "rollout.horizon"),
        ({"rest": "x"}, "rollout.rest: expected likeliest or drawn"),
        ({"half_life": 0.0}, "rollout.half_life"),
        ({"temperature": -1.0}, "rollout.temperature"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(UserError, match=message):
        LookaheadTree(**settings)


def test_refusals():
    with pytest.raises(UserError, match="takes turns; use --rollout sample"):
        recipe_of("latr").check(task("keydoor"), policy())
    with pytest.raises(UserError, match="use --group-size 2 or more"):
        recipe_of("latr").but(group_size=1).check(task(), policy())
