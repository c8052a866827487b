"""Which rows are chosen, what lags, how temperature and exploration move."""

import math

import pytest
import torch

import agents
from partita.core.errors import UserError
from partita.core.spaces import Discrete
from partita.core.store import Store
from partita.parts.explore import Drawn, EpsilonGreedy, Noisy, anything
from partita.parts.replay import BestEpisodes, MixedReplay, PrioritisedReplay, UniformReplay
from partita.parts.target import Copy, Polyak
from partita.parts.temperature import FixedTemperature, TunedTemperature


def filled(count, fixed=0, capacity=64):
    store = Store(1, 1, capacity=capacity, fixed=fixed)
    if fixed:
        column = torch.arange(fixed, dtype=torch.float32)[:, None]
        no = torch.zeros(fixed, dtype=torch.bool)
        store.give(column, column * 0, column[:, 0], column, no, no, episode=torch.arange(fixed) // 5)
    for t in range(count):
        value = torch.full((1, 1), float(t))
        store.add(value, value * 0, value[0], value, torch.tensor([False]), torch.tensor([False]))
    return store


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counts(part, store, rounds=200, size=100):
    g, total = generator(), torch.zeros(len(store.rows))
    for _ in range(rounds):
        total += part(store, size, g)[0].bincount(minlength=len(store.rows))
    return total / total.sum()


def test_uniform_takes_what_is_there_alike():
    found = counts(UniformReplay(), filled(20, fixed=20))
    torch.testing.assert_close(found[:40], torch.full((40,), 1 / 40), atol=0.004, rtol=0)
    assert found[40:].sum() == 0


def test_mixed_takes_its_share_of_both():
    found = counts(MixedReplay(share=0.3), filled(10, fixed=20))
    assert found[:20].sum() == pytest.approx(0.3) and found[20:30].sum() == pytest.approx(0.7)
    assert counts(MixedReplay(), filled(0, fixed=20))[:20].sum() == 1
    assert counts(MixedReplay(), filled(10))[:10].sum() == 1


def test_best_episodes_are_those_with_the_highest_returns():
    part, store = BestEpisodes(share=0.25), filled(0, fixed=20)
    part.start(store, 0.99)
    assert counts(part, store)[15:20].sum() == 1  # rewards rise, so the last of four episodes is the best


def test_priorities_decide_how_often_and_weights_undo_it():
    part, store = PrioritisedReplay(alpha=0.5, beta=1.0, anneal=1), filled(50)
    part(store, 4, generator())
    errors = torch.arange(1.0, 51.0)
    part.learn(torch.arange(50), errors)
    expected = (errors + 1e-6) ** 0.5
    found = counts(part, store, rounds=400)[:50]
    torch.testing.assert_close(found, (expected / expected.sum()).float(), atol=0.003, rtol=0)
    index, weight = part(store, 1000, generator())
    raw = 1 / (50 * expected[index] / expected.sum())
    torch.testing.assert_close(weight, (raw / raw.max()).float(), rtol=1e-4, atol=1e-6)


def test_new_rows_have_the_largest_priority_there_has_been():
    part, store = PrioritisedReplay(alpha=1.0), filled(10)
    part(store, 4, generator())
    part.learn(torch.arange(10), torch.full((10,), 3.0))
    for t in (10, 11):
        value = torch.full((1, 1), float(t))
        store.add(value, value, value[0], value, torch.tensor([False]), torch.tensor([False]))
    found = counts(part, store)
    torch.testing.assert_close(found[:12], torch.full((12,), 1 / 12), atol=0.01, rtol=0)


def test_priorities_follow_the_ring_over_its_seam_and_over_blocks():
    part, store = PrioritisedReplay(alpha=1.0), filled(1000, fixed=1500, capacity=2000)
    part(store, 4, generator())
    part.learn(torch.arange(2500), torch.full((2500,), 1e-9))
    for t in range(1100):
        value = torch.full((1, 1), float(t))
        store.add(value, value, value[0], value, torch.tensor([False]), torch.tensor([False]))
    index, _ = part(store, 20_000, generator())
    new = set(range(2500, 3500)) | set(range(1500, 1600))
    assert set(index.tolist()) <= new and len(set(index.tolist())) > 1090


def test_priorities_survive_a_checkpoint():
    part, store = PrioritisedReplay(), filled(30)
    part(store, 4, generator())
    part.learn(torch.arange(30), torch.arange(30.0))
    again = part.fresh()
    again.load_state_dict(part.state_dict())
    assert torch.equal(part(store, 50, generator(3))[0], again(store, 50, generator(3))[0])


def test_beta_rises_to_one():
    part, store = PrioritisedReplay(alpha=1.0, beta=0.0, anneal=2), filled(4)
    part(store, 4, generator())
    part.learn(torch.arange(4), torch.tensor([1.0, 1.0, 1.0, 8.0]))
    weight = part(store, 100, generator())[1]
    assert weight.min().item() == pytest.approx(1 / 8, rel=1e-4)


def test_polyak_and_copy():
    lagged, learnt = [torch.zeros(2)], [torch.ones(2)]
    part = Polyak(tau=0.25, every=2)
    part(lagged, learnt, 1)
    assert lagged[0].tolist() == [0, 0]
    part(lagged, learnt, 2)
    part(lagged, learnt, 4)
    assert lagged[0].tolist() == [0.4375, 0.4375]
    Copy(every=3)(lagged, learnt, 5)
    assert lagged[0].tolist() == [0.4375, 0.4375]
    Copy(every=3)(lagged, learnt, 6)
    assert lagged[0].tolist() == [1, 1]


class Task:
    action_space = agents.BOX


def test_the_temperature_moves_against_the_excess_of_entropy_as_adam_does():
    part = TunedTemperature(lr=0.1, initial=0.5).settle(Task())
    assert part.target == -2 and part.alpha() == 0.5
    log = torch.tensor(math.log(0.5), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([log], lr=0.1)
    for entropy in (1.0, 0.3, -3.0, -2.5):
        part.learn(torch.tensor(entropy, dtype=torch.float64))
        log.grad = torch.tensor(entropy + 2, dtype=torch.float64)
        adam.step()
        assert part.alpha() == pytest.approx(float(log.exp()), rel=1e-9)
    again = TunedTemperature(lr=0.1, target=-2.0)
    again.load_state_dict(part.state_dict())
    assert again.alpha() == part.alpha()


def test_too_little_entropy_raises_the_temperature():
    part = TunedTemperature(target=0.0)
    part.learn(torch.tensor(-1.0))
    assert part.alpha() > 1
    Task.action_space = Discrete(4)
    assert TunedTemperature(share=0.5).settle(Task()).target == pytest.approx(0.5 * math.log(4))
    Task.action_space = agents.BOX
    assert FixedTemperature(0.2).alpha() == 0.2


def test_exploration():
    agent, obs = agents.agent(), agents.transitions(n=400).obs
    noisy = Noisy(std=0.1)(agent, obs, 0, generator())
    assert (noisy - agent.mode(obs)).std().item() == pytest.approx(0.1, abs=0.01) and noisy.abs().max() <= 1
    assert torch.equal(Noisy(std=0.0)(agent, obs, 0, generator()), agent.mode(obs))
    drawn = Drawn()(agent, obs, 0, generator())
    assert not torch.equal(drawn, agent.mode(obs))
    other = agents.agent(discrete=True, head="greedy")
    part = EpsilonGreedy(first=1.0, last=0.1, steps=100)
    assert [part.chance(n) for n in (0, 50, 100, 1000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    same = (part(other, obs, 1000, generator()) == other.mode(obs)).double().mean().item()
    assert same == pytest.approx(0.9 + 0.1 / 4, abs=0.04)
    assert set(anything(Discrete(3), 50, generator()).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MixedReplay(share=1.5), "replay.share"),
        (lambda: BestEpisodes(share=0.0), "replay.share"),
        (lambda: PrioritisedReplay(alpha=-0.1), "replay.alpha"),
        (lambda: PrioritisedReplay(anneal=0), "replay: expected anneal"),
        (lambda: Polyak(tau=0.0), "target.tau"),
        (lambda: Copy(every=0), "target.every"),
        (lambda: FixedTemperature(value=-1.0), "temperature.value"),
        (lambda: TunedTemperature(initial=0.0), "temperature.initial"),
        (lambda: TunedTemperature(share=1.0), "temperature.share"),
        (lambda: Noisy(std=-1.0), "explore.std"),
        (lambda: EpsilonGreedy(first=2.0), "explore.first"),
        (lambda: EpsilonGreedy(steps=0), "explore.steps"),
    ],
)  # fmt: skip
def test_bad_settings_are_named_in_one_line(make, named):
    with pytest.raises(UserError, match=named) as error:
        make()
    assert "\n" not in str(error.value)
