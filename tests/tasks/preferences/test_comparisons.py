"""Preferences from files: what is read, measured, cut, left out and held out, and what is learnt from it."""

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita import cli
from partita.core.errors import UserError
from partita.lab.config import decode, encode
from partita.lab.evaluate import evaluable, evaluate
from partita.loops.preference import Preference, train
from partita.loops.run import Run
from partita.parts.contrast import BradleyTerry, Direct, Kto, Regression
from partita.parts.pairs import BestWorst
from partita.parts.resample import Online, offered
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.preferences.dataset import Comparisons
from partita.tasks.preferences.formats import COLUMNS
from partita.tasks.preferences.prepared import held_prompts, prepare

EXAMPLES = Path(__file__).parent / "examples"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content | trim }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def fresh(context: int = 64, template: str | None = None, value: bool = False) -> LanguagePolicy:
    model = tiny_model(tiny_config("llama", hidden=32, layers=1, heads=2, context=context))
    tokenizer = character_tokenizer(context=context)
    tokenizer.split_special_tokens = template is None
    tokenizer.chat_template = template
    return LanguagePolicy(model, tokenizer, Language(), value=value)


def task(tmp_path, rows, **settings) -> Comparisons:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Comparisons(path=str(file), **settings)


def pair(prompt="q:", chosen="yes", rejected="no"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def talk(prompt="q", chosen="yes", rejected="no"):
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


PAIRS = [pair(f"{i}:") for i in range(20)]


def all_of(found: Comparisons):
    return [*found.data.train, *found.data.held]


# -- rows left out ----------------------------------------------------------------------------------------------------


def test_useless_rows_are_counted_by_kind(tmp_path):
    rows = [*PAIRS, pair("a", ""), pair("b", "x", "x"), {"prompt": "c"}, pair("", "x", "y"), pair("d" * 80)]
    found = task(tmp_path, rows).met(fresh())
    assert found.size + len(found.data.held) == 20
    assert found.data.left_out == {"empty": [21, 24], "equal": [22], "missing field": [23], "too long": [25]}
    (line,) = found.notes()
    assert line == (
        "comparisons: 5 of 25 rows left out: 2 empty (rows 21, 24), 1 equal (row 22), 1 missing field (row 23), "
        f"1 too long (row 25); partita data {found.path} says more"
    )
    assert task(tmp_path, PAIRS).met(fresh()).notes() == ()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (pair(chosen=""), r"row 21 of .*data.jsonl: `chosen` is empty; write a text"),
        (pair("p" * 90), r"row 21 of .*: prompt and answer have 91 \+ 4 tokens, the model's context is 64; shorten"),
        ({"prompt": "x"}, r"row 21 of .*: there is no `chosen`"),
    ],
)
def test_a_strict_task_refuses_the_first(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        task(tmp_path, [*PAIRS, row], strict=True).met(fresh())


def test_a_file_without_a_useful_row_is_refused(tmp_path):
    rows = [pair(chosen=""), pair(rejected="yes")]
    with pytest.raises(UserError, match=r"nothing to learn from: 2 of 2 rows left out: 1 empty \(row 1\), 1 equal"):
        task(tmp_path, rows).met(fresh())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats() | st.text("ab <>\ud800é", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": inner})
    ),
    max_leaves=6,
)
ROW = st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=5)


@functools.cache
def shared(chat: bool) -> LanguagePolicy:
    return fresh(template=TEMPLATE if chat else None)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(ROW, max_size=12), st.sampled_from(["cut_prompt_left", "cut_response_right"]), st.booleans())
def test_odd_rows_never_break_the_reading(rows, too_long, chat):
    """Every row is used or counted, and what is used fits."""
    policy = shared(chat)
    most = 30 if chat else 9
    found = Comparisons(path="odd", chat=chat, max_prompt=most, max_response=4, too_long=too_long, held_out=0.2)
    data = prepare(found, [pair("1:"), *rows, pair("2:")], policy)
    used = [p.data["row"] for p in (*data.train, *data.held)]
    assert sorted([*used, *(n for numbers in data.left_out.values() for n in numbers)]) == [*range(1, len(rows) + 3)]
    for problem in (*data.train, *data.held):
        assert len(policy.tokens([problem.prompt])[0]) <= most
        assert all(len(ids) <= 4 for ids in policy.tokens(data.given[problem.data["index"]].responses, False))


