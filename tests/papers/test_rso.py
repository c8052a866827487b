"""RSO: rewards from a judge of pairs, who samples, ranking in rounds, and what the recipe comes to at its ends."""

import copy
import math

import pytest
import torch

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.pairs import Pairs
from partita.core.recipe import differences
from partita.core.registry import recipe as recipe_of
from partita.lab.checkpoint import flatten, restore
from partita.loops.preference import Preference, train
from partita.loops.run import Generators, Run
from partita.papers.preference import rso
from partita.papers.preference.rso import Initial, Ranked, StatisticalRejection
from partita.parts.contrast import Direct
from partita.parts.resample import Offline
from partita.parts.rollout import Sample
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from preferences import Liked

PLAIN = {"temperature": 1.0, "top_k": 0}


def fresh(sure: float = 0.0) -> LanguagePolicy:
    torch.manual_seed(0)
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=32))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1 + sure)  # the surer, the more copies
    return LanguagePolicy(model, character_tokenizer(context=32), Language())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texts(pairs: Pairs) -> list[str]:
    return [record["response"] for record in pairs.batch.records]


def answers(part, task=None, policy=None, count=6, seed=0, step=1):
    return part(policy or fresh(), task or Liked(), count, step, generator(seed))[0]


class Counts(Liked):
    """The more letters of any kind, the better; without noise a step (probabilities 0, 1/2 and 1)."""

    def score(self, text):
        return float(len(text))

    def prefer(self, problem, responses, generator):
        return (1 + super().prefer(problem, responses, generator).sub(0.5).sign()) / 2


class Varied(Liked):
    """Hardly two responses alike in score."""

    def score(self, text):
        return sum((i + 1) * (ord(letter) % 7) for i, letter in enumerate(text)) / 9


def test_rewards_are_logits_against_the_first_candidate(monkeypatch):
    seen = []
    monkeypatch.setattr(rso, "accept", lambda *a: seen.append(a) or torch.tensor([2, 0]))
    words = ["ab", "b", "aab", "ab", "c", "c", "aaa", "c"]
    batch = Batch(mask=torch.ones(8, 1, dtype=torch.bool), records=tuple({"response": w} for w in words))
    part, task = StatisticalRejection(num_samples=2, candidates=4, beta=0.25), Liked()
    rows = part.chosen(task, [task.prompt(0), task.prompt(1)], batch, generator())
    assert rows.tolist() == [2, 0, 6, 4]
    # letters a: 1, 0, 2, 1 and 0, 0, 3, 0; P = s(difference to the first), whose logit is the difference
    assert seen[0][0].tolist() == pytest.approx([0.0, -1.0, 1.0, 0.0])
    assert seen[1][0].tolist() == pytest.approx([0.0, 0.0, 3.0, 0.0])
    assert [a[1:3] for a in seen] == [(0.25, 2)] * 2
    assert [a[4].tolist() for a in seen] == [[0, 1, 2, 0], [0, 0, 1, 0]]  # copies


def test_a_judge_without_doubt_gives_finite_rewards():
    part = StatisticalRejection(num_samples=3, candidates=24, beta=1e-3, **PLAIN)
    pairs = answers(part.fresh(), Counts())
    assert len(pairs.batch) == 18 and {len(text) for text in texts(pairs)} == {3}


@pytest.mark.parametrize("beta", [1e9, 0.0])
def test_the_ends_of_beta_are_the_first_samples_and_the_best_of_them(beta):
    policy, task = fresh(sure=15.0), Liked()
    part = StatisticalRejection(num_samples=4, candidates=40, beta=beta, **PLAIN)
    found = answers(part.fresh(), task, policy)
    everything = answers(Initial(num_samples=40, **PLAIN).fresh(), task, policy)
    copies = 0
    for group in range(6):
        own = [t for t, g in zip(texts(everything), everything.batch.group.tolist(), strict=True) if g == group]
        kept = [t for t, g in zip(texts(found), found.batch.group.tolist(), strict=True) if g == group]
        distinct = list(dict.fromkeys(own))
        copies += len(own) - len(distinct)
        if beta:
            assert kept == distinct[:4]
        else:
            assert [t.count("a") for t in kept] == sorted((t.count("a") for t in distinct), reverse=True)[:4]
            assert set(kept) <= set(distinct) and len(set(kept)) == min(4, len(distinct))
    assert copies > 20


