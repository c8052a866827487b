"""f-DPO: losses by hand, DPO as the case of reverse KL, exact optima on bandits, and an f of one's own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.pairs import Pairs
from partita.core.registry import part_class
from partita.core.registry import recipe as recipe_of
from partita.estimators.divergences import Alpha, ChiSquared, ForwardKL, JensenShannon, ReverseKL, optimal
from partita.loops.preference import Preference, train
from partita.loops.run import Run
from partita.papers.preference import f_dpo
from partita.papers.preference.f_dpo import FDirect, losses, minimiser, named
from partita.parts.contrast import Direct
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.preferences.games import SoftmaxBandit
from preferences import Liked

NAMES = ("reverse_kl", "forward_kl", "js", "alpha")
LOSSES = [dict(), dict(loss="hinge"), dict(loss="ipo"), dict(mean=True), dict(label_smoothing=0.1)]
FEW = settings(max_examples=20, deadline=None, derandomize=True)


def pairs_of(log_u: torch.Tensor, prefer=1.0, dtype=torch.float64) -> tuple[Outputs, Pairs]:
    """Responses of two tokens, in pairs of neighbours, with these log-ratios to the reference."""
    ref = -torch.arange(1, len(log_u) + 1, dtype=dtype)
    logp = torch.stack((log_u * 0.25, log_u * 0.75 + ref), 1)
    batch = Batch(mask=torch.ones(len(log_u), 2, dtype=torch.bool), group=torch.arange(len(log_u)) // 2)
    first = torch.arange(0, len(log_u), 2)
    return Outputs(logp), Pairs(batch, first, first + 1, torch.full((len(first),), prefer, dtype=dtype), ref=ref)


def drawn(seed: int) -> tuple[Outputs, Pairs]:
    log_u = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return pairs_of(log_u, prefer=0.8)


def log_s(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("name", "slopes"),  # f' at u = 4 and u = 1/4, then 1 and 2
    [
        ("reverse_kl", (math.log(4), -math.log(4), 0, math.log(2))),
        ("forward_kl", (0.75, -3, 0, 0.5)),
        ("js", (math.log(8 / 5), math.log(2 / 5), 0, math.log(4 / 3))),
        ("alpha", (1, -2, 0, 2 * (1 - math.sqrt(0.5)))),
    ],
)
def test_losses_by_hand(name, slopes):
    out, pairs = pairs_of(torch.tensor([4, 0.25, 1, 2], dtype=torch.float64).log())
    h = [0.5 * (slopes[0] - slopes[1]), 0.5 * (slopes[2] - slopes[3])]
    part = FDirect(divergence=name, alpha=0.5, beta=0.5)
    assert part(out, pairs).tolist() == pytest.approx([-log_s(x) for x in h])
    soft = -0.7 * log_s(h[0]) - 0.3 * log_s(-h[0])
    assert part(out, pairs.but(prefer=torch.tensor([0.7, 1.0])))[0].item() == pytest.approx(soft)
    assert part.reward(out, pairs).tolist() == pytest.approx([0.5 * x for x in slopes])


@pytest.mark.parametrize("settings", LOSSES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_under_reverse_kl_it_is_dpo(settings, seed):
    results = []
    for part in (FDirect(divergence="reverse_kl", beta=0.3, **settings), Direct(beta=0.3, **settings)):
        out, pairs = drawn(seed)
        logp = out.logp.requires_grad_()
        loss = part(out, pairs)
        results.append((loss, torch.autograd.grad(loss.sum(), logp)[0], part.reward(out, pairs)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("alpha", "limit"), [(1e-7, "reverse_kl"), (1 - 1e-7, "forward_kl")])
def test_alpha_runs_from_reverse_to_forward_kl(alpha, limit):
    out, pairs = drawn(0)
    near, far = FDirect(divergence="alpha", alpha=alpha), FDirect(divergence=limit)
    torch.testing.assert_close(near(out, pairs), far(out, pairs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "pull"),  # u f''(u): what a nat of log pi changes f' by
    [
        ("reverse_kl", torch.ones_like),
        ("forward_kl", lambda u: 1 / u),
        ("js", lambda u: 1 / (1 + u)),
        ("alpha", lambda u: u**-0.3),
    ],
)
def test_the_gradient_is_its_closed_form(name, pull):
    out, pairs = drawn(1)
    pairs = pairs.but(prefer=torch.ones_like(pairs.prefer))
    part, logp = FDirect(divergence=name, alpha=0.3, beta=0.4), out.logp.clone().requires_grad_()
    part(Outputs(logp), pairs).sum().backward()
    u, r = (out.logp.sum(1) - pairs.ref).exp(), part.reward(out, pairs)
    weight = (0.4 * (r[pairs.second] - r[pairs.first]).sigmoid())[:, None]
    torch.testing.assert_close(logp.grad[pairs.first], -weight * pull(u)[pairs.first][:, None].expand(-1, 2))
    torch.testing.assert_close(logp.grad[pairs.second], weight * pull(u)[pairs.second][:, None].expand(-1, 2))


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_against_finite_differences(name):
    out, pairs = drawn(2)
    part = FDirect(divergence=name, beta=0.7)
    assert torch.autograd.gradcheck(lambda logp: part(Outputs(logp), pairs), (out.logp.requires_grad_(),))


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(seed=st.integers(0, 10**6))
def test_what_changes_nothing(name, seed):
    out, pairs = drawn(seed)
    part = FDirect(divergence=name, alpha=0.4)
    loss = part(out, pairs)
    turned = pairs.but(first=pairs.second, second=pairs.first, prefer=1 - pairs.prefer)
    torch.testing.assert_close(part(out, turned), loss)
    wide = torch.cat((out.logp, torch.full((8, 2), 7.0, dtype=torch.float64)), 1)
    mask = torch.cat((pairs.batch.mask, torch.zeros(8, 2, dtype=torch.bool)), 1)
    torch.testing.assert_close(part(Outputs(wide), pairs.but(batch=pairs.batch.but(mask=mask))), loss)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    some = pairs.but(first=pairs.first[order], second=pairs.second[order], prefer=pairs.prefer[order])
    torch.testing.assert_close(part(out, some), loss[order])


@pytest.mark.parametrize("name", NAMES)
def test_a_response_that_is_nearly_gone_breaks_nothing(name):
    log_u = torch.tensor([-400.0, 1.0, 1.0, -400.0, -400.0, -400.0, 300.0, 300.0]).requires_grad_()
    out, pairs = pairs_of(log_u, dtype=torch.float32)
    loss = FDirect(divergence=name)(out, pairs)
    loss.sum().backward()
    assert bool(loss.isfinite().all()) and bool(log_u.grad.isfinite().all())
    assert float(log_u.grad[0]) < 0  # the preferred one is still pulled back
    assert float(loss[1].detach()) < 0.3 and float(loss[2].detach()) == pytest.approx(math.log(2))


def test_names_are_the_divergences():
    assert [named(name, 0.3) for name in NAMES] == [ReverseKL(), ForwardKL(), JensenShannon(), Alpha(0.3)]
    chosen = {name: recipe_of(name).objective.divergence for name in ("f_dpo", "f_dpo_forward_kl")}
    assert chosen == {"f_dpo": "js", "f_dpo_forward_kl": "forward_kl"}
    assert recipe_of("f_dpo_alpha").objective == FDirect(divergence="alpha", alpha=0.5)


OWN = """
from dataclasses import dataclass
from partita.papers.preference.f_dpo import FDirect

