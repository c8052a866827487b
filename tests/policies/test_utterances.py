"""Trajectories as utterances, the critic's features of them, and fresh utterances after every history."""

import pytest
import torch

from partita.core.batch import Batch
from partita.policies.language import Language, LanguagePolicy
from partita.policies.sampling import Sampling
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.policies.utterance_critic import TwinHead, UtteranceCritic
from partita.policies.utterances import propose, read


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policy(context: int = 48) -> LanguagePolicy:
    model = tiny_model(tiny_config("llama", hidden=16, layers=2, heads=2, context=context))
    return LanguagePolicy(model, character_tokenizer(context=context), Language(), False)


def batch() -> Batch:
    """Three episodes: `ab|xy|cd|z|e` (two utterances, the last observation read), `a|x|cde|yz`, and `abc` untouched."""
    acts = [[1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]]
    attend = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
    reward = [[0, 0.25, 0, 0, 1, 0], [0.5, 0, 0, 0, 0, 2], [0, 0, 0, 0, 0, 0]]
    tokens = torch.arange(10, 28).reshape(3, 6)
    return Batch(
        mask=torch.tensor(acts).bool(), reward=torch.tensor(reward, dtype=torch.float32), logp=torch.zeros(3, 6),
        turn=torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], [0] * 6]),
        inputs={"tokens": tokens, "attend": torch.tensor(attend).bool()},
        context={
            "prompt": torch.tensor([[5, 6, 0], [5, 0, 0], [5, 6, 7]]),
            "prompt_mask": torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool(),
        },
    )  # fmt: skip


def test_utterances_by_hand():
    found, rank = read(batch())
    assert found.tokens.tolist() == [[5, 6, *range(10, 16)], [5, *range(16, 22), 0], [5, 6, 7, 0, 0, 0, 0, 0]]
    assert found.length.tolist() == [8, 7, 3]
    assert found.count.tolist() == [2, 2, 0]
    assert found.history.tolist() == [[1, 5], [0, 4], [0, 0]]  # the last columns of "ab", and of "ab xy cd"
    assert found.end.tolist() == [[3, 6], [1, 6], [0, 0]]
    assert found.reward.tolist() == [[0.25, 1.0], [0.5, 2.0], [0.0, 0.0]]
    assert rank.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], [0] * 6]


def test_what_the_world_says_first_belongs_to_the_history():
    whole = batch()
    mask = whole.mask.clone()
    mask[0, 0] = False
    found, rank = read(whole.but(mask=mask))
    assert (found.history[0].tolist(), found.end[0].tolist()) == ([2, 5], [3, 6])
    assert rank[0].tolist() == [0, 0, 0, 0, 1, 1]


def test_two_utterances_without_an_observation_between_them_stay_two():
    both = batch().but(mask=torch.ones(3, 6, dtype=torch.bool), turn=torch.tensor([[0, 0, 1, 1, 1, 2]] * 3))
    found, _ = read(both)
    assert found.count.tolist() == [3, 3, 3]
    assert found.history[1].tolist() == [0, 2, 5] and found.end[1].tolist() == [2, 5, 6]
    assert read(both.but(turn=None))[0].count.tolist() == [1, 1, 1]  # and without turns they are one


def test_padding_of_the_batch_changes_nothing():
    whole = batch()
    wide = Batch.cat([whole, Batch.cat([whole])[:1].but(
        **{n: torch.zeros(1, 9, dtype=getattr(whole, n).dtype) for n in ("mask", "reward", "logp", "turn")},
        inputs={k: torch.zeros(1, 9, dtype=v.dtype) for k, v in whole.inputs.items()},
        context={k: torch.nn.functional.pad(v[:1], (0, 4)) for k, v in whole.context.items()},
    )])[:3]  # fmt: skip
    for name in ("tokens", "length", "count", "history", "end", "reward"):
        assert torch.equal(getattr(read(wide)[0].trimmed(), name), getattr(read(whole)[0], name)), name


def test_features_are_those_of_each_text_read_alone():
    model = policy()
    critic = UtteranceCritic(model.lm.base_model, 16, True, gen())
    held, _ = read(batch())
    others = torch.randint(4, 90, (3, 2, 3), generator=gen(1)), torch.tensor([[1, 3], [2, 1], [0, 0]])
    history, end, other = critic.features(held, others)
    plain = critic.features(held)
    for row in range(2):
        for k in range(2):
            before = held.tokens[row, : held.history[row, k] + 1]
            after = held.tokens[row, : held.end[row, k] + 1]
            instead = torch.cat((before, others[0][row, k, : others[1][row, k]]))
            for text, ours in ((before, history), (after, end), (instead, other)):
                alone = model.lm.base_model(input_ids=text[None]).last_hidden_state[0, -1]
                torch.testing.assert_close(ours[row, k], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain[0], history, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain[1], end, rtol=1e-4, atol=1e-5)


