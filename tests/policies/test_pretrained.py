"""Language policies as `transformers` loads them: the same tokens, the same logits, or a refusal."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from partita.core.errors import UserError
from partita.policies import lora, pretrained
from partita.policies.pretrained import PROMPTS, write

SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_new_tokens": 12}
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.fixture
def adapted(language, seeded):
    """A policy with an adapter that has learnt something."""
    policy = language("llama")
    policy.adapter = lora.add(policy.lm, 2, 0, (), "tiny", seeded())
    for name, weight in policy.trainable().items():
        if "lora_B" in name:
            weight.data.normal_(generator=seeded(1))
    return policy


def logits(lm, tokenizer, text=PROMPTS[0]):
    with torch.no_grad():
        return lm(**tokenizer(text, return_tensors="pt")).logits.float()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_transformers_reads_what_acts(language, tmp_path, kind):
    policy = language(kind)
    expected = logits(policy.lm, policy.tokenizer)
    assert write(policy, tmp_path, "float32", SAMPLING) == 0
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), policy.tokenizer), expected)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(" 1 + <eos>\n")["input_ids"] == policy.tokenizer(" 1 + <eos>\n")["input_ids"]
    assert tokenizer.padding_side == "left"
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_an_adapter_is_in_the_weights(adapted, tmp_path):
    expected = logits(adapted.lm, adapted.tokenizer)
    with adapted.adapter.disable_adapter():
        bare = logits(adapted.lm, adapted.tokenizer)
    off = write(adapted, tmp_path, "float32", SAMPLING)
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path), adapted.tokenizer)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert off < 1e-3 < float((bare - expected).abs().max())
    assert not list(tmp_path.glob("adapter*"))


def test_a_lost_adapter_is_noticed(adapted, language, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "whole", lambda policy: language("llama"))
    with pytest.raises(UserError, match="adding the adapter to the weights changes logits by"):
        write(adapted, tmp_path, "bfloat16", SAMPLING)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_another_dtype(language, tmp_path, dtype):
    policy = language("llama")
    assert 0 < write(policy, tmp_path, dtype, SAMPLING) < 1
    assert {str(value.dtype) for value in load_file(tmp_path / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype


def test_numbers_that_a_dtype_cannot_hold_are_refused(language, tmp_path):
    policy = language("llama")
    policy.lm.model.norm.weight.data.mul_(1e6)
    with pytest.raises(UserError, match=r"writing float16 changes logits by nan.*try --dtype float32"):
        write(policy, tmp_path, "float16", SAMPLING)


def test_what_is_read_back_must_be_what_was_written(language, tmp_path, monkeypatch):
    honest = pretrained._loaded

    def damaged(folder):
        model, tokenizer = honest(folder)
        model.lm_head.weight.data[5, 5] += 1e-6
        return model, tokenizer

    monkeypatch.setattr(pretrained, "_loaded", damaged)
    with pytest.raises(UserError, match=r"lm_head\.weight is another once read back"):
        write(language("llama"), tmp_path, "float32", SAMPLING)


def test_how_to_sample_and_when_to_end(language, tmp_path):
    policy = language("llama")
    policy.lm.generation_config.eos_token_id = [9, 2]
    write(policy, tmp_path, "float32", SAMPLING)
    held = json.loads((tmp_path / "generation_config.json").read_text())
    held.pop("transformers_version")
    ids = {"bos_token_id": 1, "eos_token_id": [2, 9], "pad_token_id": 0}
    assert held == {"do_sample": True, **SAMPLING, **ids}


def test_the_chat_template_comes_along(language, tmp_path):
    policy = language("llama")
    policy.tokenizer.chat_template = TEMPLATE
    write(policy, tmp_path, "float32", SAMPLING)
    messages = [{"role": "user", "content": "hi"}]
    policy.tokenizer.chat_template = None
    assert AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=False) == "[user]hi"


def test_a_tokenizer_that_others_would_not_find_is_refused(language, tmp_path):
    with pytest.raises(UserError, match=r"AutoTokenizer reads .* otherwise than the policy"):
        write(language("qwen2"), tmp_path, "float32", SAMPLING)


def test_what_transformers_cannot_use_is_refused(language, tmp_path):
    policy = language("llama")
    save = policy.lm.save_pretrained

    def unknown(folder):
        save(folder)
        (tmp_path / "config.json").write_text('{"model_type": "nothing"}')

    policy.lm.save_pretrained = unknown
    with pytest.raises(UserError, match="transformers cannot use what was written") as error:
        write(policy, tmp_path, "float32", SAMPLING)
    assert "\n" not in str(error.value)


def test_what_does_not_sample_is_refused(language, tmp_path):
    with pytest.raises(UserError, match="cannot use what was written"):
        write(language("llama"), tmp_path, "float32", {**SAMPLING, "stop_strings": ["\n"]})
