"""RPO: the SFT loss by hand, DPO without it, gradients, and the maximin problem that it solves."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.pairs import Pairs
from partita.core.registry import recipe as recipe_of
from partita.estimators import games
from partita.loops.preference import losses, train
from partita.loops.run import Run
from partita.papers.baselines.dpo import DPO
from partita.papers.preference.rpo import RPO, AdversarialBandit, duality_gap, fallen
from partita.parts.contrast import Direct
from partita.parts.tether import Anchor
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from preferences import Liked


def case() -> tuple[Outputs, Pairs]:
    """Two prompts with two responses of 2, 1, 3 and 2 tokens; in the second the label prefers the other one."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    logp = torch.tensor([[-0.5, -1.0, 9], [-2.0, 9, 9], [-0.1, -0.2, -0.3], [-1.5, -0.5, 9]], dtype=torch.float64)
    ref = torch.tensor([-1.0, -1.8, -0.9, -2.2], dtype=torch.float64)
    prefer = torch.tensor([1.0, 0.2], dtype=torch.float64)
    batch = Batch(mask=mask, group=torch.tensor([0, 0, 1, 1]))
    return Outputs((logp * mask).requires_grad_()), Pairs(
        batch, torch.tensor([0, 2]), torch.tensor([1, 3]), prefer, ref=ref
    )


class Given:
    """A policy that says what it was given."""

    def __init__(self, out: Outputs) -> None:
        self.out = out

    def evaluate(self, batch: Batch) -> Outputs:
        return self.out


def learner() -> LanguagePolicy:
    torch.manual_seed(0)
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=32))
    return LanguagePolicy(model, character_tokenizer(context=32), Language(), False)


def test_the_sum_over_the_tokens_of_the_preferred_response():
    out, pairs = case()
    assert Anchor(0.3, mean=False)(out, pairs).tolist() == pytest.approx([0.3 * 1.5, 0.3 * 2.0])


def test_the_loss_of_the_recipe_by_hand():
    out, pairs = case()
    # beta 0.5: h = 0.5 (-0.5 - -0.2) = -0.15 and 0.5 (0.3 - 0.2) = 0.05, the second preferred with 0.2
    h = [-0.15, 0.05]

    def log_s(x: float) -> float:
        return -math.log1p(math.exp(-x))

    dpo = (-log_s(h[0]) - 0.2 * log_s(h[1]) - 0.8 * log_s(-h[1])) / 2
    recipe = RPO.but(objective=Direct(beta=0.5), regularisers=(Anchor(0.1 * 0.5, mean=False),))
    loss, _ = losses(recipe, Given(out), pairs, pairs)
    assert loss.item() == pytest.approx(dpo + 0.1 * 0.5 * (1.5 + 2.0) / 2)


def test_the_gradient_is_that_of_equations_4_9_and_4_10():
    out, pairs = case()
    pairs, beta, eta = pairs.but(prefer=torch.ones(2, dtype=torch.float64)), 0.5, 0.1
    recipe = RPO.but(objective=Direct(beta=beta), regularisers=(Anchor(eta * beta, mean=False),))
    found = torch.autograd.grad(losses(recipe, Given(out), pairs, pairs)[0], out.logp)[0]
    for row, h, sign in ((0, -0.15, 1), (1, -0.15, -1), (2, 0.05, 1), (3, 0.05, -1)):
        pull = beta / (1 + math.exp(h)) + (eta * beta if sign > 0 else 0)
        each = (found[row] * 2)[pairs.batch.mask[row]]
        assert each.tolist() == pytest.approx([-sign * pull] * len(each))
    assert not found[~pairs.batch.mask].any()


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_without_weight_it_is_dpo(loss):
    out, pairs = case()
    plain = DPO.but(objective=Direct(loss=loss))
    mine = plain.but(regularisers=(Anchor(0.0, mean=False),))
    found = [torch.autograd.grad(losses(r, Given(out), pairs, pairs)[0], out.logp)[0] for r in (plain, mine)]
    assert torch.equal(*found)


