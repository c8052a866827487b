"""Windowed rollouts: what a step draws, what it leaves for the next one, and that nothing of it is lost or changed."""

import pytest
import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.core.task import Outcome, Problem
from partita.estimators.masked import put_last
from partita.lab import checkpoint
from partita.papers.baselines.ppo import PPO
from partita.papers.reasoning.t_ppo import T_PPO, Windowed
from partita.parts.behaviour import Replayed
from partita.parts.curriculum import EasyToHard
from partita.parts.rollout import Sample, decode_steps
from partita.parts.rollout.windows import append, ended, latest, packed, unpacked
from partita.parts.select import DropDegenerate
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.language.base import LanguageTask

NEEDS = frozenset({"value"})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def policy():
    return Language().build(None, False, seeded())


@pytest.fixture(scope="module")
def task():
    return part_class("task", "arithmetic")(level=0)


def steps(part, policy, task, count, size=6, first=0):
    """Batches of `count` steps, each with fresh problems and fresh random numbers."""
    return [part(policy, task, task.problems(size, seeded(10 + i)), 1, seeded(i), NEEDS) for i in range(first, count)]


def test_a_window_as_long_as_the_responses_is_plain_sampling(policy, task):
    problems = task.problems(8, seeded(1))
    ours = Windowed(window=64)(policy, task, problems, 1, seeded(2), NEEDS)
    plain = Sample()(policy, task, problems, 1, seeded(2), NEEDS)
    for name in ("mask", "logp", "entropy", "terminated", "truncated", "reward", "outcome", "group"):
        assert torch.equal(getattr(ours, name), getattr(plain, name)), name
    assert torch.equal(ours.inputs["tokens"], plain.inputs["tokens"]) and ours.records == plain.records
    assert torch.equal(ours.inputs["attend"], ours.mask) and bool((ours.value_weight == ours.mask).all())
    assert not bool(ours.turn.any()) and not bool(ours.age.any())
    assert Windowed(window=64).metrics(ours)["decode_steps"] == Sample().metrics(plain)["decode_steps"]


def test_every_token_is_drawn_once_in_windows_and_ends_up_in_the_whole_response(policy, task):
    part = Windowed(window=7).fresh()
    batches = steps(part, policy, task, 9)
    fresh = [latest(b) for b in batches]
    assert all(int(f.sum(1).max()) <= 7 for f in fresh)
    finished = [b[ended(b)] for b in batches]
    whole = {r["prompt"]: r["response"] for b in finished for r in b.records}
    growing = {}
    for batch, new in zip(batches, fresh, strict=True):
        for i, record in enumerate(batch.records):
            text = policy.decode(batch.inputs["tokens"][i : i + 1], new[i : i + 1])[0]
            growing[record["prompt"]] = growing.get(record["prompt"], "") + text
    assert len(whole) > 5 and all(growing[prompt] == text for prompt, text in whole.items())
    assert all(r["score"] == task.verify(p, r["response"]).score
               for b in finished for r in b.records for p in [_problem(task, r["prompt"])])  # fmt: skip


def _problem(task, prompt):
    return next(p for i in range(9) for p in task.problems(6, seeded(10 + i)) if p.prompt == prompt)


def test_masks_rewards_and_weights_of_what_has_ended_and_what_has_not(policy, task):
    part = Windowed(window=10).fresh()
    batch = steps(part, policy, task, 3, size=16)[-1]
    over = ended(batch)
    assert 0 < int(over.sum()) < len(batch)
    exists = batch.inputs["attend"]
    assert torch.equal(batch.mask[over], exists[over])
    assert torch.equal(batch.mask[~over], latest(batch)[~over]) and bool((batch.mask[~over].sum(1) == 10).all())
    assert bool((exists[~over].sum(1) % 10 == 0).all()) and int(exists[~over].sum(1).max()) > 10
    assert torch.equal(batch.value_weight, (batch.mask & over[:, None]).float())
    assert not bool(batch.reward[~over].any()) and not bool(batch.outcome[~over].any())
    torch.testing.assert_close(batch.reward[over], put_last(batch.outcome, batch.mask)[over])
    assert not bool((batch.terminated | batch.truncated)[~over].any())
    windows = (exists.sum(1) + 9) // 10 - 1
    assert batch.turn.amax(1).tolist() == windows.tolist()
    assert batch.age.tolist() == torch.where(over, windows, 0).tolist()


