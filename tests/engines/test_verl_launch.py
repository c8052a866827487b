"""The launch commands of the page, as it has them: composed and validated by verl's own loader."""

# ruff: noqa: E402  (what needs verl is imported after the skip)

import re
import shlex
from pathlib import Path

import pytest
from verl_rows import composed

pytest.importorskip("verl", reason="verl is not installed; `make peers` runs these")
pytest.importorskip("transfer_queue", reason="TransferQueue is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

from hydra.errors import ConfigCompositionException, HydraException
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.config import omega_conf_to_dataclass, validate_config

import partita.engines.verl.plugin  # noqa: F401
from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.engines.verl.parts import credit_settings, objective_settings

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "src/partita/assets/models/tiny-0.3m"  # in place of models that would be fetched
PAGE = (ROOT / "docs/engines/verl.md").read_text()
BLOCKS = [text for kind, text in re.findall(r"^```(.*?)\n(.*?)^```$", PAGE, re.M | re.S) if not kind]
WORDS = [shlex.split(re.sub(r"Qwen/\S+", str(TINY), block).replace("\\\n", " ")) for block in BLOCKS]
COMMANDS = [words[words.index("verl.trainer.main_ppo") + 1 :] for words in WORDS if "verl.trainer.main_ppo" in words]
ADDITIONS = [words for words in WORDS if "=" in words[0]]  # to the first command
CASES = COMMANDS + [COMMANDS[0] + words for words in ADDITIONS]


def last_of_each(words):
    """A shell's command with its additions: where a setting is given twice, the later one; hydra takes it but once."""
    return list({word.split("=")[0]: word for word in words}.values())


def checked(words):
    """The configuration that a command composes, validated."""
    config = composed(*last_of_each(words))
    validate_config(config, need_reference_policy(config), need_critic(config))
    return config


def test_the_page_has_commands():
    assert len(COMMANDS) == 2 and len(ADDITIONS) == 6
    said = " ".join(" ".join(words) for words in CASES)
    for name in ("partita/bnpo", "partita/gae", "partita/pacs", "partita/gigpo", "trainer.nnodes=4", "PolicyLoss"):
        assert name in said


@pytest.mark.parametrize(
    "words", CASES, ids=lambda words: next(word for word in reversed(words) if "partita" in word)[-40:]
)
def test_configurations_are_what_verl_takes(words):
    config = checked(words)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    estimator = get_adv_estimator_fn(config.algorithm.adv_estimator)
    assert estimator.part(credit_settings(config.algorithm)).slot == "credit"
    loss = get_policy_loss_fn(actor.policy_loss.loss_mode)
    assert loss.part(objective_settings(actor.policy_loss)).slot == "objective"
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config=config)
    assert trainer.use_critic == (config.algorithm.adv_estimator == "partita/gae")


def test_settings_of_the_page_reach_the_parts():
    config = composed(*last_of_each(CASES[2]))
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    mine = get_adv_estimator_fn("partita/bnpo").part(credit_settings(config.algorithm))
    assert mine == part_class("credit", "bnpo")(low=-1.0, high=1.0)
    clip = get_policy_loss_fn("partita/clipped_surrogate").part(objective_settings(actor.policy_loss))
    assert clip == part_class("objective", "clipped_surrogate")(clip_high=0.28, dual_clip=3.0)


@pytest.mark.parametrize(("word", "error"), [
    ("algorithm.adv_estimatr=partita/bnpo", ConfigCompositionException),
    ("actor_rollout_ref.actor.loss_agg_mode=mean", HydraException),
    ("+actor_rollout_ref.actor.policy_loss.settings={clip_hihg: 0.28}", HydraException),
    ("trainer.n_gpus_per_node=7", AssertionError),
])  # fmt: skip
def test_verl_refuses_what_is_wrong(word, error):
    ours = "actor_rollout_ref.actor.policy_loss._target_=partita.engines.verl.objective.PolicyLoss"
    with pytest.raises(error):
        checked([*COMMANDS[0], ours, word])


def test_a_trainer_refuses_a_command_without_its_critic():
    words = [word for word in last_of_each(CASES[4]) if not word.startswith("critic.")]
    with pytest.raises(UserError, match=r"credit gae reads values of a critic; set critic\.enable=true"):
        get_trainer_cls("partita")(config=composed(*words))
