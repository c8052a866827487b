"""ArCHer: what its warm-up and token baseline add to the critic of utterances, and whole runs."""

import pytest
import torch
from surrogates import late, learn, learner

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.lab import checkpoint
from partita.lab.config import Config, Settings
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.agents.archer import ARCHER, RECIPES, HierarchicalCredit
from partita.papers.baselines.reinforce import REINFORCE
from partita.parts.utterance_advantage import UtteranceAdvantage
from partita.policies.language import Language
from partita.tasks.language.probes import ProbeBandit, ProbeTurns
from partita.tasks.worlds.twenty import Twenty
from resuming import resumed_alike

QUICK = {"updates": 4, "minibatch": 64, "critic_lr": 3e-3}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_turns() -> Batch:
    """Four conversations of two utterances, of two tokens and of one; the last is paid."""
    mask = torch.tensor([[True, True, False, True]]).expand(4, -1)
    reward = torch.zeros(4, 4)
    reward[:, 3] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    tokens = torch.tensor([[20, 22, 30, 21], [20, 22, 30, 23], [25, 26, 30, 21], [25, 26, 30, 23]])
    return Batch(
        mask=mask, reward=reward, logp=torch.full((4, 4), -0.5) * mask, turn=torch.tensor([[0, 0, 0, 1]]).expand(4, -1),
        value=torch.arange(16.0).reshape(4, 4) * mask,
        inputs={"tokens": tokens, "attend": torch.ones(4, 4, dtype=torch.bool), "temperature": torch.ones(4, 4)},
        context={"prompt": torch.full((4, 1), 9), "prompt_mask": torch.ones(4, 1, dtype=torch.bool)},
    )  # fmt: skip


def taught(part, times: int = 1):
    part = part.but(max_tokens=2, **QUICK).fresh()
    policy, g = learner(), gen(1)
    for _ in range(times):
        part.learn(policy, two_turns(), g)
    return part


def test_the_recipe_changes_reinforce_in_its_credit_and_its_defaults_are_the_official_ones():
    part = ARCHER.credit
    assert ARCHER.but(credit=REINFORCE.credit, whiten="batch") == REINFORCE
    assert (part.discount, part.polyak, part.updates, part.minibatch, part.capacity, part.warmup) == (
        0.95, 0.1, 50, 256, 100_000, 20,
    )  # fmt: skip
    assert part.expectile == 0.5 and part.resample and not part.token_baseline
    assert RECIPES["archer_iql"].credit.expectile == 0.9


def test_without_warm_up_and_baseline_it_is_the_critic_of_utterances_alone():
    mine, plain = taught(HierarchicalCredit(warmup=0), 2), taught(UtteranceAdvantage(), 2)
    assert torch.equal(mine(two_turns()), plain(two_turns())) and bool(mine(two_turns()).any())


def test_every_token_of_an_utterance_has_its_advantage():
    found = taught(HierarchicalCredit(warmup=0), 3)(two_turns())
    assert torch.equal(found[:, 0], found[:, 1]) and not found[:, 2].any()
    assert not torch.equal(found[:, 0], found[:, 3])
    # A good and a bad second utterance after the same history, judged apart.
    assert found[0, 3] > found[1, 3] and found[2, 3] > found[3, 3]


def test_the_policy_waits_while_the_critic_warms_up():
    part = taught(HierarchicalCredit(warmup=2))
    assert not part(two_turns()).any() and part.metrics()["replayed"] == 8
    policy = learner()
    for expected in (8, 16, 24):
        assert part.metrics()["replayed"] == expected
        part.learn(policy, two_turns(), gen())
    assert bool(part(two_turns()).any())


