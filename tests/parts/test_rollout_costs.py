"""What rollouts say of their costs, and when the loop tells them the step."""

import torch

from partita.core.batch import Batch
from partita.core.registry import recipe as recipe_of
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.parts.rollout import Sample, decoding, watched
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.language.probes import ProbeCredit


def _batch(mask, prompt_mask, attend=None, texts=None):
    mask = torch.tensor(mask).bool()
    inputs = {} if attend is None else {"attend": torch.tensor(attend).bool()}
    records = tuple({"response": t} for t in texts or ["a"] * len(mask))
    return Batch(
        mask=mask, inputs=inputs, context={"prompt_mask": torch.tensor(prompt_mask).bool()}, records=records,
        outcome=torch.zeros(len(mask)), group=torch.zeros(len(mask), dtype=torch.int64),
    )  # fmt: skip


def test_the_cost_of_sampling_one_by_one():
    batch = _batch([[1, 1, 1], [1, 1, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]])
    assert decoding(batch) == (5, (4 + 5 + 6) + (2 + 3))


def test_what_a_world_wrote_is_attended_to_and_not_drawn():
    batch = _batch([[1, 0, 0, 1]], [[1, 1]], attend=[[1, 1, 1, 1]])
    assert decoding(batch) == (2, 2 + 5)


def test_costs_and_distinct_answers_are_watched():
    batch = _batch([[1], [1], [1], [1]], [[1]] * 4, texts=["a", "b", "a", "a"])
    seen = watched(batch)
    assert (seen["tokens_decoded"], seen["kv_work"], seen["distinct"]) == (4.0, 4.0, 0.5)
    assert watched(batch.but(group=torch.tensor([0, 0, 1, 1])))["distinct"] == 0.75
    assert "distinct" not in watched(batch.but(group=torch.arange(4)))
    both = watched(batch.but(source=torch.tensor([0, 0, 1, 1])))
    assert both["tokens_decoded"] == 2.0 and both["distinct"] == 1.0  # demonstrations are not decoded


class _Clock(Sample):
    """A sampler that notes what the loop tells it."""

    steps: list[int] = []

    def begin(self, step):
        self.steps.append(step)


def test_the_loop_says_which_step_it_is():
    lm = tiny_model(tiny_config("qwen2", hidden=16, layers=1, heads=2, context=16))
    policy = LanguagePolicy(lm, character_tokenizer(context=16), Language())
    recipe = recipe_of("grpo").but(rollout=_Clock(), steps=3, batch_size=2, group_size=2)
    train(recipe, policy, ProbeCredit(), Run(0))
    assert _Clock.steps == [1, 2, 3]
