"""Preference losses against TRL's own code: what DPO, KTO, reward, CPO and ORPO trainers compute of a batch."""

import os
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from comparisons import M, T, drawn, ours
from pairs import agree, differ
from torch.nn.functional import logsigmoid

from partita.estimators.margins import response_logp
from partita.papers.baselines.dpo import DPO
from partita.papers.preference.f_dpo import FDirect
from partita.parts.contrast import BradleyTerry, Direct, Kto, Orpo, SelfPlay, Simpo
from partita.parts.reference import Ema
from partita.parts.tether import Anchor
from partita.policies.tokens import Tokens

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl = pytest.importorskip("trl", reason="TRL is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
SEEDS = pytest.mark.parametrize("seed", range(4))


def bare(kind, **settings):
    """A trainer with what its loss reads and nothing else."""
    from accelerate import Accelerator

    out = object.__new__(kind)
    vars(out).update(
        accelerator=Accelerator(cpu=True), model=SimpleNamespace(training=True), aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1, **settings,
    )  # fmt: skip
    return out


def said(logp, mask):
    """What TRL's models say with a fused head: log-probabilities where there is a response; the rest is watched."""
    nothing = torch.zeros_like(logp)
    return SimpleNamespace(
        log_probs=logp * mask, entropy=nothing, mean_logits=nothing, log_sum_sq_probs=nothing, is_top1=nothing.bool()
    )


def tokens(mask):
    """Batches as TRL's collators make them: a prompt of one token, and responses where `mask` is true."""
    completion = torch.cat((torch.zeros(len(mask), 1, dtype=torch.int64), mask.long()), 1)
    return {"input_ids": completion, "attention_mask": torch.ones_like(completion), "completion_mask": completion}


def theirs(loss_type, pairs, logp, weights=None, **settings):
    """Loss of `DPOTrainer`, and its gradient by log-probabilities."""
    leaf = logp.clone().requires_grad_()
    given = dict(
        beta=0.1, label_smoothing=0.0, f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5, ld_alpha=None,
        use_weighting=False, precompute_ref_logps=True, args=SimpleNamespace(discopop_tau=0.05),
    )  # fmt: skip
    types = [loss_type] if isinstance(loss_type, str) else loss_type
    one = bare(trl.DPOTrainer, **{**given, **settings}, loss_types=types, loss_weights=weights or [1.0] * len(types))
    chosen, rejected = pairs.ref.chunk(2)
    inputs = {**tokens(pairs.batch.mask), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss = one._compute_loss(lambda **_: said(leaf, pairs.batch.mask), inputs, False)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def two_words(logp, mask):
    """Logits (2M, T + 1, 2) under which word 0 has probability exp(logp), and labels that ask for it."""
    logits = torch.stack((logp, torch.log(-torch.expm1(logp.clamp(max=-1e-9)))), 2)
    labels = torch.where(mask, 0, -100)
    pad = torch.nn.functional.pad
    return pad(logits, (0, 0, 0, 1)), pad(labels, (1, 0), value=-100)


def without_reference(kind, pairs, logp, asked=None, **settings):
    """Loss of the CPO or the ORPO trainer on logits, and its gradient by log-probabilities.

    asked: (2M,), the log-probability of a second token of the prompt, which has one token otherwise.
    """
    leaf, mask = logp.clone().requires_grad_(), pairs.batch.mask
    prompt = logp[:, :0] if asked is None else asked[:, None]
    logits, labels = two_words(torch.cat((prompt, leaf), 1), torch.cat((torch.zeros_like(prompt).bool(), mask), 1))
    there = torch.cat((torch.ones(2 * M, 1 + prompt.shape[1]).long(), mask.long()), 1)
    batch = {
        "concatenated_input_ids": torch.zeros_like(labels), "concatenated_attention_mask": there,
        "concatenated_labels": labels,
    }  # fmt: skip
    one = bare(kind, is_encoder_decoder=False, pad_token_id=0, padding_value=0, **settings)
    one.concatenated_inputs = lambda *_, **__: batch
    loss, _ = one.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=logits), {"chosen_labels": labels[:M]})
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def cpo(pairs, logp, loss_type, **settings):
    from trl.experimental.cpo import CPOTrainer

    given = dict(loss_type=loss_type, beta=0.1, label_smoothing=0.0, cpo_alpha=0.0, alpha=0.0, simpo_gamma=0.5)
    return without_reference(CPOTrainer, pairs, logp, **{**given, **settings})


