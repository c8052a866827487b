"""The preference loop: what it asks of whom, that it learns, and that it survives a kill."""

import copy

import pytest
import torch

from partita.core.batch import Outputs
from partita.core.errors import NonFinite, UserError
from partita.loops import preference
from partita.loops.preference import (
    Known,
    Preference,
    gather,
    losses,
    micro_batches,
    minibatches,
    mismatched,
    reference_logp,
    train,
)
from partita.loops.run import Generators, Run
from partita.papers.baselines.grpo import GRPO
from partita.papers.preference.hypo import Hybrid, OnlineKL
from partita.parts.contrast import BradleyTerry, Direct, Kto, Likelihood, Orpo, Regression, SelfPlay, Simpo
from partita.parts.objective import Reinforce
from partita.parts.pairs import BestWorst, EveryPair, Labelled
from partita.parts.reference import Ema, Reset
from partita.parts.resample import Offline, Online
from partita.parts.tether import Anchor
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from preferences import Liked

COMPARED = ("first", "second", "prefer", "margin")


def fresh(value: bool = False) -> LanguagePolicy:
    torch.manual_seed(0)
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=32))
    policy = LanguagePolicy(model, character_tokenizer(context=32), Language(), value=value)
    return policy


def recipe(**changes) -> Preference:
    return Preference(steps=12, batch_size=6, lr=5e-3).but(**changes).fresh()


OFFLINE = {
    "dpo": {}, "ipo": {"objective": Direct(loss="ipo")}, "hinge": {"objective": Direct(loss="hinge")},
    "simpo": {"objective": Simpo()}, "orpo": {"objective": Orpo()}, "sppo": {"objective": SelfPlay(beta=0.1)},
    "anchored": {"regularisers": (Anchor(),)}, "ema": {"reference": Ema(0.9)},
}  # fmt: skip


@pytest.mark.parametrize("name", OFFLINE)
def test_given_comparisons_are_learnt(name):
    policy, run = fresh(), Run(0)
    train(recipe(**OFFLINE[name]), policy, Liked(), run)
    first, last = run.metrics[0], run.metrics[-1]
    assert last["accuracy"] > 0.9
    assert last["logp_better"] - last["logp_worse"] > first["logp_better"] - first["logp_worse"] + 1


@pytest.mark.parametrize("labels", [True, False])
def test_labels_are_learnt_those_of_comparisons_too(labels):
    policy, run, task = fresh(), Run(0), Liked(labels=labels)
    train(recipe(objective=Kto(beta=0.5)), policy, task, run)
    pairs = gather(recipe(objective=Likelihood()), policy, task, Generators(1), 1, Known())[0].labelled()
    with torch.no_grad():
        logp = policy.evaluate(pairs.batch).logp.sum(1)
    assert logp[pairs.label == 1].mean() > logp[pairs.label == 0].mean() + 1


def test_accuracy_is_a_share_of_comparisons_whatever_the_loss_counts():
    run = Run(0)
    train(recipe(objective=Kto(beta=0.5), steps=16), fresh(), Liked(), run)
    assert run.metrics[-1]["accuracy"] == 1.0


def test_the_drift_is_measured_on_other_prompts(monkeypatch):
    policy, part = fresh(), recipe(objective=Kto())
    part.reference.start(policy)
    pairs, _ = gather(part, policy, Liked(), Generators(0), 1, Known())
    asked = []
    monkeypatch.setattr(policy, "evaluate", lambda batch: asked.append(batch) or Outputs(logp=batch.mask.float()))
    mismatched(part.reference, policy, pairs)
    before, now = (policy.decode(b.context["prompt"], b.context["prompt_mask"]) for b in (pairs.batch, asked[0]))
    assert all(a != b for a, b in zip(before, now, strict=True)) and set(before) == set(now)
    assert torch.equal(asked[0].inputs["tokens"], pairs.batch.inputs["tokens"])


@pytest.mark.parametrize("loss", [BradleyTerry(), Regression()])
def test_a_reward_model_learns_who_is_better(loss):
    policy, run, task = fresh(value=True), Run(0), Liked(labels=isinstance(loss, Regression))
    train(recipe(objective=loss, steps=30), policy, task, run)
    assert run.metrics[-1]["loss"] < 0.5 * run.metrics[0]["loss"]


@pytest.mark.parametrize("pairs", [BestWorst(), EveryPair(), EveryPair(labels="soft")])
@pytest.mark.parametrize("every", [1, 4])
def test_online_responses_are_judged_and_learnt(pairs, every):
    policy, run = fresh(), Run(0)
    changes = {"resample": Online(responses=8, every=every), "pairs": pairs, "objective": Direct(beta=0.1)}
    train(recipe(steps=24, lr=1e-2, **changes), policy, Liked(), run)
    score = [m["return"] for m in run.metrics]
    assert sum(score[-4:]) / 4 > sum(score[:4]) / 4 + 0.3
    assert run.metrics[-1]["ref_kl"] > run.metrics[0]["ref_kl"]


def test_an_epoch_sees_every_prompt_once():
    part, g = Offline().fresh(), torch.Generator().manual_seed(0)
    seen = [part.draw(10, 4, g) for _ in range(5)]
    flat = [i for some in seen for i in some]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]


def test_the_reference_is_asked_once_for_every_response():
    policy, task, known = fresh(), Liked(), Known()
    part = recipe()
    part.reference.start(policy)
    calls = []
    part.reference.__class__.logp, original = (
        (lambda self, p, batch: calls.append(len(batch)) or original(self, p, batch)),
        part.reference.__class__.logp,
    )
    try:
        one, _ = gather(part, policy, task, Generators(0), 1, known)
        plain = reference_logp(part.reference, policy, one, None)
        rng = Generators(0)
        for step in range(4):
            gather(part, policy, task, rng, step, known)
    finally:
        part.reference.__class__.logp = original
    assert sum(calls) == len(one.batch) + 24  # once for `plain`, and 12 prompts of two responses
    torch.testing.assert_close(one.ref, plain)


