"""Exact policy gradients: by hand, against finite differences, and towards the best policy."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import logsumexp

from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.parts.exact_gradient import ExactNaturalPolicyGradient, ExactPolicyGradient, gradient
from partita.parts.planning import PolicyIteration
from partita.tasks.finite.mdp import FiniteMDP
from processes import random_process

BOTH = [ExactPolicyGradient, ExactNaturalPolicyGradient]
BANDIT = FiniteMDP(np.ones((2, 1)), np.array([[0.0, 1.0]]), np.ones(1), 0.5)


def steps(solver, mdp, count):
    return list(itertools.islice(solver(mdp, np.random.default_rng(0)), count))


def test_one_step_of_a_bandit_by_hand():
    # uniform: v = 1, A = r + v / 2 - v = (-1/2, 1/2). Gradient: pi A / (1 - 1/2) = (-1/2, 1/2); natural: A / (1/2).
    for kind, rise in ((ExactPolicyGradient, (-0.5, 0.5)), (ExactNaturalPolicyGradient, (-1.0, 1.0))):
        first, second = steps(kind(eta=0.3), BANDIT, 2)
        assert first.numbers == {"value": pytest.approx(1.0), "error": pytest.approx(1.0)}
        logits = np.log(second.tables["policy"][0])
        assert logits[1] - logits[0] == pytest.approx(0.3 * (rise[1] - rise[0]))


def test_steps_that_are_not_given_go_with_the_rewards_and_the_discount():
    wide = BANDIT.but(reward=np.array([[0.0, 4.0]]))  # A = (-2, 2), gradient (-2, 2), natural (-4, 4)
    for kind, gap in ((ExactPolicyGradient, 0.5**3 / (8 * 4) * 4), (ExactNaturalPolicyGradient, 8 / 4)):
        logits = np.log(steps(kind(), wide, 2)[1].tables["policy"][0])
        assert logits[1] - logits[0] == pytest.approx(gap)


def test_the_gradient_against_finite_differences():
    mdp, rng = random_process(1), np.random.default_rng(0)
    theta = rng.normal(size=(6, 3))

    def value(logits):
        policy = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        return mdp.start @ mdp.evaluate(policy), policy

    _, policy = value(theta)
    values = mdp.evaluate(policy)
    found = gradient(mdp, policy, mdp.q(values) - values[:, None])
    for s, a in itertools.product(range(6), range(3)):
        nudge = np.zeros((6, 3))
        nudge[s, a] = 1e-5
        assert found[s, a] == pytest.approx((value(theta + nudge)[0] - value(theta - nudge)[0]) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("kind", BOTH)
class TestBoth:
    def test_values_never_fall_at_the_steps_of_theory(self, kind):
        for seed in range(3):
            values = [found.numbers["value"] for found in steps(kind(), random_process(seed), 60)]
            assert np.diff(values).min() > 0

    def test_the_error_holds(self, kind):
        mdp = random_process(2)
        best = mdp.evaluate(solve(Exact(solver=PolicyIteration()), mdp).solution.tables["policy"])
        for found in steps(kind(), mdp, 30):
            assert (best - found.tables["values"]).max() <= found.numbers["error"] + 1e-12

    def test_names_of_states_do_not_matter(self, kind):
        mdp, order = random_process(3), np.random.default_rng(0).permutation(6)
        table = mdp.transitions.reshape(6, 3, 6)[order][:, :, order].reshape(18, 6)
        moved = mdp.but(transitions=table, reward=mdp.reward[order], start=mdp.start[order])
        there, here = steps(kind(), moved, 10)[-1], steps(kind(), mdp, 10)[-1]
        np.testing.assert_allclose(there.tables["policy"], here.tables["policy"][order])

    def test_shifts_and_scales_of_rewards_change_nothing(self, kind):
        mdp = random_process(4)
        changed = mdp.but(reward=3 * mdp.reward + 2)
        one, other = (steps(kind(), m, 10)[-1].tables["policy"] for m in (mdp, changed))
        np.testing.assert_allclose(one, other, atol=1e-12)

    def test_actions_that_do_not_exist_are_not_taken(self, kind):
        allowed = np.ones((6, 3), bool)
        allowed[:, 1] = False
        policy = steps(kind(), random_process(5, allowed=allowed), 10)[-1].tables["policy"]
        assert (policy[:, 1] == 0).all() and np.allclose(policy.sum(1), 1)

    def test_refusals(self, kind):
        for eta in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(UserError, match=r"solver\.eta: expected a number above 0"):
                kind(eta=eta)
        with pytest.raises(UserError, match=r"solver\.tolerance"):
            kind(tolerance=0)
        with pytest.raises(UserError, match="its discount is 1"):
            solve(Exact(solver=kind()), BANDIT.but(discount=1.0))
        with pytest.raises(UserError, match="ends after 5 decisions"):
            solve(Exact(solver=kind()), BANDIT.but(horizon=5))


def test_the_natural_gradient_finds_the_best_policy_and_forgets_the_start():
    mdp = random_process(6)
    found = solve(Exact(solver=ExactNaturalPolicyGradient()), mdp)
    best = mdp.evaluate(solve(Exact(solver=PolicyIteration()), mdp).solution.tables["policy"])
    assert found.finished
    np.testing.assert_allclose(found.solution.tables["values"], best, atol=1e-8)
    elsewhere = steps(ExactNaturalPolicyGradient(), mdp.but(start=np.eye(6)[0]), 5)[-1]
    np.testing.assert_allclose(
        elsewhere.tables["policy"], steps(ExactNaturalPolicyGradient(), mdp, 5)[-1].tables["policy"]
    )


def test_a_large_step_of_the_natural_gradient_is_policy_iteration():
    mdp = random_process(7)
    first, second = steps(ExactNaturalPolicyGradient(eta=1e9), mdp, 2)
    greedy = mdp.q(first.tables["values"]).argmax(1)
    np.testing.assert_array_equal(second.tables["policy"], np.eye(3)[greedy])


def test_equal_rewards_are_solved_at_once():
    found = solve(Exact(solver=ExactPolicyGradient()), BANDIT.but(reward=np.ones((1, 2))))
    assert found.finished and found.sweeps == 1 and found.solution.numbers["value"] == pytest.approx(2.0)