def test_tokens_keep_the_log_probability_of_the_policy_that_drew_them(task):
    policy = Language().build(None, False, seeded())
    part = Windowed(window=12).fresh()
    first = part(policy, task, task.problems(6, seeded(1)), 1, seeded(2), NEEDS)
    held = {r["prompt"]: first.logp[i, first.mask[i]] for i, r in enumerate(first.records)}
    with torch.no_grad():
        for p in policy.trainable().values():
            p.mul_(0.9)
    second = part(policy, task, task.problems(6, seeded(3)), 1, seeded(4), NEEDS)
    carried = [(i, r["prompt"]) for i, r in enumerate(second.records) if r["prompt"] in held]
    assert carried and any(bool(ended(second)[i]) for i, _ in carried)
    now = policy.evaluate(second).logp.detach()
    old = second.mask & (second.turn == 0) & (second.turn.amax(1, keepdim=True) == 1)
    new = latest(second)
    torch.testing.assert_close(now[new], second.logp[new], rtol=1e-4, atol=1e-4)
    assert bool(((now - second.logp)[old].abs() > 1e-3).any())
    for i, prompt in carried:
        if bool(ended(second)[i]):
            assert torch.equal(second.logp[i, :12], held[prompt][:12])


def test_places_are_refilled_and_responses_are_cut_at_the_greatest_length(policy, task):
    part = Windowed(window=5, max_tokens=17).fresh()
    batches = steps(part, policy, task, 9, size=8)
    assert {len(b) for b in batches} == {8}
    cut = torch.cat([b.inputs["attend"].sum(1)[b.truncated.any(1)] for b in batches])
    assert len(cut) > 4 and set(cut.tolist()) == {17}  # two tokens of the last window, while others draw five
    assert max(int(b.inputs["attend"].sum(1).max()) for b in batches) == 17
    assert any(bool((latest(b).sum(1) == 5).any() and b.truncated.any()) for b in batches)
    for before, after in zip(batches, batches[1:], strict=False):
        waiting = [r["prompt"] for r, e in zip(before.records, ended(before).tolist(), strict=True) if not e]
        assert [r["prompt"] for r in after.records[: len(waiting)]] == waiting


def test_what_is_under_way_survives_a_checkpoint_and_a_fresh_part_has_none(policy, task, tmp_path):
    programs = part_class("task", "programs")(level=2)
    for target in (task, programs):
        part = Windowed(window=6).fresh()
        steps(part, policy, target, 2)
        assert part.state_dict()["problems"] and part.fresh().state_dict() == {}
        checkpoint.save(tmp_path / target.part_name(), part.state_dict())
        again = Windowed(window=6).fresh()
        again.load_state_dict(checkpoint.load(tmp_path / target.part_name()))
        assert again._live["problems"] == part._live["problems"]
        for ours, theirs in zip(
            steps(part, policy, target, 5, first=2), steps(again, policy, target, 5, first=2), strict=True
        ):
            assert checkpoint.same(ours.state_dict(), theirs.state_dict())


def test_packing_keeps_tuples_and_lists_apart_and_refuses_what_json_cannot_hold():
    value = {"a": (1, (2.5, "x")), "b": [None, True], "c": {"tuple": ()}}
    assert unpacked(packed(value)) == value and isinstance(unpacked(packed(value))["a"][1], tuple)
    with pytest.raises(UserError, match="rollout: a problem of this task holds a object"):
        packed({"a": object()})


def test_append_writes_behind_what_is_there():
    table = torch.tensor([[1, 2, 0], [3, 0, 0]])
    out = append(table, torch.tensor([2, 1]), torch.tensor([[7, 8], [9, 0]]))
    assert out.tolist() == [[1, 2, 7, 8, 0], [3, 9, 0, 0, 0]]


class Dashes(LanguageTask):
    """Responses end at two dashes; which a window may cut in two."""

    max_tokens = 12
    stop = ("--",)

    def verify(self, problem, response):
        return Outcome(float(response.endswith("--")))


