"""A crossroads: three places to end in, and preferences between whole trajectories that can go round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.spaces import Box, Space
from partita.estimators.games import chance
from partita.estimators.masked import last_value
from partita.tasks.control._checks import check_between, check_finite, check_not_negative, check_positive, refuse
from partita.tasks.control._draws import uniform
from partita.tasks.control.base import Native
from partita.tasks.preferences.games import MatrixGame

BEACONS = 3
REACH = 1.5  # the walls, on either side of the middle


@dataclass(frozen=True)
class Crossroads(Native):
    """Walk on a plane for `steps` steps and end near one of three beacons, compared as whole trajectories.

        x <- clip(x + speed * clip(a, -1, 1), -1.5, 1.5)
        return        = worth_k - |x_H - b_k|,    k: the beacon nearest to x_H
        P(y beats y') = (1 - c) s((v - v') / noise) + c s(cycle(k, k') / noise)
        v             = (1 - m) return - m x_H/2 . x_H
        cycle(k, k')  = strengths_k if k = k' + 1 mod 3,  -strengths_k' if k' = k + 1 mod 3,  else 0

    Beacons b_0, b_1, b_2 stand at 90, 210 and 330 degrees on the unit circle; a walk begins within `scatter` of
    (0, start). s is the logistic function (a step at noise 0), c is `intransitive`: 0, the order by v; 1, beacons go
    round. m is `non_markovian`: turning back after half of the walk counts, which no sum over steps says. Observation:
    position and the share of steps taken. The return is paid at the last step, whoever prefers.
    """

    steps: int = 12
    speed: float = 0.2
    start: float = 0.5
    scatter: float = 0.05
    worth: tuple[float, float, float] = (0.0, 0.25, 0.5)
    strengths: tuple[float, float, float] = (1.0, 0.5, 0.5)
    intransitive: float = 0.0
    non_markovian: float = 0.0
    noise: float = 0.25

    def __post_init__(self) -> None:
        check_positive(self, "speed")
        check_not_negative(self, "scatter", "noise")
        check_finite(self, "start")
        check_between(self, "intransitive", 0.0, 1.0)
        check_between(self, "non_markovian", 0.0, 1.0)
        if not (self.steps >= 2 and self.steps % 2 == 0):
            raise refuse(self, "steps", self.steps, "give an even number of at least 2")
        for name, least in (("worth", -math.inf), ("strengths", 0.0)):
            values = getattr(self, name)
            if len(values) != BEACONS or not all(math.isfinite(v) and v >= least for v in values):
                kind = "finite numbers" if name == "worth" else "numbers of at least 0"
                raise refuse(self, name, values, f"give {BEACONS} {kind}")

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (3,)

    @property
    def action_space(self) -> Space:
        return Box(2, (-1.0, -1.0), (1.0, 1.0))

    @property
    def horizon(self) -> int:
        return self.steps

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """Positions about (0, start) and a clock at 0, (n, 3)."""
        state = uniform((n, 3), -self.scatter, self.scatter, generator, device)
        return torch.stack((state[:, 0], state[:, 1] + self.start, torch.zeros_like(state[:, 2])), 1)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A step of at most `speed` along each axis; the last one ends the walk and pays."""
        place = self._after(state[:, :2], action)
        time = state[:, 2] + 1.0
        over = time >= self.steps
        return torch.cat((place, time[:, None]), 1), self.worth_of(place) * over, over

    def observe(self, state: Tensor) -> Tensor:
        return torch.cat((state[:, :2], state[:, 2:] / self.steps), 1)

    def _after(self, place: Tensor, action: Tensor) -> Tensor:
        return (place + self.speed * action.to(place.dtype).clamp(-1.0, 1.0)).clamp(-REACH, REACH)

    def _distances(self, place: Tensor) -> Tensor:
        """To each beacon, (..., 3)."""
        angle = (90.0 + 120.0 * torch.arange(BEACONS, dtype=place.dtype, device=place.device)).deg2rad()
        return (place[..., None, :] - torch.stack((angle.cos(), angle.sin()), 1)).norm(dim=-1)

    def worth_of(self, place: Tensor) -> Tensor:
        """The return of a walk that ends at `place` (..., 2): (...)."""
        distance, beacon = self._distances(place).min(-1)
        return torch.tensor(self.worth, dtype=place.dtype, device=place.device)[beacon] - distance

    # -- who prefers ----------------------------------------------------------------------------------------------

    def seen(self, batch: Batch) -> Tensor:
        """What the rater looks at of whole walks: where they were after half of the steps and at the end, (B, 4)."""
        obs, action = batch.inputs["obs"], batch.inputs["action"]
        place = torch.stack([last_value(obs[..., i], batch.mask) for i in range(2)], 1)
        move = torch.stack([last_value(action[..., i], batch.mask) for i in range(2)], 1)
        return torch.cat((obs[:, self.steps // 2, :2], self._after(place, move)), 1)

    def compare(self, seen: Tensor, other: Tensor) -> Tensor:
        """The probability that each walk is preferred to each other: (A, 4), (B, 4) -> (A, B) float64."""
        first, second = self._judged(seen), self._judged(other)
        difference = first[0][:, None] - second[0][None]
        return self._preferred(difference, first[1][:, None], second[1][None])

    def _judged(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        half, end = seen.double().split(2, 1)
        m = self.non_markovian
        return (1 - m) * self.worth_of(end) - m * (half * end).sum(1), self.regions(seen)

    def regions(self, seen: Tensor) -> Tensor:
        """The beacon nearest to the end of each walk, (B,) int64."""
        return self._distances(seen[:, 2:].double()).argmin(-1)

    def _preferred(self, difference: Tensor, kind: Tensor, other: Tensor) -> Tensor:
        strength = torch.tensor(self.strengths, dtype=torch.float64, device=difference.device)
        turn = (kind - other) % BEACONS
        cycle = torch.where(turn == 1, strength[kind], torch.where(turn == 2, -strength[other], 0.0))
        c = self.intransitive
        return (1 - c) * chance(difference, self.noise) + c * chance(cycle, self.noise)

    @cached_property
    def game(self) -> MatrixGame:
        """The game of beacons: the preferences between walks that end right at them, and are alike otherwise."""
        worth = torch.tensor(self.worth, dtype=torch.float64) * (1 - self.non_markovian)
        kind = torch.arange(BEACONS)
        return MatrixGame(self._preferred(worth[:, None] - worth[None], kind[:, None], kind[None]))
