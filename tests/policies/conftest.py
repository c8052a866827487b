import functools

import pytest
import torch

from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model


@functools.cache
def _parts(kind: str):
    lm = tiny_model(tiny_config(kind, hidden=32, layers=2, heads=4, kv_heads=None if kind == "gpt2" else 2, context=64))
    generator = torch.Generator().manual_seed(7)
    for parameter in lm.parameters():  # far from uniform, so that a mistake shows
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return {k: v.clone() for k, v in lm.state_dict().items()}, lm.config, character_tokenizer(context=64)


@pytest.fixture
def language():
    """language(kind, value=False, **settings): a policy around a tiny random model, fresh each time."""

    def make(kind="qwen2", value=False, dtype=torch.float32, **settings):
        weights, config, tokenizer = _parts(kind)
        lm = tiny_model(config)
        lm.load_state_dict(weights)
        return LanguagePolicy(lm.to(dtype), tokenizer, Language(model="tiny", **settings), value)

    return make


@pytest.fixture
def seeded():
    """seeded(n): a generator."""
    return lambda n=0: torch.Generator().manual_seed(n)
