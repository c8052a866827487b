"""The worst of near distributions: by hand, against linear programs, and each set as the dual of its prices."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog, minimize_scalar

from partita.core.errors import UserError
from partita.tasks.finite.uncertainty import KL, SETS, ChiSquared, Contamination, TotalVariation, Wasserstein, named

Q, V = np.array([[0.2, 0.3, 0.5]]), np.array([1.0, 2.0, 4.0])  # mean 2.8, variance 1.56
EACH = pytest.mark.parametrize("name", list(SETS))


def drawn(seed, size=6, rows=4, zeros=True):
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.ones(size), rows)
    if zeros:
        q[:2, 1] = 0
    return q / q.sum(1, keepdims=True), 3 * rng.normal(size=size)


def program(q, v, distance, radius):
    """The least p'v over moves of q whose length, on the average, is at most the radius: HiGHS."""
    size = len(q)
    from_each = np.kron(np.eye(size), np.ones(size))
    found = linprog(np.tile(v, size), A_ub=distance.reshape(1, -1), b_ub=[radius], A_eq=from_each, b_eq=q)
    return found.fun


def test_by_hand():
    # 0.1 from 4 to 1; min(V, 1 + 1.5)
    assert TotalVariation().worst(Q, V, 0.1) == pytest.approx([2.5])
    assert TotalVariation().penalised(Q, V, 1.5) == pytest.approx([0.2 + 0.6 + 1.25])
    # within the reach of nonnegative p: mean - sqrt(radius variance), mean - variance / (4 price)
    assert ChiSquared().worst(Q, V, 0.01) == pytest.approx([2.8 - np.sqrt(0.0156)])
    assert ChiSquared().penalised(Q, V, 3.0) == pytest.approx([2.8 - 1.56 / 12])
    # beyond: p of the last is 0, eta = 1.6 + 2 * 0.2 / 0.5 = 2.4 and w = (1, 2, 2.4): 2 - 0.28 / 0.8
    assert ChiSquared().penalised(Q, V, 0.2) == pytest.approx([1.65])
    assert KL().penalised(Q, V, 2.0) == pytest.approx(
        [-2 * np.log(0.2 * np.exp(-0.5) + 0.3 * np.exp(-1) + 0.5 * np.exp(-2))]
    )
    # every step down the line costs 1: 4 to 2 falls by 2 for 1, 2 to 1 by 1
    assert Wasserstein().worst(Q, V, 0.6) == pytest.approx([2.8 - 0.5 * 2 - 0.1])
    assert Wasserstein().penalised(Q, V, 1.5) == pytest.approx([0.2 + 0.3 * 2 + 0.5 * 3.5])
    assert Contamination().worst(Q, V, 0.25) == pytest.approx([0.75 * 2.8 + 0.25])
    assert Contamination().penalised(Q, V, 1.2) == pytest.approx([2.2])


def test_kl_of_two_states_by_hand():
    # the tilted row at price 1 / ln 3 is (3/4, 1/4): its divergence is the radius
    radius = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert KL().worst(np.array([[0.5, 0.5]]), np.array([0.0, 1.0]), radius) == pytest.approx([0.25], abs=1e-10)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [0.05, 0.3, 1.5])
def test_linear_programs_agree(seed, radius):
    q, v = drawn(seed)
    rng = np.random.default_rng(seed)
    points = rng.random((6, 2))
    metric = np.linalg.norm(points[:, None] - points, axis=2)
    line = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    for found, distance in (
        (Wasserstein(metric).worst(q, v, radius), metric), (Wasserstein().worst(q, v, radius), line),
        (TotalVariation().worst(q, v, radius), 1 - np.eye(6)),
    ):  # fmt: skip
        np.testing.assert_allclose(found, [program(row, v, distance, radius) for row in q], atol=1e-9)


@EACH
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("radius", [1e-4, 0.1, 0.8])
def test_each_set_is_the_best_of_its_prices(name, seed, radius):
    q, v = drawn(seed, rows=2)
    for row, found in zip(q, SETS[name].worst(q, v, radius), strict=True):

        def above(log, row=row):
            price = np.exp(log)
            return radius * price - SETS[name].penalised(row[None], v, price)[0]

        grid = np.linspace(-20, 12, 200)
        near = min(grid, key=above)
        best = minimize_scalar(above, bounds=(near - 0.2, near + 0.2), method="bounded", options={"xatol": 1e-10})
        assert found == pytest.approx(-best.fun, abs=1e-7)
        assert all(found >= -above(log) - 1e-9 for log in grid)


@EACH
def test_sparse_tables_shifts_and_scales(name):
    q, v = drawn(7)
    among = SETS[name]
    for act, scale in ((among.worst, 1.0), (among.penalised, 2.5)):
        found = act(q, v, 0.2)
        np.testing.assert_allclose(act(sparse.csr_array(q), v, 0.2), found, atol=1e-10)
        np.testing.assert_allclose(act(q, 2.5 * v + 7, 0.2 * scale), 2.5 * found + 7, atol=1e-9)
        if name != "wasserstein":
            order = np.random.default_rng(0).permutation(6)
            np.testing.assert_allclose(act(q[:, order], v[order], 0.2), found, atol=1e-10)


@EACH
def test_limits(name):
    q, v = drawn(3)
    among, reached = SETS[name], np.where(q > 0, v, np.inf).min(1)
    least = reached if name in ("kl", "chi_squared") else np.full(4, v.min())
    np.testing.assert_allclose(among.worst(q, v, 0.0), q @ v, atol=1e-12)
    np.testing.assert_allclose(among.worst(q, v, 1e6), least, atol=1e-9)
    np.testing.assert_allclose(among.penalised(q, v, 1e7), q @ v, atol=1e-5)
    np.testing.assert_allclose(among.penalised(q, v, 1e-6), least, atol=1e-4)
    rows = [among.worst(q, v, radius) for radius in (0.0, 0.01, 0.1, 1.0, 10.0)]
    assert (np.diff(rows, axis=0) <= 1e-12).all()
    assert among.worst(q, np.full(6, 2.0), 0.3) == pytest.approx(2.0)


def test_estimates_that_are_no_distributions():
    q, v = np.array([[0.5, 0.3], [0.7, -0.1]]), np.array([1.0, 2.0])
    # alpha = 2: .5 + .6 = 1.1, less .5 (2 - 1); alpha = 1: .8. Second row: alpha = 1: .6
    assert TotalVariation().worst(q, v, 0.1) == pytest.approx([1.0, 0.6])
    # at alpha = 2, first 1.1 and second 1.7 moments; KL of a mean that is not above 0 is infinite
    assert ChiSquared().penalised(q[:1], v, 10.0) == pytest.approx([1.1 + (1.1**2 - 1.7) / 40])
    assert KL().penalised(np.array([[-0.5, 0.1]]), v, 1.0) == [np.inf]


def test_refusals():
    with pytest.raises(UserError, match=r"solver.uncertainty: expected one of total_variation, .* got 'l2'"):
        named("solver.uncertainty", "l2")
    for metric in (np.ones((3, 3)), np.zeros((2, 2)), -1 + np.eye(3)):
        with pytest.raises(UserError, match="metric: expected 3 x 3 distances"):
            Wasserstein(metric).worst(Q, V, 0.1)
