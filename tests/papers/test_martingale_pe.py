"""Policy evaluation by martingales: roots in closed form, steps by hand, what equals what, and where it leads."""

import dataclasses
import json

import numpy as np
import pytest

from partita.cli import main
from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.papers.theory.martingale_pe import (
    CGTD,
    CLSTD,
    CTD,
    FIGURES,
    RECIPES,
    MartingaleGMM,
    MartingaleLoss,
    MeanSquareTD,
    best_fit,
    disagreement,
    distance,
    expected,
    fitted,
    instruments,
    order,
    root,
    thetas,
)
from partita.parts.evaluation import moments
from partita.tasks.finite.diffusions import (
    BlackScholes,
    Brownian,
    Increments,
    LinearQuadratic,
    OrnsteinUhlenbeck,
    increments,
    sampled,
)

LINEAR, SQUARE, MISFIT = (Brownian(case).diffusion for case in ("linear", "square", "misfit"))
OU = OrnsteinUhlenbeck().diffusion


def column(*values):
    return np.array(values, float)[:, None]


# one path, D = 1/4, theta = 2: dM = base + 2 slope = (3, 1, 2)
DATA = Increments(column(1, 2, 4)[..., None], column(1, 2, -1)[..., None], column(1, -3, 4), 0.25)


def stepped(solver, data=DATA, theta=(2.0,)):
    return solver.improved(np.array(theta), data, 0.1).tolist()


def test_steps_by_hand():
    assert stepped(MeanSquareTD(episodes=1)) == pytest.approx([2 - 0.1 * (3 + 2 - 2)])
    assert stepped(CTD(episodes=1)) == pytest.approx([2 + 0.1 * (3 + 2 + 8)])
    # M_3 - M_i = (6, 3, 2)
    assert stepped(MartingaleLoss(episodes=1)) == pytest.approx([2 + 0.1 * 0.25 * (6 + 6 + 8)])
    # lam^D = 1/2: xi = (1, 2.5, 5.25) / 4
    assert stepped(CTD(lam=0.5**4, episodes=1)) == pytest.approx([2 + 0.1 * (3 + 2.5 + 10.5) / 4])
    # online: 2.3; dM = -3 + 4.6 = 1.6, so 2.62; dM = 4 - 2.62 = 1.38
    assert stepped(CTD(online=True, episodes=1)) == pytest.approx([2.62 + 0.4 * 1.38])


def test_increments_by_hand():
    # t = (0, 1/2), x = (1, 2, 3), J^theta = theta (1 - t) x, r = x
    x = column(1, 2, 3)
    found = increments(LINEAR, column(0, 0.5), x[:-1], 0.5, x[1:])
    assert found.phi.ravel().tolist() == [1, 1] and found.slope.ravel().tolist() == [0, -1]
    assert found.base.ravel().tolist() == [0.5, 1.0]
    problem = dataclasses.replace(LINEAR, discount=2 * np.log(2))  # halves in every step
    found = increments(problem, column(0, 0.5), x[:-1], 0.5, x[1:])
    assert found.phi.ravel().tolist() == pytest.approx([1, 0.5])
    assert found.slope.ravel().tolist() == pytest.approx([-0.5, -0.5])
    assert found.base.ravel().tolist() == pytest.approx([0.5, 0.5])


def test_two_step_quadratic_form_by_hand():
    # matrix (a) = sum xi slope, vector (b) = sum xi base of one path with two tests: phi and D sum phi
    a, b = moments(np.concatenate([instruments(DATA, lam) for lam in (0.0, 1.0)], -1), DATA.slope, DATA.base)
    assert a.ravel().tolist() == [1 + 4 - 4, (1 + 6 - 7) / 4] and b.tolist() == [1 - 6 + 16, (1 - 9 + 28) / 4]
    found = next(MartingaleGMM(metric="identity").learn([DATA], np.zeros(1)))
    assert found.tolist() == pytest.approx([-11.0])
    first, second = CGTD(metric="identity", lr=0.1, fast=0.2, decay=0.0).learn([DATA, DATA], np.array([2.0]))
    # m = 13 at 2, so w = 2.6, and theta goes down by 0.1 * 1 * 2.6
    assert [first.tolist(), second.tolist()] == [[2.0], pytest.approx([1.74])]
    *_, last = CGTD(lr=0.1, fast=0.2, decay=0.0).learn([DATA] * 3, np.array([2.0]))
    # C = 21/4: w = 2.6, theta = 1.74; w = 2.6 + 0.2 (11 + 1.74 - ... ) uses theta 2: 2.6 + 0.2 (13 - 13.65) = 2.47
    assert last.tolist() == pytest.approx([1.74 - 0.247])


