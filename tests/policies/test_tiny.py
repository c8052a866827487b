import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.policies.tiny import CHARACTERS, KINDS, character_tokenizer, tiny_config, tiny_model

TOKENIZER = character_tokenizer(extra="é")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.text(alphabet=CHARACTERS + "é", max_size=40) | st.sampled_from(["<eos>", " <bos>\n\n ", "", "   "]))
def test_decoding_is_the_inverse_of_encoding(text):
    ids = TOKENIZER(text)["input_ids"]
    assert ids[0] == TOKENIZER.bos_token_id
    assert len(ids) == len(text) + 1
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_a_saved_tokenizer_reads_alike(tmp_path):
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "a <eos>\n b"
    assert again(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert (again.pad_token_id, again.bos_token_id, again.eos_token_id) == (0, 1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_model_and_leaves_global_state(kind):
    state = torch.random.get_rng_state()
    models = [tiny_model(tiny_config(kind, hidden=32, layers=1), seed) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    a, b, c = [torch.cat([p.flatten() for p in m.parameters()]) for m in models]
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="kind: no tiny model of type 'lama'; did you mean llama"):
        tiny_config("lama")
    with pytest.raises(UserError, match="heads: 5 does not cut hidden = 32"):
        tiny_config("llama", hidden=32, heads=5)
    with pytest.raises(UserError, match="extra: 'a' repeats"):
        character_tokenizer("a")