def test_twin_heads_are_two_perceptrons():
    head = TwinHead(3, 4, gen(), torch.device("cpu"))
    assert not head(torch.randn(5, 2, 3, generator=gen(1))).any()  # the last layer begins at zero
    for weight in head.weight:
        torch.nn.init.normal_(weight, generator=gen(2))
    x = torch.randn(5, 2, 3, generator=gen(1))
    out = head(x)
    assert out.shape == (2, 5, 2)
    for i in range(2):
        y = x
        for j, (weight, bias) in enumerate(zip(head.weight, head.bias, strict=True)):
            y = y @ weight[i] + bias[i]
            y = y.relu() if j < 2 else y
        torch.testing.assert_close(out[i], y[..., 0])
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("learns", [True, False])
def test_the_lagged_critic_follows_and_shares_an_encoder_that_does_not_learn(learns):
    critic = UtteranceCritic(policy().lm.base_model, 16, learns, gen())
    lagged = critic.lagged()
    assert (lagged.encoder is critic.encoder) is not learns
    before = [p.clone() for p in lagged.parameters()]
    with torch.no_grad():
        for p in critic.parameters():
            if p.requires_grad:
                p.add_(1.0)
    lagged.follow(critic, 0.1)
    for name, old, new in zip(dict(lagged.named_parameters()), before, lagged.parameters(), strict=True):
        moved = 0.1 if learns or not name.startswith("encoder") else 0.0
        torch.testing.assert_close(new, old + moved, msg=name)
    assert not any(p.requires_grad for p in lagged.v.parameters())


def test_the_encoder_is_a_copy():
    model = policy()
    critic = UtteranceCritic(model.lm.base_model, 16, False, gen())
    held, _ = read(batch())
    before = critic.features(held)[0].clone()
    with torch.no_grad():
        for p in model.lm.parameters():
            p.add_(0.5)
    assert torch.equal(critic.features(held)[0], before)
    assert all(p.requires_grad for p in model.lm.parameters())


def test_advantages_take_the_lesser_of_both_and_are_zero_where_nobody_spoke():
    critic = UtteranceCritic(policy().lm.base_model, 16, True, gen())
    for part in (critic.q, critic.v):
        torch.nn.init.normal_(part.weight[2], generator=gen(3))
    held, _ = read(batch())
    q, v = critic(*critic.features(held))
    torch.testing.assert_close(critic.advantage(held)[:2], (q.min(0).values - v.min(0).values)[:2])
    assert critic.advantage(held)[2].tolist() == [0.0, 0.0]


def test_fresh_utterances_are_what_the_policy_says_after_each_history():
    model = policy()
    held, _ = read(batch())
    sampling = Sampling(max_tokens=4, greedy=True, stop=("\n",))
    tokens, count = propose(model, held, sampling, gen())
    assert count[2].tolist() == [0, 0] and not tokens[2].any()
    for row in range(2):
        for k in range(2):
            text = held.tokens[row, : held.history[row, k] + 1][None]
            for j in range(int(count[row, k])):
                token = int(model.lm(input_ids=text).logits[0, -1].argmax())
                assert token == int(tokens[row, k, j])
                text = torch.cat((text, torch.tensor([[token]])), 1)


def test_fresh_utterances_are_drawn_from_the_policys_distribution():
    model = policy()
    with torch.no_grad():
        model.lm.lm_head.weight.mul_(20)
    held, _ = read(batch()[:1])
    many = held[torch.zeros(3000, dtype=torch.int64)]
    tokens, _ = propose(model, many, Sampling(max_tokens=1), gen(5))
    logits = model.lm(input_ids=held.tokens[:, : held.history[0, 1] + 1]).logits[0, -1]
    chance = logits.detach().softmax(0)
    found = torch.bincount(tokens[:, 1, 0], minlength=len(chance)) / 3000
    assert (found - chance).abs().max() < 0.04  # four standard deviations of a share of one half
    assert chance.max() > 0.1


def test_fresh_utterances_fit_into_the_context():
    model = policy(context=9)
    held, _ = read(batch())
    tokens, count = propose(model, held, Sampling(max_tokens=8), gen())
    assert tokens.shape[2] == 8 and bool((held.history + 1 + count <= 9).all())
