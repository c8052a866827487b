"""T-PPO: advantages of unfinished responses, who learns from which token, and what it saves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.recipe import differences
from partita.core.registry import part_class
from partita.estimators.masked import put_last
from partita.lab import checkpoint
from partita.lab.config import Config, Settings
from partita.lab.train import launch
from partita.loops.on_policy import gather, train
from partita.loops.run import Generators, Run
from partita.papers.baselines.ppo import PPO
from partita.papers.reasoning.t_ppo import CLAIMS, T_PPO, ExtendedGAE, LatestWindow, Windowed
from partita.parts.credit import GAE
from partita.parts.regularisers import ValueLoss
from partita.parts.rollout import Sample
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.language.probes import ProbeBandit, ProbeDelayedVerifier

f64 = torch.float64


def batch_of(values, ends, lengths=None):
    """Rows of one window; `ends`: "over", "cut" (at the greatest length) or "on"; the outcome of each is 1."""
    value = torch.tensor(values, dtype=f64)
    lengths = torch.tensor(lengths or [value.shape[1]] * len(values))
    column = torch.arange(value.shape[1])
    mask, last = column < lengths[:, None], column == lengths[:, None] - 1
    kinds = {k: torch.tensor([e == k for e in ends])[:, None] for k in ("over", "cut", "on")}
    over = ~kinds["on"][:, 0]
    return Batch(
        mask=mask, value=value * mask, logp=torch.zeros_like(value), terminated=last & kinds["over"],
        truncated=last & kinds["cut"], reward=put_last(over.double(), mask), outcome=over.double(),
    )  # fmt: skip


def test_an_unfinished_response_bootstraps_from_the_value_before_the_cut_by_hand():
    batch = batch_of([[0.2, 0.5, 0.4]], ["on"])
    # deltas: 0.5 - 0.2, 0.4 - 0.5, and 0.4 - 0.4 at the cut; lambda 1/2
    assert ExtendedGAE(gae_lambda=0.5)(batch)[0].tolist() == pytest.approx([0.3 - 0.05, -0.1, 0.0])
    part = ExtendedGAE(discount=0.9, gae_lambda=0.5)
    d = [0.9 * 0.5 - 0.2, 0.9 * 0.4 - 0.5, 0.9 * 0.4 - 0.4]
    expected = [d[0] + 0.45 * d[1] + 0.45**2 * d[2], d[1] + 0.45 * d[2], d[2]]
    assert part(batch)[0].tolist() == pytest.approx(expected)


def test_an_ended_response_gets_its_outcome_and_nothing_from_beyond_by_hand():
    batch = batch_of([[0.2, 0.5, 0.4], [0.2, 0.5, 0.4]], ["over", "cut"])
    expected = [0.3 + 0.5 * (-0.1 + 0.5 * 0.6), -0.1 + 0.5 * 0.6, 0.6]
    for row in ExtendedGAE(gae_lambda=0.5)(batch).tolist():
        assert row == pytest.approx(expected)


def test_on_ended_responses_it_is_gae_and_its_returns_at_equal_lambdas_are_those_of_ppo():
    g = torch.Generator().manual_seed(0)
    values = torch.randn(5, 7, generator=g, dtype=f64).tolist()
    batch = batch_of(values, ["over", "cut", "over", "over", "cut"], [7, 3, 1, 5, 6])
    part = ExtendedGAE(discount=0.97, gae_lambda=0.8, value_lambda=0.8)
    plain = GAE(discount=0.97, gae_lambda=0.8)
    torch.testing.assert_close(part(batch), plain(batch), rtol=0, atol=0)
    full = batch.but(advantage=plain(batch))
    torch.testing.assert_close(part.returns(full), plain.returns(full), rtol=0, atol=0)
    unmarked = batch.but(terminated=None, truncated=None)
    torch.testing.assert_close(part(unmarked), plain(unmarked), rtol=0, atol=0)


def test_the_critic_learns_monte_carlo_returns_whatever_the_lambda_of_the_policy():
    batch = batch_of([[0.2, 0.5, 0.4], [0.1, 0.9, 0.3]], ["over", "on"])
    found = ExtendedGAE(gae_lambda=0.3).returns(batch)
    assert found[0].tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert found[1].tolist() == pytest.approx([0.3, 0.3, 0.3])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99), more=st.integers(1, 4))
def test_padding_order_and_a_score_given_too_early_change_nothing(seed, more):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 5, generator=g, dtype=f64)
    ends, lengths = ["on", "over", "on", "cut"], [5, 4, 2, 1]
    batch, part = batch_of(values.tolist(), ends, lengths), ExtendedGAE()
    found = part(batch)
    wider = batch_of(torch.cat([values, torch.randn(4, more, generator=g, dtype=f64)], 1).tolist(), ends, lengths)
    torch.testing.assert_close(part(wider)[:, :5], found)
    order = torch.randperm(4, generator=g)
    torch.testing.assert_close(part(batch[order]), found[order])
    early = batch.but(reward=put_last(torch.ones(4, dtype=f64), batch.mask))
    torch.testing.assert_close(part(early), found)


def test_tokens_of_earlier_windows_that_are_not_in_the_mask_do_not_take_part():
    """An unfinished response in its second window: the first window's tokens exist, and are no decisions now."""
    whole = batch_of([[0.7, 0.1, 0.2, 0.5, 0.4]], ["on"])
    mask = torch.tensor([[False, False, True, True, True]])
    part = batch_of([[0.2, 0.5, 0.4]], ["on"])
    windowed = whole.but(mask=mask, value=whole.value * mask)
    torch.testing.assert_close(ExtendedGAE()(windowed)[:, 2:], ExtendedGAE()(part))
    assert not bool(ExtendedGAE()(windowed)[:, :2].any())