def test_rejection_tilts_towards_what_the_judge_likes():
    policy = fresh()
    plain, mild, strong = (
        answers(part.fresh(), policy=policy, count=12).batch.outcome.mean()
        for part in (
            Initial(**PLAIN), StatisticalRejection(beta=2.0, **PLAIN), StatisticalRejection(beta=0.2, **PLAIN),
        )
    )  # fmt: skip
    assert plain < mild < strong


def test_the_policy_from_before_training_samples_throughout():
    policy, part = fresh(), StatisticalRejection(candidates=12, num_samples=4, **PLAIN).fresh()
    first = {n: w.clone() for n, w in policy.state_dict().items()}
    g = generator()
    early = part(policy, Liked(), 4, 1, g)[0]
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator(5)))
    now = {n: w.clone() for n, w in policy.state_dict().items()}
    late = part(policy, Liked(), 4, 2, g)[0]
    assert not set(early.batch.records[i]["prompt"] for i in range(16)) & {r["prompt"] for r in late.batch.records}
    assert all(torch.equal(now[n], w) for n, w in policy.state_dict().items())  # and it goes on as it was
    with torch.no_grad():
        moved = policy.evaluate(late.batch).logp
    with policy.using(first):
        torch.testing.assert_close(policy.evaluate(late.batch).logp, late.batch.logp, rtol=1e-4, atol=1e-4)
    assert (moved - late.batch.logp).abs().max() > 0.1


def test_prompts_are_sampled_once_and_come_back_with_what_they_had():
    policy, task, g = fresh(), Liked(), generator()
    part = StatisticalRejection(candidates=6, num_samples=3, **PLAIN).fresh()
    seen: dict = {}
    for step in range(1, 7):  # three epochs of twelve prompts, in other orders
        pairs, problems = part(policy, task, 6, step, g)
        assert pairs.batch.group.tolist() == [i for i in range(6) for _ in range(3)] and len(pairs) == 0
        for record, problem in zip(pairs.batch.records, problems, strict=True):
            assert record["prompt"] == problem.prompt
            seen.setdefault(problem.prompt, []).append(record["response"])
    assert len(seen) == 12
    assert all(own == own[:3] * 3 for own in seen.values())


def test_a_prompt_that_comes_twice_in_a_step_is_two_groups():
    pairs, problems = Initial(num_samples=2, **PLAIN).fresh()(fresh(), Liked(size=3), 5, 1, generator())
    assert len(pairs.batch) == len(problems) == 10 and len({p.prompt for p in problems}) == 3
    assert pairs.batch.group.tolist() == [i for i in range(5) for _ in range(2)]


def test_the_loss_is_at_temperature_one_whatever_the_sampling():
    policy = fresh(sure=1.0)
    pairs = answers(Initial(temperature=0.5, top_k=0).fresh(), policy=policy)
    with torch.no_grad():
        logp = policy.evaluate(pairs.batch).logp
        cold = pairs.batch.but(inputs={**pairs.batch.inputs, "temperature": pairs.batch.mask * 0.5 + ~pairs.batch.mask})
        torch.testing.assert_close(policy.evaluate(cold).logp, pairs.batch.logp, rtol=1e-4, atol=1e-4)
    assert (logp.sum(1) - pairs.batch.logp.sum(1)).abs().mean() > 0.1
    few = answers(Initial(temperature=0.5, top_k=2).fresh(), policy=policy)
    assert few.batch.logp.sum(1).mean() > pairs.batch.logp.sum(1).mean()


def test_sampling_in_pieces_keeps_prompts_with_their_responses(monkeypatch):
    monkeypatch.setattr(rso, "SIDE_BY_SIDE", 20)
    part = StatisticalRejection(candidates=9, num_samples=2, **PLAIN).fresh()
    pairs, problems = part(fresh(), Liked(), 5, 1, generator())
    context = pairs.batch.context
    assert fresh().decode(context["prompt"], context["prompt_mask"]) == tuple(p.prompt for p in problems)
    assert [r["prompt"] for r in pairs.batch.records] == [p.prompt for p in problems]