def test_a_run_does_not_move_the_policy_before_the_warm_up_is_over():
    for warmup, moves in ((3, False), (2, True)):
        policy = learner()
        before = {n: p.detach().clone() for n, p in policy.trainable().items()}
        recipe = ARCHER.but(steps=3, batch_size=8, lr=1e-2, credit=HierarchicalCredit(warmup=warmup, **QUICK))
        train(recipe, policy, ProbeTurns(), Run(0))
        assert all(torch.equal(p, before[n]) for n, p in policy.trainable().items()) is not moves


def test_the_token_baseline_is_taken_off_and_learns_the_utterances_advantage():
    plain, based = (taught(HierarchicalCredit(warmup=0, token_baseline=b), 2) for b in (False, True))
    batch = two_turns()
    torch.testing.assert_close(based(batch), (plain(batch) - batch.value) * batch.mask)
    filled = batch.but(advantage=based(batch))
    torch.testing.assert_close(based.returns(filled), plain(batch))
    assert based.needs == ("value",) and plain.needs == ()
    waiting = taught(HierarchicalCredit(warmup=5, token_baseline=True))
    kept = batch.but(advantage=waiting(batch))
    assert torch.equal(waiting.returns(kept), batch.value)  # no gradient for the baseline either


def test_saved_and_restored_it_is_as_far_in_its_warm_up(tmp_path):
    part = HierarchicalCredit(warmup=2, max_tokens=2, **QUICK)
    mine, theirs, policy = part.fresh(), part.fresh(), learner()
    mine.learn(policy, two_turns(), gen())
    mine.learn(policy, two_turns(), gen())
    checkpoint.save(tmp_path / "c", mine.state_dict())
    theirs.load_state_dict(checkpoint.load(tmp_path / "c"))
    for one in (mine, theirs):
        assert not one(two_turns()).any()
        one.learn(policy, two_turns(), gen(3))
    assert torch.equal(mine(two_turns()), theirs(two_turns())) and bool(mine(two_turns()).any())
    assert checkpoint.same(mine.state_dict(), theirs.state_dict())
    assert part.fresh().state_dict() == {"calls": {}}


@pytest.mark.parametrize("name", ["archer", "archer_baseline", "archer_iql"])
def test_a_run_stopped_and_resumed_is_the_run_that_was_never_stopped(name, tmp_path):
    recipe = RECIPES[name]
    credit = recipe.credit.but(updates=2, minibatch=16, capacity=30, warmup=1)
    recipe = recipe.but(steps=4, batch_size=4, lr=1e-3, credit=credit)
    rows = resumed_alike(Config(name, recipe, Twenty(level=1), Language(), Settings(seed=2000)), tmp_path)
    assert all({"critic_q_loss", "replayed"} <= row.keys() for row in rows)


def test_it_learns_one_token():
    credit = ARCHER.credit.but(warmup=2, updates=8, minibatch=96, critic_lr=3e-3)
    run = learn(ARCHER.but(credit=credit), ProbeBandit(), steps=24, whiten="batch")
    assert run.metrics[0]["return"] < 0.45 and late(run) > 0.9
    assert run.metrics[-1]["critic_q"] > 0.5


def test_it_learns_two_turns():
    credit = ARCHER.credit.but(warmup=2, updates=6, minibatch=96, critic_lr=3e-3)
    run = learn(ARCHER.but(credit=credit), ProbeTurns(), steps=45, whiten="batch")
    assert run.metrics[0]["return"] < 0.45 and late(run) > 0.7  # what a policy gets that does not read the reply


def test_control_is_refused():
    from partita.policies.actor_critic import ActorCritic
    from partita.tasks.control.probes import ProbeContinuous

    task = ProbeContinuous()
    with pytest.raises(UserError, match="credit: hierarchical_credit works in language"):
        train(recipe_of("archer").but(steps=1), ActorCritic().build(task, False, gen()), task, Run(0))


def test_a_warm_up_below_zero_names_the_field():
    with pytest.raises(UserError, match=r"credit\.warmup: expected 0 or more steps, got -1"):
        HierarchicalCredit(warmup=-1)
