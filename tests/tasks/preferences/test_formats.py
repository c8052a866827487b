import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.tasks.preferences.formats import COLUMNS, Example, Unusable, read


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
ASKED, WON, LOST = [user("q")], [bot("a")], [bot("b")]
TALK = [user("hi"), bot("hello"), user("q")]


def plain(example: Example):
    """The example without messages: their contents."""
    asked = example.prompt if isinstance(example.prompt, str) else [m["content"] for m in example.prompt]
    return asked, [a if isinstance(a, str) else a["content"] for a in example.answers]


@pytest.mark.parametrize(
    ("row", "asked", "answers"),
    [
        (PAIR, "q", ["a", "b"]),
        ({**PAIR, "completion": None, "id": 7}, "q", ["a", "b"]),
        ({"prompt": ASKED, "chosen": WON, "rejected": LOST}, ["q"], ["a", "b"]),
        ({"prompt": ASKED, "chosen": "a", "rejected": "b"}, ["q"], ["a", "b"]),
        ({"prompt": "q", "chosen": WON, "rejected": LOST}, ["q"], ["a", "b"]),
        # the whole conversation in both answers, with and without a prompt of its own
        ({"chosen": TALK + WON, "rejected": TALK + LOST}, ["hi", "hello", "q"], ["a", "b"]),
        ({"prompt": TALK, "chosen": TALK + WON, "rejected": TALK + LOST}, ["hi", "hello", "q"], ["a", "b"]),
        ({"prompt": "q", "chosen": ASKED + WON, "rejected": ASKED + LOST}, ["q"], ["a", "b"]),
        # texts that begin alike
        ({"chosen": "Q: hi A: yes sir", "rejected": "Q: hi A: no sir"}, "Q: hi A:", [" yes sir", " no sir"]),
        ({"chosen": "Q: hi A: yes sir", "rejected": "Q: hi A: yes"}, "Q: hi A:", [" yes sir", " yes"]),
        ({"chosen": "Q: hi\nyes", "rejected": "Q: hi\nyet"}, "Q: hi\n", ["yes", "yet"]),
    ],
)
def test_pairs(row, asked, answers):
    found = read(row)
    assert plain(found) == (asked, answers)
    assert found.format == "pair"
    ((better, worse, margin),) = found.compared
    assert (better, worse) == (0, 1)
    assert math.isnan(margin)


def test_margins_and_scores():
    scored = read({**PAIR, "score_chosen": 3, "score_rejected": 0.5})
    assert (scored.compared, scored.scores) == (((0, 1, 2.5),), (3.0, 0.5))
    stated = read({**PAIR, "margin": 0.25, "score_chosen": 3, "score_rejected": 0.5})
    assert (stated.compared, stated.scores) == (((0, 1, 0.25),), (3.0, 0.5))
    assert read({**PAIR, "score_chosen": 3}).scores == ()


@pytest.mark.parametrize("label", [True, 1, 1.0])
def test_labels(label):
    found = read({"prompt": "q", "completion": "a", "label": label})
    assert (found.prompt, found.answers, found.labels, found.compared) == ("q", ("a",), (1.0,), ())
    assert read({"prompt": ASKED, "completion": WON, "label": False}).labels == (0.0,)


def test_rankings():
    """Rank 1 is best and a higher score is better; ties and equal answers make no pairs."""
    ranked = read({"prompt": "q", "completions": ["a", "b", "c", "d"], "ranks": [2, 1, 3, 2]})
    assert [(i, j) for i, j, _ in ranked.compared] == [(1, 0), (0, 2), (1, 2), (1, 3), (3, 2)]
    assert all(math.isnan(m) for *_, m in ranked.compared)
    assert ranked.scores == ()
    scored = read({"prompt": "q", "completions": ["a", "b", "c", "c"], "scores": [2, 1, 3.5, 9]})
    assert scored.compared == ((0, 1, 1.0), (2, 0, 1.5), (3, 0, 7.0), (2, 1, 2.5), (3, 1, 8.0))
    assert scored.scores == (2.0, 1.0, 3.5, 9.0)
    talks = read({"prompt": ASKED, "completions": [WON, LOST], "ranks": [1, 2]})
    assert plain(talks) == (["q"], ["a", "b"])


