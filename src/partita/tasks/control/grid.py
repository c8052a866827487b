"""Gridworlds with walls, keys, doors and pits, drawn as text, and their exact solutions."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from partita.core.errors import nearest
from partita.core.spaces import Discrete, Space
from partita.tasks.control._checks import check_between, check_finite, check_positive, refuse
from partita.tasks.control._draws import uniform
from partita.tasks.control.base import Native
from partita.tasks.finite.mdp import FiniteMDP, assembled

MAPS = {
    "corridor": "S.......G",
    "open": "S..../...../...../...../....G",
    "four_rooms": (
        "S....#...../.....#...../.........../.....#...../.....#...../#.####...../"
        ".....###.##/.....#...../.....#...../.........../.....#....G"
    ),
    "cliff": "............/............/............/SXXXXXXXXXXG",
    "key_door": "S...#..G/....#.../....A.../.a..#...",
    "two_keys": "..a.#...#../S...A...B.G/....#.b.#../....#...#..",
    "maze": "S#...#.../.#.#.#.#./.#.#.#.#./.#.#.#.#./...#...#G",
}
KEYS = "abcdef"
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left


@dataclass(frozen=True)
class Tables:
    """A gridworld as a finite decision process over S = cells x subsets of keys.

    following (S, 4) int64, reward (S, 4) float32, terminal (S, 4) bool of each move without slipping; goal
    (S, 4) bool, the moves that enter a goal (the other terminal ones enter a pit);
    features (S, D) float32, the observation of each state; starts (K,) int64.
    """

    following: Tensor
    reward: Tensor
    terminal: Tensor
    goal: Tensor
    features: Tensor
    starts: Tensor

    def to(self, device: torch.device | str) -> Tables:
        """A copy on another device."""
        return Tables(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Gridworld(Native):
    """Walk to the goal on a grid: actions up, right, down, left; a move into a wall or a locked door stays.

    layout: the name of a built-in map, or rows of text separated by "/" or newlines, of
        "#" wall, "." floor, "S" start (one of several by chance), "G" goal, "X" pit,
        "a" to "f" keys (picked up by walking there, kept), "A" to "F" doors that open to the holder of their key.
    goal_reward, pit_reward: paid on entering a goal or a pit, which ends the episode; step_reward: every step.
    slip: probability that a move goes in a direction drawn from all four instead.

    State: one index (n,) int64. Observation: one-hot cell, then a 0 or 1 for each key of the map.
    """

    layout: str = "four_rooms"
    goal_reward: float = 1.0
    pit_reward: float = -1.0
    step_reward: float = -0.01
    slip: float = 0.0
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")
        check_between(self, "slip", 0.0, 1.0)
        check_finite(self, "goal_reward", "pit_reward", "step_reward")
        rows = self.rows
        if not any("G" in row for row in rows):
            raise refuse(self, "layout", self.layout, f"mark a goal with G, or name a map: {nearest('', MAPS)}")
        if not any("S" in row for row in rows):
            raise refuse(self, "layout", self.layout, "mark at least one start with S")
        if len({len(row) for row in rows}) > 1:
            raise refuse(self, "layout", self.layout, "give rows of equal length")
        odd = sorted(set("".join(rows)) - set("#.SGX" + KEYS + KEYS.upper()))
        if odd:
            raise refuse(self, "layout", self.layout, f"`{odd[0]}` is not a map symbol; use # . S G X a-f A-F")

    @property
    def rows(self) -> list[str]:
        """The map, a string a row."""
        text = MAPS.get(self.layout, self.layout)
        return [row.strip() for row in text.replace("\n", "/").split("/") if row.strip()]

    @property
    def keys(self) -> str:
        """The keys that the map holds, in order."""
        return "".join(k for k in KEYS if any(k in row for row in self.rows))

    @functools.cached_property
    def tables(self) -> Tables:
        """The map as tables, on the CPU."""
        return _tables(self)

    @functools.cached_property
    def _moved(self) -> dict[str, Tables]:
        return {}

    def _on(self, device: torch.device | str) -> Tables:
        name = str(device)
        if name not in self._moved:
            self._moved[name] = self.tables.to(device)
        return self._moved[name]

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.tables.features.shape[1],)

    @property
    def action_space(self) -> Space:
        return Discrete(4)

    @property
    def horizon(self) -> int:
        return self.max_steps

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """A start each, (n,) int64."""
        starts = self._on(device).starts
        if len(starts) == 1:
            return starts.repeat(n)
        return starts[(uniform((n,), 0.0, 1.0, generator, device) * len(starts)).long().clamp_(max=len(starts) - 1)]

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One move; `action` is (n,) int64."""
        tables = self._on(state.device)
        if self.slip:
            drawn = uniform((2, state.shape[0]), 0.0, 1.0, generator, state.device)
            action = torch.where(drawn[0] < self.slip, (drawn[1] * 4).long().clamp_(max=3), action)
        return tables.following[state, action], tables.reward[state, action], tables.terminal[state, action]

    def observe(self, state: Tensor) -> Tensor:
        return self._on(state.device).features[state]

    def shortest_path(self, start: int | None = None) -> list[int] | None:
        """Fewest actions from the state `start` (default: the first start) to a goal without slipping.

        Breadth-first over cells and keys held; None when no goal can be reached. Does not enter pits.
        """
        tables = self.tables
        first = int(tables.starts[0]) if start is None else start
        following, terminal = tables.following.tolist(), tables.terminal.tolist()
        goal = tables.goal.tolist()
        came: dict[int, tuple[int, int] | None] = {first: None}
        queue = deque([first])
        while queue:
            state = queue.popleft()
            for action in range(4):
                if goal[state][action]:
                    path, back = [action], came[state]
                    while back is not None:
                        path.append(back[1])
                        back = came[back[0]]
                    return path[::-1]
                new = following[state][action]
                if not terminal[state][action] and new not in came:
                    came[new] = (state, action)
                    queue.append(new)
        return None

    def optimal_values(self, discount: float = 1.0) -> Tensor:
        """Best expected return within `max_steps` from each state, (S,) float64, slips included.

        Backward induction over the time that is left, from V_0 = 0:

            V_{h+1}(s) = max_a E[r + discount (1 - terminal) V_h(s')]
        """
        tables = self.tables
        goal, pit = tables.goal.double(), (tables.terminal & ~tables.goal).double()
        reward = self.step_reward + goal * self.goal_reward + pit * self.pit_reward
        go_on = discount * (~tables.terminal).double()
        value = torch.zeros(tables.following.shape[0], dtype=torch.float64)
        for _ in range(self.max_steps):
            after = reward + go_on * value[tables.following]
            after = (1.0 - self.slip) * after + self.slip * after.mean(1, keepdim=True)
            value = after.max(1).values
        return value

    @functools.cached_property
    def process(self) -> FiniteMDP:
        """The gridworld as a finite process of `max_steps` decisions; its last state is where episodes end."""
        tables, end = self.tables, self.tables.following.shape[0]
        arrays = (x.tolist() for x in (tables.following, tables.goal, tables.terminal))
        following, goal, terminal = arrays
        outcomes = [(end, action, end, 1.0, 0.0) for action in range(4)]
        for state in range(end):
            for action in range(4):
                for tried in range(4):
                    chance = self.slip / 4 + (1 - self.slip) * (tried == action)
                    paid = self.goal_reward if goal[state][tried] else self.pit_reward
                    over = terminal[state][tried]
                    after = end if over else following[state][tried]
                    outcomes.append((state, action, after, chance, self.step_reward + (paid if over else 0.0)))
        start = torch.zeros(end + 1, dtype=torch.float64)
        start[tables.starts] = 1 / len(tables.starts)
        return assembled(
            outcomes, end + 1, 4, start.tolist(), discount=1.0, horizon=self.max_steps,
            actions=("up", "right", "down", "left"),
        )  # fmt: skip

    def optimal_return(self, discount: float = 1.0) -> float:
        """Best expected return within `max_steps`, averaged over the starts."""
        return float(self.optimal_values(discount)[self.tables.starts].mean())


