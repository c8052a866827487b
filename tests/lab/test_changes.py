"""Changes to configurations under the flags' own names."""

from __future__ import annotations

import json

import pool_jobs
import pytest

from partita.core.errors import UserError
from partita.lab.changes import changed, plain
from partita.parts.credit import LeaveOneOut
from partita.parts.regularisers import KL, Entropy


def test_every_kind_of_name():
    config = changed(
        pool_jobs.small("grpo"),
        {
            "lr": 3e-3, "eval_size": 7, "credit": "leave_one_out", "task.max_steps": 33, "policy.hidden": (4, 4),
            "objective.clip_low": 0.1, "seed": 5,
        },
    )  # fmt: skip
    assert config.recipe.lr == 3e-3
    assert (config.settings.eval_size, config.settings.seed) == (7, 5)
    assert config.recipe.credit == LeaveOneOut()
    assert config.task.max_steps == 33
    assert config.policy.hidden == (4, 4)
    assert config.recipe.objective.clip_low == 0.1


def test_parts_as_objects_names_and_tables_are_the_same():
    base = pool_jobs.small("grpo")
    ways = [LeaveOneOut(), "leave_one_out", {"part": "leave_one_out"}]
    found = [changed(base, {"credit": way}) for way in ways]
    assert found[0] == found[1] == found[2] != base


def test_slots_of_many_parts():
    base = changed(pool_jobs.small("grpo"), {"regularisers": [KL(weight=0.1), "entropy"]})
    assert base.recipe.regularisers == (KL(weight=0.1), Entropy())
    one = changed(base, {"regularisers": "entropy"})
    assert one.recipe.regularisers == (Entropy(),)
    deep = changed(base, {"regularisers.kl.weight": 0.2})
    assert deep.recipe.regularisers == (KL(weight=0.2), Entropy())


def test_changes_apply_in_order():
    found = changed(pool_jobs.small("grpo"), {"credit": "group_relative", "credit.std": False})
    assert found.recipe.credit.std is False
    again = changed(pool_jobs.small("grpo"), {"lr": 1e-3, **{"lr": 2e-3}})
    assert again.recipe.lr == 2e-3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lrr": 1}, "lrr: no such field; did you mean lr"),
        ({"credit": "gae2"}, "no such part"),
        ({"credit.epsilon": 1}, "credit.epsilon: group_relative has no such setting"),
        ({"regularisers.entropy.weight": 1}, "regularisers.entropy: not among its parts"),
        ({"steps": 0}, "steps: expected 1 or more"),
        ({"task": "cart"}, "no such part"),
    ],
)  # fmt: skip
def test_what_cannot_be_changed(changes, says):
    with pytest.raises(UserError) as error:
        changed(pool_jobs.small("grpo"), changes)
    assert says in str(error.value)


def test_plain_values_make_the_same_configuration():
    changes = {
        "credit": LeaveOneOut(),
        "regularisers": (KL(weight=0.3), Entropy()),
        "lr": 1e-3,
        "policy.hidden": (4, 4),
    }
    told = json.loads(json.dumps(plain(changes)))
    a, b = (changed(pool_jobs.small("grpo"), c) for c in (changes, told))
    assert a == b
