"""Statistical rejection sampling: worked rounds, exact laws against all sequences, and what many candidates tend to."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.estimators import games, rejection
from partita.estimators.rejection import accept, chances, first_accepted

FEW = settings(max_examples=25, deadline=None, derandomize=True)
REF = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
REWARD = torch.tensor([0.0, 1.0, 0.4, 1.0], dtype=torch.float64)
rewards = st.lists(st.floats(-3, 3), min_size=1, max_size=8).map(lambda r: torch.tensor(r, dtype=torch.float64))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tilted(beta: float) -> torch.Tensor:
    weight = REF * (REWARD / beta).exp()
    return weight / weight.sum()


@pytest.fixture
def drawing(monkeypatch):
    """Uniform numbers given by the test, round by round."""

    def give(*rounds):
        left = [torch.tensor(row, dtype=torch.float64) for row in rounds]

        def rand(count, **_):
            assert len(left[0]) == count
            return left.pop(0)

        monkeypatch.setattr(rejection.torch, "rand", rand)
        return left

    return give


def test_chances_by_hand():
    reward = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    assert chances(reward, 0.5).tolist() == pytest.approx([math.exp(-4), 1.0, math.exp(-2)])
    assert chances(reward, 0.0).tolist() == [0.0, 1.0, 0.0]
    assert chances(reward, math.inf).tolist() == [1.0, 1.0, 1.0]


def test_rounds_by_hand(drawing):
    # chances e^-2 = 0.135, e^-1 = 0.368, 1; then, of what is left, 0.368 and 1; the best left is always accepted
    reward = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    left = drawing([0.5, 0.4, 0.999], [0.36, 0.999])
    assert accept(reward, 1.0, 3, generator(0)).tolist() == [2, 0, 1] and not left
    left = drawing([0.13, 0.37, 0.999])
    assert accept(reward, 1.0, 2, generator(0)).tolist() == [0, 2] and not left
    left = drawing([0.14, 0.36, 0.0])
    assert accept(reward, 1.0, 1, generator(0)).tolist() == [1] and not left


def test_the_greatest_reward_is_that_when_the_round_began(drawing):
    # Had the threshold moved once the best was accepted, 0.5 < 1 would accept the second.
    left = drawing([0.9, 0.5], [0.5])
    reward = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert accept(reward, 1.0, 2, generator(0)).tolist() == [0, 1] and not left


def test_copies_have_their_chances_but_are_accepted_once(drawing):
    reward = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    left = drawing([0.99, 0.5, 0.3, 0.5])  # the copy of the first is what is accepted
    assert accept(reward, 1.0, 3, generator(0), torch.tensor([7, 8, 7, 8])).tolist() == [1, 2] and not left


def listed(log_ref, reward, beta, candidates):
    """The law of the first accepted, by every sequence of candidates and every scan of it."""
    law, ref = [0.0] * len(reward), log_ref.exp().tolist()
    for row in itertools.product(range(len(reward)), repeat=candidates):
        share = math.prod(ref[i] for i in row)
        chance = chances(reward[list(row)], beta).tolist()
        still = 1.0
        for i, a in zip(row, chance, strict=True):
            law[i] += share * still * a
            still *= 1 - a
        assert still == 0.0  # the best is always accepted
    return law


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 50.0, math.inf])
@pytest.mark.parametrize("candidates", [1, 2, 5])
def test_the_law_of_the_first_is_that_of_all_sequences(beta, candidates):
    law = first_accepted(REWARD, REF.log(), beta, candidates)
    assert law.tolist() == pytest.approx(listed(REF.log(), REWARD, beta, candidates), abs=1e-12)


def test_the_law_by_hand():
    # Two candidates, chances 1 and a = 0.2: the worse is first accepted when drawn twice, or drawn first and lucky.
    reward = torch.tensor([0.5 * math.log(5), 0.0], dtype=torch.float64)
    law = first_accepted(reward, torch.tensor([0.3, 0.7]).log(), 0.5, 2)
    assert law.tolist() == pytest.approx([1 - 0.49 - 0.042, 0.49 + 0.7 * 0.3 * 0.2], abs=1e-7)


@FEW
@given(rewards, st.integers(0, 99), st.floats(0.05, 5))
def test_the_law_at_its_ends(reward, seed, beta):
    log_ref = torch.randn(len(reward), generator=generator(seed), dtype=torch.float64).log_softmax(0)
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(first_accepted(reward, log_ref, beta, 1), log_ref.exp(), **close)
    torch.testing.assert_close(first_accepted(reward, log_ref, math.inf, 9), log_ref.exp(), **close)
    many = first_accepted(reward, log_ref, beta, 10**5)
    torch.testing.assert_close(many, games.kl_optimal(reward, log_ref, beta).exp(), **close)
    best = first_accepted(reward, log_ref, 0.0, 7)  # best of 7: P(best <= m) = ref{r <= m}^7
    for level in reward:
        under = reward <= level
        assert float(best[under].sum()) == pytest.approx(float(log_ref.exp()[under].sum()) ** 7, abs=1e-9)


def test_the_law_keeps_its_digits_where_the_best_is_rare():
    # A response of chance 1e-12 is not among 64 candidates; of what is, the law is that of what is left.
    log_ref = torch.tensor([0.6, 0.4 - 1e-12, 1e-12], dtype=torch.float64).log()
    law = first_accepted(torch.tensor([0.0, 1.0, 60.0], dtype=torch.float64), log_ref, 1.0, 64)
    weight = torch.tensor([0.6, 0.4 * math.e], dtype=torch.float64)
    torch.testing.assert_close(law[:2], weight / weight.sum(), rtol=0, atol=1e-9)
    assert float(law[2]) == pytest.approx(64e-12, rel=1e-6) and float(law.sum()) == pytest.approx(1, abs=1e-12)


def test_the_rate_of_acceptance_is_that_of_the_theorem():
    # E_ref[exp((r - max r) / beta)] = exp((V - max r) / beta), V the value of the best policy
    rate = float(REF @ chances(REWARD, 0.4))
    value = float(games.kl_value(REWARD, REF.log(), 0.4))
    assert rate == pytest.approx(math.exp((value - 1.0) / 0.4))


def frequencies(candidates, count, beta, draws, copies=True):
    """How often each sequence of responses is what is accepted first."""
    g, seen = generator(0), {}
    for row in torch.multinomial(REF, draws * candidates, True, generator=g).view(draws, -1):
        if not copies:
            row = torch.tensor(list(dict.fromkeys(row.tolist())))
        found = tuple(row[accept(REWARD[row], beta, count, g, row)].tolist())
        seen[found] = seen.get(found, 0) + 1 / draws
    return seen


def fits(seen, law, draws):
    """Pearson's statistic is below its 99.9% quantile."""
    from scipy.stats import chi2

    statistic = sum(draws * (seen.get(key, 0) - p) ** 2 / p for key, p in law.items() if p > 0)
    return set(seen) <= set(law) and statistic < chi2.ppf(0.999, len(law) - 1)


