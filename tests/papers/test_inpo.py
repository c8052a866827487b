"""INPO: the loss by hand, its neighbours at both ends of tau, the exact step that it regresses, and what it refuses."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import policy as small

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.pairs import Pairs
from partita.core.registry import recipe as recipe_of
from partita.estimators import games
from partita.loops.preference import Known, gather, losses, train
from partita.loops.run import Generators, Run
from partita.papers.preference import inpo
from partita.papers.preference.inpo import NoRegret, best_reply, exact_dpo, exact_gap, from_mirror_descent
from partita.parts.contrast import Direct
from partita.parts.pairs import EveryPair, Labelled
from partita.parts.resample import Offline, Online
from partita.parts.rollout import Sample
from partita.policies.language import Language
from partita.tasks.preferences.games import MatrixGame
from partita.tasks.preferences.gold import CLASSES, samples
from partita.tasks.preferences.lab import Lab
from preferences import Liked

FEW = settings(max_examples=20, deadline=None, derandomize=True)


def case(prefer=(1.0, 0.25)) -> tuple[Outputs, Pairs]:
    """Two prompts with two responses each, lengths 2, 1, 3, 2; what is beyond the end would be seen."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    now = torch.tensor([[-0.5, -1.0, 9], [-2.0, 9, 9], [-0.1, -0.2, -0.3], [-1.5, -0.5, 9]], dtype=torch.float64)
    before = torch.tensor([[-0.7, -1.0, 5], [-1.4, 5, 5], [-0.5, -0.2, -0.3], [-1.0, -0.6, 5]], dtype=torch.float64)
    ref = torch.tensor([-1.0, -1.8, -0.9, -2.2], dtype=torch.float64)
    batch = Batch(mask=mask, logp=before, group=torch.tensor([0, 0, 1, 1]))
    first, second = torch.tensor([0, 2]), torch.tensor([1, 3])
    pairs = Pairs(batch, first, second, torch.tensor(prefer, dtype=torch.float64), ref=ref)
    return Outputs(logp=now.requires_grad_()), pairs


def test_the_loss_by_hand():
    out, pairs = case()
    # differences of the two responses: now -1.5 + 2 and -0.6 + 2; ref 0.8, 1.3; before -1.7 + 1.4, -1 + 1.6
    h = [0.5 - 0.25 * 0.8 - 0.75 * -0.3, 1.4 - 0.25 * 1.3 - 0.75 * 0.6]
    want = [(h[0] - 5) ** 2, 0.25 * (h[1] - 5) ** 2 + 0.75 * (-h[1] - 5) ** 2]
    part = NoRegret(eta=0.1, tau=0.025)
    assert part(out, pairs).tolist() == pytest.approx(want)
    reward = part.reward(out, pairs)
    assert (reward[pairs.first] - reward[pairs.second]).tolist() == pytest.approx([0.1 * x for x in h])


def test_the_gradient_is_its_closed_form():
    out, pairs = case()
    part = NoRegret(eta=0.3, tau=0.1)
    slope = torch.autograd.grad(part(out, pairs).sum(), out.logp)[0]
    r = part.reward(out, pairs).detach()
    weight = 2 * ((r[pairs.first] - r[pairs.second]) / 0.3 - (2 * pairs.prefer - 1) / 0.6)
    torch.testing.assert_close(slope[pairs.first], weight[:, None] * pairs.batch.mask[pairs.first])
    torch.testing.assert_close(slope[pairs.second], -weight[:, None] * pairs.batch.mask[pairs.second])


@pytest.mark.parametrize("eta", [0.0075, 0.1, 2.0])
def test_at_the_ends_of_tau_it_is_ipo(eta):
    out, pairs = case()
    ipo = Direct(loss="ipo", beta=eta)
    torch.testing.assert_close(NoRegret(eta, eta)(out, pairs), ipo(out, pairs), rtol=1e-12, atol=0)
    before = (pairs.batch.logp * pairs.batch.mask).sum(1)
    torch.testing.assert_close(NoRegret(eta, 0.0)(out, pairs), ipo(out, pairs.but(ref=before)), rtol=1e-12, atol=0)
    mixed = 0.3 * pairs.ref + 0.7 * before
    torch.testing.assert_close(NoRegret(eta, 0.3 * eta)(out, pairs), ipo(out, pairs.but(ref=mixed)), rtol=1e-9, atol=0)


@FEW
@given(st.floats(0, 1), st.floats(0, 1), st.floats(-3, 3))
def test_order_padding_and_shifts_of_a_prompt_change_nothing(p, q, shift):
    out, pairs = case((p, q))
    part = NoRegret(0.2, 0.05)
    loss = part(out, pairs)
    turned = pairs.but(first=pairs.second, second=pairs.first, prefer=1 - pairs.prefer)
    torch.testing.assert_close(part(out, turned), loss)
    batch = pairs.batch
    wide = Batch(
        mask=torch.cat((batch.mask, torch.zeros(4, 2, dtype=torch.bool)), 1),
        logp=torch.cat((batch.logp, torch.full((4, 2), 3.0).double()), 1),
    )
    more = Outputs(logp=torch.cat((out.logp, torch.full((4, 2), 7.0).double()), 1))
    torch.testing.assert_close(part(more, pairs.but(batch=wide)), loss)
    lifted = pairs.but(ref=pairs.ref + torch.tensor([shift, shift, 0, 0]))
    torch.testing.assert_close(part(out, lifted), loss)


@pytest.mark.parametrize("seed", range(4))
def test_on_expected_pairs_the_loss_is_least_at_the_step_of_mirror_descent(seed):
    assert from_mirror_descent(seed) < 1e-12


