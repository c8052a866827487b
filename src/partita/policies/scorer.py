"""`Scorer`: a trained reward model that reads text, whatever the tokenizer of whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.estimators.masked import last_value
from partita.policies.language import VALUE_HEAD, Language, LanguagePolicy
from partita.policies.others import finished

CHUNK = 64  # responses scored at once


class Scorer:
    """The value head's output at the last token of a response.

    policy: with a value head. stop: strings that end a response; one that does not end in any of them is closed with
    the end of sequence, as the responses were that the model learnt from.
    """

    def __init__(self, policy: LanguagePolicy, stop: Sequence[str] = ()) -> None:
        self.policy, self.stop = policy, tuple(stop)

    @staticmethod
    def load(name: str, field: str, device: torch.device | str = "cpu", stop: Sequence[str] = ()) -> Scorer:
        """The reward model of a run's folder, or of the policy in it; UserError, naming `field`, where it has none."""
        folder = Path(finished(name, field))
        if not (folder / VALUE_HEAD).is_file():
            raise UserError(f"{field}: {folder} has no {VALUE_HEAD}; give the folder of a run of reward_model")
        policy = Language(model=str(folder)).build(None, True, torch.Generator())
        policy.module.to(device).requires_grad_(False)
        return Scorer(policy, stop)

    @torch.no_grad()
    def score(self, prompts: Sequence[str], responses: Sequence[str], unfinished: Sequence[bool] = ()) -> Tensor:
        """The score of each response, (N,); equal prompts are read once. unfinished: responses that were cut."""
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        group = torch.tensor([number[prompt] for prompt in prompts])
        found = [torch.zeros(0, device=self.policy.device)]
        for rows in torch.arange(len(prompts)).split(CHUNK) if prompts else ():
            i = rows.tolist()
            batch = self.policy.written(
                [prompts[k] for k in i], [responses[k] for k in i], group[rows], self.stop,
                [unfinished[k] for k in i] if unfinished else None,
            )  # fmt: skip
            found.append(last_value(self.policy.evaluate(batch).need("value"), batch.mask))
        return torch.cat(found)

    def __call__(self, batch: Batch) -> Tensor:
        """The score of every response of a batch with records, (B,)."""
        records = batch.records or ()
        cut = batch.truncated.any(1).tolist() if batch.truncated is not None else ()
        return self.score([r["prompt"] for r in records], [r["response"] for r in records], cut)
