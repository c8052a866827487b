"""Rollouts that draw whole responses a window at a time: the unfinished ones go on in the next step."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.part import Domain
from partita.core.task import Outcome, Problem
from partita.parts.curriculum import Curriculum, EasyToHard
from partita.parts.rollout import Sample, decode_steps, decoding, watched
from partita.parts.rollout.language import judged
from partita.policies.decoder import Decoder, last_hidden
from partita.policies.sampling import Sampling, sample, uniforms

KEPT = ("tokens", "logp", "entropy", "temperature", "turn")


def ended(batch: Batch) -> Tensor:
    """Trajectories that ended, by themselves or at the greatest length, (B,) bool; all where no ends are marked."""
    marks = [m.any(1) for m in (batch.terminated, batch.truncated) if m is not None]
    return torch.stack(marks).any(0) if marks else torch.ones_like(batch.mask[:, 0])


def latest(batch: Batch) -> Tensor:
    """Steps of the last turn, or window, of each trajectory, (B, T) bool; all where there are none."""
    if batch.turn is None:
        return batch.mask
    turn = batch.turn.masked_fill(~batch.mask, -1)
    return batch.mask & (turn == turn.amax(1, keepdim=True))


class WindowedRollout(Sample):
    """Base of rollouts that draw responses a window at a time, B of them under way at any time.

    A subclass has the fields `window` and `_live` (a dictionary for what is under way). A response that goes on is read
    again, prompt and tokens so far, by the policy of the step; its tokens keep the log-probabilities under the policies
    that drew them. In the batch, `turn` is the window of a token; `mask` holds the new tokens of an unfinished response
    and all tokens of one that has ended; `value_weight` is 1 in the latter; an unfinished response has outcome 0 and no
    end, and `age` is that of the oldest tokens in the mask, in steps.
    """

    domains: ClassVar[tuple[Domain, ...]] = ("language",)
    window: int | None
    _live: dict[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and self.window < 1:
            raise UserError(f"rollout.window: expected 1 token or more, or None, got {self.window}")

    def settle(self, task: Any) -> Self:
        if self.window is not None or task.domain != "language":
            return self
        return self.but(window=-(-(self.max_tokens or task.max_tokens) // 3))

    def refuses(self, recipe: Any, task: Any) -> str | None:
        mine = f"rollout {self.part_name()}"
        if hasattr(task, "open"):
            return f"{mine} draws single responses, and task {task.part_name()} takes turns; use --rollout sample"
        if recipe.group_size > 1:
            return f"{mine} lets responses end in different steps, which parts groups; use --group-size 1"
        if not recipe.credit.unfinished:
            return (
                f"{mine} leaves responses unfinished, and credit {recipe.credit.part_name()} takes them for ended; "
                "use --credit extended_gae"
            )
        choice = type(recipe.curriculum)
        learns = choice.learn is not Curriculum.learn or choice.update is not Curriculum.update
        if (learns and choice is not EasyToHard) or choice.tracks:
            return (
                f"curriculum {recipe.curriculum.part_name()} learns from outcomes, and {mine} has those of finished "
                "responses only; use --curriculum uniform"
            )
        if recipe.select.rounds > 1:
            return f"{mine} samples once a step; use --select all, or --select.rounds 1"
        return None

    def __call__(
        self, policy: Any, task: Any, problems: Any, group_size: int, generator: torch.Generator, needs: Set[str]
    ) -> Batch:
        held = self._live
        asked = [*held.get("problems", ()), *problems][: len(problems)]
        old = self._rows(policy, task, asked)
        sizes, limits = old["size"], old["limit"]
        steps = min(self.window or int(limits.max()), int((limits - sizes).max()))
        sampling = Sampling(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p, max_tokens=steps,
            stop=tuple(task.stop),
        )  # fmt: skip
        prompt, prompt_mask = policy.encode([p.prompt for p in asked])
        if bool((new := sizes == 0).any()):
            policy.check_room(prompt_mask[new], int(limits[new].max()))
        read = append(prompt, prompt_mask.sum(1), old["tokens"])
        exists = torch.arange(read.shape[1], device=read.device) < (prompt_mask.sum(1) + sizes)[:, None]
        decoder = Decoder(policy.lm, capacity=read.shape[1] + steps)
        hidden = last_hidden(decoder.prefill(read, exists), exists)
        uniform = uniforms(steps, len(asked), generator, read.device)
        stops = policy.stopper(sampling.stop)
        drawn, _, _ = sample(decoder, hidden, policy.head, stops, sampling, uniform, None, True, None, limits - sizes)
        window = torch.where(sizes > 0, pad(old["turn"], (1, 0)).amax(1) + 1, 0)[:, None]
        more = {k: getattr(drawn, k) for k in KEPT[:-1]} | {"turn": window.expand(drawn.mask.shape)}
        rows = {k: append(old[k], sizes, more[k] * drawn.mask) for k in KEPT}
        total, finished = sizes + drawn.mask.sum(1), drawn.finished
        if stops.suspect is not None and bool(sizes.any()):
            total, finished = across(policy, sampling.stop, rows["tokens"], sizes, total, finished)
        return self._batch(policy, task, asked, rows, sizes, total, finished, limits, (prompt, prompt_mask))

    def _rows(self, policy: Any, task: Any, asked: list[Problem]) -> dict[str, Tensor]:
        """What each response has so far, new ones nothing: tables (B, W), `size` and `limit` (B,)."""
        held, device = self._live, policy.device
        count = len(held.get("problems", ()))
        fresh = [p.prompt for p in asked[count:]]
        limit = (self.max_tokens or policy.room(fresh, task.max_tokens)) if fresh else 0
        out: dict[str, Tensor] = {}
        for name, value in (("size", 0), ("limit", limit)):
            mine = torch.full((len(fresh),), value, dtype=torch.int64, device=device)
            out[name] = torch.cat([held[name].to(device), mine]) if count else mine
        for name in KEPT:
            kind = torch.int64 if name in ("tokens", "turn") else torch.float32
            mine = held[name].to(device) if count else torch.zeros(0, 0, dtype=kind, device=device)
            out[name] = pad(mine, (0, 0, 0, len(fresh)))
        return out

    def _batch(
        self, policy: Any, task: Any, asked: list[Problem], rows: dict[str, Tensor], sizes: Tensor, total: Tensor,
        finished: Tensor, limits: Tensor, prompt: tuple[Tensor, Tensor],
    ) -> Batch:  # fmt: skip
        """The step's batch; what is unfinished is kept for the next one."""
        width = int(total.max())
        column = torch.arange(width, device=total.device)
        exists = column < total[:, None]
        rows = {k: v[:, :width] * exists for k, v in rows.items()}
        over = finished | (total >= limits)
        mask = exists & (over[:, None] | (column >= sizes[:, None]))
        last = column == total[:, None] - 1
        texts = policy.decode(rows["tokens"], exists)
        done = over.tolist()
        verdicts = iter(
            task.verify_all([p for p, d in zip(asked, done, strict=True) if d],
                            [t for t, d in zip(texts, done, strict=True) if d])
        )  # fmt: skip
        outcomes = [next(verdicts) if d else Outcome(0.0, {}, "unfinished") for d in done]
        go_on = (~over).nonzero()[:, 0]
        self._live.clear()
        if len(go_on):
            some = {"size": total[go_on], "limit": limits[go_on]} | {k: rows[k][go_on] for k in KEPT}
            self._live.update(problems=[asked[i] for i in go_on.tolist()], **some)
            for problem in self._live["problems"]:
                packed(problem.data)
        batch = Batch(
            mask=mask, logp=rows["logp"] * mask, entropy=rows["entropy"] * mask, turn=rows["turn"],
            terminated=last & finished[:, None], truncated=last & (over & ~finished)[:, None],
            value_weight=(mask & over[:, None]).float(), group=torch.arange(len(asked), device=mask.device),
            age=torch.where(over, rows["turn"].amax(1), 0),
            inputs={"tokens": rows["tokens"], "attend": exists,
                    "temperature": rows["temperature"].masked_fill(~exists, 1.0)},
            context={"prompt": prompt[0], "prompt_mask": prompt[1]},
        )  # fmt: skip
        return judged(batch, asked, texts, outcomes)

    def metrics(self, batch: Batch) -> dict[str, float]:
        """As of whole responses, for those that ended; and what the windows cost (`reread`: tokens read again)."""
        over = ended(batch)
        fresh = batch.but(mask=latest(batch))
        out = watched(batch[over]) if bool(over.any()) else {"samples": 0.0, "tokens": 0.0}
        out |= dict(zip(("tokens_decoded", "kv_work"), map(float, decoding(fresh)), strict=True))
        out["unfinished"] = float((~over).float().mean())
        reread = batch.inputs["attend"].sum() - fresh.mask.sum()
        steps = decode_steps(fresh.but(turn=None))
        return out | {"decode_steps": float(steps), "reread": float(reread)}

    def state_dict(self) -> dict[str, Any]:
        kept = dict(self._live)
        if kept:
            kept["problems"] = [packed(vars(problem)) for problem in kept["problems"]]
        return kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._live.clear()
        self._live.update(state)
        if state:
            self._live["problems"] = [Problem(**unpacked(problem)) for problem in state["problems"]]


