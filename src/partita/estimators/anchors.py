"""Steps of a group that share a state: trajectories by turn, names for what is equal, texts that are nearly equal.

Layout. (B, T) steps with `turn`, the index of a step's turn in its own row; (B, K) the same by turn, K the most turns
of a row, `taken` where a row has the turn. Text is compared as `normalised` has it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

import torch
from torch import Tensor

from partita.core.checks import check_bool, check_shape


def normalised(text: str) -> str:
    """A text without what a reader cannot see: NFC, `\\n` between lines, no blanks at their ends, no empty last lines.

    Blanks before and between words stay, so that no two different pictures in characters become one.
    """
    lines = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).rstrip("\n")


def hashed(text: str) -> int:
    """A positive 63-bit hash of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1 | 1


def text_key(text: str) -> int:
    """The hash of the normalised text: what `batch.state_key` holds of a state."""
    return hashed(normalised(text))


def similarity(a: str, b: str, least: float = 0.0) -> float:
    """How much of two texts is common to both in the same order, from 0 to 1.

        2 M / (|a| + |b|),    M = common beginning + common end + matching blocks between them

    Blocks are found as Python's `difflib` does (Ratcliff, Obershelp; frequent characters count), which is not quite
    symmetric. Where no blocks between could bring it to `least`, what they might have been is not worked out, and the
    answer is 0.
    """
    if a == b:
        return 1.0
    begin = _beginning(a, b)
    left, right = a[begin:], b[begin:]
    end = _beginning(left[::-1], right[::-1])
    left, right = left[: len(left) - end], right[: len(right) - end]
    total = len(a) + len(b)
    if 2 * (begin + end + min(len(left), len(right))) < least * total:
        return 0.0
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks() if left and right else []
    return 2 * (begin + end + sum(block.size for block in blocks)) / total


def _beginning(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def leaders(texts: Sequence[str], threshold: float) -> list[str]:
    """For each text the one that stands for it: the first similar one of the texts that stand for themselves.

        leader(x) = the first leader y with similarity(y, x) >= threshold, or x itself where there is none

    Texts are visited by how often they occur, and those that occur equally often by alphabet, so that the order in
    which they are given does not matter. A text is as similar to its leader as `threshold` says; two texts under one
    leader may be less so. At threshold 1 each normalised text is its own leader, at 0 all have the same.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number between 0 and 1, got {threshold}")
    seen = {text: normalised(text) for text in set(texts)}
    plain = [seen[text] for text in texts]
    if threshold == 1:
        return plain
    found: dict[str, str] = {}
    chosen: list[str] = []
    for text in sorted(counts := Counter(plain), key=lambda text: (-counts[text], text)):
        near = (leader for leader in chosen if similarity(leader, text, threshold) >= threshold)
        found[text] = next(near, text)
        if found[text] == text:
            chosen.append(text)
    return [found[text] for text in plain]


@dataclass(frozen=True)
class Turns:
    """Where the turns of B trajectories are.

    index: (B, T) int64, the turn of each step. mask: (B, T) bool, the policy's own steps. taken: (B, K) bool, turns
    in which a row acted. last: (B, K) int64, the last of the policy's own steps in each turn (0 where not taken).
    """

    index: Tensor
    mask: Tensor
    taken: Tensor
    last: Tensor

    def at(self, x: Tensor) -> Tensor:
        """What `x` (B, T) is at the last step of each turn, (B, K); zero in turns not taken."""
        return x.gather(1, self.last) * self.taken

    def sum(self, x: Tensor) -> Tensor:
        """Sum of `x` (B, T) over each turn, (B, K), the steps of the world that follow it included."""
        return torch.zeros(self.taken.shape, dtype=x.dtype, device=x.device).scatter_add_(1, self.index, x)

    def spread(self, x: Tensor) -> Tensor:
        """`x` (B, K) given to each of the policy's steps in the turn, (B, T); zero elsewhere."""
        return x.gather(1, self.index) * self.mask


def turns(mask: Tensor, turn: Tensor | None = None) -> Turns:
    """The turns of steps (B, T); without `turn`, a trajectory is one turn."""
    check_bool("mask", mask)
    index = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device) if turn is None else turn
    check_shape("turn", index, mask)
    count = int(index.max()) + 1 if index.numel() else 1
    step = torch.arange(1, mask.shape[1] + 1, device=mask.device) * mask
    empty = torch.zeros(len(mask), count, dtype=torch.int64, device=mask.device)
    last = empty.scatter_reduce_(1, index, step, "amax")
    return Turns(index, mask, last > 0, (last - 1).clamp_min(0))


def turn_return(reward: Tensor, taken: Tensor, discount: float) -> Tensor:
    """Reward from each turn on, discounted by turns, whatever the number of tokens in each, (B, K); zero if not taken.

    R_k = r_k + discount * R_k+1
    """
    check_shape("taken", taken, reward, "(B, K)")
    flowing = torch.zeros_like(reward[:, 0])
    columns = []
    for r_k, taken_k in zip(reward.flip(1).T, taken.flip(1).T, strict=True):
        flowing = torch.where(taken_k, r_k + discount * flowing, flowing)
        columns.append(flowing * taken_k)
    return torch.stack(columns[::-1], 1)


def same(where: Tensor, *labels: Tensor) -> Tensor:
    """A number for each entry in which `where` holds, equal exactly where all `labels` are; -1 elsewhere. int64.

    labels: int64, each of the shape of `where`, or (B,) for what holds along the row.
    """
    check_bool("where", where)
    name = torch.zeros(int(where.sum()), dtype=torch.int64, device=where.device)
    for label in labels:
        label = label[:, None].expand(where.shape) if label.dim() < where.dim() else label
        check_shape("label", label, where, "(B, K)")
        values, index = label[where].unique(return_inverse=True)
        name = (name * len(values) + index).unique(return_inverse=True)[1]
    return torch.full(where.shape, -1, dtype=torch.int64, device=where.device).masked_scatter_(where, name)