def compared(part, prefer, sizes):
    group = torch.cat([torch.full((n,), 3 * i) for i, n in enumerate(sizes)])
    none = torch.zeros(0, dtype=torch.int64)
    pairs = Pairs(Batch(mask=torch.ones(len(group), 1, dtype=torch.bool), group=group), none, none, none.float())
    found = part(pairs, prefer, generator())
    assert found.prefer.tolist() == [1.0] * len(found)
    return list(zip(found.first.tolist(), found.second.tolist(), strict=True))


def chances(values):
    value = torch.tensor(values, dtype=torch.float64)
    return (value[:, None] - value).sigmoid()


def test_ranking_by_hand():
    prefer = chances([1.0, 2.0, 5.0, 4.0, 3.0, 0.0, 7.0])
    assert compared(Ranked(), prefer, [5, 2]) == [(1, 0), (2, 3), (6, 5)]
    rounds = [(1, 0), (2, 3), (2, 1), (2, 4), (6, 5)]  # the fifth waits until two are left
    assert compared(Ranked(tournament=True), prefer, [5, 2]) == rounds


def test_a_toss_is_no_comparison_and_the_first_goes_on():
    prefer = chances([1.0, 1.0, 0.0, 2.0])
    assert compared(Ranked(), prefer, [4]) == [(3, 2)]
    assert compared(Ranked(tournament=True), prefer, [4]) == [(3, 2), (3, 0)]
    assert compared(Ranked(tournament=True), chances([0.0, 0.0]), [2]) == []
    assert compared(Ranked(), chances([0.0]), [1]) == []