def unreferred(pairs):
    """The same with a reference that gives every response probability 1."""
    return pairs.but(ref=torch.zeros_like(pairs.ref))


def objective(**settings):
    return DPO.but(objective=Direct(**settings))


LOSSES = {
    "sigmoid": (0.1, objective(beta=0.1)),
    "sigmoid_norm": (0.5, objective(beta=0.5, mean=True)),
    "hinge": (0.5, objective(beta=0.5, loss="hinge")),
    "ipo": (0.1, objective(beta=0.1, loss="ipo", mean=True)),
    "sppo_hard": (0.1, DPO.but(objective=SelfPlay(beta=0.1))),
}


@SEEDS
@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_margins_agree(name, seed):
    beta, recipe = LOSSES[name]
    pairs, logp = drawn(seed)
    mine = ours(recipe, pairs, logp)
    agree(mine, theirs(name, pairs, logp, beta=beta))
    if name == "hinge":  # on both sides of the corner
        assert 0 < int(mine[1].any(1).sum()) < 2 * M


@SEEDS
@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
@pytest.mark.parametrize(("name", "known"), [("forward_kl", "forward_kl"), ("js", "js_divergence")])
def test_losses_under_other_divergences_agree(name, known, loss, seed):
    pairs, logp = drawn(seed)
    mine = ours(DPO.but(objective=FDirect(loss=loss, divergence=name, beta=0.2)), pairs, logp)
    agree(mine, theirs(loss, pairs, logp, f_divergence_type=known, beta=0.2))


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_the_loss_under_an_alpha_divergence_agrees_to_the_digits_of_float32(alpha):
    """TRL counts alpha from the other end, and computes it in float32 only."""
    pairs, logp = drawn(0)
    mine = ours(DPO.but(objective=FDirect(divergence="alpha", alpha=alpha, beta=0.2)), pairs, logp)
    given = dict(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1 - alpha, beta=0.2)
    other = theirs("sigmoid", pairs.but(ref=pairs.ref.float()), logp.float(), **given)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid_norm", "ipo"])
def test_a_divergence_a_token_is_of_the_mean_log_ratio_here_and_of_the_whole_response_in_trl(name):
    """f'(exp(log-ratio / length)) here, f'(exp(log-ratio)) / length in TRL: the same under reverse KL alone."""
    pairs, logp = drawn(0)
    loss = "ipo" if name == "ipo" else "sigmoid"
    other = theirs(name, pairs, logp, f_divergence_type="js_divergence")
    differ(ours(DPO.but(objective=FDirect(loss=loss, divergence="js", mean=True)), pairs, logp), other)
    plain = ours(DPO.but(objective=FDirect(loss=loss, divergence="reverse_kl", mean=True)), pairs, logp)
    agree(plain, theirs(name, pairs, logp))


def test_ipo_of_trl_counts_log_ratios_a_token():
    """The paper's equation 17 has whole responses, as `ipo` has here; `mean` makes it TRL's."""
    pairs, logp = drawn(0)
    differ(ours(objective(loss="ipo"), pairs, logp), theirs("ipo", pairs, logp))


