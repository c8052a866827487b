"""Gymnasium's spaces as ours: how an observation becomes an array, and how an action goes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from partita.core.errors import UserError
from partita.core.spaces import Box, Discrete, MultiDiscrete, Space

PIXEL_CHANNELS = (1, 3, 4)


class Misfit(Exception):
    """An observation that does not fit the space its environment declared."""


@dataclass(frozen=True)
class Observations:
    """How observations of a Gymnasium space become arrays of one shape: `encode` raises Misfit."""

    shape: tuple[int, ...]
    pixels: bool
    encode: Callable[[Any], np.ndarray]

    @property
    def space(self) -> spaces.Box:
        """The space after encoding: uint8 (C, H, W) for pixels, float32 (D,) otherwise."""
        if self.pixels:
            return spaces.Box(0, 255, self.shape, np.uint8)
        return spaces.Box(-np.inf, np.inf, self.shape, np.float32)


@dataclass(frozen=True)
class Actions:
    """Our action space, the same for Gymnasium's vector machinery, and the way back to the environment's own."""

    ours: Space
    space: spaces.Space
    decode: Callable[[Any], Any]


def observations(space: gymnasium.Space, name: str) -> Observations:
    """Encoding for a space: pixels to (C, H, W), everything else flattened; UserError if there is none.

    uint8 arrays of rank 2 or 3 are pixels; (H, W, C) with C of 1, 3, 4 is turned to (C, H, W), (H, W) gets one
    channel, and any other rank 3 (stacked frames) stays. Dict, Tuple, Discrete, MultiDiscrete and MultiBinary
    are flattened by Gymnasium's own `flatten` (discrete ones become one-hot).
    """
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3):
        return _pixels(space)
    if isinstance(space, spaces.Box):
        return Observations((int(np.prod(space.shape)),), False, lambda obs: _vector(obs, space))
    if isinstance(space, spaces.Text) or not space.is_np_flattenable:
        raise UserError(
            f"{name}: observations of {type(space).__name__} space cannot be made into one array; "
            "wrap the environment so that it gives Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
        )
    size = spaces.flatdim(space)

    def encode(obs: Any) -> np.ndarray:
        try:
            flat = np.array(spaces.flatten(space, obs), dtype=np.float32)
        except Exception as error:
            raise Misfit(f"does not fit its space ({type(error).__name__}: {error})") from error
        if flat.shape != (size,):
            raise Misfit(f"has {flat.size} numbers when flattened, its space has {size}")
        return _finite(flat)

    return Observations((size,), False, encode)


def _finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise Misfit(f"holds {array.flat[where]} at entry {where}")
    return array


def _of_shape(obs: Any, space: spaces.Box, dtype: type) -> np.ndarray:
    try:
        array = np.array(obs)
        with np.errstate(over="ignore", invalid="ignore"):
            array = array.astype(dtype, casting="same_kind" if dtype is np.uint8 else "unsafe")
    except (TypeError, ValueError) as error:
        raise Misfit(f"is not an array of numbers ({error})") from error
    if array.shape != space.shape:
        raise Misfit(f"has shape {array.shape}, its space {space.shape}")
    return array


def _vector(obs: Any, space: spaces.Box) -> np.ndarray:
    return _finite(_of_shape(obs, space, np.float32).reshape(-1))


def _pixels(space: spaces.Box) -> Observations:
    shape = space.shape
    if len(shape) == 2:
        return Observations((1, *shape), True, lambda obs: _of_shape(obs, space, np.uint8)[None])
    if shape[2] in PIXEL_CHANNELS:
        out = (shape[2], shape[0], shape[1])
        return Observations(
            out, True, lambda obs: np.ascontiguousarray(_of_shape(obs, space, np.uint8).transpose(2, 0, 1))
        )
    return Observations(shape, True, lambda obs: _of_shape(obs, space, np.uint8))


def actions(space: gymnasium.Space, name: str) -> Actions:
    """Ours for a Gymnasium action space; UserError for those that a policy here cannot fill.

    Boxes are flattened to vectors and clipped to their bounds; MultiBinary is a choice of two per entry.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return Actions(Discrete(int(space.n)), spaces.Discrete(int(space.n)), lambda a: int(a) + start)
    if isinstance(space, spaces.MultiDiscrete):
        choices = tuple(int(n) for n in space.nvec.reshape(-1))
        return _choices(choices, lambda a: a.reshape(space.shape).astype(space.dtype) + space.start)
    if isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
        return _choices((2,) * size, lambda a: a.reshape(space.shape).astype(space.dtype))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = space.low.reshape(-1).astype(np.float32), space.high.reshape(-1).astype(np.float32)
        ours = Box(low.size, tuple(low.tolist()), tuple(high.tolist()))
        return Actions(
            ours,
            spaces.Box(low, high, dtype=np.float32),
            lambda a: np.minimum(np.maximum(a, low), high).reshape(space.shape).astype(space.dtype, copy=False),
        )
    raise UserError(
        f"{name}: actions of {space} cannot be chosen by a policy here; "
        "wrap the environment so that it takes Discrete, MultiDiscrete, MultiBinary or a Box of real numbers"
    )


def _choices(choices: tuple[int, ...], decode: Callable[[np.ndarray], Any]) -> Actions:
    return Actions(MultiDiscrete(choices), spaces.MultiDiscrete([*choices]), decode)
