import dataclasses

import pytest
import torch

from partita.policies.sampling import Sampling
from partita.policies.tiny import KINDS

PROMPTS = ["12+34=", "a", "what is this?"]


def _play(policy, generator, turns=3, sampling=None, drop=True):
    """Three turns in which rows end their lines, read observations of different lengths, and drop out."""
    sampling = sampling or Sampling(max_tokens=5, stop=("e", "t", "7"))
    session = policy.session(PROMPTS, 2)
    live = torch.ones(6, dtype=torch.bool)
    acts = []
    for turn in range(turns):
        acts.append(session.act(sampling, generator, live, entropy=True))
        if drop:
            live = live & torch.tensor([True, turn < 0, turn < 1, True, turn < 0, turn < 0])
        session.observe([f" o{'x' * i}." if live[i] and i != 3 else "" for i in range(6)])
    return session, acts


@pytest.mark.parametrize("kind", KINDS)
def test_several_turns_equal_whole_sequences(language, seeded, kind):
    policy = language(kind)
    session, acts = _play(policy, seeded(1))
    batch = session.batch()
    assert batch.mask.sum() == sum(a.mask.sum() for a in acts)
    assert batch.inputs["attend"].sum() > batch.mask.sum()
    for share in (True, False):
        policy.settings = dataclasses.replace(policy.settings, share_prefix=share)
        with torch.no_grad():
            out = policy.evaluate(batch, entropy=True)
        torch.testing.assert_close(out.logp, batch.logp, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(out.entropy, batch.entropy, rtol=1e-5, atol=1e-5)
    # and a model that knows nothing of sessions agrees
    for i in range(6):
        prompt = batch.context["prompt"][i][batch.context["prompt_mask"][i]]
        tokens = batch.inputs["tokens"][i][batch.inputs["attend"][i]]
        with torch.no_grad():
            logp = policy.lm(input_ids=torch.cat((prompt, tokens))[None]).logits[0].log_softmax(-1)
        want = logp[len(prompt) - 1 : -1].gather(1, tokens[:, None])[:, 0]
        acted = batch.mask[i][: len(tokens)]
        torch.testing.assert_close(want[acted], batch.logp[i][: len(tokens)][acted], rtol=1e-5, atol=1e-5)


def test_the_transcript_reads_as_it_was_played(language, seeded):
    policy = language()
    session, acts = _play(policy, seeded(1), turns=2)
    batch = session.batch()
    texts = policy.decode(batch.inputs["tokens"], batch.inputs["attend"])
    assert texts[0] == acts[0].texts[0] + " o." + acts[1].texts[0] + " o."
    assert texts[3] == acts[0].texts[3] + acts[1].texts[3]  # read nothing
    assert texts[1] == acts[0].texts[1]  # dropped after its first action
    assert acts[1].texts[1] == ""
    turns = batch.turn[0][batch.mask[0]].tolist()
    assert turns == [0] * int(acts[0].mask[0].sum()) + [1] * int(acts[1].mask[0].sum())
    assert not (batch.mask & ~batch.inputs["attend"]).any()


def test_dropping_rows_does_not_change_what_others_draw(language, seeded):
    policy = language()
    _, few = _play(policy, seeded(2))
    _, all_ = _play(policy, seeded(2), drop=False)
    # row 0 reads the same either way
    for a, b in zip(few, all_, strict=True):
        assert a.texts[0] == b.texts[0]


def test_acting_twice_without_reading_continues_the_line(language, seeded):
    policy = language()
    session = policy.session(["ab"])
    texts = [session.act(Sampling(max_tokens=4, greedy=True), seeded()).texts[0] for _ in range(2)]
    whole = policy.generate(["ab"], 1, Sampling(max_tokens=8, greedy=True), seeded()).texts[0]
    assert "".join(texts) == whole


def test_the_context_is_never_exceeded(language, seeded):
    policy = language()  # context of 64
    session = policy.session(["ab"], 2)
    assert session.room.tolist() == [61, 61]
    fitted = session.observe(["x" * 50, "x" * 70])
    assert fitted.tolist() == [True, False]
    assert session.room.tolist() == [11, 0]
    out = session.act(Sampling(max_tokens=5), seeded())
    assert out.mask.any(1).tolist() == [True, False]
    session.observe(["y" * 40, "y"])
    out = session.act(Sampling(max_tokens=5), seeded())
    assert not out.mask.any()
    batch = session.batch()
    torch.testing.assert_close(policy.evaluate(batch).logp, batch.logp, rtol=1e-5, atol=1e-5)


def test_empty_transcripts_and_wrong_counts_are_named(language):
    session = language().session(["ab"], 2)
    with pytest.raises(ValueError, match="nobody has acted"):
        session.batch()
    with pytest.raises(ValueError, match="texts: expected B = 2, got 1"):
        session.observe(["x"])