# -- what is held out -------------------------------------------------------------------------------------------------


def test_the_last_prompts_are_held_out_with_all_their_rows(tmp_path):
    rows = [pair("a"), pair("b"), pair("c"), pair("d"), pair("a", "si"), pair("d", "si"), pair("b", "si")]
    found = task(tmp_path, rows, held_out=0.3).met(fresh())
    assert [p.prompt for p in found.data.train] == ["a", "b", "a", "b"]
    assert [p.prompt for p in found.data.held] == ["c", "d", "d"]
    assert found.size == 4
    drawn = found.problems(50, torch.Generator().manual_seed(0))
    assert {p.prompt for p in drawn} == {"a", "b"}


def test_what_is_held_out_does_not_depend_on_what_fits(tmp_path):
    rows = [pair(f"{i}:", "y" * (1 + i)) for i in range(20)]
    long = {p.prompt for p in task(tmp_path, rows, held_out=0.5).met(fresh()).data.held}
    short = {p.prompt for p in task(tmp_path, rows, held_out=0.5, max_response=15).met(fresh()).data.held}
    assert long == {f"{i}:" for i in range(10, 20)}
    assert short == {f"{i}:" for i in range(10, 14)}


def test_shares():
    keys = list("abcdefghij")
    assert held_prompts(keys, 0.0) == set()
    assert held_prompts(keys, 0.01) == {"j"}
    assert held_prompts(keys, 0.99) == set(keys[1:])
    assert held_prompts(["a", "a"], 0.5) == set()


def test_held_out_problems_are_all_or_a_fixed_draw(tmp_path):
    found = task(tmp_path, PAIRS, held_out=0.5).met(fresh())
    assert found.held(10, torch.Generator()) == list(found.data.held)
    some = found.held(4, torch.Generator().manual_seed(3))
    assert some == found.held(4, torch.Generator().manual_seed(3))
    assert len({p.prompt for p in some}) == 4
    assert set(p.prompt for p in some) <= {p.prompt for p in found.data.held}


# -- length -----------------------------------------------------------------------------------------------------------

LONG = pair("0123456789", "yes sir", "no")  # 11 tokens with the beginning of sequence; 8 and 3 with its end


@pytest.mark.parametrize(
    ("settings", "prompt", "answers", "cut"),
    [
        ({}, "0123456789", ("yes sir", "no"), (False, False)),
        ({"max_prompt": 11, "max_response": 8}, "0123456789", ("yes sir", "no"), (False, False)),
        ({"max_prompt": 6, "too_long": "cut_prompt_left"}, "56789", ("yes sir", "no"), (False, False)),
        ({"max_response": 5, "too_long": "cut_response_right"}, "0123456789", ("yes s", "no"), (True, False)),
        ({"max_response": 7, "too_long": "cut_response_right"}, "0123456789", ("yes sir", "no"), (True, False)),
        ({"max_response": 2, "too_long": "cut_response_right"}, "0123456789", ("ye", "no"), (True, True)),
    ],
)
def test_what_is_too_long_is_cut_as_asked(tmp_path, settings, prompt, answers, cut):
    found = task(tmp_path, [LONG, pair("z")], **settings).met(fresh())
    given = found.given(found.prompt(0))
    assert (found.prompt(0).prompt, given.responses, given.unfinished) == (prompt, answers, cut)
    assert found.data.left_out == {}
    assert len(found.notes()) == bool(settings.get("too_long"))


