import pytest
import torch

from partita.policies.decoder import Decoder
from partita.policies.sampling import Sampling
from partita.policies.tiny import KINDS
from partita.policies.tree import Tree, forks, segments

PROMPTS = ["12+34=", "a", "what is this?"]


def _tree(policy, generator, width=3, steps=8, stop=(), **kwargs):
    return Tree(policy, PROMPTS, width, Sampling(max_tokens=steps, stop=stop), generator, **kwargs)


def _force(tree, **tokens):
    """Tokens to force: by slot, "s0" for slot 0; -1 elsewhere."""
    return torch.tensor([tokens.get(f"s{s}", -1) for s in tree.slot.tolist()])


def _plain_logits(policy, tree, slot):
    """Of the next token of a branch, from the whole sequence at once."""
    prompt = tree.prompt[tree.owner[slot]][tree.prompt_mask[tree.owner[slot]]]
    row = torch.cat((prompt, tree.tokens[slot, : tree.length[slot]]))
    with torch.no_grad():
        return policy.lm(input_ids=row[None], use_cache=False).logits[0, -1]


def _check_logits(policy, tree):
    logits, opened = tree.logits, tree.open.tolist()
    assert any(opened)
    for i, slot in enumerate(tree.slot.tolist()):
        if opened[i]:
            torch.testing.assert_close(logits[i], _plain_logits(policy, tree, slot), rtol=1e-4, atol=1e-4)


def _finish(tree):
    tree.begin((tree.state == 0).nonzero()[:, 0].tolist())
    tree.decode(tree.sampling.max_tokens)
    return tree.batch(forced=True)


def _agrees(policy, batch):
    with torch.no_grad():
        out = policy.evaluate(batch, entropy=True)
    torch.testing.assert_close(out.logp, batch.logp, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.entropy, batch.entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_taking_rewinding_and_joining_equal_reading_anew(language, kind):
    lm = language(kind).lm
    g = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, 90, (3, 5), generator=g)
    mask = torch.tensor([[1] * 5, [1] * 2 + [0] * 3, [1] * 4 + [0]]).bool()
    decoder = Decoder(lm, 12)
    decoder.prefill(prompts, mask)
    early = decoder.take(torch.tensor([1, 0]))
    more = torch.randint(4, 90, (3, 4), generator=g)
    decoder.feed(more)
    late = decoder.take(torch.tensor([2, 2, 0]))
    late.rewind(mask.sum(1)[[2, 2, 0]] + torch.tensor([1, 4, 3]))
    both = Decoder.join([late, early])
    rows = [prompts[i][mask[i]].tolist() + more[i, :n].tolist() for i, n in ((2, 1), (2, 4), (0, 3), (1, 0), (0, 0))]
    assert both.position.tolist() == both.valid.sum(1).tolist() == [len(r) for r in rows]
    final = torch.randint(4, 90, (5, 2), generator=g)
    hidden = torch.cat((both.feed(final[:, :1]), both.feed(final[:, 1:])), 1)
    for i, row in enumerate(rows):
        with torch.no_grad():
            want = lm.base_model(torch.tensor([row + final[i].tolist()])).last_hidden_state[0, -2:]
        torch.testing.assert_close(hidden[i], want, rtol=1e-5, atol=2e-5)
    again = decoder.feed(final[:3, :1])  # the decoder that was taken from is as it was
    with torch.no_grad():
        want = lm.base_model(torch.cat((prompts[:1], more[:1], final[:1, :1]), 1)).last_hidden_state[0, -1]
    torch.testing.assert_close(again[0, 0], want, rtol=1e-5, atol=2e-5)


def test_rewinding_everywhere_frees_columns(language):
    decoder = Decoder(language().lm, 10)
    tokens = torch.arange(8)[None].repeat(2, 1) + 5
    decoder.prefill(tokens, torch.ones_like(tokens).bool())
    decoder.rewind(torch.tensor([3, 3]))
    assert decoder.width == 3 and decoder.valid.all() and decoder.position.tolist() == [3, 3]


@pytest.mark.parametrize("stop", [(), ("e", "t", "7", "ab")])
def test_without_branches_a_tree_is_plain_sampling(language, seeded, stop):
    policy, sampling = language(), Sampling(max_tokens=9, stop=stop, temperature=0.8)
    plain = policy.generate(PROMPTS, 4, sampling, seeded(3), entropy=True)
    generator = seeded(3)
    tree = Tree(policy, PROMPTS, 4, sampling, generator)
    tree.begin(range(12))
    tree.decode(9)
    batch = tree.batch()
    assert torch.equal(batch.inputs["tokens"], plain.tokens) and torch.equal(batch.mask, plain.mask)
    assert torch.equal(batch.terminated.any(1), plain.finished) and torch.equal(batch.group, plain.group)
    torch.testing.assert_close(batch.logp, plain.logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batch.entropy, plain.entropy, rtol=1e-5, atol=1e-5)
    other = seeded(3)
    policy.generate(PROMPTS, 4, sampling, other)
    assert torch.equal(generator.get_state(), other.get_state())  # later draws agree too


