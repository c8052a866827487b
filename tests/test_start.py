"""What a run loads before its first update is over, and how: starting costs little but its imports."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

from partita.core.collector import unswept

# Each costs a tenth of a second or more, and none of them has a part in the first update.
NEVER = {
    "scipy.stats", "pandas", "sklearn", "matplotlib", "plotly", "datasets", "pyarrow", "trl", "peft", "ray",
    "gymnasium", "partita.lab.report", "partita.lab.compare", "partita.tasks.offline.task", "partita.tasks.finite.mdp",
}  # fmt: skip
# Of transformers: its models come with attention, caches and a loader, and need neither trainers nor pictures.
NOT_FOR_LANGUAGE = {
    "transformers.trainer", "transformers.pipelines", "transformers.modelcard",
    "transformers.image_processing_utils", "partita.tasks.control.base",
}  # fmt: skip
NOT_FOR_CONTROL = {"transformers", "tokenizers", "huggingface_hub", "torch._dynamo", "sympy", "scipy.optimize"}

FIRST_UPDATE = """
import gc, json, os, sys
from partita.cli import main
from partita.lab.run import FolderRun

def stop(run, step, metrics, batch=None):
    print(json.dumps({"modules": list(sys.modules), "on": gc.isenabled()}), flush=True)
    os._exit(0)

FolderRun.log = stop
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("recipe", "task", "never"),
    [
        ("grpo", "arithmetic", NEVER | NOT_FOR_LANGUAGE),
        ("dpo", "lab", NEVER | NOT_FOR_LANGUAGE),
        ("ppo", "cartpole", NEVER | NOT_FOR_CONTROL),
    ],
)
def test_a_first_update_loads_nothing_that_it_does_not_need(tmp_path, recipe, task, never):
    words = (
        "train",
        recipe,
        "--task",
        task,
        "--batch-size",
        "2",
        "--eval-size",
        "4",
        "--quiet",
        "--out",
        tmp_path / "r",
    )
    done = subprocess.run(
        [sys.executable, "-c", FIRST_UPDATE, *map(str, words)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not never & set(found["modules"])
    assert found["on"]


def test_the_collector_rests_and_then_takes_what_was_made_for_old():
    with unswept():
        with unswept():
            made = [[]]
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert any(thing is made for thing in gc.get_objects(generation=2))
    with pytest.raises(ValueError, match="such"), unswept():
        raise ValueError("such a thing")
    assert gc.isenabled()


def test_a_first_policy_that_is_dropped_is_collected():
    code = (
        "import gc, torch, weakref\n"
        "from partita.policies.language import Language\n"
        "policy = Language().build(None, False, torch.Generator())\n"
        "seen = [weakref.ref(x) for x in (policy, policy.lm, policy.tokenizer)]\n"
        "del policy\n"
        "gc.collect()\n"
        "print([x() for x in seen])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["[None,", "None,", "None]"], done.stderr