def test_anchor_is_the_same_for_each_token():
    out, pairs = case()
    chosen = pairs.batch.lengths[torch.tensor([0, 3])]
    torch.testing.assert_close(Anchor(0.3, mean=False)(out, pairs), Anchor(0.3)(out, pairs) * chosen)
    assert recipe_of("rpo").regularisers == (Anchor(5e-4, mean=False),)
    assert recipe_of("rpo_mean").regularisers == (Anchor(weight=0.2),)
    assert recipe_of("rpo").but(regularisers=()) == recipe_of("dpo")


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_padding_order_and_the_side_of_the_label_change_nothing(seed):
    out, pairs = case()
    part = Anchor(0.7, mean=False)
    plain = part(out, pairs)
    empty = torch.zeros(4, 2)
    wide = pairs.but(batch=pairs.batch.but(mask=torch.cat((pairs.batch.mask, empty.bool()), 1)))
    torch.testing.assert_close(part(Outputs(torch.cat((out.logp, empty.double() + 5), 1)), wide), plain)
    turned = pairs.but(first=pairs.second, second=pairs.first, prefer=1 - pairs.prefer)
    torch.testing.assert_close(part(out, turned), plain)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    place = order.argsort()
    moved = replace(pairs, batch=pairs.batch[order], first=place[pairs.first], second=place[pairs.second])
    torch.testing.assert_close(part(Outputs(out.logp[order]), moved.but(ref=None)), plain)


def test_the_payoff_of_a_bandit_by_hand():
    # Two comparisons: 0 beats 1, 2 beats 1; uniform reference; rewards 1, 0, 2; the policy plays 0 always.
    bandit = AdversarialBandit(torch.zeros(3), torch.tensor([0, 2]), torch.tensor([1, 1]), beta=0.5, eta=0.1, bound=2.0)
    reward = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    logp = torch.tensor([0.0, -math.inf, -math.inf], dtype=torch.float64)
    fit = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2
    assert bandit.base.tolist() == [0.5, 0.0, 0.5]
    assert float(bandit.likelihood_loss(reward)) == pytest.approx(fit)
    assert float(bandit.payoff(logp, reward)) == pytest.approx(0.1 * (1 - 1.5 - 0.5 * math.log(3)) + fit)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_the_recipe_is_the_inner_maximum_up_to_a_constant(seed):
    bandit = AdversarialBandit.random(seed)
    reward = 3 * torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logp = games.kl_optimal(reward, bandit.ref, bandit.beta)
    constant = bandit.eta * bandit.beta * float(bandit.base @ bandit.ref)
    assert float(bandit.payoff(logp, reward)) == pytest.approx(float(bandit.recipe_loss(logp)) + constant)
    others = torch.log_softmax(torch.randn(50, 8, generator=torch.Generator().manual_seed(seed)).double(), -1)
    assert all(bandit.payoff(logp, reward) >= bandit.payoff(other, reward) for other in others)


@pytest.mark.parametrize("seed", range(4))
def test_its_minimiser_solves_the_maximin_problem(seed):
    assert duality_gap(seed) == pytest.approx(0.0, abs=1e-12)
    bandit = AdversarialBandit.random(seed)
    mine = bandit.pessimistic(bandit.policy)
    for weight in (0.9, 0.99):  # and any step to another policy loses
        other = torch.logsumexp(torch.stack((bandit.policy + math.log(weight), bandit.ref + math.log(1 - weight))), 0)
        assert bandit.pessimistic(other) < mine
    likely = AdversarialBandit(bandit.ref, bandit.first, bandit.second, eta=1e-4).policy
    assert bandit.pessimistic(likely) < mine  # the policy of the likeliest reward is not it
    assert bandit.reward[4:].abs().max() == 0 and bandit.reward[:4].max() > 1  # nothing is hoped of what is not covered


def test_preferred_responses_end_likelier_than_under_dpo_and_still_win():
    held = {}
    for name, recipe in (("dpo", DPO), ("rpo", RPO.but(regularisers=(Anchor(0.2, mean=False),)))):
        run = Run(0)
        train(recipe.but(steps=16, batch_size=6, lr=1e-2), learner(), Liked(), run)
        held[name] = run.metrics[-1]
    assert held["rpo"]["accuracy"] == held["dpo"]["accuracy"] == 1.0
    assert held["rpo"]["logp_better"] > held["dpo"]["logp_better"] + 0.5


def test_the_fall_of_a_run(tmp_path):
    rows = [{"step": i, "mean": mean} for i, mean in enumerate((0.0, 0.75, 0.5, 0.25))]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert fallen(tmp_path) == {"value": 0.5, "best": 0.75, "last": 0.25}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Anchor(-0.1, mean=False), "regularisers.anchor.weight: expected 0 or more, got -0.1"),
        (lambda: Anchor(math.inf, mean=False), "regularisers.anchor.weight"),
        (lambda: AdversarialBandit(torch.zeros(2), torch.tensor([0]), torch.tensor([1]), eta=0.0), "eta"),
        (lambda: AdversarialBandit(torch.zeros(2), torch.tensor([2]), torch.tensor([1])), "first: .* from 0 to 1"),
    ],
)
def test_settings_out_of_range_name_the_field(make, words):
    with pytest.raises(UserError, match=words):
        make()