def test_label_smoothing_is_aot_of_a_single_comparison():
    """DPOTrainer has conservative DPO under no name of its own; sorting one margin leaves it where it is."""
    pairs, logp = drawn(1)
    mine = ours(objective(label_smoothing=0.2), pairs, logp)
    each = []
    for i in range(M):
        rows = torch.arange(2 * M) % M == i
        loss, part = theirs("aot", pairs.rows(rows), logp[rows], label_smoothing=0.2)
        whole = torch.zeros_like(logp)
        whole[rows] = part
        each.append((loss, whole))
    agree(mine, (sum(loss for loss, _ in each) / M, sum(part for _, part in each) / M))


def test_robust_of_trl_is_a_label_beyond_one_and_not_label_smoothing():
    """((1 - eps) l(h) - eps l(-h)) / (1 - 2 eps), unbiased under flips, is ours at p = (1 - eps) / (1 - 2 eps)."""
    pairs, logp = drawn(2)
    eps = 0.2
    other = theirs("robust", pairs, logp, label_smoothing=eps)
    beyond = pairs.but(prefer=torch.where(pairs.prefer > 0.5, (1 - eps) / (1 - 2 * eps), -eps / (1 - 2 * eps)))
    agree(ours(objective(), beyond, logp), other)
    differ(ours(objective(label_smoothing=eps), pairs, logp), other)


def test_likelihood_of_the_preferred_agrees_where_lengths_do():
    """TRL's `sft`, once `rpo_alpha`, is the mean over tokens of a batch; ours over responses of the mean of each."""
    recipe = objective().but(regularisers=(Anchor(weight=0.7),))
    pairs, logp = drawn(3, alike=True)
    agree(ours(recipe, pairs, logp), theirs(["sigmoid", "sft"], pairs, logp, [1.0, 0.7]))
    pairs, logp = drawn(3)
    other = theirs(["sigmoid", "sft"], pairs, logp, [1.0, 0.7])
    differ(ours(recipe, pairs, logp), other)
    plain, better = ours(objective(), pairs, logp), pairs.batch.mask & (torch.arange(2 * M) < M)[:, None]
    share = better / better.sum()
    agree((plain[0] - 0.7 * (share * logp).sum(), plain[1] - 0.7 * share), other)


@SEEDS
def test_simpo_agrees(seed):
    pairs, logp = drawn(seed)
    mine = ours(DPO.but(objective=Simpo(beta=2.0, gamma=0.5)), pairs, logp)
    agree(mine, cpo(pairs, logp, "simpo", beta=2.0, simpo_gamma=0.5))


def test_a_smoothed_label_of_simpo_has_its_margin_on_the_other_side_in_trl():
    """Whoever is preferred has to be gamma ahead, here; in TRL the first is, whoever is preferred."""
    pairs, logp = drawn(0)
    eps, gamma = 0.2, 0.5
    prefer = torch.where(pairs.prefer > 0.5, 1 - eps, eps)
    recipe = DPO.but(objective=Simpo(beta=2.0, gamma=gamma))
    other = cpo(pairs, logp, "simpo", beta=2.0, simpo_gamma=gamma, label_smoothing=eps)
    differ(ours(recipe, pairs.but(prefer=prefer), logp), other)
    leaf = logp.clone().requires_grad_()
    first, second = (2.0 * response_logp(leaf, pairs.batch.mask, mean=True)).chunk(2)
    h = first - second - gamma
    loss = -((1 - eps) * logsigmoid(h) + eps * logsigmoid(-h)).mean()
    agree((loss.detach(), torch.autograd.grad(loss, leaf)[0]), other)


CPO = {"sigmoid": objective(), "hinge": objective(loss="hinge"), "ipo": objective(loss="ipo", mean=True)}


@SEEDS
@pytest.mark.parametrize("name", CPO)
def test_cpo_agrees_with_a_reference_that_says_nothing(name, seed):
    pairs, logp = drawn(seed)
    agree(ours(CPO[name], unreferred(pairs), logp), cpo(pairs, logp, name))