@pytest.mark.parametrize(
    ("settings", "context", "words"),
    [
        ({"max_prompt": 10}, 64, "the prompt has 11 tokens, max_prompt is 10"),
        ({"max_response": 7}, 64, "an answer has 8 tokens, max_response is 7"),
        ({}, 18, r"11 \+ 8 tokens, the model's context is 18"),
        ({"max_prompt": 10, "too_long": "cut_response_right"}, 64, "max_prompt is 10"),
        ({"max_response": 7, "too_long": "cut_prompt_left"}, 64, "max_response is 7"),
        ({"too_long": "cut_prompt_left"}, 9, "context is 9"),
    ],
)
def test_what_may_not_be_cut_is_left_out_or_refused(tmp_path, settings, context, words):
    rows, settings = [LONG, pair("z", "a", "b")], {"held_out": 0, **settings}
    found = task(tmp_path, rows, **settings).met(fresh(context))
    assert [p.prompt for p in all_of(found)] == ["z"]
    assert found.data.left_out == {"too long": [1]}
    with pytest.raises(UserError, match=words):
        task(tmp_path, rows, **{**settings, "too_long": "refuse"}).met(fresh(context))


def test_the_context_is_room_for_both(tmp_path):
    for policy, kept in (("cut_prompt_left", "3456789"), ("cut_response_right", "0123456789")):
        found = task(tmp_path, [LONG, pair("z")], too_long=policy, held_out=0).met(fresh(16))
        batch = offered(fresh(16), found, [found.prompt(0)])[0].batch
        assert found.prompt(0).prompt == kept
        assert int((batch.context["prompt_mask"].sum(1) + batch.lengths).max()) == 16


def test_a_cut_response_does_not_teach_to_stop(tmp_path):
    policy = fresh()
    found = task(tmp_path, [LONG, pair("z")], max_response=5, too_long="cut_response_right").met(policy)
    batch = offered(policy, found, [found.prompt(0)])[0].batch
    eos = policy.tokenizer.eos_token_id
    ends = [int(t[n - 1]) == eos for t, n in zip(batch.inputs["tokens"], batch.lengths.tolist(), strict=True)]
    assert ends == [False, True]
    assert batch.lengths.tolist() == [5, 3]
    assert (batch.truncated.any(1).tolist(), batch.terminated.any(1).tolist()) == ([True, False], [False, True])


def test_answers_that_a_cut_makes_equal_are_left_out(tmp_path):
    rows = [pair("a", "yes sir", "yes mam"), pair("z", "a", "b")]
    found = task(tmp_path, rows, max_response=3, too_long="cut_response_right", held_out=0).met(fresh())
    assert found.data.left_out == {"equal": [1]}


# -- messages ---------------------------------------------------------------------------------------------------------


def test_messages_are_written_by_the_chat_template(tmp_path):
    """Neither the beginning nor the end of sequence comes twice, and the tokens are those of the template itself."""
    policy = fresh(template=TEMPLATE)
    found = task(tmp_path, [talk(), talk("r")], system="be kind").met(policy)
    problem = found.prompt(0)
    assert problem.prompt == "[system]be kind<eos>\n[user]q<eos>\n[assistant]"
    assert found.given(problem).responses == ("yes", "no")
    batch = offered(policy, found, [problem])[0].batch
    ids = [*batch.context["prompt"][0].tolist(), *batch.inputs["tokens"][0][: batch.lengths[0]].tolist()]
    whole = policy.tokenizer.apply_chat_template(
        [{"role": "system", "content": "be kind"}, *talk()["prompt"], *talk()["chosen"]], tokenize=False
    )
    assert ids == policy.tokenizer(whole.rstrip(), add_special_tokens=False)["input_ids"]
    assert ids.count(policy.tokenizer.bos_token_id) == 1
    assert found.notes() == ()


def test_a_turn_that_opens_differently_once_it_is_over(tmp_path):
    template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}a:<think>{% endif %}"
    )
    found = task(tmp_path, [talk(chosen="<b>", rejected="<u>"), talk("r")]).met(fresh(template=template))
    assert found.prompt(0).prompt == "u:q;a:"
    assert found.given(found.prompt(0)).responses == ("<b>;", "<u>;")


def test_what_a_template_refuses_is_left_out_with_its_reason(tmp_path):
    odd = talk()
    odd["prompt"] = [{"role": "tool", "content": "x"}, *odd["prompt"]]
    found = task(tmp_path, [odd, talk(), talk("r"), talk("s", "yes", " yes ")]).met(fresh(template=TEMPLATE))
    assert found.data.left_out == {"chat template": [1], "equal": [4]}
    assert "no tools here" in found.data.first


