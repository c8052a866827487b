import json
import shutil

import pytest
import torch

from partita.core.errors import UserError
from partita.policies.language import Language
from partita.policies.sampling import Sampling
from partita.policies.tiny import KINDS, character_tokenizer, tiny_config, tiny_model

PROMPTS = ["12+34=", "a"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(tiny_config("qwen2", hidden=32, context=64)).save_pretrained(folder)
    character_tokenizer(context=64).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def _build(folder, value=False, seed=0, **settings):
    return Language(model=str(folder), **settings).build(None, value, torch.Generator().manual_seed(seed))


def _batch(policy):
    return policy.generate(PROMPTS, 2, Sampling(max_tokens=6), torch.Generator().manual_seed(0)).batch()


def test_what_is_saved_is_what_loads(folder, tmp_path):
    policy = _build(folder, value=True)
    for p in policy.trainable().values():
        p.data.add_(0.1)
    batch = _batch(policy)
    want = policy.evaluate(batch)
    policy.save(tmp_path / "out")
    again = _build(tmp_path / "out", value=True).evaluate(batch)
    assert torch.equal(want.logp, again.logp)
    assert torch.equal(want.value, again.value)
    assert not list((tmp_path / "out").glob("*.bin")) + list((tmp_path / "out").glob("*.p*"))

    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, value in policy.lm.state_dict().items():
        assert torch.equal(theirs[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_reads_text_as_the_tokenizer_that_was_saved(tmp_path, kind):
    tokenizer = character_tokenizer(context=64)
    tiny_model(tiny_config(kind, hidden=32, context=64)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = " 1 + 2\n<eos>"
    tokens, mask = _build(tmp_path).encode([text])
    assert tokens[0].tolist() == tokenizer(text)["input_ids"]
    assert _build(tmp_path).decode(tokens, mask) == (text,)


def test_an_adapter_starts_as_the_base_and_comes_back_alone_or_merged(folder, tmp_path):
    base, policy = _build(folder), _build(folder, lora_rank=4)
    batch = _batch(base)
    want = base.evaluate(batch).logp
    torch.testing.assert_close(policy.evaluate(batch).logp, want, rtol=1e-6, atol=1e-6)
    names = set(policy.trainable())
    assert names
    assert all("lora_" in n for n in names)
    assert set(policy.state_dict()) == names
    policy.evaluate(batch).logp.sum().backward()
    generator = torch.Generator().manual_seed(1)
    for name, p in policy.trainable().items():
        assert p.grad is not None
        if "lora_B" in name:
            p.data.copy_(0.2 * torch.randn(p.shape, generator=generator))
    changed = policy.evaluate(batch).logp
    assert (changed - want).abs().max() > 0.01
    policy.save(tmp_path / "adapter")
    policy.save(tmp_path / "merged", merged=True)
    assert not (tmp_path / "adapter" / "config.json").exists()
    again = _build(tmp_path / "adapter")
    assert set(again.trainable()) == names
    torch.testing.assert_close(again.evaluate(batch).logp, changed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(_build(tmp_path / "merged").evaluate(batch).logp, changed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(policy.evaluate(batch).logp, changed)  # saving left it as it was
    with pytest.raises(UserError, match=r"lora_rank: .* is an adapter already"):
        _build(tmp_path / "adapter", lora_rank=2)


def test_adapters_are_drawn_from_the_generator(folder):
    state = torch.random.get_rng_state()
    a, b, c = (_build(folder, lora_rank=2, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], c[n]) for n in a)


def test_lora_targets(folder):
    policy = _build(folder, lora_rank=2, lora_targets=("q_proj",))
    assert all("q_proj" in n for n in policy.trainable())
    with pytest.raises(UserError, match=r"lora_targets: .*cannot be adapted; the model has .*q_proj"):
        _build(folder, lora_rank=2, lora_targets=("wrong",))
    with pytest.raises(UserError, match="lora_targets: the last layer"):
        _build(folder, lora_rank=2, lora_targets=("lm_head",))


def test_a_shipped_model_is_found_by_name(folder, monkeypatch):
    from partita.policies import loading

    monkeypatch.setattr(loading, "SHIPPED", folder.parent)
    assert loading.shipped() == ["model"]
    assert loading.locate("model") == str(folder)


def test_a_tokenizer_without_pad_pads_with_eos_and_says_so(saved, folder):
    _edit(folder, pad_token=None)
    policy = _build(folder)
    assert policy.tokenizer.pad_token_id == policy.tokenizer.eos_token_id
    assert any("no pad_token" in note and "<eos>" in note for note in policy.notes)
    assert _build(saved).notes == ()


def _edit(folder, **changes):
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _scribble(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def _lose_a_tensor(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _smaller_embedding(folder):
    character_tokenizer(extra="éàü", context=64).save_pretrained(folder)


def _custom_code(folder):
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Model", "AutoConfig": "mine.Config"}}
    path.write_text(json.dumps(settings))


def _sliding(folder):
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings |= {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}
    path.write_text(json.dumps(settings))


def _one_tokenizer_file(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json; give a folder"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read as JSON"),
        (_one_tokenizer_file, "has no tokenizer"),
        (lambda f: (f / "model.safetensors").unlink(), r"has no model\*.safetensors"),
        (_truncate, "model.safetensors is corrupt or truncated"),
        (_scribble, "model.safetensors is corrupt or truncated"),
        (_lose_a_tensor, "lack 1 tensors, first model.norm.weight"),
        (_smaller_embedding, "has 103 tokens, the model only 100 embeddings"),
        (_custom_code, "needs code from its repository; .*remote_code=True"),
        (_sliding, "type qwen2 uses sliding_attention; only full attention"),
        (lambda f: _edit(f, eos_token=None), "has no eos_token"),
    ],
)
def test_a_broken_folder_is_one_clear_line(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        _build(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model: ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(model="/no/such/folder"), "model: no folder '/no/such/folder'; give a model folder"),
        (dict(model=""), "model: no name is given"),
        (dict(dtype="float16"), "dtype: 'float16' is not supported; choose float32 or bfloat16"),
        (dict(lora_rank=-1), "lora_rank: -1 is negative"),
        (dict(chunk=-1), "chunk: -1 is negative"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Language(**settings).build(None, False, torch.Generator())


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(UserError, match="is a file; give the folder"):
        _build(folder / "config.json")


def test_a_name_that_the_hub_does_not_give(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"model: 'nobody/nothing' .*could not be fetched from the hub"):
        Language(model="nobody/nothing").build(None, False, torch.Generator())


def test_a_hub_out_of_reach_is_said_at_once(monkeypatch):
    import socket

    def nobody(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(UserError, match="model: 'nobody/nothing' is not a folder, and the hub cannot be reached"):
        Language(model="nobody/nothing").build(None, False, torch.Generator())