def _tables(env: Gridworld) -> Tables:
    rows, keys = env.rows, env.keys
    cells = [(i, j) for i, row in enumerate(rows) for j, symbol in enumerate(row) if symbol != "#"]
    number = {cell: k for k, cell in enumerate(cells)}
    held_sets = 1 << len(keys)
    following, entered = [], []
    for i, j in cells:
        for held in range(held_sets):
            for di, dj in MOVES:
                cell, symbol = (i + di, j + dj), "."
                if cell in number:
                    symbol = rows[cell[0]][cell[1]]
                door = symbol in KEYS.upper() and symbol.lower() in keys
                locked = symbol in KEYS.upper() and not (door and held >> keys.index(symbol.lower()) & 1)
                if cell not in number or locked:
                    cell, symbol = (i, j), "."
                now = held | (1 << keys.index(symbol)) if symbol in keys and symbol in KEYS else held
                following.append(number[cell] * held_sets + now)
                entered.append(symbol)
    size = len(cells) * held_sets
    states = torch.arange(size)
    one_hot = torch.nn.functional.one_hot(states // held_sets, len(cells)).float()
    bits = (states[:, None] % held_sets >> torch.arange(len(keys))) & 1
    starts = [number[i, j] * held_sets for i, j in cells if rows[i][j] == "S"]
    goal = torch.tensor([symbol == "G" for symbol in entered]).view(size, 4)
    pit = torch.tensor([symbol == "X" for symbol in entered]).view(size, 4)
    return Tables(
        following=torch.tensor(following).view(size, 4),
        reward=(env.step_reward + goal.double() * env.goal_reward + pit.double() * env.pit_reward).float(),
        terminal=goal | pit,
        goal=goal,
        features=torch.cat((one_hot, bits.float()), 1),
        starts=torch.tensor(starts),
    )