@pytest.mark.parametrize("kind", KINDS)
def test_branches_share_what_they_have_in_common_logit_by_logit(language, seeded, kind):
    policy = language(kind)
    tree = _tree(policy, seeded(1), width=4, steps=9, shelf=True)
    tree.begin([0, 4, 8])
    _check_logits(policy, tree)
    tree.mark()
    tree.advance(_force(tree, s0=40, s4=41))
    _check_logits(policy, tree)
    tree.fork(torch.tensor([0, 2, 0]), [1, 9, 2])
    tree.advance(_force(tree, s0=50, s1=51, s2=52))
    _check_logits(policy, tree)
    assert tree.tokens[:3, 0].tolist() == [40] * 3 and tree.tokens[:3, 1].tolist() == [50, 51, 52]
    tree.prune([1])
    assert tree.slot.tolist() == [0, 4, 8, 9, 2]
    tree.mark()  # two tokens long, all of them
    tree.decode(3)
    tree.close([0, 8])
    tree.resume(0, 2, [1, 3])  # from the shelf, cut back from five tokens to two
    tree.resume(8, 0, [10])
    _check_logits(policy, tree)
    assert tree.tokens[3, :2].tolist() == [40, 50] and tree.length[[1, 3, 10]].tolist() == [2, 2, 0]
    tree.decode(2)
    _check_logits(policy, tree)
    tree.decode(9)
    batch = _finish(tree)
    _agrees(policy, batch)
    assert batch.inputs["tokens"][1, :2].tolist() == [40, 50]
    forced = (batch.sampler_logp != batch.logp) & batch.mask
    assert (batch.sampler_logp[forced] == 0).all() and int(forced.sum()) == 9  # two in slots 0 to 3, one in 4


def test_costs_of_a_tree_made_by_hand(language, seeded):
    policy = language()
    tree = _tree(policy, seeded(1), width=3, steps=4)
    lengths = tree.prompt_mask.sum(1).tolist()
    tree.begin([0])
    tree.advance(_force(tree, s0=40))  # attends to the prompt
    tree.advance(_force(tree, s0=41))  # and one token more
    tree.fork(torch.tensor([0, 0]), [1, 2])
    tree.advance(_force(tree, s0=50, s1=51, s2=52))
    p = lengths[0]
    assert (tree.decoded, tree.kv_work) == (5, p + (p + 1) + 3 * (p + 2))
    tree.prune([2])  # what was computed stays computed
    tree.advance(_force(tree, s0=60, s1=61))
    assert (tree.decoded, tree.kv_work) == (7, p + (p + 1) + 3 * (p + 2) + 2 * (p + 3))
    assert not tree.growing and tree.state.tolist()[:3] == [2, 2, 0]


def test_segments_are_named_by_what_precedes_them(language, seeded):
    policy = language()
    tree = _tree(policy, seeded(1), width=3, steps=4)
    tree.begin([0])
    tree.advance(_force(tree, s0=40))
    tree.fork(torch.tensor([0, 0]), [1, 2])
    tree.advance(_force(tree, s0=50, s1=51, s2=51))
    tree.advance(_force(tree, s0=60, s1=61, s2=62))
    tree.decode(1)
    batch = _finish(tree)
    assert batch.turn[:3].tolist() == [[0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 2]]
    key = batch.state_key
    assert (key[:3, 0] == key[0, 0]).all() and (key[:3, 1] == key[0, 1]).all() and key[0, 1] == key[0, 3]
    assert key[1, 2] == key[2, 2] == key[1, 3] and key[1, 2] != key[0, 2]
    assert len({int(key[s, 0]) for s in (0, 3, 6)}) == 3 and (key[batch.mask] > 0).all()
    again = segments(batch[torch.tensor([1])], torch.tensor([[True, False, True, False]]))
    assert again.state_key[0, 2] == key[1, 2]  # the same in another batch


def test_where_responses_part():
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 0], [1, 2, 3, 4], [1, 2, 0, 0], [9, 9, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    starts = forks(tokens, mask, torch.tensor([0, 0, 0, 0, 1]))
    assert starts.int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_errors(language, seeded):
    policy = language()
    with pytest.raises(ValueError, match="whole tempered softmax"):
        Tree(policy, PROMPTS, 2, Sampling(top_p=0.9), seeded())
    tree = _tree(policy, seeded())
    tree.begin([0])
    with pytest.raises(ValueError, match="prompt 0: 3 branches were asked for, and 2 slots are free"):
        tree.free(0, 3)
    with pytest.raises(ValueError, match="free slots of the same prompt"):
        tree.fork(torch.tensor([0]), [3])
    with pytest.raises(ValueError, match="free slots"):
        tree.begin([0])
    with pytest.raises(ValueError, match="still open"):
        tree.batch()
    with pytest.raises(ValueError, match="shelf=True"):
        tree.resume(0, 1, [1])


def test_the_root_of_a_tree_is_read_once(language, seeded):
    policy = language()
    tree = _tree(policy, seeded())
    calls = []
    forward = policy.lm.base_model.forward
    policy.lm.base_model.forward = lambda *a, **k: (calls.append(k["input_ids"].shape), forward(*a, **k))[1]
    tree.begin([0, 1, 3])
    tree.decode(1)
    tree.begin([2])
    tree.decode(1)
    assert all(size[1] == 1 for size in calls)  # a token at a time, and no prompt again
