"""`Agent`: what the parts of the replay loop are given, networks that learn and the ones that lag behind them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from partita.core.spaces import Discrete
from partita.policies.feed_forward import FeedForwardPolicy, Networks


class Agent:
    """A policy with its critics, their lagging copies, the temperature, and where randomness comes from.

    policy: the networks that learn. lagged: copies that the part `target` moves; nothing flows back through them.
    alpha: the temperature, scalar, 0 without one. Shapes: K critics, N observations, n discrete actions.

    Parts that know nothing of each other ask the same: TD3+BC's actor and its regulariser for pi(s), IQL's value and
    its actor for Q(s, a) of the lagging critics. Within `update` the same tensors have the same answer, computed once,
    which nobody is to change in place.
    """

    def __init__(self, policy: FeedForwardPolicy, generator: torch.Generator) -> None:
        self.policy, self.generator = policy, generator
        self.lagged: Networks = copy.deepcopy(policy.module).requires_grad_(False)
        self.lagged.normaliser = policy.module.normaliser
        self.alpha = torch.zeros((), device=policy.device)
        self.count = 0  # updates that have been made
        self._known: dict[tuple[object, ...], tuple[tuple[object, ...], Tensor]] | None = None

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]

    # -- what is asked more than once -----------------------------------------------------------------------------

    @contextmanager
    def update(self) -> Iterator[None]:
        """Within, answers are kept; whoever moves a network says so by `moved`."""
        self._known = {}
        try:
            yield
        finally:
            self._known = None

    def moved(self, network: str) -> None:
        """The network "actor", "critic" or "value" has been stepped, down a loss whose graph is gone."""
        if self._known is not None:
            self._known = {k: v for k, v in self._known.items() if k[:2] != (network, False) and not k[2]}

    def _once(self, network: str, lagged: bool, ask: Callable[[], Tensor], *given: object) -> Tensor:
        """What `ask` says of `given`, tensors known by identity; asked without gradients it is another answer."""
        if self._known is None:
            return ask()
        key = network, lagged, torch.is_grad_enabled(), *map(id, given)
        if key not in self._known:
            self._known[key] = given, ask()  # `given` is kept too, or something else could get its identity
        return self._known[key][1]

    def _networks(self, lagged: bool) -> Networks:
        return self.lagged if lagged else self.policy.module

    # -- the networks ---------------------------------------------------------------------------------------------

    @property
    def discrete(self) -> bool:
        """Whether actions are one of n."""
        return isinstance(self.policy.space, Discrete)

    def head(self, obs: Tensor, lagged: bool = False) -> Tensor:
        """The numbers of the actor for observations (N, D), (N, size)."""
        network = "critic" if self.policy.module.actor is None else "actor"
        return self._once(network, lagged, lambda: self.policy.head(obs, self._networks(lagged)), obs)

    def draw(self, obs: Tensor, lagged: bool = False) -> tuple[Tensor, Tensor | None]:
        """Actions drawn for observations (N, D), as the networks see them, and their log-probabilities (N,)."""
        assert self.policy.shape is not None
        noise = self.policy.noise((len(obs),), self.generator)
        assert noise is not None
        return self.policy.shape.draw(self.head(obs, lagged), noise)

    def mode(self, obs: Tensor, lagged: bool = False) -> Tensor:
        """The likeliest actions for observations (N, D), as the networks see them."""
        head = self.head(obs, lagged)
        return head.argmax(-1) if self.policy.shape is None else self.policy.shape.mode(head)

    def logp(self, obs: Tensor, action: Tensor) -> Tensor:
        """log pi(a|s) of given actions, (N,)."""
        assert self.policy.shape is not None
        found = self.policy.shape.logp(self.head(obs), action)
        assert found is not None
        return found

    def table(self, obs: Tensor) -> Tensor:
        """log pi(a|s) of every discrete action, (N, n)."""
        return self.head(obs).log_softmax(-1)

    def q(self, obs: Tensor, action: Tensor | None = None, lagged: bool = False, first: int | None = None) -> Tensor:
        """Q_k(s, a), (K, N), of the `first` critics alone if so many are asked; (K, N, n) of all discrete actions."""
        networks = self._networks(lagged)
        return self._once("critic", lagged, lambda: self.policy.q(obs, action, networks, first), obs, action, first)

    def v(self, obs: Tensor, lagged: bool = False) -> Tensor:
        """V(s), (N,), the least of them where there are several."""
        return self.values(obs, lagged).amin(0)

    def values(self, obs: Tensor, lagged: bool = False) -> Tensor:
        """V_k(s) of every state value, (K, N)."""
        return self._once("value", lagged, lambda: self.policy.v(obs, self._networks(lagged)), obs)
