import math

import pytest
import torch

from partita.core.errors import UserError
from partita.policies import sampling as module
from partita.policies.sampling import Sampling, draw


def _logits(vocab, rows=3, seed=0, scale=2.0):
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def _expected(row, s):
    """Probabilities of one row, token by token in plain Python."""
    z = [x / s.temperature for x in row.double().tolist()]
    top = max(z)
    p = {i: math.exp(x - top) for i, x in enumerate(z)}
    order = sorted(p, key=lambda i: -p[i])
    if s.top_k:
        order = order[: s.top_k]
    whole, kept, sum_above = sum(p[i] for i in order), [], 0.0
    for i in order:
        if sum_above < s.top_p * whole:
            kept.append(i)
        sum_above += p[i]
    kept = [i for i in kept if p[i] >= s.min_p * p[kept[0]]]
    whole = sum(p[i] for i in kept)
    return {i: p[i] / whole for i in kept}


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(top_k=5),
    Sampling(top_p=0.7, temperature=1.3),
    Sampling(min_p=0.1),
    Sampling(top_k=12, top_p=0.8, min_p=0.05, temperature=0.8),
]


@pytest.mark.parametrize("vocab", [40, 700, 1000])
@pytest.mark.parametrize("s", SETTINGS, ids=str)
def test_tokens_follow_the_exact_distribution_and_logp_is_its_logarithm(vocab, s):
    row = _logits(vocab, 1)[0]
    want = _expected(row, s)
    n = 4000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # stratified: counts are exact to one in n a token
    token, logp, _ = draw(row.expand(n, -1).clone(), grid, s.temperature, s, False)
    counts = torch.bincount(token, minlength=vocab).double() / n
    probability = torch.tensor([want.get(i, 0.0) for i in range(vocab)], dtype=torch.float64)
    assert (counts - probability).abs().max() <= 1.001 / n
    assert counts[probability == 0].sum() == 0
    torch.testing.assert_close(logp.double(), probability[token].log(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("s", SETTINGS[1:], ids=str)
def test_truncation_agrees_with_transformers(s):
    from transformers.generation import logits_process as theirs

    logits = _logits(200, rows=8, seed=3)
    scores = theirs.TemperatureLogitsWarper(s.temperature)(None, logits)
    if s.top_k:
        scores = theirs.TopKLogitsWarper(s.top_k)(None, scores)
    if s.top_p < 1:
        scores = theirs.TopPLogitsWarper(s.top_p)(None, scores)
    if s.min_p:
        scores = theirs.MinPLogitsWarper(s.min_p)(None, scores)
    want = scores.log_softmax(1)
    for u in torch.linspace(0.001, 0.999, 25, dtype=torch.float64):
        token, logp, _ = draw(logits.clone(), u.expand(8), s.temperature, s, False)
        torch.testing.assert_close(logp, want.gather(1, token[:, None])[:, 0], rtol=1e-5, atol=1e-5)


def test_a_flat_nucleus_wider_than_the_first_candidates(monkeypatch):
    s = Sampling(top_p=0.9)
    row = _logits(600, 1, scale=0.1)[0]
    want = _expected(row, s)
    assert len(want) > module.NUCLEUS
    grid = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    token, logp, _ = draw(row.expand(3000, -1).clone(), grid, 1.0, s, False)
    assert set(token.tolist()) == set(want)
    torch.testing.assert_close(
        logp.double(), torch.tensor([want[i] for i in token.tolist()]).log().double(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("vocab", [30, 900])
def test_the_ends_of_the_unit_interval_never_pick_an_impossible_token(vocab):
    logits = torch.full((2, vocab), -torch.inf)
    logits[:, [3, vocab // 2, vocab - 4]] = torch.tensor([0.0, 1.0, 2.0])
    u = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    token, logp, _ = draw(logits, u, 1.0, Sampling(), False)
    assert token.tolist() == [3, vocab - 4]
    assert logp.isfinite().all()


def test_entropy_is_of_the_tempered_distribution_before_truncation():
    logits = _logits(50, 4)
    for s in (Sampling(temperature=0.5), Sampling(temperature=0.5, top_k=3), Sampling(temperature=0.5, greedy=True)):
        _, _, entropy = draw(logits.clone(), torch.full((4,), 0.3, dtype=torch.float64), 0.5, s, True)
        p = (logits.double() / 0.5).softmax(1)
        torch.testing.assert_close(entropy.double(), -(p * p.log()).sum(1), rtol=1e-5, atol=1e-5)


def test_greedy_takes_the_likeliest_and_reports_its_tempered_probability():
    logits = _logits(50, 4)
    token, logp, _ = draw(
        logits.clone(), torch.rand(4, dtype=torch.float64), 0.5, Sampling(temperature=0.5, greedy=True), False
    )
    assert torch.equal(token, logits.argmax(1))
    torch.testing.assert_close(logp, (logits / 0.5).log_softmax(1).amax(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(temperature=0.0), "temperature: 0.0 is not a positive number; .*greedy"),
        (dict(temperature=float("nan")), "temperature: nan"),
        (dict(top_k=-1), "top_k: -1 is negative; use 0"),
        (dict(top_p=0.0), "top_p: 0.0 lies outside"),
        (dict(top_p=1.1), "top_p: 1.1 lies outside"),
        (dict(min_p=1.0), "min_p: 1.0 lies outside"),
        (dict(max_tokens=0), "max_tokens: 0 is less than 1"),
        (dict(stop="\n"), "stop: .* is not a tuple"),
        (dict(stop=("",)), "stop: .* is not a tuple"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)


PROMPTS = ["12+34=", "a", "what is this, then?"]


@pytest.mark.parametrize("s", [Sampling(max_tokens=20), Sampling(max_tokens=20, top_p=0.8, temperature=1.5)], ids=str)
def test_compaction_changes_nothing(language, seeded, monkeypatch, s):
    policy = language()
    s = Sampling(**{**vars(s), "stop": ("e", "t", "a", "7")})
    runs = []
    for share in (0.0, 0.99):
        monkeypatch.setattr(module, "COMPACT", share)
        runs.append(policy.generate(PROMPTS, 6, s, seeded(1), entropy=True))
    a, b = runs
    assert len({int(n) for n in a.mask.sum(1)}) > 4  # rows do end at different steps
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(a.finished, b.finished)
    torch.testing.assert_close(a.logp, b.logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.entropy, b.entropy, rtol=1e-5, atol=1e-5)


def test_same_seed_same_bits_and_draws_do_not_depend_on_what_was_drawn(language, seeded):
    policy = language()
    one, two = seeded(5), seeded(5)
    a = policy.generate(PROMPTS, 3, Sampling(max_tokens=9), one)
    b = policy.generate(PROMPTS, 3, Sampling(max_tokens=9), two)
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.logp, b.logp)
    c = policy.generate(PROMPTS, 3, Sampling(max_tokens=9, stop=("a", "e")), seeded(5))
    width = c.tokens.shape[1]
    assert torch.equal(c.tokens, a.tokens[:, :width] * c.mask)
    assert torch.equal(one.get_state(), two.get_state())


def test_a_schedule_of_temperatures(language, seeded):
    policy = language()
    s = Sampling(max_tokens=6)
    cold = policy.generate(PROMPTS, 1, s, seeded(), schedule=torch.full((6,), 1e-3))
    greedy = policy.generate(PROMPTS, 1, Sampling(max_tokens=6, greedy=True), seeded())
    assert torch.equal(cold.tokens, greedy.tokens)
    schedule = torch.linspace(1.5, 0.5, 6)
    warm = policy.generate(PROMPTS, 4, s, seeded(), schedule=schedule)
    torch.testing.assert_close(warm.temperature, schedule[: warm.mask.shape[1]].expand(12, -1))
    torch.testing.assert_close(policy.evaluate(warm.batch()).logp, warm.logp, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"schedule: expected \(max_tokens,\) = \(6,\)"):
        policy.generate(PROMPTS, 1, s, seeded(), schedule=schedule[:3])
