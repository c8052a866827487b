import dataclasses

import pytest
import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.policies import prefix
from partita.policies.prefix import buckets, selector
from partita.policies.sampling import Sampling
from partita.policies.tiny import KINDS

PROMPTS = ["12+34=", "a", "what is this, then?"]


@pytest.fixture(autouse=True)
def _always_split(monkeypatch):
    monkeypatch.setattr(prefix, "OVERHEAD", 0)  # take the shared path and several buckets even on tiny batches


def _grads(policy, batch):
    """Outputs, and the gradients of an arbitrary function of them."""
    for p in policy.module.parameters():
        p.grad = None
    out = policy.evaluate(batch, entropy=True)
    g = torch.Generator().manual_seed(0)
    loss = sum(
        (torch.randn(x.shape, generator=g) * x).sum() for x in (out.logp, out.entropy, out.value) if x is not None
    )
    loss.backward()
    return out, {n: p.grad.clone() for n, p in policy.trainable().items()}


def _same(a, b, tol=2e-5):
    for x, y in zip((a[0].logp, a[0].entropy, a[0].value), (b[0].logp, b[0].entropy, b[0].value), strict=True):
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    assert a[1].keys() == b[1].keys()
    for name, grad in a[1].items():
        scale = float(grad.abs().max()) + 1e-3
        torch.testing.assert_close(grad / scale, b[1][name] / scale, rtol=0, atol=tol, msg=name)


