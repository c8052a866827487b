"""`Language`: a policy around any Hugging Face causal language model, and how it is built, sampled and saved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.part import Domain, Unit
from partita.core.policy import Policy, PolicyPart
from partita.estimators.logits import gather_logp_entropy
from partita.policies.decoder import Decoder, check_attention, last_hidden
from partita.policies.prefix import hidden_states, pack
from partita.policies.sampling import Generation, Head, Sampling, sample, uniforms
from partita.policies.stopping import Stopper, closed, stopper, texts_of
from partita.policies.tokens import Tokens, padded

if TYPE_CHECKING:
    from partita.core.task import Task
    from partita.policies.session import Session

VALUE_HEAD = "value_head.safetensors"


@dataclass(frozen=True)
class Language(PolicyPart):
    """A causal language model from a local folder, a hub name or a shipped model.

    model: folder, hub name, or name of a shipped model. lora_rank: 0 trains all weights; above 0 only a LoRA
    adapter of that rank. lora_alpha: its scale times the rank (0: twice the rank). lora_targets: module names
    that get adapters (empty: all linear layers but the last). dtype: of the weights. gradient_checkpointing:
    recompute layers in the backward pass. share_prefix: compute each prompt once for its group. chunk: rows of
    logits held at once (0: chosen). remote_code: run code from the model's repository.
    Raises UserError for settings out of range and models that cannot be used.
    """

    domains: ClassVar[tuple[Domain, ...]] = ("language",)
    unit: ClassVar[Unit] = "trajectory"

    model: str = "tiny-0.3m"
    lora_rank: int = 0
    lora_alpha: int = 0
    lora_targets: tuple[str, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    share_prefix: bool = True
    chunk: int = 0
    remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype: {self.dtype!r} is not supported; choose float32 or bfloat16")
        if self.lora_rank < 0:
            raise UserError(f"lora_rank: {self.lora_rank} is negative; use 0 to train all weights")
        if self.lora_alpha < 0:
            raise UserError(f"lora_alpha: {self.lora_alpha} is negative; use 0 for twice the rank")
        if self.chunk < 0:
            raise UserError(f"chunk: {self.chunk} is negative; use 0 to have it chosen")

    def build(self, task: Task | None, value: bool, generator: torch.Generator) -> LanguagePolicy:
        """The policy, with a value head if `value`; fresh adapters are drawn from `generator`."""
        from partita.policies import loading, lora

        folder = loading.locate(self.model)
        above = loading.adapter_base(folder)
        weights, name = (loading.locate(above), above) if above else (folder, self.model)
        loading.check_folder(weights)
        tokenizer, notes = loading.load_tokenizer(folder, self.model, self.remote_code)
        lm = loading.load_model(weights, name, getattr(torch, self.dtype), self.remote_code)
        check_attention(lm)
        loading.check_vocabulary(lm, tokenizer, self.model)
        check_head(lm, name)
        adapter = None
        if above:
            if self.lora_rank:
                raise UserError(
                    f"lora_rank: {self.model} is an adapter already; leave lora_rank at 0 to go on training it"
                )
            adapter = lora.load(lm, folder)
        elif self.lora_rank:
            adapter = lora.add(lm, self.lora_rank, self.lora_alpha, self.lora_targets, name, generator)
        policy = LanguagePolicy(lm, tokenizer, self, value, adapter, tuple(notes))
        if value and (Path(folder) / VALUE_HEAD).is_file():
            policy.load_value(Path(folder))
        return policy


class LanguagePolicy(Policy):
    """A causal language model that acts token by token.

    tokenizer: pads on the right. notes: what was filled in while loading, one line each. context: tokens that fit
    (None: unknown). The module is always in evaluation mode: no dropout, so that sampler and learner agree.
    """

    domain: ClassVar[Domain] = "language"
    unit: Unit = "trajectory"
    agree: Callable[[int], int] | None = None  # the most forward passes of any rank, where all must make as many

    def __init__(
        self,
        lm: Any,
        tokenizer: Any,
        settings: Language,
        value: bool = False,
        adapter: Any = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.tokenizer, self.settings, self.adapter, self.notes = tokenizer, settings, adapter, notes
        self._tokens = Tokens(tokenizer)
        self.lm = lm.eval()
        self.has_value = value
        self.module = nn.ModuleDict({"lm": self.lm})
        self.value_head: nn.Linear | None = None
        if value:
            width = lm.get_output_embeddings().weight.shape[1]
            self.value_head = nn.utils.skip_init(nn.Linear, width, 1, device=lm.device, dtype=torch.float32)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            self.module = nn.ModuleDict({"lm": self.lm, "value_head": self.value_head})
        self.module.eval()
        self.context: int | None = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
        if settings.gradient_checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.stopper = functools.lru_cache(maxsize=8)(self._stopper)

    @property
    def head(self) -> Head:
        """The last layer, as it is now."""
        last = self.lm.get_output_embeddings()
        return Head(last.weight, getattr(last, "bias", None))

    def _stopper(self, strings: tuple[str, ...]) -> Stopper:
        return stopper(self.tokenizer, self.head.weight.shape[0], strings, self.device)

    @property
    def tokens(self) -> Tokens:
        """Texts to ids by the tokenizer as it is now, with what is remembered of them."""
        if self._tokens.tokenizer is not self.tokenizer:
            self._tokens = Tokens(self.tokenizer)
        return self._tokens

    def encode(self, texts: Sequence[str], special: bool = True, keep: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens and mask (N, P) of prompts, right-padded; with the tokens that the tokenizer puts before a text.

        special: false for text in the middle of a sequence. keep: tokenise these texts once, as they will come back.
        Raises UserError for a prompt without any token.
        """
        tokens, mask = padded(self.tokens(texts, special, keep), self.tokenizer.pad_token_id)
        return tokens.to(self.device), mask.to(self.device)

    def teach(
        self, prompts: Sequence[str], responses: Sequence[str], group: Tensor, stop: Sequence[str] | None = None
    ) -> Batch:
        """Given responses as a batch, as if the policy had written them: what a demonstration gives.

        `logp` and `entropy` are the policy's own, at temperature 1; otherwise as `written`.
        """
        batch = self.written(prompts, responses, group, stop)
        with torch.no_grad():
            out = self.evaluate(batch, entropy=True)
        return batch.but(logp=out.logp, entropy=out.entropy)

    def written(
        self, prompts: Sequence[str], responses: Sequence[str], group: Tensor, stop: Sequence[str] | None = None,
        unfinished: Sequence[bool] | None = None,
    ) -> Batch:  # fmt: skip
        """Given responses as a batch, without log-probabilities. group: (B,).

        A response that ends in one of the strings `stop` ends there; any other is closed with the end of sequence, so
        that whoever learns from it learns to stop; those that are `unfinished` are cut there instead. stop None:
        responses are taken as they are. Raises UserError when a prompt with its response exceeds the context.
        """
        prompt, prompt_mask = self.encode(prompts, keep=True)
        tokens, mask = self.encode(responses, special=False, keep=True)
        cut = torch.tensor(unfinished or [False] * len(responses), dtype=torch.bool, device=mask.device)
        if stop is not None and (eos := self.tokenizer.eos_token_id) is not None:
            ends = torch.tensor([not text.endswith(tuple(stop)) for text in responses], device=mask.device)
            tokens, mask = closed(tokens, mask, ends & ~cut, eos)
        room = self.context
        total = prompt_mask.sum(1) + mask.sum(1)
        if room is not None and len(total) and int(total.max()) > room:
            row = int(total.argmax())
            raise UserError(f"demonstration {row}: {int(total[row])} tokens exceed the context of {room}; shorten it")
        last = torch.arange(mask.shape[1], device=mask.device) == (mask.sum(1, keepdim=True) - 1)
        return Batch(
            mask=mask, terminated=last & ~cut[:, None], truncated=last & cut[:, None], group=group.to(mask.device),
            inputs={"tokens": tokens.masked_fill(~mask, 0), "temperature": torch.ones(mask.shape, device=mask.device)},
            context={"prompt": prompt, "prompt_mask": prompt_mask},
        )  # fmt: skip

    def decode(self, tokens: Tensor, mask: Tensor) -> tuple[str, ...]:
        """The text of each row of tokens (B, T), where `mask` (B, T) holds, without special tokens."""
        lengths, rows = mask.sum(1).tolist(), tokens.tolist()
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            kept = [[t for t, m in zip(r, k, strict=True) if m] for r, k in zip(rows, mask.tolist(), strict=True)]
        else:
            kept = [row[:n] for row, n in zip(rows, lengths, strict=True)]
        return texts_of(self.tokenizer, kept)

    def generate(
        self,
        prompts: Sequence[str],
        group_size: int,
        sampling: Sampling,
        generator: torch.Generator,
        schedule: Tensor | None = None,
        entropy: bool = False,
    ) -> Generation:
        """`group_size` responses to each prompt; row i answers prompt i // group_size, whose index is its group.

        Each prompt is read once. schedule: (max_tokens,) temperatures. Raises UserError when a prompt and
        `sampling.max_tokens` together exceed the model's context.
        """
        tokens, mask = self.encode(prompts)
        self.check_room(mask, sampling.max_tokens)
        group = torch.arange(len(prompts), device=tokens.device).repeat_interleave(group_size)
        uniform = uniforms(sampling.max_tokens, len(group), generator, tokens.device)
        out = self.respond(tokens, mask, group, uniform, sampling, schedule, entropy)
        return replace(
            out,
            texts=self.decode(out.tokens, out.mask),
            prompt=tokens[group],
            prompt_mask=mask[group],
            group=group,
        )

    def respond(
        self, tokens: Tensor, mask: Tensor, group: Tensor, uniform: Tensor, sampling: Sampling,
        schedule: Tensor | None, entropy: bool,
    ) -> Generation:  # fmt: skip
        """A response for each of B rows to prompt `group` (B,) of tokens and mask (N, P); uniform: (max_tokens, B)."""
        decoder = Decoder(self.lm, capacity=tokens.shape[1] + sampling.max_tokens)
        hidden = last_hidden(decoder.prefill(tokens, mask), mask)
        if len(group) > len(tokens):
            decoder.expand(group)
        stops = self.stopper(sampling.stop)
        return sample(decoder, hidden[group], self.head, stops, sampling, uniform, schedule, entropy)[0]

    def room(self, prompts: Sequence[str], tokens: int) -> int:
        """How many of `tokens` fit into the context after the longest of `prompts`; at least 1, which may not fit."""
        if self.context is None:
            return tokens
        longest = int(self.encode(prompts)[1].sum(1).max())
        return max(1, min(tokens, self.context - longest))

    def check_room(self, mask: Tensor, tokens: int) -> None:
        """Raise UserError unless prompts of mask (N, P) leave room for `tokens` more in the context."""
        longest = int(mask.sum(1).max()) if mask.numel() else 0
        if self.context is not None and longest + tokens > self.context:
            row = int(mask.sum(1).argmax())
            raise UserError(
                f"prompt {row}: {longest} tokens and max_tokens = {tokens} exceed the context of {self.context}; "
                "shorten the prompt or lower max_tokens"
            )

    def session(self, prompts: Sequence[str], group_size: int = 1) -> Session:
        """Episodes of several turns, `group_size` for each prompt, that have read their prompts."""
        from partita.policies.session import Session

        return Session(self, prompts, group_size)

    def evaluate(self, batch: Batch, entropy: bool = False) -> Outputs:
        """Log-probabilities (B, T) of the tokens where `batch.mask` is true; zeros elsewhere; see `Policy.evaluate`.

            log pi(y_t) = log softmax(W h_t / tau_t)[y_t],    V(s_t) = v . h_t + c

        Reads inputs["tokens"] (B, T), inputs["temperature"] (B, T) if there (tau, else 1), inputs["attend"]
        (B, T) bool if there (tokens that exist, else `mask`), inputs["alternatives"] (B, T, K) if there (other tokens
        whose log-probabilities are wanted), context["prompt"] and ["prompt_mask"] (B, P).
        """
        hidden, place = self.hidden(batch)
        head = self.head
        targets = batch.inputs["tokens"].flatten()[place]
        others = batch.inputs.get("alternatives")
        if others is not None:
            targets = torch.cat((targets[:, None], others.flatten(0, 1)[place]), 1)
        tau: float | Tensor = 1.0
        if "temperature" in batch.inputs:
            tau = batch.inputs["temperature"].flatten()[place]
        logp, ent = gather_logp_entropy(hidden, head.weight, head.bias, targets, tau, entropy, self.settings.chunk)

        def spread(value: Tensor) -> Tensor:
            flat = value.new_zeros(batch.mask.numel(), *value.shape[1:])
            return flat.index_put((place,), value).view(*batch.mask.shape, *value.shape[1:])

        value = None if self.value_head is None else spread(self.value_head(hidden.float())[:, 0])
        alternatives = None
        if others is not None:
            logp, alternatives = logp[:, 0], spread(logp[:, 1:])
        return Outputs(spread(logp), None if ent is None else spread(ent), value, alternatives)

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the last layer reads at each step where `batch.mask` is true, (N, D), and its place in (B * T), (N,).

        The steps come in an order of their own; differentiable as `evaluate` is.
        """
        packed = pack(batch)
        share = self.settings.share_prefix and not (self.settings.gradient_checkpointing and torch.is_grad_enabled())
        places, parts = [], []
        with self._checkpointing():
            for rows, hidden in hidden_states(self.lm.base_model, packed, batch.group, share, self.agree):
                row, step = batch.mask[rows].nonzero(as_tuple=True)
                parts.append(hidden[row, packed.slot[rows[row], step]])
                places.append(rows[row] * batch.mask.shape[1] + step)
        if not parts:
            parts, places = [self.head.weight[:0]], [packed.slot.new_zeros(0)]
        return torch.cat(parts), torch.cat(places)

    @contextmanager
    def _checkpointing(self) -> Any:
        """Layers recompute only in training mode, which here they enter alone, without their dropout."""
        layers = []
        if self.settings.gradient_checkpointing and torch.is_grad_enabled():
            from transformers.modeling_layers import GradientCheckpointingLayer

            layers = [m for m in self.lm.modules() if isinstance(m, GradientCheckpointingLayer)]
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            for layer in layers:
                layer.training = False

    def state_dict(self) -> dict[str, Any]:
        """The parameters that learn, value head included."""
        return {name: p.data for name, p in self.trainable().items()}

    def save(self, folder: Path, merged: bool = False) -> None:
        """Write the model, its tokenizer and its value head as `transformers` loads them.

        With an adapter: the adapter alone, or with `merged` a whole model that has taken it in.
        """
        self._write(folder, merged, None)

    def _write(self, folder: Path, merged: bool, state: dict[str, Tensor] | None) -> None:
        from partita.policies.loading import quiet

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            if self.adapter is None:
                self.lm.save_pretrained(folder, state_dict=state)
            elif merged:
                from partita.policies import lora

                lora.merged(self.adapter).save_pretrained(folder)
            else:
                self.adapter.save_pretrained(folder, **({} if state is None else {"state_dict": state}))
            self.tokenizer.save_pretrained(folder)
        if self.value_head is not None:
            from safetensors.torch import save_file

            head = self.value_head.state_dict()
            save_file({k: v.detach().cpu().contiguous() for k, v in head.items()}, folder / VALUE_HEAD)

    def load_value(self, folder: Path) -> None:
        """Restore the value head that `save` wrote."""
        from safetensors.torch import load_file

        from partita.policies.loading import check_weights

        check_weights([folder / VALUE_HEAD])
        if self.value_head is None:
            raise ValueError("value: this policy has no value head")
        self.value_head.load_state_dict(load_file(folder / VALUE_HEAD))


@torch.no_grad()
def check_head(lm: Any, model: str) -> None:
    """Raise UserError unless reading step by step and then the last layer gives the model's own logits."""
    last = lm.get_output_embeddings()
    if last is None:
        raise UserError(f"model: {model} has no output embeddings; choose a causal language model")
    tokens = torch.arange(6)[None] % lm.get_input_embeddings().weight.shape[0]
    decoder = Decoder(lm)
    hidden = [decoder.prefill(tokens[:, :3], torch.ones(1, 3, dtype=torch.bool))]
    hidden += [decoder.feed(tokens[:, i : i + 1]) for i in range(3, 6)]
    ours = Head(last.weight, getattr(last, "bias", None))(torch.cat(hidden, 1)[0])
    theirs = lm(input_ids=tokens, use_cache=False).logits[0].float()
    scale = theirs.abs().max().clamp_min(1e-3)
    if not bool((ours - theirs).abs().max() <= 0.05 * scale):
        raise UserError(
            f"model: {model} changes its logits after the last layer, or its layers in a way not supported here; "
            "choose a Llama-, Qwen-, GPT-2- or similar type"
        )