BAD = [
    ("empty", {**PAIR, "chosen": ""}, "`chosen` is empty"),
    ("empty", {**PAIR, "prompt": " \n"}, "`prompt` is empty"),
    ("empty", {"prompt": ASKED, "chosen": [bot("")], "rejected": LOST}, "`chosen` is empty"),
    ("empty", {"prompt": [], "chosen": WON, "rejected": LOST}, "`prompt` has no messages"),
    ("empty", {"prompt": [user("")], "chosen": WON, "rejected": LOST}, "last message of `prompt`"),
    ("equal", {**PAIR, "rejected": "a"}, "are the same"),
    ("equal", {"chosen": "q a", "rejected": "q a"}, "are the same"),
    ("equal", {"prompt": ASKED, "chosen": WON, "rejected": WON}, "are the same"),
    ("missing field", {"prompt": "q", "chosen": "a"}, "no `rejected`"),
    ("missing field", {"prompt": "q", "chosen": "a", "reject": "b"}, "did you mean reject"),
    ("missing field", {"prompt": "q", "rejected": "a"}, "no `chosen`"),
    ("missing field", {"prompt": "q"}, "no `chosen`, `completion` or `completions`"),
    ("missing field", {}, "no `chosen`"),
    ("missing field", {"chosen": "apples", "rejected": "apes"}, "no words in common"),
    ("missing field", {"chosen": " a", "rejected": " b"}, "no words in common"),
    ("missing field", {"chosen": WON, "rejected": LOST}, "begins with an answer"),
    ("missing field", {"completion": "a", "label": True}, "no `prompt`"),
    ("missing field", {"prompt": "q", "completion": "a"}, "no `label`"),
    ("missing field", {"prompt": "q", "completions": ["a", "b"]}, "no `ranks` or `scores`"),
    ("wrong type", {**PAIR, "chosen": 5}, "`chosen` is int 5"),
    ("wrong type", {**PAIR, "chosen": ["a"]}, r"`chosen\[0\]` is str 'a'"),
    ("wrong type", {"chosen": "q a", "rejected": LOST}, "write both alike"),
    ("wrong type", {"prompt": [{"role": "user"}], "chosen": WON, "rejected": LOST}, "role, content"),
    ("wrong type", {**PAIR, "margin": "big"}, "`margin` holds str 'big'"),
    ("wrong type", {**PAIR, "margin": math.nan}, "finite number"),
    ("wrong type", {**PAIR, "margin": 10**400}, "finite number"),
    ("wrong type", {"prompt": "q", "completion": "a", "label": "yes"}, "write true or false"),
    ("wrong type", {"prompt": "q", "completion": "a", "label": 2}, "write true or false"),
    ("wrong type", {"prompt": "q", "completions": "ab", "ranks": [1, 2]}, "write a list of answers"),
    ("wrong type", {"prompt": "q", "completions": ["a", "b"], "ranks": [1]}, "one number for each of the 2"),
    ("wrong type", {"prompt": "q", "completions": ["a", "b"], "ranks": [1, True]}, "`ranks` holds bool"),
    ("contradictory", {**PAIR, "margin": -1}, "`rejected` is better, by 1"),
    ("contradictory", {**PAIR, "score_chosen": 1, "score_rejected": 3}, "`score_chosen`.*by 2"),
    ("nothing to compare", {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 1]}, "no answer above"),
    ("nothing to compare", {"prompt": "q", "completions": ["a"], "ranks": [1]}, "no answer above"),
    ("nothing to compare", {"prompt": "q", "completions": [], "ranks": []}, "no answer above"),
    ("wrong turns", {"prompt": ASKED, "chosen": [*WON, user("x")], "rejected": LOST}, "more than one answer"),
    ("wrong turns", {"prompt": ASKED, "chosen": TALK + WON, "rejected": TALK + LOST}, "begins unlike `prompt`"),
    ("wrong turns", {"prompt": WON, "chosen": WON, "rejected": LOST}, "`prompt` ends with an answer"),
    ("not Unicode", {**PAIR, "chosen": "\ud800"}, "surrogate"),
    ("not Unicode", {"prompt": [user("\ud800")], "chosen": WON, "rejected": LOST}, r"`prompt\[0\]`"),
]


@pytest.mark.parametrize(("kind", "row", "words"), BAD)
def test_useless_rows(kind, row, words):
    with pytest.raises(Unusable, match=words) as found:
        read(row)
    assert found.value.kind == kind
    assert "\n" not in found.value.why


TEXTS = st.sampled_from(["", " ", "a", "a b", "a c", "q a\n", "\ud800", "é"])
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.one_of(TEXTS, st.none())}
)
ODD = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, MESSAGES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=2)),
    max_leaves=5,
)
VALUES = st.one_of(TEXTS, st.lists(MESSAGES, max_size=3), st.lists(TEXTS, max_size=3), ODD)
ROWS = st.dictionaries(
    st.sampled_from([*COLUMNS, "margin", "score_chosen", "score_rejected", "id"]), VALUES, max_size=7
)


def tried(row):
    try:
        return read(row), None
    except Unusable as found:
        return None, found


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(ROWS, min_size=8, max_size=8))
def test_any_row_is_read_or_refused(rows):
    for row in rows:
        found, refused = tried(row)
        if found is None:
            assert refused.kind
            assert "`" in refused.why
            continue
        asked, answers = plain(found)
        assert all(a.strip() for a in answers)
        assert "".join(asked).strip()
        assert all(answers[i] != answers[j] and not margin < 0 for i, j, margin in found.compared)
        assert found.compared or found.labels
