"""The critic of utterances as a credit part: its targets, what it learns of known values, and its state."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch
from partita.core.errors import NonFinite, UserError
from partita.lab import checkpoint
from partita.parts.utterance_advantage import UtteranceAdvantage, expectile_loss, q_goal
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.policies.utterances import Utterances


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policy() -> LanguagePolicy:
    model = tiny_model(tiny_config("llama", hidden=16, layers=1, heads=2, context=32))
    return LanguagePolicy(model, character_tokenizer(context=32), Language(), False)


def episodes(first, replies, second, rewards) -> Batch:
    """Conversations of two utterances of a token each: `?` first, a reply of the world, second; paid at the end."""
    tokens = torch.stack([torch.tensor(x) for x in (first, replies, second)], 1)
    b = len(tokens)
    acts = torch.tensor([[True, False, True]]).expand(b, -1)
    reward = torch.zeros(b, 3)
    reward[:, 2] = torch.tensor(rewards)
    return Batch(
        mask=acts, reward=reward, logp=torch.zeros(b, 3), turn=torch.tensor([[0, 0, 1]]).expand(b, -1),
        inputs={"tokens": tokens, "attend": torch.ones(b, 3, dtype=torch.bool), "temperature": torch.ones(b, 3)},
        context={"prompt": torch.full((b, 1), 9), "prompt_mask": torch.ones(b, 1, dtype=torch.bool)},
    )  # fmt: skip


# After token 20 the world replies 30 and pays 1 for 21, 0 for 20; after 21 it replies 31 and pays 0.2 whatever is said.
KNOWN = episodes([20, 20, 21, 21], [30, 30, 31, 31], [21, 20, 21, 20], [1.0, 0.0, 0.2, 0.2])
PART = UtteranceAdvantage(discount=0.5, polyak=0.5, updates=60, minibatch=8000, critic_lr=5e-3, resample=False)


def test_targets_by_hand():
    held = Utterances(
        tokens=torch.zeros(2, 9, dtype=torch.int64), length=torch.tensor([9, 5]), count=torch.tensor([3, 1]),
        history=torch.zeros(2, 3, dtype=torch.int64), end=torch.zeros(2, 3, dtype=torch.int64),
        reward=torch.tensor([[1.0, 0.0, 4.0], [2.0, 0.0, 0.0]], dtype=torch.float64),
    )  # fmt: skip
    value = torch.tensor([[[9.0, 10, 20], [7, 7, 7]], [[9.0, -10, -20], [7, 7, 7]]], dtype=torch.float64)
    goal = q_goal(held, value, 0.5)
    assert goal[0].tolist() == [[6.0, 10.0, 4.0], [2.0, 0.0, 0.0]]
    assert goal[1].tolist() == [[-4.0, -10.0, 4.0], [2.0, 0.0, 0.0]]  # each twin has its own


def test_expectiles_by_hand_and_the_square_at_one_half():
    gap = torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64, requires_grad=True)
    assert expectile_loss(gap, 0.9).tolist() == pytest.approx([7.2, 0.8, 0.0])
    assert torch.equal(expectile_loss(gap, 0.5), gap.square())
    assert torch.autograd.grad(expectile_loss(gap, 0.9).sum(), gap)[0].tolist() == pytest.approx([7.2, -0.8, 0.0])


@pytest.mark.parametrize("train_encoder", [True, False])
def test_it_learns_known_values_by_temporal_differences(train_encoder):
    part, model = PART.but(train_encoder=train_encoder).fresh(), policy()
    for _ in range(5):
        part.learn(model, KNOWN, gen(1))
    # V(30) = 0.5, V(31) = 0.2, V(start) = (0.25 + 0.1) / 2; A = 0.25 - 0.175 and 0.1 - 0.175, then 1 - 0.5, ...
    found = part(KNOWN)
    expected = torch.tensor([[0.075, 0, 0.5], [0.075, 0, -0.5], [-0.075, 0, 0.0], [-0.075, 0, 0.0]])
    torch.testing.assert_close(found, expected, atol=0.04, rtol=0)
    assert part.metrics()["replayed"] == 5 * 8
    assert part.metrics()["critic_v"] == pytest.approx((0.175 + 0.35) / 2, abs=0.03)


def test_high_expectiles_take_the_better_utterances():
    part = PART.but(expectile=0.98).fresh()
    for _ in range(4):
        part.learn(policy(), KNOWN, gen(1))
    assert part(KNOWN)[0, 2] < 0.15 and part(KNOWN)[1, 2] < -0.8  # V(30) is nearly the better of 1 and 0


def test_fresh_utterances_make_values_those_of_the_policy_as_it_is(monkeypatch):
    def always_20(policy, utterances, sampling, generator):
        assert (sampling.max_tokens, sampling.temperature) == (2, 1.0)
        return torch.full((len(utterances), 2, 1), 20), utterances.real.long()

    monkeypatch.setattr("partita.parts.utterance_advantage.propose", always_20)
    part = PART.but(resample=True, max_tokens=2, train_encoder=False).fresh()
    for _ in range(5):
        part.learn(policy(), KNOWN, gen(1))
    # V(30) = Q(30, 20) = 0 and V(start) = Q(start, 20) = 0.5 V(30): what was done before is no longer counted.
    expected = torch.tensor([[0.0, 0, 1.0], [0.0, 0, 0.0], [0.1, 0, 0.0], [0.1, 0, 0.0]])
    torch.testing.assert_close(part(KNOWN), expected, atol=0.04, rtol=0)


def test_nothing_is_said_before_it_learnt():
    assert not PART.fresh()(KNOWN).any() and PART.fresh().metrics() == {}


@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000))
def test_order_and_padding_change_nothing_and_rewards_are_not_read_again(seed):
    part = PART.but(updates=3).fresh()
    part.learn(policy(), KNOWN, gen(1))
    order = torch.randperm(4, generator=gen(seed))
    torch.testing.assert_close(part(KNOWN[order]), part(KNOWN)[order])
    torch.testing.assert_close(part(KNOWN.but(reward=KNOWN.reward * 3 + 1)), part(KNOWN))
    longer = KNOWN.but(
        **{n: torch.nn.functional.pad(getattr(KNOWN, n), (0, 2)) for n in ("mask", "reward", "logp", "turn")},
        inputs={k: torch.nn.functional.pad(v, (0, 2)) for k, v in KNOWN.inputs.items()},
    )
    torch.testing.assert_close(part(longer)[:, :3], part(KNOWN))
    assert not part(longer)[:, 3:].any()


@pytest.mark.parametrize("changes", [{}, {"train_encoder": False}, {"resample": True, "max_tokens": 2}])
def test_saved_and_restored_it_goes_on_to_the_bit(changes, tmp_path):
    part = PART.but(updates=3, **changes)
    mine, theirs, model = part.fresh(), part.fresh(), policy()
    mine.learn(model, KNOWN, gen(1))
    checkpoint.save(tmp_path / "c", mine.state_dict())
    theirs.load_state_dict(checkpoint.load(tmp_path / "c"))
    assert checkpoint.same(theirs.state_dict(), mine.state_dict())
    with torch.no_grad():  # the policy has moved since the critics copied its trunk
        model.lm.get_input_embeddings().weight.mul_(1.5)
    for one in (mine, theirs):
        g = gen(2)
        one.learn(model, KNOWN[:2], g)
        one.learn(model, KNOWN[1:], g)
    assert torch.equal(mine(KNOWN), theirs(KNOWN)) and bool(mine(KNOWN).any())
    assert checkpoint.same(mine.state_dict(), theirs.state_dict())
    assert part.fresh().state_dict() == {}


def test_rows_drawn_twice_count_twice():
    """One update on whatever is drawn of three trajectories equals that on the same list without sharing."""
    part = PART.but(updates=1, minibatch=12).fresh()
    part.learn(policy(), KNOWN[:1], gen(1))
    live = part._live
    held = live["replay"].take(torch.tensor([0, 0, 0]))
    ways = []
    for place, counts in (([0], [3.0]), ([0, 1, 2], [1.0, 1.0, 1.0])):
        other = part.fresh()
        other.load_state_dict(copy.deepcopy(part.state_dict()))
        other._begin(policy(), gen())
        seen = other._update(held, None, None, torch.tensor(place), torch.tensor(counts))
        ways.append((seen, other.state_dict()["saved"]["online"]))
    torch.testing.assert_close(ways[0][0], ways[1][0])
    for name, value in ways[0][1].items():
        torch.testing.assert_close(value, ways[1][1][name], rtol=1e-3, atol=1e-4)


def test_a_critic_that_explodes_stops_the_run():
    part = PART.but(updates=3).fresh()
    with pytest.raises(NonFinite, match="credit: the gradient of the utterance critic is not finite; lower"):
        part.learn(policy(), KNOWN.but(reward=KNOWN.reward * 1e30), gen())


def test_the_loop_says_itself_that_a_reward_is_not_finite():
    part = PART.fresh()
    part.learn(policy(), KNOWN.but(reward=KNOWN.reward / 0), gen())
    assert part.state_dict() == {}


def test_the_task_says_how_long_utterances_are():
    from partita.tasks.worlds.lookup import Lookup

    settled = UtteranceAdvantage().settle(Lookup())
    assert (settled.max_tokens, settled.stop) == (16, ("\n",))
    assert UtteranceAdvantage(max_tokens=3, stop=("!",)).settle(Lookup()).max_tokens == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("discount", 1.5), ("polyak", 0.0), ("polyak", 1.5), ("updates", 0), ("minibatch", 0), ("capacity", 0),
        ("critic_lr", -1.0), ("critic_grad_norm", 0.0), ("expectile", 1.0), ("max_tokens", 0),
    ],
)  # fmt: skip
def test_settings_out_of_range_name_the_field(field, value):
    with pytest.raises(UserError, match=rf"credit\.{field}: expected .* got {value}"):
        UtteranceAdvantage(**{field: value})
