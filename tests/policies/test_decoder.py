import pytest
import torch

from partita.core.errors import UserError
from partita.policies.decoder import Decoder, check_attention, last_hidden
from partita.policies.tiny import KINDS, tiny_config, tiny_model


def _random(shape, seed):
    return torch.randint(4, 90, shape, generator=torch.Generator().manual_seed(seed))


def _full(lm, tokens):
    with torch.no_grad():
        return lm.base_model(torch.tensor([tokens])).last_hidden_state[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capacity", [0, 40])
def test_every_way_of_reading_equals_a_full_forward(language, kind, capacity):
    lm = language(kind).lm
    prompts, mask = _random((3, 6), 0), torch.tensor([[1] * 6, [1] * 2 + [0] * 4, [1] * 5 + [0]]).bool()
    decoder = Decoder(lm, capacity)
    hidden = decoder.prefill(prompts, mask)
    index = torch.tensor([0, 1, 1, 2, 0])
    rows = [prompts[i][mask[i]].tolist() for i in index]
    seen = [[(len(r) - 1, last_hidden(hidden, mask)[i])] for r, i in zip(rows, index, strict=True)]
    decoder.expand(index)

    def feed(tokens, mask):
        hidden = decoder.feed(tokens, mask)
        for j in range(tokens.shape[0]):
            for s in range(tokens.shape[1]):
                if mask is None or mask[j, s]:
                    rows[j].append(int(tokens[j, s]))
                    seen[j].append((len(rows[j]) - 1, hidden[j, s]))

    feed(_random((5, 1), 1), None)
    feed(_random((5, 3), 2), None)
    feed(
        _random((5, 4), 3), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()
    )
    feed(_random((5, 1), 4), torch.tensor([[0], [1], [0], [1], [1]]).bool())
    kept = [3, 1, 4]
    decoder.keep(torch.tensor(kept))
    rows, seen = [rows[i] for i in kept], [seen[i] for i in kept]
    feed(_random((3, 1), 5), None)
    feed(_random((3, 1), 6), None)
    assert decoder.position.tolist() == [len(r) for r in rows]
    assert decoder.valid.sum(1).tolist() == [len(r) for r in rows]
    for row, states in zip(rows, seen, strict=True):
        want = _full(lm, row)
        for place, state in states:
            torch.testing.assert_close(state, want[place], rtol=1e-5, atol=2e-5)


def test_a_prompt_without_padding_needs_no_mask(language):
    decoder = Decoder(language().lm)
    decoder.prefill(_random((2, 4), 0), torch.ones(2, 4, dtype=torch.bool))
    decoder.feed(_random((2, 1), 1))
    assert decoder._bias is None
    assert decoder.valid.all()


def test_prefill_starts_over(language):
    lm = language().lm
    decoder = Decoder(lm)
    decoder.prefill(_random((2, 4), 0), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool())
    decoder.feed(_random((2, 1), 1))
    tokens = _random((1, 3), 2)
    decoder.prefill(tokens, torch.ones(1, 3, dtype=torch.bool))
    more = decoder.feed(_random((1, 1), 3))[0, 0]
    torch.testing.assert_close(
        more, _full(lm, tokens[0].tolist() + _random((1, 1), 3)[0].tolist())[-1], rtol=1e-5, atol=2e-5
    )


def test_wrong_shapes_are_named(language):
    decoder = Decoder(language().lm)
    with pytest.raises(ValueError, match=r"mask: expected \(P, S\)"):
        decoder.prefill(_random((2, 4), 0), torch.ones(2, 3, dtype=torch.bool))
    decoder.prefill(_random((2, 4), 0), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"tokens: expected \(B, S\) = \(2, 1\)"):
        decoder.feed(_random((3, 1), 0))


def test_models_without_full_attention_are_refused():
    import transformers

    small = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    rest = dict(intermediate_size=32, num_key_value_heads=2, max_position_embeddings=128)
    window = transformers.MistralConfig(**small, **rest, sliding_window=8)
    with pytest.raises(UserError, match=r"model: type mistral uses .*only full attention"):
        check_attention(tiny_model(window))
    check_attention(tiny_model(transformers.MistralConfig(**small, **rest, sliding_window=128)))
    mixed = transformers.Qwen2Config(**small, **rest, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(UserError, match="sliding"):
        check_attention(tiny_model(mixed))
    with pytest.raises(UserError, match="model: type bloom is not a decoder with full attention"):
        check_attention(
            transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
        )
    for kind in KINDS:
        check_attention(tiny_model(tiny_config(kind, hidden=32, layers=1)))
