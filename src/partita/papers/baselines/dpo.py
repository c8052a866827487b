"""Direct Preference Optimization: Your Language Model is Secretly a Reward Model (Rafailov et al., 2023),
arXiv:2305.18290.

The loop's baseline. The policy itself is the reward model, up to a term that every response to a prompt shares:

    r(x, y) = beta * log(pi(y|x) / ref(y|x))
    loss    = -log s(r(x, y_w) - r(x, y_l))                             (eq. 7)

`online_dpo` compares the best with the worst of the policy's own new responses at every step (Guo et al., 2024,
arXiv:2402.04792); `iterated_dpo` samples for ten steps at once and then takes the policy as it is for the reference
(Xiong et al., 2024, arXiv:2312.11456). `dpo_normalised` counts log-ratios a token.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.preference import Preference
from partita.parts.contrast import Direct
from partita.parts.pairs import BestWorst
from partita.parts.reference import Reset
from partita.parts.resample import Online

PAPER = Paper(
    key="dpo",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    arxiv="2305.18290", kind="baseline",
    authors="Rafailov et al.", year=2023, changes=('objective',), loop="preference",
)  # fmt: skip

DPO = Preference(objective=Direct(loss="sigmoid", beta=0.1))

RECIPES = {
    "dpo": DPO,
    "dpo_normalised": DPO.but(objective=Direct(beta=0.1, mean=True)),
    "online_dpo": DPO.but(resample=Online(responses=4, every=1), pairs=BestWorst()),
    "iterated_dpo": DPO.but(resample=Online(responses=4, every=10), pairs=BestWorst(), reference=Reset(every=10)),
}