def test_the_policy_learns_from_the_last_window_and_the_critic_from_what_has_ended():
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]]).bool()
    turn = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    batch = Batch(mask=mask, turn=turn, advantage=torch.ones(3, 4, dtype=f64))
    assert LatestWindow()(batch).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]]
    assert LatestWindow()(batch.but(turn=None)).tolist() == mask.double().tolist()
    value = torch.tensor([[0.5, 1.0, 0.0, 0.0]] * 3, dtype=f64, requires_grad=True)
    batch = batch.but(returns=torch.ones(3, 4, dtype=f64), value=torch.zeros(3, 4, dtype=f64))
    weight = torch.tensor([[1.0], [0.0], [1.0]], dtype=f64) * mask
    loss = ValueLoss(weight=0.5)(Outputs(value, value=value), batch.but(value_weight=weight))
    loss.sum().backward()
    plain = ValueLoss(weight=0.5)(Outputs(value, value=value), batch)
    torch.testing.assert_close(loss, plain * weight)
    torch.testing.assert_close(value.grad, 0.5 * (value.detach() - 1) * weight)


def tiny(context=32):
    model = tiny_model(tiny_config("qwen2", hidden=32, layers=1, heads=2, context=context))
    return LanguagePolicy(model, character_tokenizer(context=context), Language(), True)


def test_with_whole_responses_it_is_ppo_to_the_bit():
    small = dict(steps=3, batch_size=8, lr=1e-3)
    ours = T_PPO.but(rollout=Windowed(window=8), credit=ExtendedGAE(value_lambda=0.95), **small)
    weights = []
    for recipe in (ours, PPO.but(**small)):
        policy, run = tiny(), Run(0)
        train(recipe, policy, ProbeDelayedVerifier(), run)
        weights.append(torch.cat([p.detach().flatten() for p in policy.trainable().values()]))
    assert torch.equal(*weights)
    slots = {name for name, _, _ in differences(T_PPO, PPO)}
    assert slots == {"rollout", "credit", "focus"}


def test_it_learns_a_bandit():
    policy = tiny()
    train(T_PPO.but(rollout=Windowed(window=1), batch_size=48, lr=1e-2, steps=12), policy, ProbeBandit(), Run(0))
    g = torch.Generator().manual_seed(1)
    found = Sample().sample(policy, ProbeBandit(), ProbeBandit().problems(64, g), 1, g)
    assert float(found.outcome.mean()) > 0.9