@dataclass(frozen=True)
class Pearson(FDirect):
    def slope(self, log_u):
        return 2 * log_u.exp() + 5
"""


def test_a_derivative_of_ones_own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = part_class("objective", f"{tmp_path / 'own.py'}:Pearson")(beta=1.0)
    out, pairs = pairs_of(torch.tensor([4, 0.25], dtype=torch.float64).log())
    assert own(out, pairs).tolist() == pytest.approx([-log_s(2 * 3.75)])
    # Chi-squared has f'(0) = -2: its optimum is found where it gives every response some probability, and only there.
    bandit = SoftmaxBandit(torch.tensor([0.4, 0.0, -0.3]), torch.tensor([0.0, 0.3, 0.1]), beta=1.0)
    best = optimal(ChiSquared(), bandit.reward, bandit.ref, 1.0)
    torch.testing.assert_close(minimiser(own, bandit), best, rtol=0, atol=1e-6)
    far = SoftmaxBandit(torch.tensor([3.0, 0.0, -6.0]), torch.tensor([0.0, 0.3, 0.1]), beta=1.0)
    best, other = optimal(ChiSquared(), far.reward, far.ref, 1.0), torch.tensor([0.62, 0.38, 0.0]).double().log()
    assert best.exp().tolist() == pytest.approx([0.675, 0.325, 0.0], abs=1e-3)
    at_best, at_other = (losses(own, logp.clamp(min=-30), far).mean() for logp in (best, other))
    assert at_other < at_best - 0.005


@pytest.mark.parametrize("beta", [0.2, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_minimiser_on_a_bandit_is_the_optimum_under_its_divergence_alone(name, beta):
    bandit = SoftmaxBandit.random(5, seed=3, beta=beta)
    found = minimiser(FDirect(divergence=name, alpha=0.5, beta=beta), bandit)
    for other in NAMES:
        gap = float((found - optimal(named(other, 0.5), bandit.reward, bandit.ref, beta)).abs().max())
        assert gap < 1e-6 if other == name else gap > 0.05


def test_losses_of_a_bandit_by_hand():
    bandit = SoftmaxBandit(torch.tensor([1.0, 0.0]), beta=1.0)
    chance = 1 / (1 + math.exp(-1))
    h = 2 * (1 / 0.4 - 1 / 1.6)  # forward KL at pi = (0.8, 0.2), u = (1.6, 0.4)
    loss = losses(FDirect(divergence="forward_kl", beta=2.0), torch.tensor([0.8, 0.2]).double().log(), bandit)
    assert loss.tolist() == pytest.approx([-chance * log_s(h) - (1 - chance) * log_s(-h)])


def test_statements_of_theory():
    assert f_dpo.from_dpo(1000) == 0.0
    assert f_dpo.from_the_optimum(1000) < 1e-6
    assert f_dpo.js_sharper(1000) == f_dpo.js_sharper(1000, beta=3.0) == 1.0
    assert -1e-9 < f_dpo.entropy_to_spare(1000) <= 0.0


def test_at_the_same_beta_forward_kl_trades_reward_for_entropy():
    reward, ref = f_dpo._bandits(1001)
    for beta, share in ((0.1, 0.9), (100.0, 0.0)):  # where little may change, all divergences are one
        forward, reverse = (optimal(named(name, 0.5), reward, ref, beta) for name in ("forward_kl", "reverse_kl"))
        less = ((forward.exp() - reverse.exp()) * reward).sum(1) < -1e-3
        more = f_dpo._entropy(forward) - f_dpo._entropy(reverse) > 1e-3
        assert float((less & more).double().mean()) >= share
        assert share or float((forward.exp() - reverse.exp()).abs().max()) < 1e-3


def test_diversity_by_hand(monkeypatch, tmp_path):
    seen = []

    class Fixed:
        def sample(self, policy, task, problems, count, generator):
            seen.append((policy, task.part_name(), len(problems), count))
            mask = torch.tensor([[1, 1], [1, 0]], dtype=torch.bool).repeat(8, 1)
            texts = ["a", "b", "a", "a", "a", "c", "a", "a"] + ["a"] * 8
            entropy = torch.tensor([[0.5, 1.0], [0.3, 9.0]]).repeat(8, 1)
            return Batch(mask=mask, entropy=entropy, records=tuple({"response": t} for t in texts))

    monkeypatch.setattr(f_dpo, "saved", lambda folder: folder.name)
    monkeypatch.setattr(f_dpo, "Sample", Fixed)
    found = f_dpo.diversity(tmp_path / "run")
    assert seen == [("run", "lab", 96, 8)]
    assert found == pytest.approx({"value": 1.8 / 3, "response": 0.9, "distinct": 4 / 16})


@pytest.mark.parametrize("name", ["forward_kl", "js", "alpha"])
def test_comparisons_are_learnt(name):
    torch.manual_seed(0)
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=32))
    policy, run = LanguagePolicy(model, character_tokenizer(context=32), Language()), Run(0)
    part = Preference(objective=FDirect(divergence=name), steps=12, batch_size=6, lr=5e-3)
    train(part, policy, Liked(), run)
    first, last = run.metrics[0], run.metrics[-1]
    assert last["accuracy"] > 0.9 and last["loss"] < first["loss"] - 0.02
    assert last["logp_better"] - last["logp_worse"] > first["logp_better"] - first["logp_worse"] + 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"divergence": "chi_squared"}, "objective.divergence: expected one of reverse_kl, forward_kl, js, alpha"),
        ({"alpha": 1.0}, "objective.alpha"), ({"alpha": 0.0}, "objective.alpha"), ({"alpha": math.nan}, "alpha"),
        ({"beta": 0.0}, "objective.beta"), ({"loss": "log"}, "objective.loss"),
    ],
)  # fmt: skip
def test_bad_settings_name_the_field(settings, words):
    with pytest.raises(UserError, match=words) as error:
        FDirect(**settings)
    assert "\n" not in str(error.value)