def test_without_a_template_messages_are_lines(tmp_path):
    found = task(tmp_path, [talk(), talk("r")]).met(fresh())
    assert found.prompt(0).prompt == "user: q\nassistant:"
    assert found.given(found.prompt(0)).responses == (" yes", " no")
    assert "no chat template" in found.notes()[0]


def test_texts_may_be_asked_in_chat(tmp_path):
    found = task(tmp_path, [pair("q"), pair("r")], chat=True, template="say {prompt}").met(fresh(template=TEMPLATE))
    assert found.prompt(0).prompt == "[user]say q<eos>\n[assistant]"
    with pytest.raises(UserError, match=r"system: row 1 of .* is a text, not messages; add --task.chat"):
        task(tmp_path, [pair("q"), pair("r")], system="be kind").met(fresh())
    assert task(tmp_path, [pair("q"), pair("r")], template="say {prompt}!").met(fresh()).prompt(0).prompt == "say q!"


# -- the task itself --------------------------------------------------------------------------------------------------


def test_meeting_costs_once_and_leaves_the_settings_alone(tmp_path, monkeypatch):
    found, policy = task(tmp_path, PAIRS), fresh()
    met = found.met(policy)
    assert met == found
    assert met.met(policy) is met
    assert decode("task", encode(met)) == found
    assert found.met(policy).data is met.data
    assert found.met(fresh()).data is not met.data
    tokenise, seen = policy.tokens._rows, []
    monkeypatch.setattr(policy.tokens, "_rows", lambda texts, special: seen.extend(texts) or tokenise(texts, special))
    offered(policy, met, all_of(met))
    assert seen == []  # everything was tokenised when they met
    policy.written(["new"], ["yes"], torch.zeros(1, dtype=torch.int64), ())
    assert seen == ["new"]


def test_a_file_that_changes_is_read_again(tmp_path):
    policy = fresh()
    assert task(tmp_path, PAIRS).met(policy).data.rows == 20
    shorter = task(tmp_path, PAIRS[:5]).met(policy)
    assert shorter.data.rows == 5
    with pytest.raises(UserError, match="has 4 rows to learn from, and the run asks for number 8: it has changed"):
        shorter.prompt(7)


def test_texts_can_be_read_without_a_policy_and_messages_cannot(tmp_path):
    assert task(tmp_path, PAIRS).prompt(3).prompt == "3:"
    with pytest.raises(UserError, match=r"call task.met\(policy\) first"):
        _ = task(tmp_path, [talk(), talk("r")]).size


@pytest.mark.parametrize("name", ["pairs", "messages", "labels", "rankings"])
def test_the_example_files_can_be_used_whole(name):
    found = Comparisons(path=str(EXAMPLES / f"{name}.jsonl"), strict=True).met(fresh())
    prompts = [p.prompt for p in all_of(found)]
    assert len(set(prompts)) == 12
    offers = {"labels": ("labels",)}.get(name, ("compared",))
    assert found.offers == offers
    assert evaluable(found)


def test_scores_are_offered_only_where_every_row_has_them(tmp_path):
    scored = {**pair(), "score_chosen": 2, "score_rejected": 1}
    assert task(tmp_path, [scored, {**scored, "prompt": "z"}]).met(fresh()).offers == ("compared", "scores")
    assert task(tmp_path, [scored, pair("y"), pair("z")]).met(fresh()).offers == ("compared",)


# -- evaluation and training ------------------------------------------------------------------------------------------


def marks(policy, found, problems):
    """s(y), one response at a time."""
    out = {}
    for problem in problems:
        for text in found.given(problem).responses:
            batch = policy.written([problem.prompt], [text], torch.zeros(1, dtype=torch.int64), ())
            with torch.no_grad():
                seen = policy.evaluate(batch)
            n = int(batch.lengths[0])
            value = seen.value[0, n - 1] if policy.has_value else seen.logp[0, :n].double().mean()
            out[problem.prompt, text] = float(value)
    return out


