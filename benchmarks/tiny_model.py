"""A tiny Qwen2-type model with random weights and a word tokenizer, made on the spot: nothing is downloaded.

    python -m benchmarks.tiny_model FOLDER

The end-of-sequence token has an identifier one past the model's vocabulary, so that neither side can sample it:
all completions have full length and both sides count the same tokens, without a processor on the logits.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

VOCABULARY, WIDTH, LAYERS, HEADS = 4096, 128, 2, 4


def build(folder: Path, seed: int = 0) -> None:
    """Write model and tokenizer under `folder`, unless they are there."""
    if (folder / "tokenizer.json").exists():
        return
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words = {"<pad>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)} | {"<end>": VOCABULARY}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.save_pretrained(folder)


def prompts(count: int, length: int, seed: int = 0) -> list[str]:
    """`count` random prompts of exactly `length` tokens."""
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(1, VOCABULARY)}" for _ in range(length)) for _ in range(count)]


def reward(tokens: list[int]) -> float:
    """Share of even token identifiers: cheap, dense, never constant within a group."""
    return sum(t % 2 == 0 for t in tokens) / max(len(tokens), 1)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
