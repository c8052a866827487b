"""Nash-MP: its steps against their definition, its rates against the theorem, its estimate, and its reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import policy as small

from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.estimators import games
from partita.loops.on_policy import gather as gather_on_policy
from partita.loops.preference import Known, gather, train
from partita.loops.run import Generators, Run
from partita.papers.baselines.rloo import RLOO
from partita.papers.preference.nash_mp import (
    Proximal,
    above_the_bound,
    drawn_game,
    from_policy_gradient,
    measured_path,
    mirror_prox,
    queries_needed,
    rates,
    sampled,
    slower_than_stated,
)
from partita.parts.contrast import Direct
from partita.parts.reference import Ema, Frozen
from partita.parts.resample import Online
from partita.parts.reward import KLPenalty, Outcome
from partita.parts.rollout import Sample
from partita.tasks.language.probes import ProbeBandit
from partita.tasks.preferences.games import MatrixGame
from preferences import Liked


def nudged(by, seed: int, scale: float = 0.1):
    """The policy with other weights."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in by.trainable().values():
            weight.add_(scale * torch.randn(weight.shape, generator=g))
    return by


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.02, 2), st.floats(0.05, 3))
def test_both_half_steps_are_the_minima_that_define_them(seed, beta, eta):
    game = MatrixGame.random(4, seed, tau=beta)
    second = mirror_prox(game, 4, eta)[2]  # pi_1, from which the next iteration starts
    half = games.proximal(game.preference @ second.exp(), game.ref, second, beta, beta * (1 + 1 / eta))

    def cost(z, opponent):  # of the paper: P(opponent beats pi) / beta + KL(pi || ref) + KL(pi || pi_k) / eta
        return game.win_rate(opponent, z) / beta + games.kl(z, game.ref) + games.kl(z, second) / eta

    for found, opponent in ((half, second), (mirror_prox(game, 4, eta)[4], half)):
        theta = found.clone().requires_grad_()
        slope = torch.autograd.grad(cost(theta.log_softmax(0), opponent), theta)[0]
        assert slope.abs().max() < 1e-12 * max(1, 1 / beta)
        other = (found + 0.1 * torch.randn(4, generator=torch.Generator().manual_seed(seed))).log_softmax(0)
        assert cost(other, opponent) > cost(found, opponent)


def test_an_iteration_by_hand():
    # Rock-paper-scissors, ref = (1/2, 1/4, 1/4), beta = eta = 1: the first steps leave ref by half the gain.
    ref = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    path = mirror_prox(MatrixGame.rock_paper_scissors(1.0, 1.0, ref.log()), 3, 1.0)
    # against ref paper gains 1/2 (1/2 - 1/4) = 1/8, scissors lose it, rock gains nothing
    half = ref * torch.tensor([0.0, 1 / 16, -1 / 16], dtype=torch.float64).exp()
    half = half / half.sum()
    gain = 0.5 * torch.stack((half[2] - half[1], half[0] - half[2], half[1] - half[0]))
    want = ref * (gain / 2).exp()
    torch.testing.assert_close(path[2].exp(), want / want.sum())
    assert torch.equal(path[1], path[0]) and torch.equal(path[3], path[2])


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_holds_and_nothing_falls_more_slowly_than_stated(seed):
    assert above_the_bound(seed) == 0.0 and slower_than_stated(seed) == 0.0
    found = rates(seed)
    assert set(found) == {"kl", "gap", "span"} and max(found.values()) < 3
    left = measured_path(drawn_game(seed))
    assert all(values[-1] < 1e-3 * values[0] for values in left.values())


def test_the_bound_is_one_that_others_break():
    game = MatrixGame.random(10, 1, tau=0.05)
    steps = torch.arange(401) // 2
    for opponent, longest in (("mixture", 0.55), ("itself", 0.08)):
        path = games.self_play(game.preference, game.ref, 0.05, longest, 400, opponent)
        left = games.kl(game.equilibrium.expand_as(path), path)
        assert (left > left[0] * 1.1 ** -steps.double()).any()


