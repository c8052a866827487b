"""A tiny Qwen2-type model with random weights and a byte-level tokenizer, made on the spot: nothing is downloaded.

    python -m benchmarks.tiny_model FOLDER

Each printable character is one token; the rest of the vocabulary are fillers that only the model produces.
"""

from __future__ import annotations

import random
import string
import sys
from pathlib import Path

VOCABULARY, WIDTH, LAYERS, HEADS = 4096, 128, 2, 4
SPECIAL = ("<pad>", "<end>")

# The workload of both sides: completions of a step, completions of a prompt, (prompt, completion) tokens.
COMPLETIONS, GROUP = 256, 8
SIZES = {"short": (12, 12), "long": (128, 64)}

LETTERS = string.ascii_lowercase


def build(folder: Path, seed: int = 0) -> None:
    """Write model and tokenizer under `folder`, unless they are there."""
    if (folder / "tokenizer.json").exists():
        return
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

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
    words = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    words += [f"filler{i}" for i in range(VOCABULARY - len(words))]
    tokenizer = Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[],
        unk_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
    )
    tokenizer.save_pretrained(folder)


def prompts(count: int, length: int, seed: int = 0) -> list[str]:
    """`count` random prompts of exactly `length` tokens."""
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=length)) for _ in range(count)]


def reward(text: str) -> float:
    """Share of vowels: cheap, dense, rarely constant within a group."""
    return sum(map(text.count, "aeiou")) / max(len(text), 1)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