def test_a_token_that_is_drawn_long_before_the_verdict_learns_through_the_critic():
    """The first of eight tokens decides, in windows of four: only the value at the cut tells it anything."""
    recipe = T_PPO.but(rollout=Windowed(window=4), batch_size=48, lr=3e-3, steps=36)
    policy, run = tiny(), Run(0)
    train(recipe, policy, ProbeDelayedVerifier(delay=4), run)
    success = [m["success"] for m in run.metrics if "success" in m]
    assert sum(success[:8]) / 8 < 0.45 and sum(success[-6:]) / 6 > 0.7


def test_in_windows_of_one_token_unfinished_responses_teach_nothing():
    batch = batch_of([[0.3], [0.9]], ["on", "over"])
    assert ExtendedGAE()(batch)[:, 0].tolist() == pytest.approx([0.0, 0.1])


def test_the_loop_hands_returns_and_weights_to_the_update_and_learning_takes_fewer_sampler_steps():
    task = part_class("task", "arithmetic")(level=0)
    spent = {}
    for name, recipe in (("t_ppo", T_PPO), ("ppo", PPO.but(rollout=Sample()))):
        policy = Language().build(task, True, Generators(0)["init"])
        recipe = recipe.but(batch_size=16).settle(task, policy).fresh()
        rows = [gather(recipe, policy, task, Generators(i), i) for i in range(3)]
        spent[name] = sum(metrics["decode_steps"] for _, _, metrics in rows)
        batch = rows[-1][0]
        assert math.isfinite(float(batch.returns.sum())) and batch.advantage.isfinite().all()
        over = batch.outcome > 0
        if name == "t_ppo":
            torch.testing.assert_close(batch.returns[over], batch.mask[over].float())
            assert not bool(batch.value_weight.all()) and bool(batch.value_weight.any())
    assert spent["t_ppo"] < spent["ppo"] / 1.5


def test_a_run_that_was_stopped_goes_on_to_the_same_end(tmp_path):
    task = part_class("task", "arithmetic")(level=4)
    recipe = T_PPO.but(steps=5, batch_size=4, epochs=1, minibatches=1, lr=1e-4)
    ends = []
    for name, stops in (("whole", (None,)), ("stopped", (2, None))):
        for until in stops:
            config = Config(
                "t_ppo", recipe, task, Language(), Settings(eval_size=0, save_every=1, until=None, threads=1)
            )
            result = launch_until(config, tmp_path / name, until)
        assert result.finished
        ends.append(checkpoint.load(sorted((tmp_path / name / "checkpoints").glob("step_*"))[-1]))
    assert ends[0]["part.2.windowed"]["problems"]
    for state in ends:
        state.pop("run", None)
    assert all(
        checkpoint.same(ends[0][key], ends[1][key]) for key in ends[0] if key.startswith(("policy", "part", "gen"))
    )


def launch_until(config, folder, until):
    """Carry out the run, or part of it: a stop after step `until`, as a signal makes one."""
    import partita.lab.run as lab

    begun = (folder / "config.json").is_file()
    if until is None:
        return launch(config, folder, begun)
    held = lab.FolderRun.log

    def log(self, step, *rest):
        held(self, step, *rest)
        self.stopped = self.stopped or step >= until

    lab.FolderRun.log = log
    try:
        return launch(config, folder, begun)
    finally:
        lab.FolderRun.log = held


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"credit\.value_lambda"):
        ExtendedGAE(value_lambda=1.5)
    with pytest.raises(UserError, match=r"credit\.gae_lambda"):
        ExtendedGAE(gae_lambda=-0.1)


def test_the_claims_can_be_carried_out():
    from partita.lab.claims import Trial

    for claim in CLAIMS:
        trial = Trial(claim, None, (0,))
        for _, changes in trial.settings:
            for arm in ("treatment", "control"):
                config = trial.config(arm, changes)
                assert config.recipe.batch_size == 32 and config.recipe.epochs == 1


def test_a_recipe_whose_parts_work_in_language_only_has_a_language_task_by_default():
    from partita.lab.flags import parse

    assert parse(["t_ppo"])[0].task.part_name() == "arithmetic" and parse(["ppo"])[0].task.part_name() == "cartpole"
    assert parse(["t_ppo", "--task", "strings"])[0].recipe.rollout.window == 22
