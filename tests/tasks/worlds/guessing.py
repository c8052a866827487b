"""Small Gymnasium environments in text for tests, in a module that worker processes can import."""

import os
import time

import gymnasium
from gymnasium.spaces import Discrete, Text


class Guess(gymnasium.Env):
    """Guess a digit: "up" or "down" until it is found. `trouble` breaks one thing."""

    metadata = {"render_modes": []}

    def __init__(self, trouble: str = "", hint: bool = True) -> None:
        if trouble == "make":
            raise RuntimeError("no licence")
        self.observation_space = Discrete(3) if trouble == "observations" else Text(20)
        self.action_space = Discrete(10) if trouble == "actions" else Text(1, charset="0123456789")
        self.trouble = trouble
        self.hint = hint
        self.closed = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.trouble == "reset":
            raise RuntimeError("no file")
        if self.trouble == "number":
            return 5, {}
        self.digit = int(self.np_random.integers(10))
        self.turn = 0
        start = f"digit? {'even' if self.digit % 2 == 0 else 'odd'}"
        if self.trouble == "seed":
            start = f"digit {time.monotonic_ns()}"
        return start, self._info()

    def _info(self, **more):
        return {"state": f"{self.digit}.{self.turn}", **more} if self.trouble != "stateless" else more

    def step(self, action):
        self.turn += 1
        if self.trouble == "step" and self.turn == 2:
            raise KeyError("lost\nbooks")
        if self.trouble == "hang" and action == "7":
            time.sleep(60)
        if self.trouble == "die" and action == "7":
            os._exit(3)
        if self.trouble == "print":
            print("hello from the environment")
        right = int(action) == self.digit
        reward = {"nan": float("nan"), "none": None}.get(self.trouble, 2.0 if right else -0.5)
        text = 7 if self.trouble == "text" else "" if right else "up" if int(action) < self.digit else "down"
        info = self._info(success="x" if self.trouble == "success" else right) if self.hint else self._info()
        return text, reward, right, self.turn >= 5, info

    def expert(self) -> str:
        if self.trouble == "expert":
            raise AttributeError
        return str(self.digit)

    def close(self):
        self.closed = True


class Mute(Guess):
    expert = None  # type: ignore[assignment]


gymnasium.register("PartitaGuess-v0", Guess)
gymnasium.register("PartitaMute-v0", Mute)