@pytest.mark.parametrize("steps", [3, 10, 40])
def test_roots_in_closed_form(steps):
    u = np.arange(1, steps + 1) / steps  # what is left of the time
    assert root(LINEAR, steps, None)[0] == pytest.approx(1.5 / (steps + 1))
    for lam in (0.0, 0.3, 1.0):
        assert root(LINEAR, steps, lam)[0] == pytest.approx(1.0)
    assert root(SQUARE, steps, 1.0)[0] == pytest.approx(1 - (u**3).sum() / (u**4).sum() / steps)
    wanted = (u**2 * (u - 1 / steps)).sum() / (u**2 * (u - 0.5 / steps)).sum()
    assert root(SQUARE, steps, 0.0)[0] == pytest.approx(wanted)


def test_each_method_has_a_limit_of_its_own_where_the_family_lacks_the_value():
    known = {1.0: 1.194094, 0.0: 0.679612, None: 0.751880}
    for lam, theta in known.items():
        assert root(MISFIT, 10, lam)[0] == pytest.approx(theta, abs=1e-6)
    assert best_fit(0) == pytest.approx(1.25, abs=2e-4)


def test_the_rate_in_the_mesh_is_one():
    assert order(0, (8, 16, 32)) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("lam", [None, 0.0, 0.4, 1.0])
def test_quadrature_is_the_mean_of_many_paths(lam):
    data = sampled(OU, 20_000, 6, np.random.default_rng(1000))
    matrix, vector = moments(instruments(data, lam), data.slope, data.base)
    a, b = expected(OU, 6, lam)
    np.testing.assert_allclose(matrix, a, atol=0.01)
    np.testing.assert_allclose(vector, b, atol=0.01)


@pytest.mark.parametrize("problem", [OU, LinearQuadratic(discount=0.3).diffusion, BlackScholes().diffusion])
def test_gradients_by_finite_differences(problem):
    rng = np.random.default_rng(0)
    data, theta, eps = sampled(problem, 5, 12, rng), rng.normal(size=problem.size), 1e-5

    def mean_square(theta):
        return (data.of(theta) ** 2).sum(0).mean() / 2

    def loss(theta):
        rest = data.of(theta)[::-1].cumsum(0)[::-1]
        return data.mesh * (rest**2).sum(0).mean() / 2

    for solver, f in ((MeanSquareTD(episodes=5), mean_square), (MartingaleLoss(episodes=5), loss)):
        slope = [(f(theta + eps * e) - f(theta - eps * e)) / (2 * eps) for e in np.eye(problem.size)]
        np.testing.assert_allclose(theta - solver.improved(theta, data, 1.0), slope, rtol=1e-5, atol=1e-8)


def test_the_martingale_loss_is_gradient_monte_carlo():
    x, t, theta = OU.paths(4, 9, np.random.default_rng(0)), OU.times(9)[:, None], np.array([0.3, -0.7])
    worth = np.exp(-OU.discount * t)
    paid = np.append(worth[:-1] * OU.reward(t, x)[:-1] / 9, worth[-1:] * OU.base(t, x)[-1:], 0)
    rest = paid[::-1].cumsum(0)[::-1][:-1] - (worth * OU.approximate(theta, t, x))[:-1]
    step = np.einsum("kn,knd->d", worth[:-1] * rest, OU.features(t, x)[:-1]) / 9 / 4
    data = sampled(OU, 4, 9, np.random.default_rng(0))
    np.testing.assert_allclose(MartingaleLoss(episodes=4).improved(theta, data, 1.0), theta + step)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_the_same(seed):
    assert disagreement(seed) < 1e-12  # CTD(1) and the martingale loss
    data = sampled(OU, 30, 8, np.random.default_rng(seed))
    for lam in (0.0, 0.5):
        found = fitted(data, lam)
        np.testing.assert_allclose(CTD(lam=lam, episodes=30).improved(found, data, 1.0), found)  # CLSTD is CTD's root
        np.testing.assert_allclose(next(CLSTD(lam=lam).learn([data], np.zeros(2))), found)
        for metric in ("identity", "tests"):
            gmm = MartingaleGMM(lams=(lam,), metric=metric)
            np.testing.assert_allclose(next(gmm.learn([data], np.zeros(2))), found, rtol=1e-5)
    found = fitted(data, None)
    np.testing.assert_allclose(MeanSquareTD(episodes=30).improved(found, data, 1.0), found)