def test_without_eta_it_takes_the_step_of_the_theorem():
    game = MatrixGame.random(5, 0, tau=0.3)
    assert torch.equal(mirror_prox(game, 10), mirror_prox(game, 10, 0.6))
    assert not torch.equal(mirror_prox(game, 10), mirror_prox(game, 10, 0.3))


def test_in_games_that_go_round_it_needs_fewer_queries():
    ask = {"intransitive": 1.0, "most": 1000}
    mine = queries_needed("treatment", 3, "nash_md", eta=0.2, **ask)
    assert mine == queries_needed("treatment", 3, "mirror_descent", eta=0.2, **ask) < 100
    assert queries_needed("control", 3, "nash_md", eta=0.2, **ask) == 1000  # it never arrives
    assert mine < queries_needed("control", 3, "mirror_descent", eta=0.5, **ask) < 1000
    assert queries_needed("control", 3, "nash_md", eta=None, **ask) > 4 * mine  # its own, shrinking steps
    stated = [queries_needed(arm, 3, "nash_md", eta="stated", **ask) for arm in ("treatment", "control")]
    assert stated[0] == queries_needed("treatment", 3, "nash_md", eta=0.53, **ask) > mine  # beta 0.03: 0.5 + 0.03
    assert stated[1] == queries_needed("control", 3, "nash_md", eta=None, **ask)


def test_a_sampled_step_is_the_policy_gradient_on_average():
    # From the reference there is no price yet; after the half step the opponent is another.
    game = MatrixGame.rock_paper_scissors(1.0, 0.5, torch.tensor([0.5, 0.25, 0.25]).log())
    n, lr = 200_000, 8.0

    def step(opponent):
        pi, wins = game.ref.exp(), game.preference @ opponent.exp()
        return (game.ref + lr * pi * (wins - pi @ wins)).log_softmax(0)

    found = sampled(game, 1, 1, n, lr, torch.Generator().manual_seed(0))[1]
    torch.testing.assert_close(found, step(step(game.ref)), rtol=0, atol=2 * lr / math.sqrt(n))
    assert (found - step(game.ref)).abs().max() > 4 * lr / math.sqrt(n)


@pytest.mark.parametrize("eta", [0.2, 2.0])
def test_many_sampled_steps_are_the_proximal_ones(eta):
    game = MatrixGame.rock_paper_scissors(1.0, 0.2, torch.tensor([0.5, 0.25, 0.25]).log())
    path = sampled(game, 2, 150, 4000, 1.0, torch.Generator().manual_seed(0), eta)
    torch.testing.assert_close(path[2].exp(), mirror_prox(game, 4, eta)[4].exp(), rtol=0, atol=0.01)


def test_sampled_steps_come_near_the_exact_ones_and_nearer_with_more_samples():
    game = MatrixGame.random(6, 1000, tau=0.1)
    off = {}
    for samples in (10, 1000):
        path = sampled(game, 20, 40, samples, 0.5, torch.Generator().manual_seed(1))
        off[samples] = float(games.kl(game.equilibrium.expand(10, 6), path[-10:]).mean())
        again = sampled(game, 2, 40, samples, 0.5, torch.Generator().manual_seed(1))
        assert torch.equal(again[-1], path[2])
    start = float(games.kl(game.equilibrium, game.ref))
    assert off[1000] < 0.03 * start and off[1000] < off[10] / 3


@pytest.mark.parametrize("seed", range(3))
def test_online_ipo_is_self_play_by_policy_gradients(seed):
    assert from_policy_gradient(seed) < 1e-12


def moved(part, steps: int = 3):
    """A reference that followed a policy through some changes, the policy, and a batch of it."""
    recipe = recipe_of("nash_mp").but(reference=part, batch_size=2).fresh()
    by = small(context=32)
    recipe.reference.start(by)
    for i in range(steps):
        recipe.reference.update(nudged(by, i), i + 1)
    pairs, _ = gather(recipe, by, Liked(), Generators(0), 1, Known())
    return recipe.reference, by, pairs


