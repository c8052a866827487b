"""SPO: win rates by hand, who is asked and how often, the reward model beside it, and self-play against its theory."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import policy as small

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.estimators import games
from partita.lab.config import Config, Settings
from partita.loops.on_policy import train
from partita.loops.run import Generators, Run
from partita.papers.preference import spo_minimax
from partita.papers.preference.spo_minimax import WinRate, multiplicative_weights
from partita.parts.compared import Compared, FittedReward, standardised
from partita.parts.credit import GroupRelative
from partita.parts.reward import KLPenalty
from partita.parts.rollout import Sample, Segments
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.classic import Cartpole
from partita.tasks.control.crossroads import Crossroads
from partita.tasks.control.probes import ProbeAction, ProbeContinuous
from partita.tasks.language.arithmetic import Arithmetic
from partita.tasks.preferences.games import MatrixGame
from partita.tasks.preferences.gold import CLASSES, samples
from partita.tasks.preferences.lab import Lab
from preferences import Liked
from resuming import resumed_alike

FEW = settings(max_examples=20, deadline=None, derandomize=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def begun(part, task, seed=0):
    part.start(small() if task.domain == "language" else ActorCritic().build(task, False, generator()), task,
               generator(seed))  # fmt: skip
    return part


def walks(outcomes, lengths=None, width=4):
    """Trajectories with these returns and lengths; a reward that nobody should look at."""
    outcome = torch.tensor(outcomes, dtype=torch.float64)
    count = torch.tensor(lengths or [width] * len(outcomes))
    mask = torch.arange(width) < count[:, None]
    obs, action = torch.randn(2, len(outcome), width, 1, generator=generator(3))
    return Batch(
        mask=mask, reward=torch.full((len(outcome), width), 7.0, dtype=torch.float64), outcome=outcome,
        inputs={"obs": obs, "action": action},
    )  # fmt: skip


def test_win_rates_by_hand():
    part = begun(WinRate(queue=2), ProbeContinuous())
    first = part(walks([3.0, 1.0, 2.0], lengths=[2, 4, 1]))
    assert first.sum(1).tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert first[0].tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0]) and first[2].tolist() == [0.5, 0, 0, 0]
    # the queue holds the returns 1 and 2, no longer 3
    assert part(walks([2.5, 1.5])).sum(1).tolist() == pytest.approx([3 / 3, 1 / 3])
    assert part.metrics() == {"queries": 3.0 + 2 * 2 + 1}


def test_ties_count_half_when_labels_are_soft():
    part = begun(WinRate(queue=2, labels="soft"), ProbeContinuous())
    part(walks([9.0, 1.0, 2.0]))
    assert part(walks([2.0, 0.0])).sum(1).tolist() == pytest.approx([2.5 / 3, 0.0])
    # what came before those two has left the queue
    assert part(walks([1.5])).sum(1).tolist() == pytest.approx([1 / 2])


def test_soft_preferences_by_hand():
    part = begun(WinRate(queue=0, labels="soft", noise=2.0, flips=0.1), ProbeContinuous())
    found = part(walks([0.0, 2.0, 4.0])).sum(1).tolist()
    one, two = (1 / (1 + math.exp(-x)) for x in (1.0, 2.0))
    turned = [0.1 + 0.8 * x for x in (one, two)]
    assert found == pytest.approx([1 - sum(turned) / 2, 0.5, sum(turned) / 2])


def test_each_pair_is_asked_for_once_and_answers_have_their_chances():
    part = begun(WinRate(flips=0.2), ProbeContinuous())
    chances = torch.full((300, 310), 0.8, dtype=torch.float64)
    won = part.wins(chances, before=10)
    assert set(won.unique().tolist()) == {0.0, 0.5, 1.0}
    among = won[:, 10:]
    torch.testing.assert_close(among + among.T, torch.ones_like(among))
    assert (among == 0.5).sum() == 300 and bool((among.diagonal() == 0.5).all())
    upper = among[tuple(torch.triu_indices(300, 300, 1))]
    assert float(upper.mean()) == pytest.approx(0.8 * 0.8 + 0.2 * 0.2, abs=0.01)
    assert float(won[:, :10].mean()) == pytest.approx(0.68, abs=0.03)
    assert part.metrics()["queries"] == 300 * 10 + 300 * 299 / 2


@FEW
@given(st.integers(0, 10**6), st.integers(2, 7), st.sampled_from(["soft", "drawn"]))
def test_win_rates_sum_to_half_and_nobody_sees_shifts_scales_or_padding(seed, count, labels):
    outcome = torch.randn(count, generator=generator(seed)).tolist()
    part = begun(WinRate(queue=0, labels=labels), ProbeContinuous(), seed)
    found = part(walks(outcome)).sum(1)
    assert float(found.mean()) == pytest.approx(0.5)
    for changed in ([3 * x + 1 for x in outcome], [math.atan(x) for x in outcome]):
        again = begun(WinRate(queue=0, labels=labels), ProbeContinuous(), seed)(walks(changed, width=6))
        torch.testing.assert_close(again.sum(1), found)
    order = torch.randperm(count, generator=generator(seed)).tolist()
    moved = begun(WinRate(queue=0, labels=labels), ProbeContinuous(), seed)(walks([outcome[i] for i in order]))
    torch.testing.assert_close(moved.sum(1), found[order])


def test_where_nothing_is_noisy_ranks_of_a_group_are_its_rewards():
    # With sure preferences by return win rates are ranks; standardised ranks are what GRPO makes of them.
    outcome = [0.3, -2.0, 5.0, 1.0]
    won = begun(WinRate(queue=0), ProbeContinuous())(walks(outcome, width=1))
    ranks = torch.tensor([1.0, 0.0, 3.0, 2.0], dtype=torch.float64)[:, None]
    group = torch.zeros(4, dtype=torch.int64)
    held = [Batch(mask=torch.ones(4, 1, dtype=torch.bool), reward=r, group=group) for r in (won, ranks)]
    torch.testing.assert_close(GroupRelative(eps=0.0)(held[0]), GroupRelative(eps=0.0)(held[1]))


def test_the_expected_gradient_among_two_is_that_of_the_win_rate():
    # E[grad] of REINFORCE on win rates of a softmax bandit is the slope of P(pi beats pi') at pi' = pi, held still.
    game = MatrixGame.random(4, 5).preference
    logits = torch.randn(4, generator=generator(1), dtype=torch.float64, requires_grad=True)
    p = logits.softmax(0)
    share = p.detach()
    slope = torch.autograd.grad(games.win_rate(game, p, share), logits)[0]
    part = begun(WinRate(labels="soft"), ProbeContinuous())
    total = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            pair = torch.tensor([i, j])
            won = part.wins(game[pair][:, pair]).sum(1) - 0.5
            logp = torch.log_softmax(logits, 0)[pair]
            each = torch.autograd.grad((won * logp).mean(), logits)[0]
            total += share[i] * share[j] * each
    torch.testing.assert_close(total, slope)


def test_responses_are_compared_within_their_group_by_the_task():
    part, task = begun(WinRate(labels="soft"), Liked()), Liked()
    texts = ["aa", "b", "a", "aaa"]
    records = tuple({"prompt": f"p{i % 2}>", "response": t, "category": "", "level": 0} for i, t in enumerate(texts))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    batch = Batch(mask=mask, reward=torch.zeros(4, 3).double(), group=torch.tensor([0, 1, 0, 1]), records=records)
    found = part(batch)
    one, three = (1 / (1 + math.exp(-x)) for x in (1.0, 3.0))
    want = torch.tensor([[0, one, 0], [1 - three, 0, 0], [1 - one, 0, 0], [0, 0, three]], dtype=torch.float64)
    torch.testing.assert_close(found, want)
    assert part.metrics()["queries"] == 2 and task.judged


# -- the reward model -------------------------------------------------------------------------------------------------


def test_standardised_by_hand():
    reward = torch.tensor([[1.0, 3.0], [2.0, 0.0], [4.0, 2.0]], dtype=torch.float64)
    acted = torch.tensor([[1, 1], [1, 0], [1, 1]], dtype=torch.bool)
    found = standardised(reward, acted)  # sums 4, 2, 6: mean 4, deviation 2
    assert found.tolist() == [[-0.5, 0.5], [-1.0, 0.0], [1.0, 0.0]]
    assert found.sum(1).tolist() == pytest.approx([0.0, -1.0, 1.0])
    assert bool(standardised(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)).isfinite().all())


@dataclass(frozen=True)
class Ranked(ProbeContinuous):
    """Whoever's actions sum to more is preferred; a rater that sees no return."""

    steps: int = 3

    @property
    def horizon(self):
        return self.steps

    def seen(self, batch):
        return (batch.inputs["action"][..., 0] * batch.mask).sum(1, keepdim=True)

    def compare(self, seen, other):
        return (3 * (seen.double() - other.double().T)).sigmoid()


