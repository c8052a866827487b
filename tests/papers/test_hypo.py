"""HyPO: the divergence on fresh responses by hand, its expected gradient, DPO without it, and the counterexample."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.pairs import Pairs
from partita.core.registry import recipe as recipe_of
from partita.estimators import games
from partita.loops.preference import Known, gather, losses, micro_batches, train
from partita.loops.run import Generators, Run
from partita.papers.baselines.dpo import DPO
from partita.papers.preference import hypo
from partita.papers.preference.hypo import HYPO, CoverageBandit, Hybrid, OnlineKL
from partita.parts.contrast import Direct
from partita.parts.resample import Online, offered
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from preferences import Liked


def case() -> tuple[Outputs, Pairs]:
    """A prompt with two compared responses and two fresh ones of 1 and 2 tokens; another with a single fresh one."""
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1], [1, 1]], dtype=torch.bool)
    logp = torch.tensor([[-1.0, -1.0], [-0.5, 9], [-2.0, 9], [-1.0, -0.5], [-0.2, -0.3]], dtype=torch.float64)
    ref = torch.tensor([-1.0, -1.0, -1.0, -2.5, -0.7], dtype=torch.float64)
    batch = Batch(mask=mask, group=torch.tensor([0, 0, 0, 0, 1]), source=torch.tensor([1, 1, 0, 0, 0]))
    one = torch.ones(1, dtype=torch.float64)
    return Outputs((logp * mask).requires_grad_()), Pairs(batch, torch.tensor([0]), torch.tensor([1]), one, ref=ref)


def learner() -> LanguagePolicy:
    torch.manual_seed(0)
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=32))
    return LanguagePolicy(model, character_tokenizer(context=32), Language(), False)


def gathered(recipe, task, seed: int = 0) -> tuple[LanguagePolicy, Pairs]:
    policy, recipe = learner(), recipe.but(steps=1, batch_size=6).fresh()
    recipe.reference.start(policy)
    return policy, gather(recipe, policy, task, Generators(seed), 1, Known())[0]


def test_losses_and_gradient_by_hand():
    out, pairs = case()
    # log-ratios of the fresh responses: -2 + 1 = -1 and -1.5 + 2.5 = 1 to one prompt, -0.5 + 0.7 = 0.2 to the other
    part = OnlineKL(0.1)
    assert part.count(pairs) == 3
    assert part(out, pairs).tolist() == pytest.approx([0.1 * (-1 - 1) * -2, 0.1 * (1 + 1) * -1.5, 0.1 * 0.2 * -0.5])
    found = torch.autograd.grad(part(out, pairs).sum(), out.logp)[0]
    want = [[0.0, 0.0], [0.0, 0.0], [-0.2, 0.0], [0.2, 0.2], [0.02, 0.02]]
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64))


def test_the_likelier_of_two_responses_becomes_less_so():
    out, pairs = case()
    found = torch.autograd.grad(OnlineKL(1.0)(out, pairs).sum(), out.logp)[0].sum(1)
    assert found[3] > 0 > found[2]  # descent lowers what is above the reference and lifts what is below


@pytest.mark.parametrize("count", [1, 2, 3])
def test_in_expectation_the_gradient_is_that_of_the_divergence(count):
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    ref = torch.log_softmax(torch.tensor([0.0, 0.5, -0.5, 0.2], dtype=torch.float64), -1)
    logp = torch.log_softmax(logits, -1)
    batch = Batch(mask=torch.ones(count, 1, dtype=torch.bool), group=torch.zeros(count, dtype=torch.int64))
    none = torch.zeros(0, dtype=torch.int64)
    total = torch.zeros((), dtype=torch.float64)
    for drawn in itertools.product(range(4), repeat=count):  # every set of responses with its probability
        rows = torch.tensor(drawn)
        pairs = Pairs(batch, none, none, none.double(), ref=ref[rows])
        chance = logp[rows].sum().exp().detach()
        total = total + chance * OnlineKL(0.7)(Outputs(logp[rows][:, None]), pairs).mean()
    mine = torch.autograd.grad(total, logits, retain_graph=True)[0]
    torch.testing.assert_close(mine, 0.7 * torch.autograd.grad(games.kl(logp, ref), logits)[0])


def test_a_batch_holds_the_data_with_its_comparisons_and_fresh_responses_to_the_same_prompts():
    task, k = Liked(), 3
    policy, pairs = gathered(HYPO.but(resample=Hybrid(responses=k)), task)
    source, group, records = pairs.batch.source, pairs.batch.group, pairs.batch.records
    given, fresh = source == 1, source == 0
    assert given.tolist() == [True] * 12 + [False] * 18
    names = sorted({r["prompt"] for r in records})
    problems = [p for p in map(task.prompt, range(12)) if p.prompt in names]
    order = [next(p for p in problems if p.prompt == records[2 * i]["prompt"]) for i in range(6)]
    alone = offered(policy, task, order)[0]
    assert torch.equal(pairs.first, alone.first) and torch.equal(pairs.second, alone.second)
    for name in ("prompt", "prompt_mask"):
        context = pairs.batch.context[name]
        for g in range(6):
            assert (context[group == g] == context[group == g][0]).all()
    said = policy.decode(pairs.batch.inputs["tokens"], pairs.batch.mask)
    assert [r["response"] for r in records] == list(said)
    asked = policy.decode(pairs.batch.context["prompt"], pairs.batch.context["prompt_mask"])
    assert [r["prompt"] for r in records] == list(asked)
    with torch.no_grad():
        now = (policy.evaluate(pairs.batch).logp * pairs.batch.mask).sum(1)
    torch.testing.assert_close(pairs.ref, now)  # the reference is the policy itself as yet, on all of them
    assert OnlineKL().count(pairs) == int(fresh.sum()) and Direct().count(pairs) == 6


def test_it_asks_nobody_to_judge():
    class Silent(Liked):
        judged = False

        def verify(self, problem, response):
            raise AssertionError("nobody is asked")

        prefer = verify

    _, pairs = gathered(HYPO, Silent())
    assert len(pairs.batch) == 6 * 4 and pairs.batch.outcome[12:].isnan().all()


def test_labels_of_fresh_responses_are_unknown():
    _, pairs = gathered(HYPO, Liked(labels=True))
    assert pairs.label[:12].tolist() == [1.0, 0.0] * 6 and pairs.label[12:].isnan().all()


@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_without_weight_the_gradient_is_that_of_dpo(weight):
    policy, pairs = gathered(HYPO, Liked())
    pairs = pairs.but(ref=pairs.ref - torch.linspace(0, 1, len(pairs.ref)))
    given = pairs.rows(pairs.batch.source == 1)

    def gradient(recipe, some):
        policy.module.zero_grad()
        losses(recipe, policy, some, some)[0].backward()
        return torch.cat([p.grad.flatten().clone() for p in policy.module.parameters() if p.grad is not None])

    mine = gradient(HYPO.but(regularisers=(OnlineKL(weight),)), pairs)
    same = torch.allclose(mine, gradient(DPO, given), atol=1e-6)
    assert same == (weight == 0)


def test_it_differs_from_dpo_in_two_slots():
    found = recipe_of("hypo")
    assert found.regularisers == (OnlineKL(),) and found.resample == Hybrid()
    assert found.but(regularisers=(), resample=DPO.resample) == recipe_of("dpo")


def test_micro_batches_change_nothing():
    policy, pairs = gathered(HYPO, Liked())
    pairs = pairs.but(ref=pairs.ref - torch.linspace(0, 1, len(pairs.ref)))
    whole, _ = losses(HYPO, policy, pairs, pairs)
    parts = [losses(HYPO, policy, m, pairs)[0] for m in micro_batches(pairs, 8)]
    assert len(parts) == 3
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), shift=st.floats(-5, 5))
def test_padding_order_and_a_shift_of_the_log_ratios_change_nothing(seed, shift):
    out, pairs = case()
    part = OnlineKL(0.1)
    plain = part(out, pairs)
    empty = torch.zeros(5, 2)
    wide = pairs.but(batch=pairs.batch.but(mask=torch.cat((pairs.batch.mask, empty.bool()), 1)))
    torch.testing.assert_close(part(Outputs(torch.cat((out.logp, empty.double() + 5), 1)), wide), plain)
    torch.testing.assert_close(part(out, pairs.but(ref=pairs.ref - shift))[:2], plain[:2])  # the baseline takes it
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    mine = (pairs.batch.source == 0).nonzero()[:, 0]
    moved = pairs.but(batch=pairs.batch[order], ref=pairs.ref[order])
    there = order[pairs.batch.source[order] == 0]
    want = torch.stack([plain[(mine == i).nonzero()[0, 0]] for i in there])
    torch.testing.assert_close(part(Outputs(out.logp[order]), moved), want)


def test_it_learns_the_comparisons_and_stays_nearer_to_the_reference():
    near = {}
    for name, weight in (("little", 1e-4), ("much", 0.3)):
        policy, run, task = learner(), Run(0), Liked()
        recipe = HYPO.but(regularisers=(OnlineKL(weight),), resample=Hybrid(responses=4), steps=20, batch_size=6)
        first = {k: v.clone() for k, v in policy.state_dict().items()}
        train(recipe.but(lr=5e-3), policy, task, run)
        assert run.metrics[-1]["accuracy"] == 1.0
        batch = Hybrid(responses=16).fresh_ones(policy, task, [task.prompt(i) for i in range(12)], Generators(1)["x"])
        with torch.no_grad():
            now = (policy.evaluate(batch).logp * batch.mask).sum(1)
        with policy.using(first):
            near[name] = float((now - (policy.evaluate(batch).logp * batch.mask).sum(1)).mean())
    assert 0 < near["much"] < 0.5 * near["little"]


def test_the_counterexample_by_hand():
    # Uniform inside, rewards 1 and 0, beta 1/2: every minimiser of DPO's loss has log-odds 2, whatever y_3 gets.
    bandit = CoverageBandit(torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64), outside=0.01)
    s = 1 / (1 + math.exp(-1))
    least = -s * math.log(s) - (1 - s) * math.log(1 - s)
    for outside in (1e-3, 0.5, 0.999):
        logp = bandit.fitted(outside)
        assert float(logp.exp().sum()) == pytest.approx(1.0) and float(logp[2].exp()) == pytest.approx(outside)
        assert float(logp[0] - logp[1]) == pytest.approx(2.0)
        assert float(bandit.dpo_loss(logp)) == pytest.approx(least)
    assert float(bandit.dpo_loss(bandit.spread(1.9, 0.5))) > least + 1e-4
    nowhere = torch.tensor([math.log(0.5), math.log(0.5), -math.inf], dtype=torch.float64)
    assert float(games.kl(bandit.fitted(0.5), nowhere)) == math.inf  # a reference without y_3


@pytest.mark.parametrize("seed", range(3))
def test_the_hybrid_policy_is_the_minimum_and_bounded(seed):
    bandit, weight = CoverageBandit.random(seed), 0.05

    def loss(logp):
        return float(bandit.dpo_loss(logp)) + weight * float(games.kl(logp, bandit.bandit.ref))

    found = bandit.hybrid(weight)
    g = torch.Generator().manual_seed(seed)
    for _ in range(20):
        step = 0.05 * torch.randn(3, generator=g, dtype=torch.float64)
        assert loss(torch.log_softmax(found + step, -1)) > loss(found)
    best = bandit.bandit.optimal  # what pays for leaving leaves no further than the reward's range
    assert float(games.kl(best, bandit.bandit.ref)) <= 1 / bandit.beta
    assert float(games.kl(found, bandit.bandit.ref)) < float(games.kl(bandit.fitted(0.5), bandit.bandit.ref))


@pytest.mark.parametrize("claim", [c for c in hypo.CLAIMS if hasattr(c, "expected")], ids=lambda c: c.measure.__name__)
def test_identities(claim):
    assert claim.measure(1000) == pytest.approx(claim.expected, abs=claim.tolerance)


@pytest.mark.parametrize(
    ("changes", "task", "words"),
    [
        ({"resample": DPO.resample}, Liked(), "online_kl: it looks at the policy's own responses"),
        ({}, Liked(size=0), "resample hybrid: task liked gives no responses"),
    ],
)
def test_what_cannot_work_is_refused(changes, task, words):
    with pytest.raises(UserError, match=words):
        train(HYPO.but(steps=1, batch_size=2, **changes), learner(), task, Run(0))


def test_responses_that_are_sampled_and_judged_will_do_as_well():
    run = Run(0)
    recipe = recipe_of("online_dpo").but(regularisers=(OnlineKL(),), resample=Online(responses=3), steps=2)
    train(recipe.but(batch_size=4), learner(), Liked(), run)
    assert len(run.metrics) == 2


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: OnlineKL(-1.0), "regularisers.online_kl.weight"),
        (lambda: Hybrid(responses=0), "resample.responses"),
        (lambda: Hybrid(max_tokens=0), "resample.max_tokens"),
        (lambda: CoverageBandit(torch.zeros(3), outside=1.0), "outside"),
    ],
)
def test_settings_out_of_range_name_the_field(make, field):
    with pytest.raises(UserError, match=field):
        make()
