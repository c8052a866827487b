"""Small language models: a character tokenizer and configurations of a few hundred thousand parameters."""

from __future__ import annotations

from typing import Any

from partita.core.errors import UserError, nearest

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
KINDS = ("llama", "qwen2", "qwen3", "gpt2")


def character_tokenizer(extra: str = "", context: int = 1024) -> Any:
    """A tokenizer with one id a character: newline, printable ASCII, and the characters of `extra`.

    Ids 0 to 3 are pad, bos, eos and unknown. A prompt starts with bos; text that spells a special token is
    read as ordinary characters; decoding is the exact inverse of encoding. Raises UserError when `extra`
    repeats a character.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = CHARACTERS + extra
    if len(set(alphabet)) != len(alphabet):
        raise UserError(f"extra: {extra!r} repeats a character; give each new character once")
    pad, bos, eos, unknown = SPECIAL
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        model_max_length=context,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def tiny_config(
    kind: str = "qwen2",
    vocab: int = len(SPECIAL) + len(CHARACTERS),
    hidden: int = 96,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    context: int = 1024,
) -> Any:
    """The configuration of a small causal language model of type `kind`, with tied embeddings and no dropout.

    The feed-forward width is 8/3 of `hidden` (rounded up to a multiple of 32) for gated types and 4 times
    for `gpt2`; `kv_heads` (default `heads`) applies to all types but `gpt2`. Raises UserError on an unknown kind
    or when `heads` does not divide `hidden`.
    """
    if kind not in KINDS:
        raise UserError(f"kind: no tiny model of type {kind!r}; {nearest(kind, KINDS)}")
    if hidden % heads or (hidden // heads) % 2:
        raise UserError(f"heads: {heads} does not cut hidden = {hidden} into even parts; choose a divisor")
    import transformers

    special: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        return transformers.GPT2Config(
            vocab_size=vocab,
            n_embd=hidden,
            n_layer=layers,
            n_head=heads,
            n_positions=context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=True,
            **special,
        )
    settings: dict[str, Any] = dict(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=-(-8 * hidden // 3 // 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        **special,
    )
    if kind == "llama":
        return transformers.LlamaConfig(**settings)
    if kind == "qwen2":
        return transformers.Qwen2Config(**settings)
    return transformers.Qwen3Config(**settings, head_dim=hidden // heads)


def tiny_model(config: Any, seed: int = 0) -> Any:
    """A causal language model with random weights of that configuration, the same for the same seed.

    torch's global random state is left as it was.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
