"""What every registered credit part promises of its advantages is true, and what it does not promise is false."""

import types
import typing

import pytest
import torch
from batches import padded
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core import registry
from partita.core.batch import Batch
from partita.lab.catalogue import show
from partita.parts.credit import Credit, GroupRelative, Promises

GROUPS, SIZE, WIDTH = 4, 6, 7
B = GROUPS * SIZE


def language(seed: int) -> Batch:
    """Responses to four problems, six each, some steps the world's; a score from 0 to 1 at the last step of each.

    Every group has one demonstration (source 1) and one regulated sample (source 2) besides the policy's own.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=g, dtype=torch.float64)

    lengths = torch.randint(2, WIDTH + 1, (B,), generator=g)
    last = torch.arange(WIDTH) == lengths[:, None] - 1
    mask = (torch.arange(WIDTH) < lengths[:, None]) & ((uniform(B, WIDTH) < 0.8) | last | (torch.arange(WIDTH) == 0))
    return Batch(
        mask=mask, logp=-uniform(B, WIDTH) * mask, reward=uniform(B, WIDTH) * last, terminated=last,
        value=uniform(B, WIDTH) * mask, turn=((~mask).cumsum(1) * mask).long(),
        state_key=torch.randint(1, 3, (B, WIDTH), generator=g) * mask,
        group=torch.arange(GROUPS).repeat_interleave(SIZE), baseline=uniform(GROUPS).repeat_interleave(SIZE),
        source=torch.tensor([0, 0, 1, 0, 2, 0]).repeat(GROUPS),
    )  # fmt: skip


def others(hint, now):
    """What else a setting can be: a flag's opposite, a choice's alternatives, a number for None and None for it."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return [not now]
    if origin is typing.Literal:
        return [choice for choice in inside if choice != now]
    if origin is types.UnionType and {float, type(None)} <= set(inside):
        return [0.5 if now is None else None]
    return []


def variants(cls):
    """The part as it is by default, and with each such setting changed; `eps`, which promises leave out, is 0."""
    part = cls()
    part = part.but(eps=0.0) if "eps" in part.settings() else part
    hints = typing.get_type_hints(cls)
    return [part, *(part.but(**{n: x}) for n, now in part.settings().items() for x in others(hints[n], now))]


# Those that train a critic of their own on what a policy sampled are held to their promises in tests of theirs.
CLASSES = [registry.load(entry["target"]) for entry in registry.index()["parts"]["credit"].values()]
PARTS = [p for cls in CLASSES if cls.learn is Credit.learn for p in variants(cls)]
PROMISED = [(p, name) for p in PARTS for name, effect in p.promises._asdict().items() if effect != "neither"]
each = pytest.mark.parametrize("part", PARTS, ids=repr)
seeds = given(seed=st.integers(0, 10**6))
few = settings(max_examples=5, deadline=None, derandomize=True)


def advantages(part, batch):
    """Of a part in its first state, or, where it remembers anything, after a batch that is always the same."""
    fresh = part.fresh()
    if hasattr(fresh, "state_dict"):
        fresh(language(seed=-1))
    return fresh(batch)


def paid(part, batch, change):
    """The batch with `change` made to its rewards: returns (B,), and their measured baselines where there are some."""
    baseline = change(batch.baseline) if "greedy" in part.needs else batch.baseline
    return batch.but(reward=change(batch.reward.sum(1))[:, None] * batch.terminated, baseline=baseline)


def moved(part, promise, seed):
    """Advantages before and after the change that `promise` is about, and what equivariant ones would be after it."""
    g = torch.Generator().manual_seed(seed)
    batch = language(seed)
    before = advantages(part, batch)
    if promise == "order":
        order = within_groups(g)
        return before, advantages(part, batch[order]), before[order]
    if promise == "scale":
        k = 0.25 + 3 * float(torch.rand((), generator=g))
        return before, advantages(part, paid(part, batch, lambda r: k * r)), k * before
    c = torch.randn(GROUPS if promise == "group_shift" else 1, generator=g, dtype=torch.float64)
    c = c.repeat_interleave(B // len(c))
    return before, advantages(part, paid(part, batch, lambda r: r + c)), before + c[:, None] * batch.mask


def within_groups(g):
    """A permutation of trajectories that leaves each in its group, (B,)."""
    return torch.cat([i * SIZE + torch.randperm(SIZE, generator=g) for i in range(GROUPS)])


def same(a, b):
    return torch.allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("part", "promise"), PROMISED, ids=repr)
@few
@seeds
def test_what_is_promised_holds(part, promise, seed):
    before, after, expected = moved(part, promise, seed)
    assert before.abs().max() > 1e-3
    assert same(after, expected if getattr(part.promises, promise) == "equivariant" else before)


@each
@pytest.mark.parametrize("promise", Promises._fields)
def test_what_is_not_promised_fails_on_some_batch(part, promise):
    effect = getattr(part.promises, promise)
    tried = [moved(part, promise, seed) for seed in range(8)]
    if effect != "invariant":
        assert not all(same(after, before) for before, after, _ in tried)
    if effect == "neither":
        assert not all(same(after, expected) for _, after, expected in tried)


@each
@few
@seeds
def test_padding_changes_nothing(part, seed):
    batch = language(seed)
    out = advantages(part, batch)
    assert out.shape == batch.mask.shape and bool(out.isfinite().all()) and not out[~batch.mask].any()
    wide = advantages(part, padded(batch, 3))
    assert same(wide[:, :WIDTH], out) and not wide[:, WIDTH:].any()


@each
@few
@seeds
def test_the_same_permutation_of_every_group_permutes_advantages(part, seed):
    batch = language(seed)
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(seed))
    order = (torch.arange(GROUPS)[:, None] * SIZE + order).flatten()
    assert same(advantages(part, batch[order]), advantages(part, batch)[order])


def test_promises_are_where_a_reader_looks():
    line = f"promises of its advantages: {GroupRelative().promises}"
    assert str(GroupRelative().promises) == "shift invariant, group shift invariant, scale invariant, order equivariant"
    assert any(line in shown for shown in show("grpo"))