def drawn(seed, count=32):
    obs, action = torch.randn(2, count, 3, 1, generator=generator(seed))
    mask = torch.ones(count, 3, dtype=torch.bool)
    return Batch(mask=mask, reward=torch.zeros(count, 3), outcome=torch.zeros(count),
                 inputs={"obs": obs, "action": action})  # fmt: skip


def test_the_fitted_reward_explains_comparisons_by_single_steps():
    part = begun(FittedReward(queue=96, updates=40, fit_lr=3e-3), Ranked())
    losses = []
    for seed in range(8):
        batch = drawn(seed)
        found = part(batch)
        losses.append(part.metrics()["fit_loss"])
    assert losses[-1] < 0.35 < math.log(2)
    pair = torch.stack((found.flatten(), batch.inputs["action"].flatten()))
    assert float(torch.corrcoef(pair)[0, 1]) > 0.9  # what each step did, not its observation
    assert part.metrics()["queries"] == sum(32 * q + 32 * 31 / 2 for q in (0, 32, 64, 96, 96, 96, 96, 96))


def test_the_first_step_of_the_fit_is_that_of_bradley_terry():
    part = begun(FittedReward(queue=0, updates=1, pairs=500, scaled=False), Ranked())
    net, batch = part._live["net"], drawn(0, count=2)
    steps, acted = part.steps(batch), batch.mask
    answers = torch.tensor([[0.5, 0.0], [1.0, 0.5]], dtype=torch.float64)
    with torch.no_grad():
        before = (net(steps)[..., 0] * acted).sum(1)
    # -log s(R_2 - R_1), the pair drawn again and again
    assert part._fit(steps, acted, answers) == pytest.approx(math.log1p(math.exp(float(before[0] - before[1]))))
    with torch.no_grad():
        after = (net(steps)[..., 0] * acted).sum(1)
    assert after[1] - after[0] > before[1] - before[0]


