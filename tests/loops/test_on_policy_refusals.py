"""The on-policy loop: what stops it, and what it refuses to start."""

from dataclasses import dataclass

import pytest
import torch

from partita.core.errors import NonFinite, UserError
from partita.loops.on_policy import OnPolicy, train
from partita.loops.run import Run
from partita.papers.baselines.grpo import GRPO
from partita.papers.baselines.ppo import PPO
from partita.parts.credit import GreedyBaseline, GroupRelative, LeaveOneOut
from partita.parts.reference import Frozen
from partita.parts.regularisers import KL, ValueLoss
from partita.parts.reward import SoftOverlong
from partita.parts.rollout import Sample, Segments
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.probes import ProbeAction, ProbeContinuous
from partita.tasks.language.arithmetic import Arithmetic

SMALL_PPO = PPO.but(rollout=Segments(steps=8), batch_size=6, steps=3)


def policy_for(task, recipe):
    value = "value" in recipe.needs()
    return ActorCritic(hidden=(8,)).build(task, value, torch.Generator().manual_seed(0))


# ----- numbers that are not finite


def breaking(slot, name):
    """A part of the slot whose result has one NaN; `name` is how the loop calls the tensor."""
    base = SMALL_PPO.reward[0] if slot == "reward" else getattr(SMALL_PPO, slot)

    def call(self, *args):
        out = type(base).__call__(self, *args).clone()
        out[0, 0] = float("nan")
        return out

    kind = dataclass(frozen=True)(type(f"Bad{slot}", (type(base),), {"__call__": call}))
    return {slot: (kind(),) if slot == "reward" else kind()}, f"step 1: {slot}: {name}"


BAD = [("reward", "reward"), ("credit", "advantage"), ("focus", "weight"), ("objective", "badobjective")]


@pytest.mark.parametrize(("slot", "name"), BAD)
def test_a_nan_names_its_step_slot_and_tensor_and_leaves_the_weights_alone(slot, name):
    changes, message = breaking(slot, name)
    many = {"epochs": 1, "minibatches": 1} if slot == "objective" else {}
    stops_untouched(SMALL_PPO.but(**changes, **many), message)


def stops_untouched(recipe, message, prepare=lambda policy: None):
    task = ProbeContinuous()
    policy = policy_for(task, recipe)
    prepare(policy)
    before = {n: p.clone() for n, p in policy.state_dict().items()}
    with pytest.raises(NonFinite, match=f"{message} is not finite in .*; stopped"):
        train(recipe, policy, task, Run(0))
    assert all(torch.equal(a, before[n]) or not before[n].isfinite().all() for n, a in policy.state_dict().items())


@dataclass(frozen=True)
class NanLogp(Segments):
    def __call__(self, *args):
        batch = super().__call__(*args)
        return batch.but(logp=torch.full_like(batch.logp, float("nan")))


@dataclass(frozen=True)
class LostReference(Frozen):
    """A reference that gives the sampled action no probability at all: its loss is infinite, its gradient is not."""

    def logp(self, policy, batch):
        return torch.full_like(batch.logp, -torch.inf)


def test_a_nan_of_the_rollout_or_the_critic_is_named():
    stops_untouched(SMALL_PPO.but(rollout=NanLogp(steps=8)), "step 1: rollout: logp")

    def spoil(policy):
        with torch.no_grad():
            policy.module.critic[-1].bias.fill_(float("nan"))

    stops_untouched(SMALL_PPO, "step 1: policy: value", spoil)


def test_an_infinite_loss_with_a_finite_gradient_changes_no_weight():
    recipe = SMALL_PPO.but(regularisers=(ValueLoss(), KL(estimator="k1")), reference=LostReference())
    stops_untouched(recipe, "step 1: reference: ref_logp")


def test_an_exploding_learning_rate_stops_the_run():
    task, recipe = ProbeContinuous(), SMALL_PPO.but(lr=1e38, steps=5)
    with pytest.raises(NonFinite, match=r"^step \d: \w+: .*; stopped$"):
        train(recipe, policy_for(task, recipe), task, Run(0))


# ----- refusals


def refused(recipe, task, message):
    settled, policy = recipe.settle(task), policy_for(ProbeAction(), recipe)
    with pytest.raises(UserError, match=message):
        settled.check(task, policy)


@pytest.mark.parametrize(
    ("recipe", "task", "message"),
    [
        (OnPolicy(credit=GroupRelative()), ProbeAction(), "credit group_relative compares trajectories of a group"),
        (OnPolicy(credit=LeaveOneOut()), ProbeAction(), "credit leave_one_out compares .* use --group-size 2 or more"),
        (OnPolicy(rollout=Segments()), Arithmetic(), "rollout: segments works in control, and task arithmetic is"),
        (OnPolicy(rollout=Segments(), group_size=2), ProbeAction(), "rollout segments has no groups"),
        (OnPolicy(reward=(SoftOverlong(),)), ProbeAction(), "reward: soft_overlong works in language"),
        (OnPolicy(rollout=Sample(temperature=0.5)), ProbeAction(), "rollout sample has no temperature"),
        (GRPO.but(batch_size=2, group_size=2, minibatches=5), ProbeAction(), "minibatches: 5 are more than the 4"),
        (OnPolicy(credit=GreedyBaseline(), rollout=Segments()), ProbeAction(), "segments takes no greedy trajectories"),
        (OnPolicy(regularisers=(ValueLoss(),)), ProbeAction(), "value_loss .* credit monte_carlo has no critic"),
    ],
)  # fmt: skip
def test_combinations_that_cannot_work_are_refused_with_the_fix(recipe, task, message):
    refused(recipe, task, message)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0}, {"batch_size": 0}, {"group_size": -1}, {"epochs": 0}, {"minibatches": 0}, {"micro_batch": 0},
        {"lr": 0.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"max_grad_norm": -1.0}, {"max_grad_norm": 0.0},
        {"adam_eps": 0.0}, {"warmup": -1}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}, {"whiten": "batches"},
        {"lr_schedule": "cosine"},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_out_of_range_name_the_field_and_the_value(changes):
    ((name, value),) = changes.items()
    with pytest.raises(UserError) as caught:
        OnPolicy(**changes)
    assert str(caught.value).startswith(f"{name}: expected ") and str(value).strip("'") in str(caught.value)