@pytest.mark.parametrize("value", [False, True])
def test_accuracy_is_the_share_of_pairs_told_right(tmp_path, value):
    rows = [pair(f"{i}:", *(c * (1 + i % 3) + c.upper() for c in (chr(97 + i), chr(122 - i)))) for i in range(24)]
    policy, found = fresh(value=value), task(tmp_path, rows, held_out=0.9)
    if value:
        torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    met = found.met(policy)
    seen = marks(policy, met, met.data.held)
    right = [seen[p.prompt, a] > seen[p.prompt, b] for p in met.data.held for a, b in [met.given(p).responses]]
    assert 0 < sum(right) < len(right)
    told = evaluate(policy, found, 200, 0)
    assert (told.metric, told.count, told.mean) == ("accuracy", 22, sum(right) / 22)
    assert [s["score"] for s in told.samples] == [float(r) for r in right[:8]]
    n, p, z = 22, sum(right) / 22, 1.959964
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    ends = [(p + z * z / (2 * n) + side * half) / (1 + z * z / n) for side in (-1, 1)]
    assert (told.low, told.high) == pytest.approx(tuple(ends), abs=1e-6)


def test_accuracy_of_rankings_and_labels(tmp_path):
    policy = fresh()
    ranked = task(tmp_path, [
        {"prompt": f"{i}:", "completions": ["aa" + "b" * i, "c", "dd"], "ranks": [1, 2, 2]} for i in range(8)
    ], held_out=0.8).met(policy)  # fmt: skip
    seen = marks(policy, ranked, ranked.data.held)
    shares = []
    for p in ranked.data.held:
        best, *rest = ranked.given(p).responses
        shares.append(sum(seen[p.prompt, best] > seen[p.prompt, other] for other in rest) / 2)
    told = evaluate(policy, ranked, 200, 0)
    assert (told.count, told.mean) == (7, pytest.approx(sum(shares) / 7))
    assert 0 <= told.low < told.mean < told.high <= 1 or told.mean in (0, 1)
    labels = [True, True, False, True, False, False]
    rows = [{"prompt": f"{i}:", "completion": "x" * (1 + i), "label": k} for i, k in enumerate(labels, 1)]
    single = task(tmp_path, [{"prompt": "0:", "completion": "y", "label": True}, *rows], held_out=0.85).met(policy)
    seen = {p.data["row"]: marks(policy, single, [p]).popitem()[1] for p in single.data.held}
    told = evaluate(policy, single, 200, 0)
    assert (told.count, told.mean) == (3, sum(seen[w] > seen[l] for w, l in ((2, 4), (3, 6), (5, 7))) / 3)


def test_nothing_held_out_is_not_evaluated(tmp_path):
    found = task(tmp_path, PAIRS, held_out=0).met(fresh())
    assert not evaluable(found)
    with pytest.raises(UserError, match=r"holds no comparison out; give a larger --task\.held-out"):
        evaluate(fresh(), found, 10, 0)


@pytest.mark.parametrize(("name", "part"), [("pairs", Direct(beta=0.5)), ("labels", Kto(beta=0.5))])
def test_files_are_learnt_from(name, part):
    policy, found = fresh(), Comparisons(path=str(EXAMPLES / f"{name}.jsonl"), held_out=0.2)
    recipe = Preference(steps=12, batch_size=6, lr=5e-3, objective=part)
    train(recipe, policy, found, Run(0))
    told = evaluate(policy, found, 100, 0)
    assert (told.count, told.mean) == (3, 1.0)


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({}, "labels", "objective direct: it learns from comparisons, and task comparisons holds labels only.*by kto"),
        ({"objective": BradleyTerry()}, "labels", "bradley_terry: it learns from comparisons"),
        ({"objective": Regression()}, "pairs", "regression: it learns from scores, .* holds comparisons only.*by dpo"),
        ({"resample": Online(), "pairs": BestWorst()}, "pairs", "nobody judges new responses"),
    ],
)
def test_what_a_file_cannot_teach_is_refused(changes, name, words):
    found = Comparisons(path=str(EXAMPLES / f"{name}.jsonl"))
    with pytest.raises(UserError, match=words):
        train(Preference(steps=1, batch_size=2, lr=1e-3, **changes), fresh(value=True), found, Run(0))