def test_a_stop_string_across_two_windows_ends_the_response():
    model = tiny_model(tiny_config("qwen2", hidden=16, layers=1, heads=2, context=64))
    policy = LanguagePolicy(model, character_tokenizer(context=64), Language(), False)
    dash = policy.encode(["-"], special=False)[0][0, 0]
    bias = torch.zeros(policy.head.weight.shape[0])
    bias[dash] = 3.0
    head = torch.nn.Linear(16, len(bias))
    head.weight.data.copy_(policy.head.weight.data)
    head.bias.data.copy_(bias)
    policy.lm.set_output_embeddings(head)
    policy.stopper.cache_clear()
    part, problems = Windowed(window=3).fresh(), [Problem("?")] * 40
    texts = []
    for i in range(4):
        batch = part(policy, Dashes(), problems, 1, seeded(i), NEEDS)
        over = ended(batch)
        texts += [r["response"] for r, e in zip(batch.records, over.tolist(), strict=True) if e]
        assert all("--" not in r["response"] for r, e in zip(batch.records, over.tolist(), strict=True) if not e)
        own = policy.decode(batch.inputs["tokens"], batch.inputs["attend"])
        assert list(own) == [r["response"] for r in batch.records]
    stopped = [t for t in texts if t.endswith("--")]
    assert all(t.index("--") == len(t) - 2 for t in stopped)
    assert {len(t) % 3 for t in stopped} == {0, 1, 2}  # 1: its second dash begins a window


def test_costs_count_what_was_drawn_and_what_was_read_again(policy, task):
    part = Windowed(window=9).fresh()
    batch = steps(part, policy, task, 2)[-1]
    found, new = part.metrics(batch), latest(batch)
    assert found["tokens_decoded"] == int(new.sum()) and found["decode_steps"] == int(new.sum(1).max()) == 9
    assert found["reread"] == int(batch.inputs["attend"].sum()) - int(new.sum()) > 0
    assert found["unfinished"] == pytest.approx(float((~ended(batch)).float().mean()))
    over = batch[ended(batch)]
    if len(over):
        assert found["samples"] == len(over) and found["length"] == pytest.approx(float(over.lengths.float().mean()))
    prompt, place = batch.context["prompt_mask"].sum(1)[:, None], torch.arange(batch.mask.shape[1])
    assert found["kv_work"] == int(((prompt + place) * new).sum())


def test_sampler_steps_are_the_longest_response_or_the_longest_action_of_each_turn():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    assert decode_steps(Batch(mask=mask)) == 4
    assert decode_steps(Batch(mask=mask, turn=torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]))) == 2 + 3


def test_a_batch_can_be_replayed_and_mixed_with_others(policy, task):
    part, behaviour = Windowed(window=8).fresh(), Replayed(share=0.5).fresh()
    sizes = [len(behaviour.mix(batch, i, seeded(i))) for i, batch in enumerate(steps(part, policy, task, 3))]
    assert sizes == [6, 12, 12]


def test_the_window_is_a_third_of_the_longest_response_unless_given(task):
    assert Windowed().settle(task).window == 22 and Windowed(max_tokens=30).settle(task).window == 10
    assert Windowed(window=5).settle(task).window == 5


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (T_PPO.but(group_size=4), "use --group-size 1"),
        (PPO.but(rollout=Windowed()), "credit gae takes them for ended; use --credit extended_gae"),
        (T_PPO.but(select=DropDegenerate(rounds=2)), "samples once a step"),
        (T_PPO.but(curriculum=part_class("curriculum", "value_tracker")()), "learns from outcomes"),
    ],
)
def test_what_does_not_go_together_is_refused(recipe, message, policy, task):
    with pytest.raises(UserError, match=message):
        recipe.settle(task, policy).check(task, policy)


def test_levels_in_order_are_fine_and_worlds_are_refused(policy, task):
    T_PPO.but(curriculum=EasyToHard()).settle(task, policy).check(task, policy)
    world = part_class("task", "keydoor")()
    with pytest.raises(UserError, match="takes turns; use --rollout sample"):
        T_PPO.settle(world, policy).check(world, policy)
    with pytest.raises(UserError, match=r"rollout\.window"):
        Windowed(window=0)


def test_a_long_prompt_takes_from_its_own_response_only(task):
    """Contexts of 48: a response under way has what its own prompt left, whatever comes beside it."""
    model = tiny_model(tiny_config("qwen2", hidden=16, layers=1, heads=2, context=48))
    policy = LanguagePolicy(model, character_tokenizer(context=48), Language(), False)
    part = Windowed(window=20).fresh()
    short = Problem("1+1=", {"a": 1, "b": 1, "sign": "+", "answer": 2})
    long = Problem("1" * 30 + "+1=", dict(short.data))
    for i in range(4):
        batch = part(policy, task, [short, long] if i == 0 else [long, short], 1, seeded(i), NEEDS)
        used = batch.context["prompt_mask"].sum(1) + batch.inputs["attend"].sum(1)
        assert int(used.max()) <= 48
    with pytest.raises(UserError, match="exceed the context of 48"):
        Windowed(window=20, max_tokens=40).fresh()(policy, task, [long], 1, seeded(0), NEEDS)