def test_minibatches_hold_whole_prompts_and_their_comparisons():
    part, policy = recipe(), fresh()
    part.reference.start(policy)
    pairs, _ = gather(part, policy, Liked(), Generators(0), 1, Known())
    pieces = list(minibatches(pairs.but(ref=None), 2, 3, Generators(0)))
    assert [len(p) for p in pieces] == [2] * 6
    for piece in pieces:
        assert torch.equal(piece.batch.group[piece.first], piece.batch.group[piece.second])
    texts = sorted(r["response"] for p in pieces[:3] for r in p.batch.records)
    assert texts == sorted(r["response"] for r in pairs.batch.records)


@pytest.mark.parametrize(
    "changes", [{}, {"regularisers": (Anchor(),)}, {"objective": Regression()}], ids=["dpo", "anchor", "regression"]
)
def test_micro_batches_change_nothing(changes):
    policy, part = fresh(value=True), recipe(**changes)
    part.reference.start(policy)
    pairs, _ = gather(part, policy, Liked(labels="objective" in changes), Generators(0), 1, Known())
    if "objective" not in changes:
        pairs = pairs.but(ref=pairs.ref - torch.arange(len(pairs.ref)))
    if len(pairs):  # prompts with one comparison, two and none
        pairs = pairs.but(**{n: torch.cat((getattr(pairs, n)[:-1], getattr(pairs, n)[:1])) for n in COMPARED})
    whole, notes = losses(part, policy, pairs, pairs)
    parts = [losses(part, policy, m, pairs) for m in micro_batches(pairs, 4)]
    assert len(parts) == 3
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).sum(), whole)
    for name, value in notes.items():
        torch.testing.assert_close(torch.stack([n[name] for _, n in parts if name in n]).sum(), value)


def test_given_responses_end_as_the_task_says():
    policy = fresh()
    eos = policy.tokenizer.eos_token_id
    batch = policy.written(["a>", "b>", "c>"], ["x\n", "yy", ""], torch.arange(3), ("\n",))
    assert batch.lengths.tolist() == [2, 3, 1]
    assert [int(t[n - 1]) == eos for t, n in zip(batch.inputs["tokens"], batch.lengths, strict=True)] == [0, 1, 1]
    assert policy.written(["a>"], ["yy"], torch.arange(1)).lengths.tolist() == [2]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resample": Online(responses=3, every=3), "pairs": BestWorst(), "reference": Reset(every=2)},
        {"resample": Hybrid(responses=2), "regularisers": (OnlineKL(),)},
    ],
    ids=["offline", "iterated", "hybrid"],
)
def test_a_resumed_run_is_the_run_that_was_never_stopped(changes):
    task, part = Liked(), recipe(steps=8, **changes)
    straight, run = fresh(), Run(0)
    train(part, straight, task, run)

    held: dict = {}

    class Stops(Run):
        def steps(self, count, state):
            for step in range(1, count + 1):
                if step == 5:
                    held.update({k: copy.deepcopy(v.state_dict()) for k, v in state.items()})
                    return
                yield step

    class Resumes(Run):
        def steps(self, count, state):
            for name, value in state.items():
                value.load_state_dict(held[name])
            yield from range(5, count + 1)

    train(part, fresh(), task, Stops(0))
    again = fresh()
    train(part, again, task, Resumes(0))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "task", "words"),
    [
        ({"resample": Online()}, Liked(), "pairs labelled takes the comparisons of the data"),
        ({}, Liked(size=0), "gives no responses"),
        ({"minibatches": 7}, Liked(), "minibatches: 7"),
    ],
)
def test_what_cannot_work_is_refused(changes, task, words):
    with pytest.raises(UserError, match=words):
        train(recipe(**changes), fresh(), task, Run(0))


def test_parts_of_another_loop_are_refused():
    with pytest.raises(UserError, match="direct belongs to the preference loop"):
        GRPO.but(objective=Direct())
    with pytest.raises(UserError, match="reinforce belongs to the on_policy loop"):
        Preference(objective=Reinforce())


def test_a_loss_that_is_not_finite_names_its_slot(monkeypatch):
    policy, part = fresh(), recipe()
    monkeypatch.setattr(preference, "reference_logp", lambda *a: torch.full((12,), float("nan")))
    with pytest.raises(NonFinite, match="reference: ref is not finite in 12 of 12"):
        train(part, policy, Liked(), Run(0))


def test_pairs_of_the_data_are_taken_as_they_are():
    part, policy = recipe(), fresh()
    part.reference.start(policy)
    pairs, _ = gather(part, policy, Liked(), Generators(0), 1, Known())
    assert Labelled()(pairs, None, torch.Generator()) is pairs
    assert pairs.margin.tolist() == [2.0] * 6


def test_what_the_policy_writes_itself_is_not_kept_in_the_table():
    policy, known = fresh(), Known()
    part = recipe(resample=Hybrid(responses=2), regularisers=(OnlineKL(),))
    part.reference.start(policy)
    pairs, _ = gather(part, policy, Liked(), Generators(0), 1, known)
    assert len(known.table) == 12 and len(pairs.batch) == 24
    torch.testing.assert_close(pairs.ref, reference_logp(part.reference, policy, pairs, None))
    again = reference_logp(part.reference, policy, pairs, known)
    torch.testing.assert_close(again, pairs.ref)
    assert len(known.table) == 12