def test_answers_stay_with_their_trajectories_as_the_queue_moves():
    part = begun(FittedReward(queue=5, updates=1), Ranked())
    for seed in range(4):
        part(drawn(seed, count=3))
    held = part.state_dict()
    assert held["answers"].shape == (5, 5) and held["steps"].shape == (5, 3, 2)
    torch.testing.assert_close(held["answers"] + held["answers"].T, torch.ones(5, 5, dtype=torch.float64))
    last = torch.cat([drawn(seed, count=3).inputs["action"][..., 0] for seed in range(4)])[-5:]
    torch.testing.assert_close(held["steps"][..., 1], last)
    sure = begun(FittedReward(queue=5, updates=1, labels="soft"), Ranked())
    for seed in range(4):
        sure(drawn(seed, count=3))
    torch.testing.assert_close(sure.state_dict()["answers"], Ranked().compare(*[last.sum(1, keepdim=True)] * 2))


def test_trajectories_that_ended_early_and_discrete_actions_are_read():
    part = begun(FittedReward(), Cartpole(max_steps=6))
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    inputs = {"obs": torch.ones(2, 3, 4), "action": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    batch = Batch(mask=mask, reward=torch.zeros(2, 3), outcome=torch.tensor([3.0, 1.0]), inputs=inputs)
    steps = part.steps(batch)
    assert steps.shape == (2, 6, 6) and steps[0, 1].tolist() == [1, 1, 1, 1, 0, 1] and not steps[1, 1:].any()
    found = part(batch)
    assert found.shape == (2, 3) and not found[1, 1:].any()


# -- as recipes -------------------------------------------------------------------------------------------------------


def tiny(name, task, **changes):
    by = ActorCritic(hidden=(8,))
    recipe = recipe_of(name).but(**{"steps": 3, "batch_size": 6, "lr": 1e-3, "epochs": 1, "minibatches": 1, **changes})
    return Config(name, recipe, task, by, Settings(seed=2000))


def test_the_recipes_differ_in_one_slot():
    ours, theirs = recipe_of("spo_minimax"), recipe_of("spo_reward_model")
    assert ours.but(reward=theirs.reward) == theirs and ours.reward[1:] == theirs.reward[1:]
    assert ours.but(reward=()) == recipe_of("ppo").but(rollout=Sample(), reward=(), credit=ours.credit)
    lm, proxy = recipe_of("spo_minimax_lm"), recipe_of("spo_proxy_lm")
    assert lm.but(reward=()) == recipe_of("rloo").but(reward=()) == proxy.but(reward=())


@pytest.mark.parametrize("name", ["spo_minimax", "spo_reward_model"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(name, tmp_path):
    part = recipe_of(name).reward[0].but(queue=8)
    task = Crossroads(steps=4, intransitive=0.5)
    resumed_alike(tiny(name, task, reward=(part, KLPenalty(weight=0.1))), tmp_path)


@pytest.mark.parametrize("name", ["spo_minimax", "spo_reward_model"])
def test_the_better_action_is_learnt_from_comparisons(name):
    task, run = ProbeAction(), Run(0)
    policy = ActorCritic(hidden=(16,)).build(task, True, generator())
    part = recipe_of(name).reward[0].but(queue=32)
    part = part.but(updates=5) if name == "spo_reward_model" else part
    recipe = recipe_of(name).but(steps=20, batch_size=32, lr=1e-2, epochs=2, minibatches=2, reward=(part,))
    train(recipe, policy, task, run)
    assert run.metrics[0]["return"] < 0.6 and run.metrics[-1]["return"] > 0.9


def test_responses_are_learnt_from_comparisons():
    run, by = Run(0), small(scale=0.0, context=32, layers=1)
    train(recipe_of("spo_minimax_lm").but(steps=25, batch_size=8, lr=1e-2), by, Liked(), run)
    score = [row["return"] for row in run.metrics]
    assert sum(score[-5:]) / 5 > sum(score[:3]) / 3 + 0.5


def test_what_the_claims_measure_of_walks(tmp_path):
    task = Crossroads(intransitive=1.0, start=0.6)
    config = tiny("spo_minimax", task)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    policy = config.policy.build(task, True, generator())
    policy.save(tmp_path / "policy")
    batch = Sample().sample(policy, task, task.problems(20000, generator(1)), 1, generator(2))
    shares = torch.bincount(task.regions(task.seen(batch)), minlength=3).double() / 20000
    want = (1 - float(games.exploitability(task.game.preference, shares))) / 2
    assert spo_minimax.at_the_ends(tmp_path) == pytest.approx(want, abs=0.02)
    assert want < 0.35


def test_what_the_claims_measure_of_responses(tmp_path, monkeypatch):
    lab = Lab(intransitive=1.0, noise=0.5)
    (tmp_path / "config.json").write_text(json.dumps({"task": {"part": "lab", **lab.settings()}}))
    kinds = [0.0] * 30 + [1.0] * 20 + [2.0] * 14
    records = tuple({"parts": {"class": k}} for k in kinds)
    made = Batch(mask=torch.ones(64, 1, dtype=torch.bool), records=records)
    monkeypatch.setattr(Sample, "sample", lambda *a, **k: made)
    monkeypatch.setattr(spo_minimax, "saved", lambda folder: None)
    monkeypatch.setattr(spo_minimax, "samples", lambda name: dict(list(samples(name).items())[:1]))
    win, loss = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))
    share = [30 / 64, 20 / 64, 14 / 64]
    met = [0.5 * share[k] + win * share[(k + 1) % 3] + loss * share[(k - 1) % 3] for k in range(CLASSES)]
    assert spo_minimax.among_classes(tmp_path) == pytest.approx(min(met))


# -- the theory -------------------------------------------------------------------------------------------------------


def test_multiplicative_weights_by_hand():
    game = torch.tensor([[0.5, 0.8], [0.2, 0.5]], dtype=torch.float64)
    path = multiplicative_weights(game, 0.5, 3).exp()
    assert path[0].tolist() == [0.5, 0.5]
    odds = math.exp(0.5 * 0.3)  # P pi is 0.65 and 0.35 whatever pi: 0.3 apart
    assert (path[1, 0] / path[1, 1]).item() == pytest.approx(odds)
    assert (path[2, 0] / path[2, 1]).item() == pytest.approx(odds**2)


@pytest.mark.parametrize("seed", range(3))
def test_the_average_is_exploited_by_twice_its_regret_and_the_last_policy_goes_round(seed):
    game = MatrixGame.rock_paper_scissors().preference
    ref = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]], dtype=torch.float64)[seed].log()
    path = games.self_play(game, ref, 0.0, 10.0, 2000).exp()
    regret = (path @ game.T).mean(0).max() - 0.5
    average = float(games.exploitability(game, path.mean(0)))
    assert average == pytest.approx(2 * float(regret)) and average < 0.05
    assert float(games.exploitability(game, path[-200:]).min()) > 0.2