def _reference(policy, batch):
    """Log-probabilities of the actions, row by row, from the model's own forward pass."""
    out = torch.zeros(batch.mask.shape)
    attend = batch.inputs.get("attend", batch.mask)
    for i in range(len(batch)):
        prompt = batch.context["prompt"][i][batch.context["prompt_mask"][i]]
        steps = attend[i].nonzero()[:, 0]
        full = torch.cat((prompt, batch.inputs["tokens"][i][steps]))
        with torch.no_grad():
            logits = policy.lm(input_ids=full[None]).logits[0].float()
        for k, t in enumerate(steps.tolist()):
            if batch.mask[i, t]:
                tau = batch.inputs["temperature"][i, t]
                out[i, t] = (logits[len(prompt) - 1 + k] / tau).log_softmax(0)[full[len(prompt) + k]]
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_decoding_equals_transformers(language, seeded, kind):
    policy = language(kind)
    out = policy.generate(PROMPTS, 2, Sampling(max_tokens=15, greedy=True), seeded())
    for i, prompt in enumerate(PROMPTS):
        ids = policy.tokenizer(prompt, return_tensors="pt")["input_ids"]
        want = policy.lm.generate(ids, do_sample=False, max_new_tokens=15, pad_token_id=0)[0, ids.shape[1] :]
        for row in (2 * i, 2 * i + 1):
            assert out.tokens[row][out.mask[row]].tolist() == want.tolist()
            assert out.texts[row] == policy.tokenizer.decode(want, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_behaviour_logp_is_what_evaluate_and_transformers_say(language, seeded, kind, temperature):
    policy = language(kind)
    sampling = Sampling(temperature=temperature, max_tokens=12, stop=("e", "t", "7"))
    out = policy.generate(PROMPTS, 5, sampling, seeded(3), entropy=True)
    batch = out.batch()
    assert torch.equal(batch.terminated.any(1), out.finished)
    assert torch.equal(batch.terminated.any(1), ~batch.truncated.any(1))
    with torch.no_grad():
        now = policy.evaluate(batch, entropy=True)
    torch.testing.assert_close(now.logp, batch.logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(now.entropy, batch.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(now.logp, _reference(policy, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_prompts_equal_whole_sequences_in_value_and_gradient(language, seeded, kind):
    policy = language(kind, value=True)
    policy.value_head.weight.data.normal_(generator=seeded(1))
    out = policy.generate(PROMPTS, 4, Sampling(max_tokens=10, stop=("e", "7", "t")), seeded(4))
    batch = out.batch()[torch.tensor([0, 5, 1, 7, 3, 10, 11, 8, 2])]  # ragged groups, out of order
    results = []
    for share in (True, False):
        policy.settings = dataclasses.replace(policy.settings, share_prefix=share)
        results.append(_grads(policy, batch))
    _same(*results)
    policy.settings = dataclasses.replace(policy.settings, share_prefix=True)
    _same(results[0], _grads(policy, batch.but(group=torch.zeros_like(batch.group))))  # a wrong group is not believed
    _same(results[0], _grads(policy, batch.but(group=None)))


def test_one_token_prompts_and_equal_lengths(language, seeded):
    policy = language()
    for prompts in (["", ""], ["ab", "cd"]):
        batch = policy.generate(prompts, 3, Sampling(max_tokens=1), seeded()).batch()
        torch.testing.assert_close(policy.evaluate(batch).logp, batch.logp, rtol=1e-5, atol=1e-5)


def test_gradients_flow_to_every_parameter(language, seeded):
    policy = language("qwen3", value=True)
    batch = policy.generate(PROMPTS, 2, Sampling(max_tokens=6), seeded()).batch()
    policy.value_head.weight.data.fill_(1.0)
    _, grads = _grads(policy, batch)
    assert all(g.abs().sum() > 0 for g in grads.values())


def test_padding_changes_nothing(language, seeded):
    policy = language(value=True)
    policy.value_head.weight.data.normal_(generator=seeded(1))
    batch = policy.generate(PROMPTS, 3, Sampling(max_tokens=8, stop=("e", "t")), seeded(6)).batch()

    def wider(x, by, fill):
        return torch.nn.functional.pad(x, (0, by), value=fill)

    padded = Batch(
        mask=wider(batch.mask, 3, False),
        logp=wider(batch.logp, 3, 0.0),
        group=batch.group,
        inputs={
            "tokens": wider(batch.inputs["tokens"], 3, 17),
            "temperature": wider(batch.inputs["temperature"], 3, 1.0),
        },
        context={
            "prompt": wider(batch.context["prompt"], 2, 23),
            "prompt_mask": wider(batch.context["prompt_mask"], 2, False),
        },
    )
    a, b = _grads(policy, batch), policy.evaluate(padded, entropy=True)
    width = batch.mask.shape[1]
    for x, y in ((a[0].logp, b.logp), (a[0].entropy, b.entropy), (a[0].value, b.value)):
        torch.testing.assert_close(x, y[:, :width], rtol=1e-5, atol=1e-5)
        assert (y[~padded.mask] == 0).all()


def test_nobody_acted(language, seeded):
    policy = language(value=True)
    batch = policy.generate(["ab"], 2, Sampling(max_tokens=3), seeded()).batch()
    out, grads = _grads(policy, batch.but(mask=torch.zeros_like(batch.mask)))
    assert (out.logp == 0).all()
    assert all(g is None or (g == 0).all() for g in grads.values())


def test_what_a_batch_lacks_is_named(language, seeded):
    policy = language()
    batch = policy.generate(["ab"], 2, Sampling(max_tokens=3), seeded()).batch()
    with pytest.raises(ValueError, match="batch: no prompt_mask"):
        policy.evaluate(batch.but(context={"prompt": batch.context["prompt"]}))


def test_checkpointing_gives_the_same_gradients(language, seeded):
    plain, saved = language("gpt2", value=True), language("gpt2", value=True, gradient_checkpointing=True)
    batch = plain.generate(PROMPTS, 3, Sampling(max_tokens=8), seeded()).batch()
    again = saved.generate(PROMPTS, 3, Sampling(max_tokens=8), seeded()).batch()
    assert torch.equal(batch.inputs["tokens"], again.inputs["tokens"])
    calls = []
    saved.lm.transformer.h[0].attn.register_forward_hook(lambda *_: calls.append(1))
    _same(_grads(plain, batch), _grads(saved, batch))
    passes = len(buckets(prefix.pack(batch).prompt_length + prefix.pack(batch).length))
    assert passes < len(calls) <= 2 * passes  # layers run again in the backward pass (which may stop early)
    assert not any(m.training for m in saved.module.modules())


def test_bfloat16(language, seeded):
    wide, half = language("llama"), language("llama", dtype=torch.bfloat16)
    batch = half.generate(PROMPTS, 3, Sampling(max_tokens=8), seeded(), entropy=True).batch()
    assert batch.logp.dtype == torch.float32
    now = half.evaluate(batch, entropy=True)
    assert now.logp.dtype == torch.float32
    assert (now.logp - batch.logp).abs().max() < 0.2
    assert (now.logp - wide.evaluate(batch).logp).abs().max() < 0.3
    now.logp.sum().backward()
    assert all(p.grad.isfinite().all() for p in half.trainable().values())


def test_the_value_head_starts_at_zero_and_learns(language, seeded):
    policy = language(value=True)
    batch = policy.generate(PROMPTS, 2, Sampling(max_tokens=5), seeded()).batch()
    assert policy.has_value
    assert (policy.evaluate(batch).value == 0).all()
    assert "value_head.weight" in policy.state_dict()
    policy.value_head.bias.data.fill_(2.0)
    assert torch.equal(policy.evaluate(batch).value, 2.0 * batch.mask)
    assert language().evaluate(batch).value is None


def test_state_is_restored_in_place(language, seeded):
    policy = language(value=True)
    batch = policy.generate(PROMPTS, 2, Sampling(max_tokens=5), seeded()).batch()
    before = policy.evaluate(batch).logp.detach()
    state = {k: v.clone() for k, v in policy.state_dict().items()}
    for p in policy.trainable().values():
        p.data.mul_(0.7)
    assert not torch.allclose(before, policy.evaluate(batch).logp)
    policy.load_state_dict(state)
    assert torch.equal(before, policy.evaluate(batch).logp)


def test_prompts_longer_than_the_context(language, seeded):
    policy = language()
    with pytest.raises(UserError, match="prompt 1: 61 tokens and max_tokens = 8 exceed the context of 64"):
        policy.generate(["a", "b" * 60], 1, Sampling(max_tokens=8), seeded())
    out = policy.generate(["b" * 60], 2, Sampling(max_tokens=3), seeded())
    assert out.tokens.shape == (2, 3)


def test_an_empty_prompt_without_bos_is_refused(language):
    policy = language()
    assert policy.encode([""])[0].tolist() == [[1]]
    empty = dict(__call__=lambda self, texts, **_: {"input_ids": [[] for _ in texts]})
    policy.tokenizer = type("NoBos", (), dict(empty, eos_token_id=2, eos_token="<eos>", pad_token_id=0))()
    with pytest.raises(UserError, match="prompt 0: it is empty"):
        policy.encode([""])


@pytest.mark.parametrize("length", [[5, 5, 5], [9, 1, 1, 1, 1, 1, 8], list(range(40)), [0]])
def test_buckets_hold_each_row_once_and_never_cost_more(length):
    length = torch.tensor(length)
    parts = buckets(length)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(length)))
    assert sum(len(p) * int(length[p].max()) for p in parts) <= len(length) * int(length.max())


@pytest.mark.parametrize("owner", [[0, 0, 1, 1], [0, 1, 2, 0], [1, 1, 1], [0, 0], [2, 2, 0]])
def test_selector_picks_rows_and_adds_their_gradients(owner):
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    owner = torch.tensor(owner)
    out = selector(owner)(x)
    assert torch.equal(out, x[owner])
    out.sum().backward()
    assert torch.equal(x.grad, torch.bincount(owner, minlength=3)[:, None].expand(3, 2).float())