def test_cpo_with_label_smoothing_and_likelihood_agrees():
    pairs, logp = drawn(1, alike=True)
    recipe = objective(label_smoothing=0.2).but(regularisers=(Anchor(weight=0.7),))
    mine = ours(recipe, unreferred(pairs), logp)
    agree(mine, cpo(pairs, logp, "sigmoid", label_smoothing=0.2, cpo_alpha=0.7))


def orpo(pairs, logp, monkeypatch, beta=0.1, asked=None):
    from trl.experimental.orpo import ORPOTrainer

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # it rounds log-probabilities to float32
    return without_reference(ORPOTrainer, pairs, logp, asked, beta=beta)


def test_orpo_agrees_where_lengths_do(monkeypatch):
    """The likelihood is a mean over tokens of the batch in TRL, here over responses; the odds agree in any case."""
    recipe = DPO.but(objective=Orpo(weight=0.1))
    pairs, logp = drawn(2, alike=True)
    agree(ours(recipe, pairs, logp), orpo(pairs, logp, monkeypatch))
    pairs, logp = drawn(2)
    differ(ours(recipe, pairs, logp), orpo(pairs, logp, monkeypatch))
    mine = [ours(DPO.but(objective=Orpo(weight=w)), pairs, logp) for w in (0.1, 0.0)]
    other = [orpo(pairs, logp, monkeypatch, beta=w) for w in (0.1, 0.0)]
    agree(tuple(a - b for a, b in zip(*mine, strict=True)), tuple(a - b for a, b in zip(*other, strict=True)))


def test_the_likelihood_of_orpo_includes_the_prompt_s_in_trl(monkeypatch):
    """What the prompt's tokens add to it changes no gradient by the response's but by the number of tokens."""
    pairs, logp = drawn(2, alike=True)
    mine = [ours(DPO.but(objective=Orpo(weight=w)), pairs, logp) for w in (0.1, 0.0)]
    asked = -torch.arange(1.0, 2 * M + 1)
    loss, gradient = orpo(pairs, logp, monkeypatch, asked=asked)
    rest, (taught, by) = tuple(a - b for a, b in zip(*mine, strict=True)), mine[1]
    agree((rest[0] + (taught * T - asked[:M].mean()) / (T + 1), rest[1] + by * T / (T + 1)), (loss, gradient))


def kto(pairs, logp, drift, **settings):
    """Loss of `KTOTrainer` on labelled responses, and its gradient; on mismatched ones the policy is `drift` away."""
    leaf, count = logp.clone().requires_grad_(), len(logp)
    given = dict(beta=0.1, desirable_weight=1.0, undesirable_weight=1.0, loss_type="kto", calculate_KL=True)
    one = bare(trl.KTOTrainer, **{**given, **settings}, precompute_ref_logps=True)
    there = torch.ones(count, 1, dtype=torch.bool)
    says = {T + 1: said(leaf, pairs.batch.mask), 2: said(drift[:, None], there)}
    inputs = {
        **tokens(pairs.batch.mask), **{f"KL_{name}": value for name, value in tokens(there).items()},
        "label": pairs.label.bool(), "ref_logps": pairs.ref, "ref_KL_logps": torch.zeros(count),
    }  # fmt: skip
    loss = one._compute_loss(lambda **given: says[given["input_ids"].shape[1]], inputs, False)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@SEEDS
@pytest.mark.parametrize("at", [3.0, 0.0, -3.0])
def test_kto_agrees(seed, at):
    """The reference point is cut at 0 on both sides."""
    pairs, logp = drawn(seed)
    g = torch.Generator().manual_seed(seed)
    pairs = pairs.labelled()
    pairs = pairs.but(label=pairs.label[torch.randperm(2 * M, generator=g)])
    drift = at + torch.randn(2 * M, generator=g)
    recipe = DPO.but(objective=Kto(beta=0.1, desirable=1.5, undesirable=0.5))
    mine = ours(recipe, pairs.but(drift=drift.mean()), logp)
    agree(mine, kto(pairs, logp, drift, desirable_weight=1.5, undesirable_weight=0.5))


