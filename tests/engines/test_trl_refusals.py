"""Recipes that GRPOTrainer cannot carry out as they are, arguments that say otherwise, and the list of what fits."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from trl_runs import HOT, PLAIN, score, settings, trainer, trl

from partita.core import registry
from partita.core.errors import UserError
from partita.engines.trl import PartitaGRPOTrainer, fits, grpo_config, unknown_to
from partita.engines.trl.arguments import check_grpo, check_model
from partita.parts.reward import KLPenalty, Outcome

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

PAGE = Path(__file__).parents[2] / "docs" / "engines" / "trl.md"

ARGUMENTS = {  # what an argument is, and the word that its refusal must have beside its name and value
    "loss_type": ("dr_grpo", "aggregate"),
    "scale_rewards": ("none", "credit"),
    "multi_objective_aggregation": ("normalize_then_sum", "reward"),
    "importance_sampling_level": ("sequence", "sequence_ratio"),
    "delta": (2.0, "dual_clip"),
    "top_entropy_quantile": (0.2, "forking_tokens"),
    "entropy_coef": (0.01, "regularisers"),
    "use_adaptive_entropy": (True, "regularisers"),
    "off_policy_mask_threshold": (0.5, "select"),
    "epsilon": (0.3, "objective"),
    "epsilon_high": (0.28, "objective"),
    "num_generations": (2, "the recipe says 4"),
    "num_iterations": (2, "the recipe says 1"),
    "temperature": (1.0, "the recipe says 2.5"),
    "top_k": (5, "the recipe says 0"),
    "top_p": (0.9, "the recipe says 1.0"),
    "min_p": (0.1, "the recipe says None"),
    "beta": (0.04, "the recipe says 0.0"),
    "sync_ref_model": (True, "the recipe says False"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_would_not_act_or_say_otherwise_are_refused(name, tmp_path):
    value, word = ARGUMENTS[name]
    args = grpo_config(PLAIN, **settings(tmp_path, **{name: value}))
    with pytest.raises(UserError) as error:
        PartitaGRPOTrainer("no such model", score, args, recipe=PLAIN)
    said = str(error.value)
    assert said.startswith(f"args.{name}: ") and repr(value) in said and word in said and "leave it out" in said
    assert "\n" not in said


REFUSED = {
    "another loop": ("dpo", {}, "recipe: it belongs to the preference loop, and GRPOTrainer .*; use PartitaDPOTrainer"),
    "no trainer": ("sac", {}, r"recipe: it belongs to the replay loop.*; use Partita's own loop \(partita train\)"),
    "no recipe": (3, {}, "recipe: expected the name of a recipe or a recipe, got 3"),
    "a misspelling": ("grop", {}, "recipe grop: no such recipe; did you mean grpo"),
    "a tree": ("treepo", {}, "rollout segment_tree: GRPOTrainer writes each response whole and alone: no trees"),
    "a curriculum": ("sec", {}, "curriculum self_evolving: GRPOTrainer takes prompts .* in an order drawn before"),
    "a critic": ("ppo", {}, "credit gae: it needs a value head"),
    "single responses": (PLAIN.but(group_size=1), {}, "group_size: GRPOTrainer takes 2 or more .*, got 1; use 2"),
    "a reference that is mixed": (
        PLAIN.but(reward=(Outcome(), KLPenalty()), reference=registry.recipe("salsa").reference), {},
        "reference soup: TRL's reference is still, or follows the policy; use frozen, ema or reset",
    ),
    "a whole minibatch": (
        registry.recipe("bapo").but(group_size=4), {"gradient_accumulation_steps": 2},
        "gradient_accumulation_steps: objective balanced_clip looks at a whole minibatch, got 2; use 1",
    ),
    "whole groups": (
        registry.recipe("pacs").but(group_size=4), {"gradient_accumulation_steps": 2},
        "steps_per_generation: objective labelled_score needs whole groups.*, got 2; use 1",
    ),
    "windows that straddle": (
        PLAIN, {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
        "steps_per_generation: 3 micro-batches of a generation and 2 of an update .*; make one a multiple",
    ),
    "other minibatches": (
        PLAIN, {"steps_per_generation": 4},
        "steps_per_generation: 4 makes 4 updates of a batch, .* minibatches=1; use 1",
    ),
    "no end": (PLAIN, {"max_completion_length": None}, "max_completion_length: expected the most tokens .*, got None"),
    "a batch that does not divide": (
        PLAIN.but(batch_size=5, minibatches=3), {}, "batch_size: 5 prompts with 4 responses each do not divide into 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_the_reason(case, tmp_path):
    recipe, changes, words = REFUSED[case]

    def made():
        args = grpo_config(recipe, output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes)
        return PartitaGRPOTrainer("no such model", score, args, recipe=recipe)

    with pytest.raises(UserError, match=words) as error:
        made()
    assert "\n" not in str(error.value) and (case == "no recipe" or ";" in str(error.value))


def test_several_processes_are_refused(tmp_path, monkeypatch):
    args = grpo_config(PLAIN, **settings(tmp_path))
    monkeypatch.setattr(trl.GRPOConfig, "world_size", 2)
    with pytest.raises(UserError, match=r"processes: expected 1, got 2: .*; start one"):
        PartitaGRPOTrainer("no such model", score, args, recipe=PLAIN)


@pytest.mark.parametrize(
    ("model", "words"),
    [({"_is_vlm": True}, "processing_class: "), ({"aux_loss_enabled": True}, "router_aux_loss_coef: ")],
)
def test_models_of_which_something_would_be_left_out_are_refused(model, words):
    with pytest.raises(UserError, match=words):
        check_model(
            SimpleNamespace(**{"_is_vlm": False, "aux_loss_enabled": False, "router_aux_loss_coef": 0.1} | model)
        )


# -- which recipes there are ------------------------------------------------------------------------------------------

GROUPED = """
bapo bnpo cispo clip_cov dapo dr_grpo entropy_mechanism forking_rest forking_tokens gigpo gigpo_mean grpo grpo_kl gspo
nft pacs question_baseline rejection_tuning riskpo riskpo_centred rlhf_loss rlhf_rloo rloo salt salt_rloo spo_proxy_lm
topr topr_naive topr_positives topr_truncated
"""
PAIRED = "dpo dpo_normalised f_dpo f_dpo_alpha f_dpo_forward_kl ipo orpo rpo rpo_mean simpo slic"
REASONS = {
    "works in control": """
        mdpo pdppo pdppo_whole pmoe_ppo ppo_buffer ppo_fresh ppo_kl ppo_kl_fixed props ros spo_reward_model trpo""",
    "value head": "a2c archer_baseline otc_ppo ppo reward_model reward_regression rlhf_ppo salsa",
    "critic of its own": "archer archer_iql archer_small",
    "no trees, demonstrations or schedules": """
        aepo aepo_linear ead ead_dapo ead_short hpt latr latr_dapo latr_short luffy_mix otr sft sft_then_rl t_ppo treepo
        treepo_grpo""",
    "order drawn before training": """
        easy_to_hard grpo_on_a_pool random_curriculum sec single_stream_po single_stream_po_uniform""",
    "2 or more responses": "reinforce",
    "greedy response": "remax",
    "optimiser": "capo dr_capo",
    "gets ready": "rm_ensembles_mean rm_ensembles_uwo rm_ensembles_wco rto spo_minimax spo_minimax_lm",
    "task train_dataset has none": "otc simpletir",
    "responses of its data set": """
        hypo inpo inpo_every_pair iterated_dpo nash_mp online_dpo rm_ensembles rso rso_hinge rso_sft rso_sft_hinge
        rso_tournament sppo""",
    "labels of single responses": "kto",
}


@pytest.fixture(scope="module")
def listed():
    pytest.importorskip("scipy", reason="the recipes of control need SciPy")
    return fits()


def test_every_recipe_fits_or_has_its_reason(listed):
    """A recipe that is new belongs in one of these lists: trained here, or refused for a reason that holds."""
    known = {
        name for name, entry in registry.index()["recipes"].items() if entry["loop"] in ("on_policy", "preference")
    }
    reasons = {name: why for why, names in REASONS.items() for name in names.split()}
    assert set(listed) == known == {*GROUPED.split(), *PAIRED.split(), *reasons}
    for name, fit in listed.items():
        if name in reasons:
            assert not fit.trainer and reasons[name] in fit.why and "; use " in fit.why and "\n" not in fit.why, name
        else:
            assert fit == ("GRPOTrainer" if name in GROUPED.split() else "DPOTrainer", ""), name


def test_the_page_names_every_recipe(listed):
    page = PAGE.read_text()
    assert set(re.findall(r"`([a-z0-9_]+)`", page)) >= set(listed)


def test_arguments_are_filled_for_every_recipe_that_fits(listed, tmp_path):
    for name in GROUPED.split():
        args = grpo_config(name, output_dir=str(tmp_path), use_cpu=True, bf16=False)
        check_grpo(registry.recipe(name), args)
    recipe = PLAIN.but(batch_size=6, minibatches=2, epochs=2, lr=1e-3, steps=5, warmup=3, betas=(0.8, 0.9))
    args = grpo_config(recipe, output_dir=str(tmp_path), gradient_accumulation_steps=3, use_cpu=True, bf16=False)
    found = (args.per_device_train_batch_size, args.steps_per_generation, args.num_iterations, args.max_steps)
    assert found == (4, 6, 2, 20) and args.learning_rate == 1e-3 and args.warmup_steps == 12 and args.adam_beta1 == 0.8
    assert args.loss_type == "grpo" and not args.use_bias_correction_kl  # TRL's log then shows the recipe's numbers
    one = trainer(tmp_path, registry.recipe("dapo").but(rollout=HOT, group_size=4), epsilon_high=None)
    assert (one.epsilon_low, one.epsilon_high) == (0.2, 0.28)


# -- TRL itself -------------------------------------------------------------------------------------------------------


def test_without_trl_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("partita.engines.trl")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match=re.escape('pip install "partita[trl]"')):
        importlib.import_module("partita.engines.trl")


def test_a_hook_that_trl_no_longer_has_is_noticed():
    class Renamed:
        _compute_loss = _calculate_rewards = _get_per_token_logps_and_entropies = None
        _save_checkpoint = _load_optimizer_and_scheduler = None

    assert unknown_to(trl.GRPOTrainer, PartitaGRPOTrainer) == []
    assert unknown_to(Renamed, PartitaGRPOTrainer) == ["_generate_and_score_completions"]