@pytest.mark.parametrize(("candidates", "beta"), [(3, 0.5), (60, 0.5), (60, 2.0)])
def test_what_is_accepted_first_follows_its_law(candidates, beta):
    law = first_accepted(REWARD, REF.log(), beta, candidates)
    if candidates == 60:
        torch.testing.assert_close(law, tilted(beta), rtol=0, atol=2e-3)
    assert fits(frequencies(candidates, 1, beta, 2000), {(i,): float(p) for i, p in enumerate(law)}, 2000)


def test_further_ones_follow_it_without_what_was_accepted():
    pi = tilted(0.5).tolist()
    law = {(i, j): pi[i] * pi[j] / (1 - pi[i]) for i in range(4) for j in range(4) if i != j}
    assert fits(frequencies(120, 2, 0.5, 2000), law, 2000)


def test_without_copies_it_does_not_tend_to_the_target():
    # The paper's listing keeps one candidate of each response: what is rejected once waits for the next round.
    seen = frequencies(60, 1, 0.5, 2000, copies=False)
    assert not fits(seen, {(i,): float(p) for i, p in enumerate(tilted(0.5))}, 2000)


@FEW
@given(rewards, st.floats(0.1, 3), st.floats(-5, 5), st.integers(1, 8), st.integers(0, 99))
def test_only_differences_of_rewards_over_beta_matter(reward, beta, shift, count, seed):
    reward = reward.round(decimals=3)
    found = accept(reward, beta, count, generator(seed))
    assert torch.equal(found, accept(reward + round(shift, 3), beta, count, generator(seed)))
    assert torch.equal(found, accept(2 * reward, 2 * beta, count, generator(seed)))
    assert len(found) == min(count, len(reward)) == len(found.unique())


def test_the_ends_of_beta():
    reward = torch.tensor([0.3, -1.0, 2.0, 0.7, 2.0])
    assert accept(reward, 0.0, 4, generator(0)).tolist() == [2, 4, 3, 0]  # the best, one after the other
    assert accept(reward, math.inf, 4, generator(0)).tolist() == [0, 1, 2, 3]  # as they come
    key = torch.tensor([0, 1, 0, 2, 2])
    assert accept(reward, math.inf, 9, generator(0), key).tolist() == [0, 1, 3]
    assert accept(reward[:0], 1.0, 4, generator(0)).tolist() == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: accept(REWARD, -0.1, 1, generator(0)), "beta: expected 0 or more"),
        (lambda: accept(REWARD, math.nan, 1, generator(0)), "beta"),
        (lambda: accept(REWARD, 1.0, 0, generator(0)), "count: expected 1 or more"),
        (lambda: accept(REWARD * math.nan, 1.0, 1, generator(0)), "reward: expected one or more numbers, all finite"),
        (lambda: accept(REWARD[None], 1.0, 1, generator(0)), "reward: expected"),
        (lambda: accept(REWARD, 1.0, 1, generator(0), torch.zeros(2)), "key: expected"),
        (lambda: first_accepted(REWARD, REF[:2], 1.0, 4), "log_ref: expected"),
        (lambda: first_accepted(REWARD, REF.log(), 1.0, 0), "candidates: expected 1 or more"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
