"""Preferences from files: what is read, measured, cut, left out and held out."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import EXAMPLES, PAIRS, TEMPLATE, all_of, fresh, pair, talk, task

from partita.core.errors import UserError
from partita.lab.config import decode, encode
from partita.lab.evaluate import evaluable
from partita.parts.resample import offered
from partita.policies.language import LanguagePolicy
from partita.tasks.preferences.dataset import Comparisons
from partita.tasks.preferences.formats import COLUMNS
from partita.tasks.preferences.prepared import held_prompts, prepare

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
