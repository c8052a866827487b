"""Rollouts that grow a tree of responses to each problem: what they share, and what they report."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, ClassVar

import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_above
from partita.core.part import Domain
from partita.parts.rollout import Rollout, Sample, decoding, watched
from partita.parts.rollout.language import judged
from partita.policies.sampling import Sampling
from partita.policies.tree import Tree


class TreeRollout(Rollout):
    """Base of rollouts whose responses share what they have in common.

    A subclass has the fields `temperature`, `max_tokens` (None: the task's own) and `_live` (a dictionary for what it
    remembers within a step), and grows `group_size` closed branches of every problem in `grow`.

    Beside what every rollout reports: `tokens_decoded` and `kv_work`, which the tree really cost (see `Tree`), and
    `tokens_plain` and `kv_work_plain`, what sampling the same responses one by one would have cost.
    """

    domains: ClassVar[tuple[Domain, ...]] = ("language",)
    shelf: ClassVar[bool] = False  # whether `grow` resumes closed branches
    forces: ClassVar[bool] = False  # whether `grow` chooses tokens that were not drawn

    temperature: float
    max_tokens: int | None
    _live: dict[str, Any]

    def grow(self, tree: Tree, generator: torch.Generator) -> torch.Tensor | None:
        """Grow the tree until every slot is closed; where segments begin, (S, T) bool, or None for its forks."""
        raise NotImplementedError

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if hasattr(task, "open"):
            return (
                f"rollout {self.part_name()} grows single responses, and task {task.part_name()} takes turns; "
                "use --rollout sample"
            )
        if recipe.group_size < 2:
            return f"rollout {self.part_name()} grows a group from one prompt; use --group-size 2 or more"
        return None

    def begin(self, step: int) -> None:
        self._live["step"] = step

    def __call__(
        self, policy: Any, task: Any, problems: Any, group_size: int, generator: torch.Generator, needs: Set[str]
    ) -> Batch:
        prompts = [p.prompt for p in problems]
        room = self.max_tokens or policy.room(prompts, task.max_tokens)
        sampling = Sampling(temperature=self.temperature, max_tokens=room, stop=tuple(task.stop))
        tree = Tree(policy, prompts, group_size, sampling, generator, self.shelf)
        batch = tree.batch(self.grow(tree, generator), self.forces)
        self._live["spent"] = [a + b for a, b in zip(self._spent(), (tree.decoded, tree.kv_work), strict=True)]
        asked = [p for p in problems for _ in range(group_size)]
        texts = policy.decode(batch.inputs["tokens"], batch.mask)
        batch = judged(batch, asked, texts, task.verify_all(asked, texts))
        plain = Sample(max_tokens=self.max_tokens)
        return plain.compared(batch, policy, task, problems, group_size, generator, needs)

    def _spent(self) -> list[int]:
        return self._live.get("spent", [0, 0])

    def metrics(self, batch: Batch) -> dict[str, float]:
        """See `watched`; the costs are those of all trees since this was last asked."""
        spent = dict(zip(("tokens_decoded", "kv_work"), map(float, self._spent()), strict=True))
        plain = dict(zip(("tokens_plain", "kv_work_plain"), map(float, decoding(batch)), strict=True))
        self._live.pop("spent", None)
        return {**watched(batch), **spent, **plain}


def check_tree(part: TreeRollout) -> None:
    """Refuse a temperature or a length out of range."""
    check_above("rollout.temperature", part.temperature)
    if part.max_tokens is not None and part.max_tokens < 1:
        raise UserError(f"rollout.max_tokens: expected a positive number, or None, got {part.max_tokens}")
