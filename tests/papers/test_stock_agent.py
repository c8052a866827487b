"""The agent with a stock: its loss and its choice by hand, QR-DQN as its reduction, and what it learns."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from partita.cli import main
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.core.transitions import Transitions
from partita.loops.replay import train
from partita.loops.run import Generators, Run
from partita.papers.theory.stock_agent import (
    QuantileNetworks,
    QuantileRegression,
    chosen_stock,
    compared,
    plan_of,
    regression,
)
from partita.papers.theory.stock_tree import unfold
from partita.parts.explore import EpsilonGreedy
from partita.policies.agent import Agent
from partita.tasks.control.classic import Cartpole, Pendulum
from partita.tasks.control.stocked import Kinked, Stocked
from partita.tasks.finite.risk import Windfall

AGENT = recipe_of("stock_qr_dqn")


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_loss_by_hand():
    # tau 1/4, 3/4; quantiles 0, 2; draws 1, 4: below theta only 1 < 2
    theta, drawn = f64(0.0, 2.0), f64(1.0, 4.0)
    absolute = (0.25 * 1 + 0.25 * 4) / 2 + (0.25 * 1 + 0.75 * 2) / 2
    assert float(regression(theta, drawn, 0.0)) == pytest.approx(absolute)
    huber = (0.25 * 0.5 + 0.25 * 3.5) / 2 + (0.25 * 0.5 + 0.75 * 1.5) / 2
    assert float(regression(theta, drawn, 1.0)) == pytest.approx(huber)


def test_quantiles_are_where_the_loss_is_least():
    drawn, theta = torch.randn(501, generator=torch.Generator().manual_seed(0)).double(), torch.zeros(4).double()
    theta.requires_grad_()
    optimiser = torch.optim.SGD([theta], lr=0.2)
    for _ in range(200):
        optimiser.zero_grad()
        regression(theta, drawn, 0.0).backward()
        optimiser.step()
    expected = torch.quantile(drawn, (torch.arange(4).double() + 0.5) / 4)
    torch.testing.assert_close(theta.detach(), expected, atol=0.1, rtol=0)


def test_the_gradient_of_the_loss():
    g = torch.Generator().manual_seed(0)
    theta, drawn = (torch.randn(3, n, generator=g).double() for n in (5, 7))
    assert torch.autograd.gradcheck(lambda x: regression(x, drawn, 0.3), theta.requires_grad_())


def made(task, recipe=AGENT, seed=0):
    return recipe.equip(QuantileNetworks(hidden=(16,)), task).build(task, False, Generators(seed)["init"])


def test_the_choice_by_hand(monkeypatch):
    task = Stocked(below=4.0, above=0.0, scale=2.0)
    policy = made(task)
    safe_or_not = torch.tensor([[1.0, 1.0], [0.0, 4.0], [-1.0, 9.0]])  # quantiles of three actions
    monkeypatch.setattr(policy, "raw", lambda obs, action, networks, first: safe_or_not.expand(1, len(obs), 3, 2))
    obs = torch.zeros(3, 5)
    obs[:, -2] = torch.tensor([-0.5, 0.5, -10.0])  # stocks -1, 1, -20
    # f = 4 min(x, 0): at -1: 0, -2, -4; at 1: 0, 0, 0; at -20 means count: -76, -72, -64
    torch.testing.assert_close(policy.q(obs)[0], torch.tensor([[0.0, -2, -4], [0, 0, 0], [-76, -72, -64]]))
    assert policy.act(obs, None).tolist() == [0, 0, 2]
    for utility, expected in ((Kinked(1, -1), [-0.0, -2.0, -5.0]), (Kinked(), [0.0, 1.0, 3.0])):
        policy.utility = utility
        torch.testing.assert_close(policy.q(obs)[0, 0], torch.tensor(expected))


def test_the_target_is_of_the_best_action_by_the_next_stock():
    part, behind = QuantileRegression(quantiles=2, double=False), object()
    table = f64(1.0, 1.0, 0.0, 4.0).view(1, 1, 2, 2)
    agent = SimpleNamespace(
        q=lambda obs, lagged: Kinked(1, 0)(table + obs[:, :1, None]).mean(-1), lagged=behind,
        policy=SimpleNamespace(raw=lambda obs, a, networks: table[:, 0, a]),
    )  # fmt: skip
    obs = f64(-1.0, -10.0)[:, None]
    batch = Transitions(obs, torch.zeros(2).long(), f64(3.0, 5.0), obs, f64(0.5, 0.5))
    assert part.target(agent, batch).tolist() == [[[3.5, 3.5], [5.0, 7.0]]]
    over = part.target(agent, batch.but(discount=f64(0.0, 0.0)))
    assert over.tolist() == [[[3.0, 3.0], [5.0, 5.0]]]


def test_without_a_kink_the_stock_moves_no_choice():
    risky, plain = Stocked(below=1.0, above=1.0, scale=3.0), made(Cartpole())
    policy = made(risky)
    obs = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(policy.q(obs), policy.raw(obs).mean(-1) + 3 * obs[None, :, -2:-1])
    obs = torch.rand(20, 4)
    torch.testing.assert_close(plain.q(obs), plain.raw(obs).mean(-1))


def test_one_quantile_with_a_large_kappa_is_dqn():
    """Half of a squared error over kappa, times the 1/2 that |tau - 1{..}| is: the targets are those of double DQN."""
    task = Cartpole()
    recipe = recipe_of("qr_dqn").but(critic=QuantileRegression(quantiles=1, kappa=1e6))
    agent = Agent(made(task, recipe), Generators(0)["update"])
    g = torch.Generator().manual_seed(1)
    obs, later = torch.randn(2, 8, 4, generator=g)
    batch = Transitions(obs, torch.zeros(8).long(), torch.randn(8, generator=g), later, torch.full((8,), 0.9))
    loss, _ = recipe.critic(agent, batch)
    best = agent.q(later).mean(0).argmax(-1, keepdim=True)
    target = batch.reward + 0.9 * agent.q(later, lagged=True)[0].gather(1, best)[:, 0]
    squared = (agent.q(obs, batch.action)[0] - target).square().mean()
    torch.testing.assert_close(1e6 * loss, squared / 4)


def learnt(task, seed=0, updates=500):
    recipe = AGENT.but(
        critic=QuantileRegression(quantiles=8, kappa=0.1), steps=1, updates=updates, batch_size=64, lr=3e-3, start=100,
        envs=8, ratio=1.0, explore=EpsilonGreedy(first=1.0, last=1.0, steps=1),
    )  # fmt: skip
    policy, run = made(task, recipe, seed), Run(seed)
    train(recipe, policy, task, run)
    return policy


def test_it_learns_what_was_earned():
    """A windfall of 0 or 1, then 0 or 1 by choice; 1 in all is wanted: 0 with the stock, -1/2 without."""
    settings = {"prize": 1.0, "sure": 0.0, "win": 1.0, "odds": 1.0}
    task = Stocked(env="windfall", env_settings=settings, below=1.0, above=-1.0, low=-1.0, high=-1.0)
    tree, f = unfold(Windfall(**settings).process, 2), Kinked(1.0, -1.0)
    values = []
    for shown in (True, False):
        seen = task.but(shown=shown)
        laws, _ = tree.backup(f, -1.0, plan_of(learnt(seen), seen, tree, -1.0))
        values.append(tree.mdp.start @ laws @ f(tree.outcomes - 1))
    assert values == [0.0, -0.5]
    policy = made(task)
    assert chosen_stock(policy, task, np.array([-1.0])) == -1.0


def test_an_arm_of_the_claim_runs():
    found = compared("treatment", 1000, rounds=2, spread=2.0, steps=1, updates=8)
    assert set(found) == {"value", "mean", "lower_tail", "stock"} and found["value"] == found["lower_tail"]
    same = compared("control", 1000, control="neutral", env="body", goal="target", hours=2, steps=1, updates=8)
    assert same["value"] <= 0 and same["stock"] == 0


def test_the_command_line_trains_it(tmp_path, capsys):
    main(["train", "stock_qr_dqn", "--task", "stocked", "--steps", "1", "--updates", "2", "--start", "8",
          "--quiet", "--out", str(tmp_path / "run")])  # fmt: skip
    assert (tmp_path / "run" / "policy" / "policy.json").exists()
    assert '"kind": "quantile_networks"' in (tmp_path / "run" / "policy" / "policy.json").read_text()


def test_refusals():
    for changes, field in (({"quantiles": 0}, "quantiles"), ({"kappa": -1.0}, "kappa"), ({"members": 0}, "members")):
        with pytest.raises(UserError, match=rf"critic\.{field}: expected"):
            QuantileRegression(**changes)
    part = AGENT.critic
    assert "needs discrete actions" in part.refuses(AGENT, Pendulum())
    assert "--discount 0.9" in part.refuses(AGENT, Stocked(discount=0.9))
    assert "--actor quantile_greedy" in part.refuses(recipe_of("dqn"), Cartpole())
    assert part.refuses(AGENT, Stocked()) is None
    with pytest.raises(UserError, match="quantile_networks reads vectors"):
        QuantileNetworks().build(Pendulum(), False, torch.Generator())
