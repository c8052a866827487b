"""Tokens of texts: each text once, the same as without a memory, and never more than the limit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.policies.tokens import ENTRY, Tokens, padded


class Counting:
    """A tokenizer that counts the texts it was given."""

    def __init__(self):
        self.core, self.seen = character_tokenizer(), []
        self.eos_token_id, self.eos_token = self.core.eos_token_id, self.core.eos_token

    def __call__(self, texts, **options):
        self.seen += texts
        return self.core(texts, **options)


def test_a_text_is_tokenised_once():
    counting = Counting()
    tokens = Tokens(counting)
    first = tokens(["ab", "c", "ab"], keep=True)
    again = tokens(["c", "ab"], keep=True)
    assert counting.seen == ["ab", "c"]
    assert [list(r) for r in first] == [list(again[1]), list(again[0]), list(again[1])]
    tokens(["ab"], keep=False)
    assert counting.seen == ["ab", "c", "ab"]


def test_prompts_and_responses_of_one_text_are_kept_apart():
    tokens = Tokens(Counting())
    (prompt,), (response,) = tokens(["ab"], True, keep=True), tokens(["ab"], False, keep=True)
    assert list(prompt) == [1, *response]
    assert list(tokens(["ab"], True, keep=True)[0]) == list(prompt)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.text("abc\n", max_size=6), max_size=5), max_size=8), st.integers(0, 3 * ENTRY))
def test_memory_changes_nothing_and_is_bounded(calls, limit):
    kept, plain = Tokens(character_tokenizer(), limit), Tokens(character_tokenizer())
    for i, texts in enumerate(calls):
        special = i % 2 == 0
        assert [list(r) for r in kept(texts, special, keep=True)] == [list(r) for r in plain(texts, special)]
        held = [r for side in kept.kept for r in side.values()]
        assert kept.size == sum(len(r) + ENTRY for r in held) <= limit


def test_a_tokenizer_that_closes_texts_leaves_prompts_open():
    class Closing:
        eos_token_id, eos_token = 2, "</s>"

        def __call__(self, texts, **options):
            return {"input_ids": [[5, 2] if text else [2] for text in texts]}

    tokens = Tokens(Closing())
    assert [list(r) for r in tokens(["x", "x</s>"])] == [[5], [5, 2]]
    assert [list(r) for r in tokens(["x"], special=False)] == [[5, 2]]
    with pytest.raises(UserError, match="prompt 1: it is empty"):
        tokens(["x", ""])


def test_another_tokenizer_of_a_policy_is_not_answered_from_memory():
    policy = LanguagePolicy(tiny_model(tiny_config(hidden=32, layers=1, heads=2)), character_tokenizer(), Language())
    assert policy.encode(["b"], keep=True)[0].tolist() == [[1, 71]]
    policy.tokenizer = type("Other", (Counting,), {"__call__": lambda s, t, **o: {"input_ids": [[7] for _ in t]}})()
    policy.tokenizer.pad_token_id = 0
    assert policy.encode(["b"], keep=True)[0].tolist() == [[7]]


def test_padding():
    tokens, mask = padded([[4, 5], [], [6]], 9)
    assert tokens.tolist() == [[4, 5], [9, 9], [6, 9]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]
    empty, none = padded([], 0)
    assert empty.shape == none.shape == (0, 0)
    assert empty.dtype == torch.int64
