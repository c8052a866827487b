"""Small processes for tests."""

import numpy as np

from partita.tasks.finite.mdp import FiniteMDP


def random_process(seed, size=6, choices=3, discount=0.9, **about):
    """A dense process with Dirichlet rows and normal rewards."""
    rng = np.random.default_rng(seed)
    return FiniteMDP(
        rng.dirichlet(np.ones(size), size * choices), rng.normal(size=(size, choices)), rng.dirichlet(np.ones(size)),
        discount, **about,
    )  # fmt: skip


def forest(size=3, wait=4.0, cut=2.0, fire=0.1, discount=0.9):
    """The forest of pymdptoolbox: action 0 waits, 1 cuts."""
    table, reward = np.zeros((size, 2, size)), np.zeros((size, 2))
    for s in range(size):
        table[s, 0, 0] += fire
        table[s, 0, min(s + 1, size - 1)] += 1 - fire
        table[s, 1, 0] = 1
    reward[-1, 0], reward[1:, 1], reward[-1, 1] = wait, 1, cut
    return FiniteMDP(table.reshape(size * 2, size), reward, np.eye(size)[0], discount)
