"""The slot `rollout`: how are trajectories sampled?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_above, check_count
from partita.core.part import Part
from partita.core.policy import Policy
from partita.core.task import Task

DEMONSTRATION = 1  # `batch.source` of trajectories that were given, not sampled


class Rollout(Part):
    """Lets the policy act on problems and returns the batch: actions, behaviour log-probs, rewards as the task gave.

    `needs` (an argument, what the recipe's parts asked for) tells whether "value", "entropy" or "greedy" (the
    return of a greedy trajectory, in `baseline`) are wanted; a rollout fills what it can know cheaply and leaves
    the rest to the loop.
    """

    slot: ClassVar[str] = "rollout"

    def __call__(
        self, policy: Policy, task: Task, problems: Any, group_size: int, generator: torch.Generator, needs: Set[str]
    ) -> Batch:
        raise NotImplementedError

    def begin(self, step: int) -> None:
        """Called before a step of the loop samples, with its number: for schedules over the steps of training."""

    def metrics(self, batch: Batch) -> dict[str, float]:
        """What a practitioner watches of the rollout that gave `batch` (return, success, length)."""
        return {}


@dataclass(frozen=True)
class Sample(Rollout):
    """Whole trajectories, `group_size` for each problem: responses, conversations with a world, or episodes.

    In language, a token is drawn from

        softmax(logits / temperature), restricted to top_k, top_p (nucleus) and min_p, renormalised

    and `logp` is exact for that distribution. The learner evaluates at the same temperature but without the
    restriction, so that with top_k, top_p or min_p ratios start below one. max_tokens None takes the task's own,
    or what the model's context leaves. In control, actions are drawn from the policy's distribution and the
    trajectories of a group share their initial state; other settings must stay at their defaults.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_above("rollout.temperature", self.temperature)
        if self.top_k < 0:
            raise UserError(f"rollout.top_k: expected 0 (off) or more, got {self.top_k}")
        for name in ("top_p", "min_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"rollout.{name}: expected a number between 0 and 1, got {getattr(self, name)}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"rollout.max_tokens: expected a positive number, or None, got {self.max_tokens}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if task.domain == "control" and self != Sample():
            return "rollout sample has no temperature, top_k, top_p, min_p or max_tokens in control; leave them out"
        return None

    def __call__(
        self, policy: Any, task: Any, problems: Any, group_size: int, generator: torch.Generator, needs: Set[str]
    ) -> Batch:
        batch = self.sample(policy, task, problems, group_size, generator)
        return self.compared(batch, policy, task, problems, group_size, generator, needs)

    def compared(
        self, batch: Batch, policy: Any, task: Any, problems: Any, group_size: int, generator: torch.Generator,
        needs: Set[str],
    ) -> Batch:  # fmt: skip
        """The batch with the return of a greedy trajectory of each problem as `baseline`, if that is wanted."""
        if "greedy" not in needs:
            return batch
        best = self.sample(policy, task, problems, 1, generator, greedy=True)
        return batch.but(baseline=best.need("outcome").repeat_interleave(group_size))

    def sample(
        self, policy: Any, task: Any, problems: Any, group_size: int, generator: torch.Generator, greedy: bool = False
    ) -> Batch:
        """Trajectories of every problem in the way of its task: episodes, conversations, or responses."""
        if task.domain == "control":
            from partita.parts.rollout.control import episodes

            return episodes(policy, task, problems, group_size, generator, greedy)
        from partita.policies.sampling import Sampling

        prompts = [p.prompt for p in problems]
        sampling = Sampling(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            max_tokens=self.max_tokens or policy.room(prompts, task.max_tokens), stop=tuple(task.stop), greedy=greedy,
        )  # fmt: skip
        if hasattr(task, "open"):
            from partita.parts.rollout.world import converse

            return converse(policy, task, problems, group_size, sampling, generator)
        from partita.parts.rollout.language import respond

        return respond(policy, task, problems, group_size, sampling, generator)

    def metrics(self, batch: Batch) -> dict[str, float]:
        steps = {} if batch.records is None else {"decode_steps": float(decode_steps(batch))}
        return {**watched(batch), **steps}


def watched(batch: Batch) -> dict[str, float]:
    """What to watch of whole trajectories: return, success and length of the policy's own (not of demonstrations)."""
    out = {"samples": float(len(batch) if batch.records is not None else batch.lengths.sum())}
    if batch.records is not None:
        out["tokens"] = float(batch.lengths.sum())
    if batch.source is not None:
        out["demonstrations"] = float((batch.source == DEMONSTRATION).sum())
        batch = batch[batch.source != DEMONSTRATION]
    if not len(batch):
        return out
    outcome = batch.need("outcome")
    out |= {"return": float(outcome.mean()), "length": float(batch.lengths.float().mean())}
    if batch.truncated is not None:
        out["truncated"] = float(batch.truncated.any(1).float().mean())
    if batch.records is not None:
        out |= conversation(batch.records)
        out["success"] = float((outcome >= 1).float().mean())
        out |= dict(zip(("tokens_decoded", "kv_work"), map(float, decoding(batch)), strict=True))
        if batch.group is not None and len(batch.group.unique()) < len(batch):
            answers = {(g, r["response"]) for g, r in zip(batch.group.tolist(), batch.records, strict=True)}
            out["distinct"] = len(answers) / len(batch)
    return out


def conversation(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What to watch of episodes in worlds: turns, the share of malformed actions, and shares of episodes cut short."""
    if not records or "turns" not in records[0]:
        return {}
    actions = [turn for record in records for turn in record["turns"]]
    return {
        "turns": len(actions) / len(records),
        "malformed": sum(not turn["valid"] for turn in actions) / max(len(actions), 1),
        "cut_turns": sum(record["why"] == "turns" for record in records) / len(records),
        "cut_context": sum(record["why"] == "context" for record in records) / len(records),
    }


def decoding(batch: Batch) -> tuple[int, int]:
    """What it costs to sample the responses of a batch one by one: tokens drawn, and positions attended to.

        kv_work = sum_i sum_t (P_i + t),    t: tokens between the prompt of P_i tokens and the one that is drawn

    Prompts, which a group reads once, are not counted; tokens that a world wrote are attended to, not drawn.
    """
    exists = batch.inputs["attend"] | batch.mask if "attend" in batch.inputs else batch.mask
    before = batch.context["prompt_mask"].sum(1, keepdim=True) + exists.cumsum(1) - 1
    return int(batch.mask.sum()), int((before * batch.mask).sum())


def decode_steps(batch: Batch) -> int:
    """Sampler steps that follow one another when the rows of a batch are drawn side by side: a proxy of its time.

        sum_turns max_i |y_i of the turn|

    the longest response, or the longest action of every turn.
    """
    turn = torch.zeros_like(batch.mask, dtype=torch.int64) if batch.turn is None else batch.turn * batch.mask
    drawn = torch.zeros(len(batch), int(turn.max()) + 1, dtype=torch.int64, device=turn.device)
    return int(drawn.scatter_add_(1, turn, batch.mask.long()).amax(0).sum())


@dataclass(frozen=True)
class Segments(Rollout):
    """A fixed number of steps of environments that go on from batch to batch (control).

    Each row is one environment; episodes that end within it start anew at once. `batch_size` is the number of
    environments. compile: steps of native environments run as compiled programs.
    """

    domains = ("control",)
    steps: int = 128
    compile: bool = False
    _live: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_count("rollout.steps", self.steps)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if task.domain != "control":
            return "rollout segments cuts the life of an environment; language tasks take --rollout sample"
        if recipe.group_size != 1:
            return "rollout segments has no groups; use --group-size 1, or --rollout sample"
        if "greedy" in recipe.needs():
            return "rollout segments takes no greedy trajectories; choose another --credit, or --rollout sample"
        return None

    def __call__(
        self, policy: Any, task: Any, problems: Any, group_size: int, generator: torch.Generator, needs: Set[str]
    ) -> Batch:
        from partita.parts.rollout.segments import Blocks, segment
        from partita.tasks.control.base import NativeEnvs

        live = self._live
        if "envs" not in live:
            before = generator.get_state()
            live["envs"] = task.envs(problems, generator)
            if "pending" in live:  # made again to go on: what that drew was drawn when they were made first
                generator.set_state(before)
                live["envs"].load_state_dict(live.pop("pending"))
            if self.compile and isinstance(live["envs"], NativeEnvs) and "post" not in needs:
                live["program"] = Blocks(policy, live["envs"], self.steps)
        return segment(policy, live, self.steps, generator, needs)

    def metrics(self, batch: Batch) -> dict[str, float]:
        recent = self._live["recent"]
        out = {"steps": float(batch.mask.numel()), "episodes": float(self._live["episodes"])}
        out["samples"] = out["steps"]
        if recent:
            out["return"] = sum(r for r, _ in recent) / len(recent)
            out["length"] = sum(n for _, n in recent) / len(recent)
            out["window"] = float(len(recent))
        return out

    def state_dict(self) -> dict[str, Any]:
        live = self._live
        if "envs" not in live:
            return {}
        state = live["envs"].state_dict()
        if getattr(live["envs"], "restarts", False):
            live["running"].zero_()
            live["elapsed"].zero_()
        kept = {k: live[k] for k in ("running", "elapsed", "recent", "episodes")}
        return {"envs": state, **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._live.clear()
        if state:
            self._live["pending"] = state["envs"]
            self._live.update({k: state[k] for k in ("running", "elapsed", "recent", "episodes")})


@dataclass(frozen=True)
class Demonstrations(Rollout):
    """Worked answers that the task gives, in place of the policy's own (supervised fine-tuning).

    With `--credit constant --objective reinforce` the loss is the log-likelihood of the answers. `logp` is the policy's
    own at sampling time; `source` is 1. per_problem: answers to each problem (None: the recipe's group size).
    """

    domains = ("language",)
    per_problem: int | None = None

    def __post_init__(self) -> None:
        if self.per_problem is not None and self.per_problem < 1:
            raise UserError(f"rollout.per_problem: expected 1 or more, got {self.per_problem}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        return unteachable(self, recipe, task)

    def __call__(
        self, policy: Any, task: Any, problems: Any, group_size: int, generator: torch.Generator, needs: Set[str]
    ) -> Batch:
        return taught(policy, task, problems, self.per_problem or group_size, generator)

    def metrics(self, batch: Batch) -> dict[str, float]:
        return watched(batch)


def unteachable(part: Rollout, recipe: Any, task: Any) -> str | None:
    """Why a rollout that takes demonstrations cannot have them, or None."""
    if not hasattr(task, "demonstrate") or hasattr(task, "open"):
        return (
            f"rollout {part.part_name()} needs worked answers, and task {task.part_name()} gives none; "
            "choose a generated task, or a dataset with --task.demonstration-column"
        )
    if "greedy" in recipe.needs():
        return f"rollout {part.part_name()} takes no greedy trajectories; choose another --credit"
    return None


def taught(policy: Any, task: Any, problems: Any, count: int, generator: torch.Generator) -> Batch:
    """`count` demonstrations of every problem as a batch, judged by the task; `source` is 1."""
    from partita.parts.rollout.language import judged

    asked = [p for p in problems for _ in range(count)]
    texts = [task.demonstrate(p, generator) for p in asked]
    group = torch.arange(len(problems)).repeat_interleave(count)
    batch = policy.teach([p.prompt for p in asked], texts, group, task.stop)
    batch = judged(batch, asked, texts, task.verify_all(asked, texts))
    return batch.but(source=torch.full((len(batch),), DEMONSTRATION, device=batch.mask.device))
