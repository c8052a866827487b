"""A language policy as a folder for `from_pretrained`: the whole model, written, read back and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.policies.language import LanguagePolicy
from partita.policies.loading import quiet
from partita.policies.others import whole

DTYPES = ("float32", "bfloat16", "float16")
PROMPTS = ("2 + 2 =", "Once upon a time, a naïve café\n\n", "def f(x):\n    return x * 10  # <eos> ☃")
SAME, ROUGH = 1e-4, 0.1  # what rounding does to logits, as a share of the largest: in float32, in fewer digits


def write(policy: LanguagePolicy, folder: Path, dtype: str, sampling: Mapping[str, Any]) -> float:
    """Write the model with its adapter added in, its tokenizer and how to sample; the largest difference of a logit.

    folder: exists. dtype: of the weights, which the policy's own take as well. sampling: settings of a
    `GenerationConfig`. The difference is that between the policy as it was and what `transformers` makes of the folder,
    without code or files from elsewhere. Raises UserError unless both have the same tokens and, but for rounding, the
    same logits, and the weights are those that were written.
    """
    own = policy.lm.dtype
    rows = [policy.tokenizer(text)["input_ids"][: policy.context] for text in PROMPTS]
    before = _logits(policy.lm, rows)
    model: Any = whole(policy).lm
    _check("adding the adapter to the weights", before, _logits(model, rows), own)
    model.to(getattr(torch, dtype))
    model.generation_config = _generation(policy, sampling)
    tokenizer = policy.tokenizer
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # where prompts of a batch do not go on
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    again, reader = _loaded(folder)
    _check_tokenizer(tokenizer, reader)
    _check_weights(model, again.to(policy.device))
    after = _logits(again, rows)
    _check(f"writing {dtype}", before, after, own, model.dtype)
    _check_generates(again, reader)
    return _difference(before, after)


def _generation(policy: LanguagePolicy, sampling: Mapping[str, Any]) -> Any:
    """How to sample, and the ids that begin, end and pad; a model may name several ends."""
    from transformers import GenerationConfig

    ends = getattr(policy.lm.generation_config, "eos_token_id", None)
    others = ends if isinstance(ends, list) else [] if ends is None else [ends]
    known = list(dict.fromkeys([policy.tokenizer.eos_token_id, *others]))
    return GenerationConfig(
        do_sample=True, **sampling, bos_token_id=policy.tokenizer.bos_token_id,
        eos_token_id=known if len(known) > 1 else known[0], pad_token_id=policy.tokenizer.pad_token_id,
    )  # fmt: skip


def _loaded(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer as anyone loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    only: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet(), _usable():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, **only)
        return model.eval(), AutoTokenizer.from_pretrained(folder, **only)


def _check_generates(model: Any, tokenizer: Any) -> None:
    """Raise UserError unless a token can be sampled as the folder says."""
    with quiet(), _usable(), torch.random.fork_rng():
        model.generate(**tokenizer(PROMPTS[0], return_tensors="pt").to(model.device), max_new_tokens=1)


@contextmanager
def _usable() -> Iterator[None]:
    """Within the block whatever `transformers` raises is what others would meet: a UserError."""
    try:
        yield
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"--to hf: transformers cannot use what was written ({type(error).__name__}: {line}); choose a base model "
            "that it loads without code of its own"
        ) from error


@torch.no_grad()
def _logits(lm: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    return [lm(input_ids=torch.tensor([row], device=lm.device), use_cache=False).logits[0].float() for row in rows]


def _difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(torch.stack([(x - y).abs().max() for x, y in zip(a, b, strict=True)]).max())


def _check(what: str, a: Sequence[Tensor], b: Sequence[Tensor], *dtypes: torch.dtype) -> None:
    """Raise UserError where logits differ by more than rounding to these dtypes, or are no numbers."""
    share = SAME if set(dtypes) == {torch.float32} else ROUGH
    most, off = share * max(float(x.abs().max()) for x in a), _difference(a, b)
    if not off <= most:
        raise UserError(f"--to hf: {what} changes logits by {off:.3g}, and {most:.3g} is the most; try --dtype float32")


def _check_weights(model: Any, again: Any) -> None:
    """Raise UserError unless every tensor is there, to the bit."""
    written, read = model.state_dict(), again.state_dict()
    for name in sorted(written.keys() | read.keys()):
        if name not in written or name not in read or not torch.equal(written[name], read[name]):
            raise UserError(f"--to hf: {name} is another once read back; choose another base model")


def _check_tokenizer(mine: Any, again: Any) -> None:
    """Raise UserError unless both read alike and agree on what ends, pads and makes a conversation."""
    for text in PROMPTS:
        if mine(text)["input_ids"] != again(text)["input_ids"]:
            raise UserError(
                f"--to hf: transformers' AutoTokenizer reads {text!r} otherwise than the policy, since it gives this "
                "type of model a tokenizer of its own; train from a base model that has that one"
            )
    for name in ("eos_token_id", "pad_token_id", "padding_side", "chat_template"):
        if getattr(mine, name) != getattr(again, name):
            raise UserError(
                f"--to hf: {name} is {getattr(again, name)!r} once written, and was {getattr(mine, name)!r}; "
                "set it in the base model's tokenizer_config.json"
            )