@pytest.mark.parametrize("n", [2, 5, 8, 13])
def test_each_game_of_a_tournament_sends_one_home(n):
    values = torch.randperm(n, generator=generator(n)).double()
    played = compared(Ranked(tournament=True), chances(values.tolist()), [n])
    lost = [b for _, b in played]
    assert len(played) == n - 1 and sorted([*lost, int(values.argmax())]) == list(range(n))
    assert all(values[a] > values[b] for a, b in played)
    assert played[: n // 2] == compared(Ranked(), chances(values.tolist()), [n])


def test_the_losses_are_those_of_the_baselines_at_their_own_gamma():
    ratio = torch.tensor([2.0, -1.0, 30.0, 1.0], dtype=torch.float64, requires_grad=True)  # log(pi / ref)
    batch = Batch(mask=torch.ones(4, 1, dtype=torch.bool))
    pairs = Pairs(
        batch, torch.tensor([0, 2]), torch.tensor([1, 3]), torch.ones(2).double(), ref=torch.zeros(4).double()
    )
    out = Outputs(logp=ratio[:, None])
    sigmoid, hinge = recipe_of("rso").objective, recipe_of("rso_hinge").objective
    assert sigmoid(out, pairs).tolist() == pytest.approx([math.log1p(math.exp(-0.15)), math.log1p(math.exp(-1.45))])
    assert hinge(out, pairs).tolist() == pytest.approx([1 - 0.15, 0.0])
    slope = torch.autograd.grad(hinge(out, pairs).sum(), ratio)[0]
    assert slope.tolist() == pytest.approx([-0.05, 0.05, 0.0, 0.0])  # nothing beyond the margin
    assert sigmoid.but(beta=0.1) == recipe_of("dpo").objective and hinge.but(beta=0.1) == recipe_of("slic").objective


def test_recipes_differ_where_the_paper_says():
    def where(a, b):
        return [name for name, _, _ in differences(recipe_of(a), recipe_of(b))]

    assert where("rso", "dpo") == ["resample", "pairs", "objective"]
    assert where("rso_sft", "rso") == where("rso_sft_hinge", "rso_hinge") == ["resample"]
    assert where("rso_hinge", "rso") == ["objective"] and where("rso_tournament", "rso") == ["pairs"]
    part = recipe_of("rso").resample
    assert (part.candidates, part.num_samples, part.beta, part.temperature, part.top_k) == (64, 8, 0.5, 0.7, 40)


def liked(policy) -> float:
    """Mean score of what the policy writes."""
    g = Generators(9)
    batch = Sample().sample(policy, Liked(), Liked().problems(64, g["problems"]), 2, g["responses"])
    return float(batch.outcome.mean())


@pytest.mark.parametrize("name", ["rso", "rso_hinge", "rso_tournament", "rso_sft"])
def test_it_learns_what_the_judge_likes(name):
    recipe = recipe_of(name).but(steps=20, batch_size=6, lr=1e-2)
    part = recipe.resample.but(**PLAIN, **({} if name == "rso_sft" else {"candidates": 24}))
    policy, run = fresh(), Run(0)
    before = liked(policy)
    train(recipe.but(resample=part), policy, Liked(), run)
    assert liked(policy) > before + 0.2
    assert run.metrics[-1]["accuracy"] > 0.8
    assert abs(run.metrics[-1]["ref_kl"]) < 1e-4  # the reference is who sampled


def test_a_resumed_run_is_the_run_that_was_never_stopped():
    part = StatisticalRejection(candidates=8, num_samples=4, **PLAIN)
    recipe = recipe_of("rso").but(steps=6, batch_size=5, lr=5e-3, resample=part)
    straight, held, run = fresh(), {}, Run(0)
    train(recipe, straight, Varied(), run)
    assert all(row["comparisons"] > 5 for row in run.metrics)

    class Stops(Run):
        def steps(self, count, state):
            for step in range(1, count + 1):
                if step == 3:
                    tensors: dict = {}
                    for name, value in state.items():
                        held[name] = flatten(copy.deepcopy(value.state_dict()), tensors, name)
                    held.update({name: restore(value, tensors) for name, value in held.items()})
                    return
                yield step

    class Resumes(Run):
        def steps(self, count, state):
            for name, value in state.items():
                value.load_state_dict(held[name])
            yield from range(3, count + 1)

    train(recipe, fresh(), Varied(), Stops(0))
    again = fresh()
    train(recipe, again, Varied(), Resumes(0))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


class Silent(Liked):
    """Nobody judges."""

    judged = False


@pytest.mark.parametrize(
    ("changes", "task", "words"),
    [
        ({}, Silent(), "nobody judges new responses"),
        ({}, Liked(size=0), "no prompts to come back to"),
        ({"pairs": Preference().pairs}, Liked(), "pairs labelled takes the comparisons of the data"),
    ],
)
@pytest.mark.parametrize("name", ["rso", "rso_sft"])
def test_what_cannot_work_is_refused(name, changes, task, words):
    with pytest.raises(UserError, match=words) as error:
        train(recipe_of(name).but(steps=2, **changes), fresh(), task, Run(0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Initial(num_samples=1), "resample.num_samples: expected 2 or more, got 1"),
        (lambda: Initial(temperature=0.0), "resample.temperature"),
        (lambda: Initial(top_k=-1), "resample.top_k"),
        (lambda: Initial(max_tokens=0), "resample.max_tokens"),
        (lambda: StatisticalRejection(candidates=7), "resample.candidates: expected num_samples = 8 or more, got 7"),
        (lambda: StatisticalRejection(beta=-1.0), "resample.beta: expected 0 or more"),
        (lambda: StatisticalRejection(beta=math.inf), "use --resample initial"),
        (lambda: StatisticalRejection(num_samples=0), "resample.num_samples"),
    ],
)
def test_bad_settings_name_the_field(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_parts_start_from_nothing():
    part = StatisticalRejection(candidates=4, num_samples=2)
    used = part.fresh()
    answers(used)
    assert used == part and used._held and not part._held and not used.fresh()._held
    assert isinstance(used._order, Offline) and not used.fresh()._sft.weights
    assert Direct(beta=0.05) == recipe_of("rso").objective


@pytest.mark.parametrize("measure", [rso.without_replacement, rso.of_eight])
def test_identities_hold_on_fewer_draws(measure, monkeypatch):
    monkeypatch.setattr(rso, "DRAWS", 1000)
    assert measure(7) < 0.09
