"""The batch: shapes, indexing, concatenation, and steps as trajectories of length one."""

import pytest
import torch

from partita.core.batch import PER_STEP, PER_TRAJECTORY, Batch, Outputs

DTYPES = {
    "mask": torch.bool,
    "terminated": torch.bool,
    "truncated": torch.bool,
    "turn": torch.int64,
    "state_key": torch.int64,
}


def full(b=4, t=3, seed=0, prompt=2):
    g = torch.Generator().manual_seed(seed)

    def draw(name, *shape):
        return torch.randint(0, 9, shape, generator=g).to(DTYPES.get(name, torch.float32))

    fields = {n: draw(n, b, t) for n in PER_STEP} | {n: draw(n, b) for n in PER_TRAJECTORY}
    fields["mask"] = torch.arange(t) < torch.randint(1, t + 1, (b, 1), generator=g)
    return Batch(
        **fields,
        inputs={"obs": draw("obs", b, t, 2), "tokens": draw("tokens", b, t)},
        context={"prompt": draw("prompt", b, prompt), "level": draw("level", b)},
        records=tuple(f"{seed}/{i}" for i in range(b)),
    )


def tensors(batch):
    out = {n: getattr(batch, n) for n in PER_STEP + PER_TRAJECTORY if getattr(batch, n) is not None}
    return out | {f"in.{k}": v for k, v in batch.inputs.items()} | {f"of.{k}": v for k, v in batch.context.items()}


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([3, 0, 0]), torch.tensor([True, False, True, False])])
def test_indexing_takes_the_same_rows_of_everything(rows):
    batch = full()
    picked = torch.arange(4)[rows]
    part = batch[rows]
    assert len(part) == len(picked) and part.records == tuple(f"0/{i}" for i in picked.tolist())
    for name, value in tensors(part).items():
        assert torch.equal(value, tensors(batch)[name][picked]), name


def test_cat_pads_on_the_right_with_zeros_and_indexing_takes_it_apart():
    a, b = full(4, 3, 0, prompt=2), full(2, 5, 1, prompt=4)
    both = Batch.cat([a, b])
    assert both.mask.shape == (6, 5) and both.records == a.records + b.records
    for name, value in tensors(a).items():
        joined = tensors(both)[name][:4]
        if value.dim() > 1:
            assert not joined[:, value.shape[1] :].any(), name
            joined = joined[:, : value.shape[1]]
        assert torch.equal(joined, value) and joined.dtype == value.dtype, name
    for name, value in tensors(b).items():
        assert torch.equal(tensors(both)[name][4:], value), name


def test_cat_of_one_or_of_empty_parts():
    a = full()
    assert Batch.cat([a]) is a
    none = torch.zeros(4, dtype=torch.bool)
    both = Batch.cat([a[none], a, a[none]])
    assert all(torch.equal(value, tensors(a)[name]) for name, value in tensors(both).items())


def test_cat_refuses_batches_that_hold_different_fields():
    a, b = full(), full(seed=1)
    with pytest.raises(ValueError, match="cat: value is filled in some"):
        Batch.cat([a, b.but(value=None)])
    with pytest.raises(ValueError, match="cat: inputs hold different keys"):
        Batch.cat([a, b.but(inputs={"obs": b.inputs["obs"]})])


def test_steps_are_the_true_entries_of_the_mask_in_order():
    batch = full()
    steps = batch.steps()
    where = batch.mask.nonzero().tolist()
    assert steps.mask.shape == (len(where), 1) and steps.mask.all() and steps.records is None
    for i, (b, t) in enumerate(where):
        for name in PER_STEP:
            assert getattr(steps, name)[i, 0] == getattr(batch, name)[b, t], name
        for name in PER_TRAJECTORY:
            assert getattr(steps, name)[i] == getattr(batch, name)[b], name
        assert torch.equal(steps.inputs["obs"][i, 0], batch.inputs["obs"][b, t])


def test_steps_without_holes_are_all_of_them():
    batch = full().but(mask=torch.ones(4, 3, dtype=torch.bool))
    assert torch.equal(batch.steps().reward.view(4, 3), batch.reward)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": torch.zeros(4)}, r"reward: expected \(B, T\) = \(4, 3\), got \(4,\)"),
        ({"group": torch.zeros(3)}, r"group: expected \(B,\) = \(4,\), got \(3,\)"),
        ({"inputs": {"obs": torch.zeros(4, 2)}}, r"inputs\['obs'\]: expected"),
        ({"context": {"prompt": torch.zeros(5, 2)}}, r"context\['prompt'\]: expected"),
        ({"records": ("a",)}, r"records: expected 4 entries, got 1"),
        ({"mask": torch.zeros(4, 3)}, r"mask: expected a boolean tensor"),
    ],
)
def test_wrong_shapes_name_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        full().but(**change)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"batch\.value is empty"):
        full().but(value=None).need("value")
    with pytest.raises(ValueError, match=r"outputs\.entropy is empty"):
        Outputs(torch.zeros(1, 1)).need("entropy")
    assert full().lengths.tolist() == full().mask.sum(1).tolist()