def test_the_reference_point_of_kto_is_of_a_micro_batch_in_trl():
    """Here it is of the whole minibatch."""
    pairs, logp = drawn(0)
    pairs, drift, recipe = pairs.labelled(), torch.arange(2.0 * M), DPO.but(objective=Kto())
    whole = ours(recipe, pairs.but(drift=drift.mean()), logp)
    agree(whole, kto(pairs, logp, drift))
    mine, other = torch.zeros_like(logp), torch.zeros_like(logp)
    for half in (torch.arange(2 * M) % M < M // 2, torch.arange(2 * M) % M >= M // 2):
        piece = pairs.rows(half)
        mine[half] = ours(recipe, piece.but(drift=drift[half].mean()), logp[half])[1] / 2
        other[half] = kto(piece, logp[half], drift[half])[1] / 2
    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    differ(whole, (whole[0], other))


def reward(pairs, value, centre=None):
    """Loss of `RewardTrainer`, and its gradient by the values of all steps."""
    leaf = value.clone().requires_grad_()
    one = bare(trl.RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=centre))
    last = (pairs.batch.lengths - 1)[:, None]
    inputs = {"attention_mask": torch.ones(2 * M, T)}
    if pairs.margin is not None:
        inputs["margin"] = pairs.margin
    loss = one.compute_loss(lambda **_: SimpleNamespace(logits=leaf.gather(1, last)), inputs)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@SEEDS
@pytest.mark.parametrize("centre", [0.0, 0.01])
def test_reward_models_agree(seed, centre):
    pairs, value = drawn(seed)
    recipe = DPO.but(objective=BradleyTerry(centre=centre))
    agree(ours(recipe, pairs, value, value=True), reward(pairs, value, centre or None))
    plain = pairs.but(margin=None)
    agree(ours(recipe, plain, value, value=True), reward(plain, value, centre or None))
    differ(ours(recipe, pairs, value, value=True), reward(plain, value, centre or None))


def test_a_reference_that_follows_agrees():
    """`sync_ref_model` with alpha at every step is `ema` with decay 1 - alpha."""
    from trl.trainer.callbacks import SyncRefModelCallback

    now, before = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    policy = SimpleNamespace(state_dict=lambda: dict(held.named_parameters()), device=torch.device("cpu"))
    held, ema = before, Ema(decay=0.4)
    ema.start(policy)
    held = now
    ema.update(policy, 1)
    SyncRefModelCallback._sync_target_model(now, before, 0.6)
    for name, weight in before.named_parameters():
        torch.testing.assert_close(ema.weights[name], weight.detach(), rtol=1e-6, atol=1e-6)
        assert (weight - now.get_parameter(name)).abs().max() > 1e-3


def test_a_prompt_keeps_its_tokens_here_and_loses_its_end_in_trl_where_words_merge():
    """TRL reads prompt and response as one text, and takes for the prompt what both of them begin with."""
    from datasets import Dataset
    from transformers import Qwen2Tokenizer

    words = {"<pad>": 0, "<end>": 1, "a": 2, "b": 3, "c": 4, "ab": 5}
    tokenizer = Qwen2Tokenizer(
        vocab=words, merges=[("a", "b")], unk_token="<pad>", pad_token="<pad>", eos_token="<end>"
    )
    config = SimpleNamespace(dataset_num_proc=None, max_length=None)
    data = Dataset.from_list([{"prompt": "ca", "chosen": "b", "rejected": "c"}])
    row = bare(trl.DPOTrainer, _tokenizer=tokenizer)._prepare_dataset(data, tokenizer, config, "train")[0]
    assert [row[f"{name}_ids"] for name in ("prompt", "chosen", "rejected")] == [[4], [5, 1], [2, 4, 1]]
    read = Tokens(tokenizer)
    assert [list(ids) for ids in (*read(["ca"], special=True), *read(["b", "c"], special=False))] == [[4, 2], [3], [4]]