# -- the command line -------------------------------------------------------------------------------------------------


def test_train_from_the_command_line(tmp_path, capsys):
    rows = [*(pair(f"{i}:", "yes", "no") for i in range(12)), pair(chosen="")]
    path = task(tmp_path, rows).path
    cli.main(["train", "dpo", "--task", "comparisons", "--task.path", path, "--threads", "1", "--smoke"])
    said = capsys.readouterr()
    assert "dpo on comparisons: smoke test passed (2 steps)" in said.out
    assert "comparisons: 1 of 13 rows left out: 1 empty (row 13)" in said.err
    folder = tmp_path / "run"
    small = ["--steps", "2", "--batch-size", "4", "--threads", "1", "--quiet", "--out", str(folder)]
    cli.main(["train", "dpo", "--task", path, *small])
    found = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [(row["metric"], row["step"], row["count"]) for row in found] == [("accuracy", 0, 2), ("accuracy", 2, 2)]
    cli.main(["evaluate", str(folder), "--json"])
    assert json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))["values"][0]["metric"] == "accuracy"


def test_data_says_what_is_there(tmp_path, capsys):
    rows = [*PAIRS, pair(chosen="")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", task(tmp_path, rows).path, "--model", "tiny-0.3m", "--task.max-response", "4"])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "21 rows; 20 pairs, 20 comparisons in all" in said
    assert "1 of 21 rows left out: 1 empty (row 21)" in said
    assert "18 rows to learn from, 2 held out" in said
    assert "tokens of tiny-0.3m (context 512): prompt 3 to 4, median 3.5; response 3 to 4, median 3.5" in said
    assert said.endswith("row 1\n  prompt    '0:'\n  better    'yes'\n  worse     'no'\n")


BAD = [
    (["train", "dpo", "--task", "comparisons"], "no data given"),
    (["train", "dpo", "--task", "comparisons", "--task.path", "{}/none.jsonl"], "no such file; did you mean"),
    (["train", "dpo", "--task", "{}/empty.jsonl"], "there are no rows"),
    (["train", "dpo", "--task", "{}/broken.jsonl"], "line 2 is not JSON"),
    (["train", "dpo", "--task", "{}/data.jsonl", "--strict"], "row 2 of .*data.jsonl: `chosen` is empty; write"),
    (["train", "dpo", "--task", "{}/useless.jsonl"], "nothing to learn from: 1 of 1 rows left out: 1 missing field"),
    (["train", "dpo", "--task", "{}/data.jsonl", "--task.too-long", "shorten"], "too-long|too_long"),
    (["train", "dpo", "--task", "{}/data.jsonl", "--task.max-prompt", "0"], "max_prompt: expected 1 token or more"),
    (["train", "dpo", "--task", "{}/data.jsonl", "--task.held-out", "1"], "held_out: expected a share"),
    (["train", "dpo", "--task", "{}/data.jsonl", "--task.template", "Q:"], "has no {prompt} in it"),
    (["train", "dpo", "--task", "{}/data.jsonl", "--task.system", "be kind"], "add --task.chat"),
    (["train", "grpo", "--task", "comparisons", "--task.path", "{}/data.jsonl"], "reward outcome: nobody judges"),
    (["train", "online_dpo", "--task", "{}/data.jsonl"], "resample online: nobody judges"),
    (["data"], "data: expected FILE"),
    (["data", "{}/data.jsonl", "--modle", "x"], "no flag --modle"),
    (["data", "{}/data.jsonl", "--model", "{}/none"], "no folder"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=range(len(BAD)))
def test_bad_input_gets_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    task(tmp_path, [pair("a"), pair(chosen=""), pair("b"), pair("c")])
    for name, text in (("empty", ""), ("broken", '{"a": 1}\n{oops\n'), ("useless", '{"text": "x"}\n')):
        (tmp_path / f"{name}.jsonl").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        cli.main([word.replace("{}", str(tmp_path)) for word in words])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("partita: ")
    assert err.count("\n") == 1
    assert re.search(said, err), err
    assert sorted(tmp_path.rglob("*")) == before
