"""Candidates: several actions drawn at every step of responses that are there already."""

from __future__ import annotations

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.policies.language import LanguagePolicy

AUTO_CHUNK = 1 << 20  # entries of the largest table held at once


@torch.no_grad()
def candidates(
    policy: LanguagePolicy, batch: Batch, count: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """`count` tokens at every step of a batch, drawn with replacement from the policy, (B, T, count) int64.

        a_1, ..., a_K ~ softmax(z_t / temperature),    z_t: logits after the tokens before step t

    By inversion of one uniform number each, so that a step's candidates do not depend on how the batch is cut. Zero
    outside `batch.mask`. Raises ValueError unless `count` is at least 1 and `temperature` positive.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    hidden, place = policy.hidden(batch)
    head, steps = policy.head, batch.mask.numel()
    uniform = torch.rand(steps, count, dtype=torch.float64, generator=generator, device=generator.device)
    uniform = uniform.to(hidden.device)[place]
    found = torch.zeros(steps, count, dtype=torch.int64, device=hidden.device)
    rows = max(1, AUTO_CHUNK // max(head.weight.shape[0], count))
    for start in range(0, len(place), rows):
        part = slice(start, start + rows)
        heap = (head(hidden[part]) / temperature).softmax(1).cumsum(1, dtype=torch.float64)
        drawn = torch.searchsorted(heap, uniform[part] * heap[:, -1:], right=True)
        found[place[part]] = drawn.clamp_(max=heap.shape[1] - 1)
    return found.view(*batch.mask.shape, count)
