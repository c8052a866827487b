"""Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning (Zhang et al.,
2024), arXiv:2407.00617.

Preferences need not come from a reward; then the policy to look for is one that nobody beats. Every iteration is a step
of mirror descent in the game of the policy with itself, regularised towards the policy before training:

    pi_t+1 = argmax_pi E_pi[P(y beats pi_t)] - tau KL(pi || ref) - (eta - tau) KL(pi || pi_t)

It is what minimises a square loss on comparisons of pairs that pi_t wrote, so that nobody estimates win rates:

    h_t  = log pi(y)/pi(y') - (tau / eta) log ref(y)/ref(y') - (1 - tau / eta) log pi_t(y)/pi_t(y')
    loss = (h_t(y_w, y_l) - 1 / (2 eta))^2

The loop keeps no copy of pi_t: what it said of a pair is what sampling recorded. With tau = eta this is IPO with beta =
eta, with tau = 0 IPO whose reference is pi_t. `inpo` compares the best with the worst response of a prompt, as iterated
DPO does; `inpo_every_pair` compares all and draws the labels, as the derivation has it. The loss is known from code
that implements it (COMAL, arXiv:2410.23223), and its numbers eta = 3 tau = 0.0075 at second hand. They are for long
responses: 1 / (2 eta) is how many nats two responses are to be apart, and recipes have fewer.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_above
from partita.core.pairs import Pairs
from partita.core.paper import Claim, Identity, Paper
from partita.core.task import Problem
from partita.estimators import games, margins
from partita.papers.baselines.dpo import DPO
from partita.papers.measuring import saved
from partita.parts.contrast import Contrast
from partita.parts.pairs import BestWorst, EveryPair
from partita.parts.resample import Online
from partita.parts.rollout import Sample
from partita.tasks.preferences.games import MatrixGame
from partita.tasks.preferences.gold import CLASSES, samples
from partita.tasks.preferences.lab import Lab

PAPER = Paper(
    key="inpo",
    title="Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning",
    arxiv="2407.00617", authors="Zhang et al.", year=2024, changes=("resample", "pairs", "objective"),
    loop="preference",
)  # fmt: skip


@dataclass(frozen=True)
class NoRegret(Contrast):
    """A step of mirror descent in the game of the policy with itself, from comparisons (INPO).

        h    = log pi(y_1)/pi(y_2) - (tau / eta) log ref(y_1)/ref(y_2) - (1 - tau / eta) log pi_t(y_1)/pi_t(y_2)
        loss = (h - 1 / (2 eta))^2

    in expectation over the label (Zhang et al., 2024, arXiv:2407.00617). pi_t is the policy that sampled the pair, at
    temperature 1. eta: the inverse of the step's length; tau: the strength of the game's regularisation, up to eta.
    """

    needs = ("ref",)
    eta: float = 0.0075
    tau: float = 0.0025

    def __post_init__(self) -> None:
        check_above("objective.eta", self.eta)
        if not 0 <= self.tau <= self.eta:
            raise UserError(f"objective.tau: expected a number from 0 to eta = {self.eta}, got {self.tau}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not recipe.resample.samples:
            return "objective no_regret learns from pairs that the policy wrote; use --resample online"
        temperature = getattr(recipe.resample, "temperature", 1.0)
        if temperature != 1:
            return (
                f"objective no_regret asks how likely the policy was to write a pair, and temperature {temperature:g} "
                "is not the policy; use --resample.temperature 1"
            )
        return super().refuses(recipe, task)

    def reward(self, out: Outputs, pairs: Pairs) -> Tensor:
        mask, share = pairs.batch.mask, self.tau / self.eta
        before = margins.response_logp(pairs.batch.need("logp"), mask)
        return self.eta * (margins.response_logp(out.logp, mask) - share * pairs.need("ref") - (1 - share) * before)

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        r = self.reward(out, pairs)
        return margins.ipo_loss((r[pairs.first] - r[pairs.second]) / self.eta, pairs.prefer, self.eta)


INPO = DPO.but(
    resample=Online(responses=4, every=10), pairs=BestWorst(), objective=NoRegret(eta=0.1, tau=0.05),
)  # fmt: skip

RECIPES = {"inpo": INPO, "inpo_every_pair": INPO.but(pairs=EveryPair(labels="drawn"))}


def exact_dpo(preference: Tensor, log_ref: Tensor, beta: float, iterations: int, moving: bool = True) -> Tensor:
    """The policies of iterated DPO with ever more comparisons, from the reference on: (iterations + 1, A) in logs.

        pi_t+1 = ref exp(r_t / beta) / Z,    r_t: the rewards that explain comparisons of pi_t with itself best

    ref is pi_t (`moving`), or the first policy. preference: (A, A), no sure ones; log_ref: (A,).
    """
    first = torch.log_softmax(log_ref.double(), -1)
    out = [first]
    for _ in range(iterations):
        reward = games.bradley_terry(preference, out[-1].exp())
        out.append(games.kl_optimal(reward, out[-1] if moving else first, beta))
    return torch.stack(out)


def exact_gap(
    arm: str, seed: int, intransitive: float, iterations: int = 50, eta: float = 0.5, tau: float = 0.03,
    beta: float = 1.0, moving: bool = True,
) -> float:  # fmt: skip
    """Exploitability of the last policy of exact INPO, or of exact iterated DPO, in a random game of ten responses."""
    game = MatrixGame.random(10, seed, intransitive)
    if arm == "treatment":
        last = games.self_play(game.preference, game.ref, tau, eta, iterations)[-1]
    else:
        last = exact_dpo(game.preference, game.ref, beta, iterations, moving)[-1]
    return float(games.exploitability(game.preference, last.exp()))


def best_reply(folder: Path) -> float:
    """How often responses of the run in `folder` win against the one of three opponents that does best against them.

        min_k P(pi beats base | class k)

    The opponents are the model before training, each held to one class of responses, and the preferences those of the
    run's laboratory: no policy wins more than half of its games against all of them where the classes go round.
    """
    task = json.loads((folder / "config.json").read_text())["task"]
    lab, policy = Lab(**{name: value for name, value in task.items() if name != "part"}), saved(folder)
    problems, count = [Problem(prompt) for prompt in samples("deep")], 64
    batch = Sample().sample(policy, lab, problems, count, torch.Generator().manual_seed(7))
    mine = [record["response"] for record in batch.records or ()]
    table = torch.empty(len(problems), CLASSES, dtype=torch.float64)
    for i, problem in enumerate(problems):
        theirs = samples("deep")[problem.prompt]
        chance = lab.truth(problem, [*mine[i * count : (i + 1) * count], *theirs])[:count, count:].mean(0)
        kind = torch.tensor([outcome.parts["class"] for outcome in lab.verify_all([problem] * len(theirs), theirs)])
        table[i] = torch.stack([chance[kind == k].mean() for k in range(CLASSES)])
    return float(table.nanmean(0).min())


def from_mirror_descent(seed: int) -> float:
    """Largest slope of the expected loss by the log-policy at the exact step of mirror descent, in a random game."""
    g = torch.Generator().manual_seed(seed)
    actions = int(torch.randint(2, 9, (), generator=g))
    eta, tau = (0.05 + torch.rand(2, generator=g, dtype=torch.float64)).sort(descending=True).values.tolist()
    ref, now = torch.randn(2, actions, generator=g, dtype=torch.float64).log_softmax(-1)
    preference = MatrixGame.random(actions, seed).preference
    following = games.proximal(preference @ now.exp(), ref, now, tau, eta).requires_grad_()
    first, second = torch.triu_indices(actions, actions, 1)
    mask = torch.ones(actions, 1, dtype=torch.bool)
    pairs = Pairs(Batch(mask=mask, logp=now[:, None]), first, second, preference[first, second], ref=ref)
    loss = NoRegret(eta, tau)(Outputs(logp=following[:, None]), pairs)
    expected = (now[first] + now[second]).exp() @ loss
    return float(torch.autograd.grad(expected, following)[0].abs().max())


def short_of_one_over_t(seed: int) -> float:
    """By how much, in powers, KL(pi* || pi_T) falls more slowly than 1/T from T = 100 to 1000 with shrinking steps."""
    game = MatrixGame.random(6, seed, tau=0.03)
    eta = [game.tau * (t + 2) / 2 for t in range(1000)]
    path = games.self_play(game.preference, game.ref, game.tau, eta, 1000)[[100, 1000]]
    left = games.kl(game.equilibrium.expand_as(path), path)
    return max(0.0, 1 + float((left[1] / left[0]).log()) / math.log(10))


CLAIMS = (
    Claim(
        statement="solved exactly, its last policy is less exploitable than iterated DPO's where preferences go round",
        treatment="inpo", control="iterated_dpo", task="random games of ten responses", metric="exploitability",
        better="lower", experiment=exact_gap, settings={"iterations": 50},
        dial=("intransitivity", (("0", {"intransitive": 0.0}), ("1", {"intransitive": 1.0}))),
        search_treatment={"eta": (0.2, 0.5, 1.0, 2.0), "tau": (0.01, 0.03, 0.1)},
        search_control={"beta": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), "moving": (True, False)},
        analysis="0.028 against 0.086 on the mean of eight games, each tuned on two others: DPO is best with steps so "
        "short (beta 10) that fifty of them have not yet begun to go round.",
    ),
    Claim(
        statement="and learnt, it wins more often against its best reply where preferences go round",
        treatment="inpo", control="iterated_dpo", task="lab", metric="win rate against the best reply",
        measure=best_reply, tuned_by="value",
        settings={"steps": 50, "eval_sampled": True, "eval_every": 25, "eval_size": 128},
        dial=("intransitivity", (("0", {"task.intransitive": 0.0}), ("0.7", {"task.intransitive": 0.7}))),
        search_treatment={"lr": (5e-4, 1e-3), "objective.eta": (0.1, 0.3)},
        search_control={"lr": (5e-4, 1e-3), "objective.beta": (0.1, 1.0)},
        analysis="0.51 against 0.46: on four seeds of eight iterated DPO meets an opponent that it wins only 0.39 to "
        "0.46 of its games against, and INPO wins 0.08 to 0.16 more; on the others they are within 0.06. Without "
        "intransitivity DPO wins 0.999 on three seeds and comes apart on two (0.59 and 0.37).",
    ),
    Identity(
        statement="the loss on pairs of the policy is least, in expectation, at the exact step of mirror descent",
        measure=from_mirror_descent, expected=0.0, tolerance=1e-12, seeds=8,
    ),
    Identity(
        statement="with steps 2 / (tau (t + 2)) the last policy comes to the regularised equilibrium as 1/T or faster",
        measure=short_of_one_over_t, expected=0.0, tolerance=1e-6, seeds=8,
    ),
)  # fmt: skip