def test_the_reference_is_the_mixture_of_the_first_policy_and_the_average():
    found, by, pairs = moved(Proximal(decay=0.5, eta=2.0))
    with torch.no_grad():
        first, target = (moved(part)[0].logp(by, pairs.batch) for part in (Frozen(), Ema(0.5)))
        torch.testing.assert_close(found.logp(by, pairs.batch), (2 * first + target) / 3)
        assert (first - target).abs().max() > 0.1
    total = (((2 * first + target) / 3) * pairs.batch.mask).sum(1)
    torch.testing.assert_close(pairs.ref, total)


@pytest.mark.parametrize(("mine", "theirs"), [(Proximal(0.5, 0.0), Ema(0.5)), (Proximal(1.0, 2.0), Frozen())])
def test_at_its_ends_it_is_the_average_or_the_first_policy(mine, theirs):
    (found, by, pairs), (other, _, _) = moved(mine), moved(theirs)
    with torch.no_grad():
        torch.testing.assert_close(found.logp(by, pairs.batch), other.logp(by, pairs.batch))


def test_it_is_taken_up_again_as_it_was():
    part, by, pairs = moved(Proximal(decay=0.5, eta=2.0))
    again = Proximal(decay=0.5, eta=2.0).fresh()
    again.load_state_dict({name: weight.clone() for name, weight in part.state_dict().items()})
    for other in (part, again):
        other.update(by, 4)
    with torch.no_grad():
        assert torch.equal(part.logp(by, pairs.batch), again.logp(by, pairs.batch))
    assert all(n.startswith(("first.", "target.")) for n in part.state_dict())
    part.start(by)
    assert all(torch.equal(part.state_dict()[f"first.{n}"], w) for n, w in by.state_dict().items())


def test_a_price_on_it_is_a_price_on_both():
    # On the on-policy loop: b (log pi - log ref') = beta (log pi - log ref) + beta / eta (log pi - log target)
    beta, eta = 0.1, 2.0
    got = {}
    for name, part in (("both", Proximal(0.5, eta)), ("first", Frozen()), ("target", Ema(0.5))):
        recipe = RLOO.but(
            rollout=Sample(), reward=(Outcome(0.0), KLPenalty(1.0)), reference=part, batch_size=4, group_size=4
        ).fresh()
        by = small(context=32)
        recipe.reference.start(by)
        recipe.reference.update(nudged(by, 0), 1)
        batch, _, _ = gather_on_policy(recipe, by, ProbeBandit(), Generators(0), 1)
        got[name] = batch.reward
    want = beta * got["first"] + beta / eta * got["target"]
    torch.testing.assert_close(beta * (1 + 1 / eta) * got["both"], want)
    assert (got["first"] - got["target"]).abs().max() > 0.01


def test_own_responses_are_learnt():
    recipe = recipe_of("nash_mp")
    assert recipe.objective == Direct(loss="ipo", beta=0.1 * (1 + 1 / recipe.reference.eta))
    weak = Direct(loss="ipo", beta=0.04)  # the equilibrium is far from a policy that never saw a letter
    recipe = recipe.but(steps=25, batch_size=6, lr=1e-2, resample=Online(responses=8), objective=weak)
    run, by = Run(0), small(scale=0.0, context=32, layers=1)
    train(recipe, by, Liked(), run)
    score = [row["return"] for row in run.metrics]
    assert sum(score[-5:]) / 5 > sum(score[:5]) / 5 + 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Proximal(eta=-1.0), "reference.eta: expected 0 or more, got -1.0"),
        (lambda: Proximal(eta=math.inf), "reference.eta"), (lambda: Proximal(decay=1.5), "reference.decay"),
    ],
)  # fmt: skip
def test_bad_settings_name_the_field(make, words):
    with pytest.raises(UserError, match=words):
        make()
