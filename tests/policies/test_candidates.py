"""Candidates at every step of given responses: from the right distribution, the same for the same seed."""

import pytest
import torch

import partita.policies.candidates as module
from partita.policies.candidates import candidates
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def by():
    lm = tiny_model(tiny_config("qwen2", hidden=32, layers=2, heads=2, context=64))
    for parameter in lm.parameters():
        parameter.data.add_(0.5 * torch.randn(parameter.shape, generator=seeded(7)))
    return LanguagePolicy(lm, character_tokenizer(context=64), Language())


@pytest.fixture(scope="module")
def batch(by):
    return by.teach(["12+3=", "4*5="], ["15\n", "2"], torch.tensor([0, 1]))


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_they_come_as_often_as_the_tempered_softmax_says(by, batch, temperature):
    found = candidates(by, batch, 20_000, temperature, seeded())
    with torch.no_grad():
        hidden, place = by.hidden(batch)
        expected = (by.head(hidden) / temperature).softmax(1)
    for row, p in zip(found.flatten(0, 1)[place], expected, strict=True):
        seen = row.bincount(minlength=len(p)).double() / len(row)
        assert float((seen - p).abs().max()) < 4 * float((p * (1 - p) / len(row)).sqrt().max()) + 1e-4


def test_a_step_draws_the_same_however_rows_are_cut(by, batch, monkeypatch):
    whole = candidates(by, batch, 16, 1.3, seeded())
    monkeypatch.setattr(module, "AUTO_CHUNK", 1)
    assert torch.equal(candidates(by, batch, 16, 1.3, seeded()), whole)
    assert not torch.equal(candidates(by, batch, 16, 1.3, seeded(1)), whole)


def test_they_depend_on_what_went_before_and_not_on_the_token_that_is_there(by):
    a = by.teach(["12+3="], ["17"], torch.tensor([0]))
    b = by.teach(["12+3="], ["18"], torch.tensor([0]))
    c = by.teach(["12+3="], ["27"], torch.tensor([0]))
    draws = [candidates(by, x, 200, 1.0, seeded())[0] for x in (a, b, c)]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0][0], draws[2][0]) and not torch.equal(draws[0][1], draws[2][1])


def test_nothing_is_drawn_where_nobody_acts(by, batch):
    found = candidates(by, batch, 5, 1.0, seeded())
    assert found.shape == (*batch.mask.shape, 5) and found.dtype == torch.int64
    assert not bool(batch.mask.all()) and not bool(found[~batch.mask].any())


@pytest.mark.parametrize(("count", "temperature", "name"), [(0, 1.0, "count"), (1, 0.0, "temperature")])
def test_arguments_out_of_range_are_refused(by, batch, count, temperature, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        candidates(by, batch, count, temperature, seeded())
