"""DPO Meets PPO: Reinforced Token Optimization for RLHF (Zhong et al., 2024), arXiv:2404.18922.

Changes PPO on a reward less a divergence in one slot: `reward`. A policy that DPO has trained says of every token how
much it is worth, and PPO is paid that beside the reward of the whole response:

    r_t = beta_1 log(pi_dpo(y_t|x, y_<t) / ref(y_t|x, y_<t)) - beta_2 log(pi(y_t|x, y_<t) / ref(y_t|x, y_<t))
          + beta_3 r(x, y) [t = T]

In the chain of rewards these are `token_reward` (beta_1), `kl_penalty` (beta_2) and the scale of what comes first:

    partita train dpo --out DPO
    partita train rto --reward.token-reward.model DPO --task lab

If the policy that DPO found is the best one, its log-ratio is the advantage of the token under the best policy, so that
who looks no further than the next token is led to it (`TokenTree`). beta_1 and beta_2 are those of the authors' script;
that it clips token rewards at 0.05 (`clip`) is not in the equation, which is the paper's as others quote it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_least
from partita.core.pairs import Pairs
from partita.core.paper import Claim, Identity, Paper
from partita.core.policy import Policy
from partita.estimators import games
from partita.loops import on_policy, preference
from partita.loops.run import Generators, Run
from partita.papers.baselines.dpo import DPO
from partita.papers.baselines.rlhf import RECIPES as RLHF
from partita.parts.contrast import Direct
from partita.parts.reward import KLPenalty, Outcome, Reward
from partita.policies import others
from partita.policies.language import Language
from partita.tasks.preferences.gold import Kind
from partita.tasks.preferences.lab import Lab

PAPER = Paper(
    key="rto", title="DPO Meets PPO: Reinforced Token Optimization for RLHF", arxiv="2404.18922",
    authors="Zhong et al.", year=2024, changes=("reward",),
)  # fmt: skip

CHUNK = 256  # responses that the model reads at once


@dataclass(frozen=True)
class TokenReward(Reward):
    """What a policy trained by DPO thinks of every token, added to the reward (RTO, Zhong et al., 2024).

        r_t <- r_t + beta * log(pi_dpo(a_t|s_t) / ref(a_t|s_t))

    arXiv:2404.18922. Summed over a response it is what DPO says the whole response is worth, up to a term of the prompt
    alone. model: folder of a run of dpo that began with the policy that is the reference here, or a model of the same
    tokenizer. clip: the most that a token may earn or lose (None: no limit).
    """

    domains = ("language",)
    needs = ("ref_logp",)
    model: str = ""
    beta: float = 0.05
    clip: float | None = None
    _held: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_least("reward.token_reward.beta", self.beta)
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"reward.token_reward.clip: expected a number above 0, or None, got {self.clip}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not self.model:
            return "reward.token_reward.model: name the folder of a run of dpo; make one by partita train dpo"
        if not recipe.reference.still:
            return (
                f"reward token_reward compares with what dpo began with, and reference {recipe.reference.part_name()} "
                "moves; use --reference frozen"
            )
        return None

    def start(self, policy: Policy, task: Any, generator: torch.Generator) -> None:
        self._held["policy"] = others.other(self.model, "reward.token_reward.model", policy)  # type: ignore[arg-type]

    @torch.no_grad()
    def logp(self, batch: Batch) -> Tensor:
        """log pi_dpo(a_t|s_t), (B, T)."""
        policy = self._held["policy"]
        return torch.cat([policy.evaluate(batch[i : i + CHUNK]).logp for i in range(0, len(batch), CHUNK)])

    def __call__(self, batch: Batch) -> Tensor:
        earned = self.beta * (self.logp(batch) - batch.need("ref_logp"))
        if self.clip is not None:
            earned = earned.clamp(-self.clip, self.clip)
        return batch.need("reward") + earned * batch.mask


RTO = RLHF["rlhf_ppo"].but(reward=(Outcome(), TokenReward(), KLPenalty(weight=0.01)))

RECIPES = {"rto": RTO}


@dataclass(frozen=True, eq=False)
class TokenTree:
    """All responses of H tokens out of A, each prefix a state of its own, with a reward and a reference for each token.

        Q(s, a) = r(s, a) + V(sa),    V(s) = max_pi E_pi[Q(s, a)] - beta KL(pi || ref)

    reward, log_ref: H tables, that of depth h (A^h, A); prefixes in lexical order. All in float64.
    """

    reward: tuple[Tensor, ...]
    log_ref: tuple[Tensor, ...]
    beta: float = 0.5

    @staticmethod
    def random(seed: int, actions: int = 3, length: int = 3) -> TokenTree:
        """Standard normal rewards, and a reference with standard normal logits."""
        g = torch.Generator().manual_seed(seed)

        def tables() -> tuple[Tensor, ...]:
            sizes = [(actions**h, actions) for h in range(length)]
            return tuple(torch.randn(size, generator=g, dtype=torch.float64) for size in sizes)

        return TokenTree(tables(), tuple(table.log_softmax(-1) for table in tables()))

    def q(self, policy: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Q(s, a), a table for each depth, where a policy (log-probabilities, or the best) chooses what follows."""
        out, value = [], torch.zeros(self.reward[-1].numel(), dtype=torch.float64)
        for h in reversed(range(len(self.reward))):
            out.append(self.reward[h] + value.view_as(self.reward[h]))
            if policy is None:
                value = games.kl_value(out[-1], self.log_ref[h], self.beta)
            else:
                value = (policy[h].exp() * out[-1]).sum(-1) - self.beta * games.kl(policy[h], self.log_ref[h])
        return out[::-1]

    @cached_property
    def advantage(self) -> list[Tensor]:
        """Q(s, a) - V(s), a table for each depth."""
        return [q - games.kl_value(q, ref, self.beta)[:, None] for q, ref in zip(self.q(), self.log_ref, strict=True)]

    def along(self, tables: Sequence[Tensor]) -> Tensor:
        """The entries of tables (A^h, A) along every response, (A^H, H)."""
        total = tables[-1].numel()
        return torch.stack([table.flatten().repeat_interleave(total // table.numel()) for table in tables], 1)

    @cached_property
    def dpo(self) -> list[Tensor]:
        """log of the policy that minimises DPO's loss over all comparisons, with the chances of Bradley-Terry."""
        logits = [ref.clone().requires_grad_() for ref in self.log_ref]
        total = self.along(self.reward).sum(1)
        first, second = torch.triu_indices(len(total), len(total), 1)
        batch = Batch(mask=torch.ones(len(total), len(logits), dtype=torch.bool))
        chance = (total[first] - total[second]).sigmoid()
        pairs = Pairs(batch, first, second, chance, ref=self.along(self.log_ref).sum(1))
        search = torch.optim.LBFGS(
            logits, max_iter=5000, tolerance_grad=1e-14, tolerance_change=0, history_size=50,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def loss() -> Tensor:
            search.zero_grad()
            now = Outputs(self.along([table.log_softmax(-1) for table in logits]))
            out = Direct(beta=self.beta)(now, pairs).mean()
            out.backward()
            return out

        search.step(loss)
        return [table.detach().log_softmax(-1) for table in logits]

    @cached_property
    def token_reward(self) -> tuple[Tensor, ...]:
        """beta log(pi_dpo / ref), a table for each depth."""
        return tuple(self.beta * (now - ref) for now, ref in zip(self.dpo, self.log_ref, strict=True))

    def myopic(self, rewards: Sequence[Tensor]) -> float:
        """What is lost of the best E[sum r] - beta KL by who looks at these rewards of the next token alone."""
        policy = [games.kl_optimal(reward, ref, self.beta) for reward, ref in zip(rewards, self.log_ref, strict=True)]
        first, ref = policy[0][0], self.log_ref[0][0]
        reached = first.exp() @ self.q(policy)[0][0] - self.beta * games.kl(first, ref)
        return float(games.kl_value(self.q()[0][0], ref, self.beta) - reached)


def distance(seed: int) -> float:
    """How far the token rewards of DPO's best policy are from advantages, at most."""
    tree = TokenTree.random(seed)
    return max(float((a - b).abs().max()) for a, b in zip(tree.token_reward, tree.advantage, strict=True))


def loss(seed: int) -> float:
    """What a policy loses that looks at the token reward of the next token alone."""
    tree = TokenTree.random(seed)
    return tree.myopic(tree.token_reward)


def measure(
    arm: str, seed: int, begin: str = "start", reward: Kind = "peaked", taught: int = 60, model: str = "tiny-0.3m",
    **changes: Any,
) -> dict[str, float]:  # fmt: skip
    """The area under gold over training: PPO on gold less a divergence (`control`), or with token rewards beside it.

    Each seed has a truth of its own. DPO learns from the data of the laboratory for `taught` steps. begin: where the
    control starts: "start", as the treatment, or "dpo", at what DPO has learnt. changes: numbers of the recipe.
    """
    lab, streams = Lab(seed=seed, reward=reward), Generators(seed)
    policy = Language(model=model).build(lab, True, streams["init"])
    recipe = RLHF["rlhf_ppo"].but(reward=(Outcome(), KLPenalty(weight=0.01)), **changes)
    with tempfile.TemporaryDirectory() as folder:
        if arm == "treatment" or begin == "dpo":
            compared = Language(model=model).build(lab, False, streams["init"])
            if taught:
                preference.train(DPO.but(steps=taught, lr=1e-3), compared, lab, Run(seed + 2_000_003))
            compared.save(Path(folder))
        if arm == "treatment":
            recipe = recipe.but(reward=(Outcome(), TokenReward(folder), KLPenalty(weight=0.01)))
        elif begin == "dpo":
            policy = Language(model=folder).build(lab, True, streams["init"])
        run = Run(seed)
        on_policy.train(recipe, policy, lab, run)
    gold = [row["return"] for row in run.metrics]
    return {"value": sum(gold) / len(gold), "before": gold[0], "after": gold[-1]}


_ARMS: dict[str, Any] = {
    "treatment": "rto", "control": "rlhf_ppo", "task": "lab", "metric": "area under gold over training",
    "experiment": measure, "search": {"lr": (5e-4, 1e-3, 2e-3)},
}  # fmt: skip
_SETTINGS = {"steps": 24, "batch_size": 32}

CLAIMS = (
    Claim(
        statement="learns more from the same samples than PPO on the sentence-level reward alone",
        dial=("what DPO has learnt", (("nothing", {"taught": 0}), ("60 steps", {"taught": 60}))),
        settings=_SETTINGS, **_ARMS,
        analysis="2.45 against 2.48 at the highest rate, which both took: on seven seeds 2.94 against 2.72, "
        "ahead on five of them; on the eighth the treatment collapses.",
    ),
    Claim(
        statement="and so it does where the reward is a sum over tokens",
        settings={**_SETTINGS, "reward": "additive"}, **_ARMS,
        analysis="9.2 against 8.1, ahead on six seeds of eight, by up to 5.8, and behind by up to 3.3: gold that is a "
        "sum over tokens has no limit but the length, and runs differ in when they find that out.",
    ),
    Claim(
        statement="and more than PPO on that reward that starts at DPO's policy",
        settings={**_SETTINGS, "begin": "dpo"}, **_ARMS,
        analysis="2.45 against 3.60, behind on all eight seeds: what DPO has learnt serves better as a start than as a "
        "reward; without the seed on which the treatment collapses (its -0.96 against 3.83) it is 2.94 against 3.56.",
    ),
    Identity(
        statement="log-ratios of DPO's best policy are the advantages of tokens under the best policy",
        measure=distance, expected=0.0, tolerance=1e-6, seeds=5,
    ),
    Identity(
        statement="with them as rewards, a policy that looks at the next token alone loses nothing",
        measure=loss, expected=0.0, tolerance=1e-9, seeds=5,
    ),
)  # fmt: skip