def append(table: Tensor, size: Tensor, more: Tensor) -> Tensor:
    """Rows of `more` (B, T) written behind the first `size` (B,) entries of those of `table` (B, W); (B, W + T)."""
    out = pad(table, (0, more.shape[1]))
    columns = torch.arange(more.shape[1], device=more.device)
    return out.scatter_(1, size[:, None] + columns, more.to(out.dtype))


def across(
    policy: Any, stop: tuple[str, ...], tokens: Tensor, size: Tensor, total: Tensor, finished: Tensor
) -> tuple[Tensor, Tensor]:
    """Ends and `finished` of responses in which a stop string began in an earlier window, `size` tokens ago or more."""
    total, finished = total.clone(), finished.clone()
    for i in size.nonzero()[:, 0].tolist():
        for end in range(int(size[i]) + 1, int(total[i]) + 1):
            row = tokens[i : i + 1, :end]
            if any(s in policy.decode(row, torch.ones_like(row, dtype=torch.bool))[0] for s in stop):
                total[i], finished[i] = end, True
                break
    return total, finished


def packed(value: Any) -> Any:
    """A problem's values as a checkpoint can hold them, tuples marked; UserError where it cannot."""
    if isinstance(value, tuple):
        return {"tuple": [packed(v) for v in value]}
    if isinstance(value, list):
        return [packed(v) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {"dict": {k: packed(v) for k, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"rollout: a problem of this task holds a {type(value).__name__}, which no checkpoint can; use --rollout sample"
    )


def unpacked(value: Any) -> Any:
    """Undo `packed`."""
    if isinstance(value, list):
        return [unpacked(v) for v in value]
    if isinstance(value, Mapping):
        if "tuple" in value:
            return tuple(unpacked(v) for v in value["tuple"])
        return {k: unpacked(v) for k, v in value["dict"].items()}
    return value