@pytest.mark.parametrize("seed", range(2))
def test_identities(seed):
    assert spo_minimax.beyond_the_bound(seed) == 0.0
    assert spo_minimax.apart_from_a_duel(seed) < 1e-12
    assert spo_minimax.short_of_one_over_t(seed) < 1e-6


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WinRate(queue=-1), "reward.win_rate.queue: expected 0 trajectories or more, got -1"),
        (lambda: WinRate(labels="hard"), "reward.win_rate.labels: expected drawn or soft, got 'hard'"),
        (lambda: WinRate(noise=-1.0), "reward.win_rate.noise"), (lambda: WinRate(flips=1.5), "reward.win_rate.flips"),
        (lambda: FittedReward(updates=0), "reward.fitted_reward.updates"),
        (lambda: FittedReward(pairs=0), "reward.fitted_reward.pairs"),
        (lambda: FittedReward(fit_lr=0.0), "reward.fitted_reward.fit_lr"),
        (lambda: FittedReward(hidden=()), "reward.fitted_reward.hidden"),
        (lambda: FittedReward(noise=math.inf), "reward.fitted_reward.noise"),
    ],
)  # fmt: skip
def test_bad_settings_name_the_field(make, words):
    with pytest.raises(UserError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "task", "changes", "words"),
    [
        ("spo_minimax", Crossroads(), {"rollout": Segments()}, "compares whole trajectories.*--rollout sample"),
        ("spo_minimax", Crossroads(), {"batch_size": 1, "reward": (WinRate(queue=0),)}, "a single trajectory.*size 2"),
        ("spo_minimax", Crossroads(), {"reward": (WinRate(noise=1.0),)}, "win_rate.noise: task crossroads prefers"),
        ("spo_minimax_lm", Arithmetic(), {}, "nobody compares new responses in task arithmetic; use --task lab"),
        ("spo_minimax_lm", Liked(), {"group_size": 1}, "compares the responses to a prompt; use --group-size 2"),
        ("spo_minimax_lm", Liked(), {"reward": (WinRate(queue=4),)}, "win_rate.queue: responses are compared with"),
        ("spo_reward_model", Liked(), {}, "fitted_reward works in control"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(name, task, changes, words):
    control = task.domain == "control"
    by = ActorCritic(hidden=(8,)).build(task, True, generator()) if control else small(context=32)
    with pytest.raises(UserError, match=words):
        train(recipe_of(name).but(**{"steps": 1, "batch_size": 2, **changes}), by, task, Run(0))


def test_settled_by_domain_and_fresh():
    assert WinRate().settle(Crossroads()).queue == 256 and WinRate().settle(Liked()).queue == 0
    assert WinRate(queue=3).settle(Crossroads()).queue == 3
    part = begun(WinRate(queue=4), ProbeContinuous())
    part(walks([1.0, 2.0]))
    assert part.fresh().state_dict() == {} and isinstance(part, Compared)
    assert replace(part, queue=5)._live == {} and Generators(0)["reward"].initial_seed()
