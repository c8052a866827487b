"""`UtteranceCritic`: twin values of histories and of utterances, read off one causal encoder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from partita.policies.utterances import CHUNK, Utterances


class TwinHead(nn.Module):
    """Two perceptrons side by side, two hidden layers of rectifiers each: (..., n) -> (2, ...)."""

    def __init__(self, inputs: int, hidden: int, generator: torch.Generator, device: torch.device) -> None:
        """Uniform initial weights within 1 / sqrt(inputs of the layer), drawn from `generator`; the last layer is 0."""
        super().__init__()
        self.weight, self.bias = nn.ParameterList(), nn.ParameterList()
        for width, out in ((inputs, hidden), (hidden, hidden), (hidden, 1)):
            weight = torch.zeros(2, width, out)
            if out == hidden:
                draw = torch.rand(2, width, out, generator=generator, device=generator.device).cpu()
                weight = (2 * draw - 1) * width**-0.5
            self.weight.append(nn.Parameter(weight.to(device)))
            self.bias.append(nn.Parameter(torch.zeros(2, 1, out, device=device)))

    def forward(self, features: Tensor) -> Tensor:
        x = features.flatten(0, -2).float().expand(2, -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = x.relu() if i < 2 else x
        return x[..., 0].unflatten(1, features.shape[:-1])


class UtteranceCritic(nn.Module):
    """Q(history, utterance) and V(history), two of each, on the hidden states of a causal encoder.

        Q_i = f_i([h(history), h(history utterance)]),   V_i = g_i(h(history)),   i = 1, 2

    h is the encoder's last hidden state at the last token of a text, so that one pass over a trajectory gives all its
    histories and utterances. encoder: a Hugging Face trunk, copied; `learns` says whether its weights are trained.
    """

    def __init__(self, encoder: nn.Module, width: int, learns: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder: Any = copy.deepcopy(encoder)
        self.learns = learns
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(learns)
            parameter.grad = None
        device = next(self.encoder.parameters()).device
        self.q = TwinHead(2 * width, width, generator, device)
        self.v = TwinHead(width, width, generator, device)

    def lagged(self) -> UtteranceCritic:
        """A copy to be moved by `follow`, without gradients; it shares an encoder that does not learn."""
        memo = {} if self.learns else {id(self.encoder): self.encoder}
        return copy.deepcopy(self, memo).requires_grad_(False)

    @torch.no_grad()
    def follow(self, online: UtteranceCritic, rate: float) -> None:
        """Move every weight towards those of `online`: w <- (1 - rate) w + rate w'."""
        pairs = [(mine, theirs) for mine, theirs in zip(self.parameters(), online.parameters(), strict=True)]
        moved = [(mine, theirs) for mine, theirs in pairs if theirs.requires_grad]
        torch._foreach_lerp_([mine for mine, _ in moved], [theirs for _, theirs in moved], rate)

    def features(self, utterances: Utterances, others: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, ...]:
        """h at the end of every history and of every utterance, (N, K, D) each.

        others: further utterances after the same histories, tokens (N, K, L) and their number (N, K), whose h comes
        third. They follow their trajectory in the same pass, in which each sees its own history and itself alone.
        """
        if others is None:
            hidden = self.encoder(input_ids=utterances.tokens, use_cache=False).last_hidden_state
            return _pick(hidden, utterances.history), _pick(hidden, utterances.end)
        tokens, count = others
        (n, turns, size), width = tokens.shape, utterances.tokens.shape[1]
        device = tokens.device
        trunk, steps = torch.arange(width, device=device), torch.arange(size, device=device)
        place = torch.cat((trunk.expand(n, -1), (utterances.history[:, :, None] + 1 + steps).flatten(1)), 1)
        limit = getattr(self.encoder.config.get_text_config(), "max_position_embeddings", None) or 1 << 40
        dtype = next(self.encoder.parameters()).dtype
        allowed = _visible(utterances.history, width, size)
        hidden = self.encoder(
            input_ids=torch.cat((utterances.tokens, tokens.flatten(1)), 1),
            position_ids=place.clamp_max(limit - 1),  # only padding lies beyond
            attention_mask=torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, -torch.inf)[:, None],
            use_cache=False,
        ).last_hidden_state
        ends = width + torch.arange(turns, device=device) * size + (count - 1).clamp_min(0)
        return _pick(hidden, utterances.history), _pick(hidden, utterances.end), _pick(hidden, ends)

    def forward(self, history: Tensor, utterance: Tensor) -> tuple[Tensor, Tensor]:
        """Q and V, (2, N, K) each, of the features (N, K, D) of histories and utterances."""
        return self.q(torch.cat((history, utterance), -1)), self.v(history)

    @torch.no_grad()
    def advantage(self, utterances: Utterances) -> Tensor:
        """min(Q_1, Q_2) - min(V_1, V_2) of every utterance, (N, K); zero where there is none."""
        found = []
        for rows in torch.arange(len(utterances), device=utterances.tokens.device).split(CHUNK):
            q, v = self(*self.features(utterances[rows]))
            found.append(q.amin(0) - v.amin(0))
        return torch.cat(found) * utterances.real if found else utterances.reward.clone()


def _pick(hidden: Tensor, place: Tensor) -> Tensor:
    """Of hidden (N, W, D), the columns place (N, K); (N, K, D)."""
    return hidden.gather(1, place[:, :, None].expand(-1, -1, hidden.shape[2]))


def _visible(history: Tensor, width: int, size: int) -> Tensor:
    """What each column of trajectories of `width` tokens with K branches of `size` behind them may see, (N, C, C)."""
    (n, turns), device = history.shape, history.device
    trunk = torch.arange(width, device=device)
    own = torch.block_diag(*[torch.ones(size, size).tril()] * turns).bool().to(device)
    allowed = torch.zeros(n, width + turns * size, width + turns * size, dtype=torch.bool, device=device)
    allowed[:, :width, :width] = trunk[:, None] >= trunk
    allowed[:, width:, :width] = (trunk <= history[:, :, None]).repeat_interleave(size, 1)
    allowed[:, width:, width:] = own
    return allowed