def test_online_is_offline_on_a_single_step_and_td_with_traces_on_many():
    data = sampled(OU, 6, 1, np.random.default_rng(0))
    theta = np.array([0.5, -0.5])
    one, two = (CTD(lam=0.5, episodes=6, online=x).improved(theta, data, 0.3) for x in (True, False))
    np.testing.assert_allclose(one, two)
    data = sampled(SQUARE, 1, 8, np.random.default_rng(0))
    z, value = 0.0, 0.4  # TD(lam) without a discount, on gamma = 1 and rewards r D
    for phi, slope, base in zip(data.phi[:, 0, 0], data.slope[:, 0, 0], data.base[:, 0], strict=True):
        z = 0.5 * z + phi / 8
        value += 0.3 * z * (base + slope * value)
    assert CTD(lam=0.5**8, online=True, episodes=1).improved(np.array([0.4]), data, 0.3)[0] == pytest.approx(value)


def test_without_noise_the_mean_square_error_is_no_worse():
    still = OrnsteinUhlenbeck(noise=0.0).diffusion
    data = sampled(still, 1, 30, np.random.default_rng(0))
    np.testing.assert_allclose(fitted(data, 0.0)[0], fitted(data, None)[0])
    assert distance("treatment", 1000, noise=0.0) == pytest.approx(distance("control", 1000, noise=0.0), abs=1e-8)


def test_rewards_may_be_shifted_and_scaled():
    def scaled(name):
        return lambda t, x: 3 * getattr(SQUARE, name)(t, x)

    thrice = dataclasses.replace(SQUARE, **{n: scaled(n) for n in ("reward", "value", "base")})
    shifted = dataclasses.replace(
        SQUARE, reward=lambda t, x: SQUARE.reward(t, x) + 2, value=lambda t, x: SQUARE.value(t, x) + 2 * (1 - t),
        base=lambda t, x: SQUARE.base(t, x) + 2 * (1 - t),
    )  # fmt: skip
    for lam in (None, 0.0, 1.0):
        found = root(SQUARE, 7, lam)
        np.testing.assert_allclose(root(thrice, 7, lam), 3 * found)
        if lam is not None:
            np.testing.assert_allclose(root(shifted, 7, lam), found)


def test_ctd_learns_the_value_and_mean_square_td_a_wrong_one():
    def theta(solver):
        return solve(Exact(solver=solver.but(steps=20, episodes=64)), LINEAR, 1000).solution.tables["theta"][0]

    assert theta(MeanSquareTD(lr=3.0, decay=0.3)) == pytest.approx(1.5 / 21, abs=0.03)
    for solver in (CTD(lr=3.0), CTD(lr=3.0, online=True), CTD(lam=0.5, lr=5.0), MartingaleLoss(lr=5.0), CLSTD(),
                   MartingaleGMM(), CGTD(lr=3.0, fast=5.0, decay=0.3)):  # fmt: skip
        assert theta(solver) == pytest.approx(1.0, abs=0.1)


def test_the_figure_is_near_its_theory():
    lines = thetas(1000)
    for name, line in zip(("least mean-square TD error", "CLSTD(0)"), FIGURES[0].theory.values(), strict=True):
        wanted = np.array([line(x) for x in FIGURES[0].x])
        assert len(lines[name]) == len(wanted) and (np.abs(lines[name] - wanted) < 0.25 * wanted).all()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_run_from_the_command_line(name, tmp_path):
    target = tmp_path / "found.json"
    main(["solve", name, "--task", "ornstein_uhlenbeck", "--solver.batches", "4", "--out", str(target)])
    found = json.loads(target.read_text())
    assert found["sweeps"] == 4 and len(found["tables"]["theta"]) == 2 and found["numbers"]["error"] >= 0


def test_refusals(capsys):
    for make, said in (
        (lambda: CTD(lam=2.0), "solver.lam: expected a number from 0 to 1, got 2.0"),
        (lambda: CTD(lr=-1.0), "solver.lr: expected a number above 0"),
        (lambda: CLSTD(steps=0), "solver.steps: expected 1 or more, got 0"),
        (lambda: CGTD(metric="tests2"), "solver.metric: expected identity or tests"),
        (lambda: CGTD(fast=0.0), "solver.fast: expected a number"),
        (lambda: MartingaleGMM(lams=()), "solver.lams: expected different numbers from 0 to 1"),
        (lambda: MartingaleGMM(lams=(0.5, 0.5)), "solver.lams: expected different numbers"),
        (lambda: root(LINEAR, 1, 0.0), "the samples do not tell the features apart"),
    ):
        with pytest.raises(UserError, match=said):
            make()
    with pytest.raises(SystemExit) as stopped:
        main(["solve", "ctd", "--task", "river_swim"])
    assert stopped.value.code == 2 and "it has no diffusion" in capsys.readouterr().err
