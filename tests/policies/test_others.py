"""Other models beside the policy: found where runs leave them, as they were saved, and refused when they differ."""

import pytest
import torch

from partita.core.errors import UserError
from partita.policies import lora
from partita.policies.language import Language, LanguagePolicy
from partita.policies.others import check_alike, other, whole
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model


def made(seed: int = 0, value: bool = False, extra: str = "", **shape) -> LanguagePolicy:
    tokenizer = character_tokenizer(extra, context=64)
    config = {"vocab": len(tokenizer), "hidden": 32, "layers": 1, "heads": 2, "context": 64, **shape}
    return LanguagePolicy(tiny_model(tiny_config("qwen2", **config), seed), tokenizer, Language(), value)


def written(policy):
    return policy.written(["a", "bc"], ["xyz", "u"], torch.tensor([0, 1]))


@pytest.mark.parametrize("name", ["run", "run/policy"])
def test_a_run_is_found_by_its_folder_and_nothing_of_it_learns(tmp_path, name):
    theirs = made(3, value=True)
    theirs.save(tmp_path / "run" / "policy")
    (tmp_path / "run" / "config.json").write_text("{}")
    mine = made()
    found = other(str(tmp_path / name), "here", mine)
    torch.testing.assert_close(found.evaluate(written(mine)).logp, theirs.evaluate(written(mine)).logp)
    assert not found.trainable() and not found.evaluate(written(mine)).logp.requires_grad and mine.trainable()


def test_a_shipped_model_goes_by_its_name():
    mine = Language(model="tiny-0.3m").build(None, False, torch.Generator())
    found = other("tiny-0.3m", "here", mine)
    assert torch.equal(found.evaluate(written(mine)).logp, mine.evaluate(written(mine)).logp)


def test_it_has_the_dtype_of_the_policy(tmp_path):
    made().save(tmp_path)
    mine = LanguagePolicy(made().lm.to(torch.bfloat16), made().tokenizer, Language(dtype="bfloat16"))
    assert other(str(tmp_path), "here", mine).lm.dtype == torch.bfloat16


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "begun" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("begun", "begun holds no finished policy; continue it with: partita train --resume"),
        ("empty", "empty has no config.json"),
        ("nowhere", "no folder"),
    ):
        with pytest.raises(UserError, match=f"^here: .*{said}") as error:
            other(str(tmp_path / name), "here", made())
        assert "\n" not in str(error.value)


def test_another_tokenizer_is_refused_by_its_first_other_token(tmp_path):
    made(extra="éü").save(tmp_path)
    for extra, said in (("", "'é' is 100 there, not here"), ("ü", "'ü' is 101 there, 100 here")):
        with pytest.raises(UserError, match=rf"here: the tokenizer of .* than the policy's \(token {said}\)"):
            other(str(tmp_path), "here", made(extra=extra))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"layers": 2}, "model.layers.1.self_attn.q_proj.weight is (32, 32) there, not there here"),
        ({"hidden": 64}, "model.embed_tokens.weight is (100, 64) there, (100, 32) here"),
        ({"heads": 4}, "num_attention_heads is 4 there, 2 here"),  # of the same shapes
        ({"kv_heads": 1}, "num_key_value_heads is 1 there, 2 here"),
    ],
)
def test_another_architecture_is_refused_by_its_first_difference(shape, said):
    with pytest.raises(UserError) as error:
        check_alike(made(), made(**shape), "NAME", "here")
    assert str(error.value) == f"here: NAME is of another architecture ({said})"
    check_alike(made(), made(5), "NAME", "here")


def test_an_adapter_is_added_into_its_model():
    plain = made()
    policy = made()
    policy.adapter = lora.add(policy.lm, 2, 0, (), "base", torch.Generator().manual_seed(0))
    policy.lm = policy.adapter.base_model.model
    with torch.no_grad():
        for name, weight in policy.adapter.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(1))
    found = whole(policy)
    assert [n for n, _ in found.lm.named_parameters()] == [n for n, _ in plain.lm.named_parameters()]
    batch = written(policy)
    torch.testing.assert_close(found.evaluate(batch).logp, policy.evaluate(batch).logp, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found.evaluate(batch).logp, plain.evaluate(batch).logp, atol=1e-2)
    assert whole(plain) is plain
