import pytest
import torch

from partita.policies.sampling import Sampling
from partita.policies.stopping import stopper
from partita.policies.tiny import character_tokenizer

CPU = torch.device("cpu")


def _pieces(*pieces):
    """A tokenizer of arbitrary pieces; ids 0 to 2 are pad, eos and an unknown."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {p: i for i, p in enumerate(("<pad>", "<eos>", "<unk>", *pieces))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _ends(stop, rows):
    """The step at which each row of ids ends, feeding one token at a time."""
    past, live = [], torch.ones(len(rows), dtype=torch.bool)
    ends = [None] * len(rows)
    for t, token in enumerate(torch.tensor(rows).T):
        hit = stop.hits(token, past, live)
        for i in range(len(rows)):
            if hit[i] and ends[i] is None:
                ends[i] = t
        live = live & ~hit
        past.append(token)
    return ends


def test_stop_strings_across_tokens():
    tokenizer = _pieces("a", "b", "EN", "D", "END", "xEND!", "E", "ND", " D")
    a, b, en, d, end, inside, e, nd, space_d = range(3, 12)
    stop = stopper(tokenizer, 12, ("END",), CPU)
    assert stop.certain.nonzero()[:, 0].tolist() == [1, end, inside]
    assert stop.suspect.nonzero()[:, 0].tolist() == [d, nd, space_d]
    rows = [
        [a, en, d, a],  # END in two tokens
        [e, nd, a, a],
        [en, a, d, a],  # never contiguous
        [en, space_d, b, end],
        [a, 1, a, a],  # end of sequence
        [inside, a, a, a],
        [e, 0, nd, a],  # a token without text in between
    ]
    assert _ends(stop, rows) == [2, 1, None, 3, 1, 0, 2]


def test_one_character_a_token_needs_no_decoding():
    tokenizer = character_tokenizer()
    stop = stopper(tokenizer, len(tokenizer), ("\n", "x"), CPU)
    assert stop.suspect is None
    x, newline = tokenizer.convert_tokens_to_ids(["x", "\n"])
    assert stop.certain.nonzero()[:, 0].tolist() == sorted([tokenizer.eos_token_id, x, newline])


def test_ids_beyond_the_tokenizer_never_stop():
    tokenizer = character_tokenizer()
    stop = stopper(tokenizer, len(tokenizer) + 29, ("\n",), CPU)
    assert stop.certain.shape == (len(tokenizer) + 29,)
    assert not stop.certain[len(tokenizer) :].any()


@pytest.mark.parametrize("stop", [("e",), ("<<",), ("ab", "7", "zz")])
def test_a_response_ends_with_its_stop_string_and_not_before(language, seeded, stop):
    policy = language()
    free = policy.generate(["1+1=", "hello"], 24, Sampling(max_tokens=20, top_k=6), seeded(2))
    out = policy.generate(["1+1=", "hello"], 24, Sampling(max_tokens=20, top_k=6, stop=stop), seeded(2))
    stopped = 0
    for long, text, done in zip(free.texts, out.texts, out.finished.tolist(), strict=True):
        assert long.startswith(text)
        first = min((long.find(s) + len(s) for s in stop if s in long), default=None)
        if first is not None:
            stopped += 1
            assert (len(text), done) == (first, True)
        else:
            assert text == long
    if len(stop) != 1 or len(stop[0]) == 1:
        assert stopped