def test_right_after_sampling_the_policy_is_at_the_anchor():
    recipe = recipe_of("inpo").but(batch_size=4, objective=NoRegret(0.5, 0.0), pairs=EveryPair()).fresh()
    by, task = small(context=32), Liked()
    recipe.reference.start(by)
    pairs, _ = gather(recipe, by, task, Generators(0), 1, Known())
    assert len(pairs) == 24
    with torch.no_grad():
        found = recipe.objective(by.evaluate(pairs.batch), pairs)
    torch.testing.assert_close(found, torch.ones(24), rtol=1e-3, atol=0)  # (0 - 1 / (2 * 0.5))^2
    loss, _ = losses(recipe, by, pairs, pairs)
    assert float(loss.detach()) == pytest.approx(1.0, rel=1e-3)


def test_what_was_sampled_together_keeps_its_policy():
    # Two steps from one sampling: the second still measures from the policy that sampled, not from the one after.
    recipe = recipe_of("inpo").but(batch_size=4, resample=Online(responses=4, every=2), pairs=EveryPair()).fresh()
    by, task, rng = small(context=32), Liked(), Generators(0)
    recipe.reference.start(by)
    gather(recipe, by, task, rng, 1, Known())
    with torch.no_grad():
        for weight in by.trainable().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    pairs, _ = gather(recipe, by, task, rng, 2, Known())
    before = (pairs.batch.logp * pairs.batch.mask).sum(1)
    torch.testing.assert_close(before, pairs.ref, rtol=1e-3, atol=1e-3)  # the reference has not moved, and sampled
    with torch.no_grad():
        now = (by.evaluate(pairs.batch).logp * pairs.batch.mask).sum(1)
    assert (now - before).abs().max() > 0.1


@pytest.mark.parametrize("name", ["inpo", "inpo_every_pair"])
def test_comparisons_of_own_responses_are_learnt(name):
    recipe = recipe_of(name).but(steps=30, batch_size=6, lr=1e-2, resample=Online(responses=8, every=3))
    run, by = Run(0), small(scale=0.0, context=32, layers=1)
    train(recipe, by, Liked(), run)
    score = [row["return"] for row in run.metrics]
    assert sum(score[-6:]) / 6 > sum(score[:3]) / 3 + 0.3


def test_exact_dpo_by_hand():
    # Two responses: rewards differ by logit(0.8) = log 4 whatever the policy; log odds grow by log 4 / beta.
    preference = torch.tensor([[0.5, 0.8], [0.2, 0.5]], dtype=torch.float64)
    odds = exact_dpo(preference, torch.zeros(2), 2.0, 3).diff(dim=1)[:, 0]
    assert odds.tolist() == pytest.approx([-n * math.log(2) for n in range(4)])
    still = exact_dpo(preference, torch.zeros(2), 2.0, 3, moving=False).diff(dim=1)[:, 0]
    assert still.tolist() == pytest.approx([0.0] + [-math.log(2)] * 3)


def test_where_preferences_go_round_dpo_leaves_the_equilibrium_and_inpo_comes_to_it():
    game = MatrixGame.rock_paper_scissors(0.8, log_ref=torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64).log())
    dpo = games.exploitability(game.preference, exact_dpo(game.preference, game.ref, 2.0, 40).exp())
    mine = games.exploitability(game.preference, games.self_play(game.preference, game.ref, 0.05, 1.0, 40).exp())
    assert dpo[-1] > 0.2 > 2 * float(dpo[0]) and mine[-1] < 0.5 * mine[0]
    assert exact_gap("treatment", 3, 1.0) < exact_gap("control", 3, 1.0, beta=10.0) < 1
    assert exact_gap("control", 3, 1.0, moving=False) != exact_gap("control", 3, 1.0)


def test_against_the_best_reply_where_classes_go_round(tmp_path, monkeypatch):
    lab = Lab(intransitive=1.0, noise=0.5)
    (tmp_path / "config.json").write_text(json.dumps({"task": {"part": "lab", **lab.settings()}}))
    by = Language().build(lab, False, Generators(0)["init"])
    batches, sample = [], Sample.sample
    monkeypatch.setattr(Sample, "sample", lambda *a, **k: batches.append(sample(*a, **k)) or batches[0])
    monkeypatch.setattr(inpo, "saved", lambda folder: by)
    monkeypatch.setattr(inpo, "samples", lambda name: dict(list(samples(name).items())[:1]))
    found = best_reply(tmp_path)
    kinds = torch.tensor([record["parts"]["class"] for record in batches[0].records]).long()
    share = (torch.bincount(kinds, minlength=CLASSES) / len(kinds)).double()
    win, loss = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))  # of the class after the other's, and of the one before
    met = [float(0.5 * share[k] + win * share[(k + 1) % 3] + loss * share[(k - 1) % 3]) for k in range(CLASSES)]
    assert len(kinds) == 64 and CLASSES == 3 and max(share) < 1
    assert found == pytest.approx(min(met))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NoRegret(eta=0.0), "objective.eta"), (lambda: NoRegret(eta=math.inf), "objective.eta"),
        (lambda: NoRegret(0.1, 0.2), "objective.tau: expected a number from 0 to eta = 0.1, got 0.2"),
        (lambda: NoRegret(0.1, -0.1), "objective.tau"),
    ],
)  # fmt: skip
def test_bad_settings_name_the_field(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resample": Offline(), "pairs": Labelled()}, "no_regret learns from pairs that the policy wrote"),
        ({"resample": Online(temperature=0.7)}, "temperature 0.7 is not the policy; use --resample.temperature 1"),
    ],
)
def test_what_cannot_work_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        train(recipe_of("inpo").but(steps=1, batch_size=2, **changes), small(context=32), Liked(), Run(0))
