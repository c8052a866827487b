import json
import sys
import types

import pytest
import torch

from partita.core.errors import UserError
from partita.tasks.language.dataset import Dataset

ROWS = [{"question": f"{k}+1?", "answer": str(k + 1), "kind": "odd" if k % 2 else "even"} for k in range(6)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def written(tmp_path, lines):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(file)


def test_rows_become_problems(tmp_path):
    task = Dataset(
        path=written(tmp_path, [*ROWS[:3], "", *ROWS[3:]]),
        prompt_column="question",
        verifier="numeric",
        template="Q: {prompt} {A}:",
        category_column="kind",
    )
    loaded = task.load()
    assert [p.prompt for p in loaded[:2]] == ["Q: 0+1? {A}:", "Q: 1+1? {A}:"]
    assert [p.category for p in loaded[:2]] == ["even", "odd"]
    drawn = task.problems(40, seeded())
    assert drawn == task.problems(40, seeded())
    assert {p.prompt for p in drawn} == {p.prompt for p in loaded}
    assert task.verify(loaded[2], "it is 3").score == 1.0
    assert task.verify(loaded[2], "it is 4").score == 0.0


def test_programs_are_verified_side_by_side(tmp_path):
    rows = [{"prompt": "double", "answer": [{"call": "f(2)", "equals": 4}]}]
    task = Dataset(path=written(tmp_path, rows), verifier="code")
    problems = task.problems(3, seeded())
    responses = ["def f(x): return 2 * x", "def f(x): return x", ""]
    assert [o.score for o in task.verify_all(problems, responses)] == [1.0, 0.0, 0.0]


def test_a_changed_file_is_read_again(tmp_path):
    task = Dataset(path=written(tmp_path, [{"prompt": "a", "answer": "b"}]))
    assert task.problems(1, seeded())[0].prompt == "a"
    written(tmp_path, [{"prompt": "another", "answer": "b"}])
    assert task.problems(1, seeded())[0].prompt == "another"


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ([], {}, "there are no rows"),
        (["", " "], {}, "there are no rows"),
        ([ROWS[0], "{oops"], {}, r"line 2 is not JSON"),
        ([ROWS[0], "", "[1, 2]"], {}, r"line 3 is list, not an object"),
        (ROWS, {"prompt_column": "questoin"}, r"prompt_column: row 1 .* no column `questoin`; did you mean question"),
        ([ROWS[0], {"question": "x"}], {}, r"answer_column: row 2 .* no column `answer`"),
        ([{"question": 5, "answer": 1}], {}, r"`question` of row 1 .* not text but int: '5'"),
        ([{"question": "", "answer": 1}], {}, r"`question` of row 1 .* is empty"),
        (
            [ROWS[0], {"question": "x", "answer": "none"}],
            {"verifier": "numeric"},
            r"row 2 .* numeric: no number in 'none'",
        ),
        ([{"question": "x", "answer": None}], {}, r"row 1 .* there is no answer"),
        (ROWS, {"category_column": "kin"}, r"category_column: .* did you mean kind"),
    ],
)
def test_bad_rows(tmp_path, lines, settings, message):
    task = Dataset(path=written(tmp_path, lines), **{"prompt_column": "question", **settings})
    with pytest.raises(UserError, match=message) as error:
        task.problems(1, seeded())
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    path = written(tmp_path, ROWS)
    with pytest.raises(UserError, match=r"no such file; did you mean data.jsonl"):
        Dataset(path=path.replace("data", "dat")).load()
    with pytest.raises(UserError, match="is a folder"):
        Dataset(path=str(tmp_path)).load()
    with pytest.raises(UserError, match="no data given"):
        Dataset().load()
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        Dataset(path=path).load()


def test_bad_settings():
    with pytest.raises(UserError, match="`numerc`; did you mean numeric"):
        Dataset(verifier="numerc")
    with pytest.raises(UserError, match=r"has no \{prompt\}"):
        Dataset(template="Q:")


def test_a_hub_dataset(monkeypatch):
    def load_dataset(name, subset, split):
        if name != "some/thing":
            raise ValueError(f"no {name}\nand much more")
        return [{"prompt": f"{subset}-{split}", "answer": 1}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    task = Dataset(path="some/thing", split="test", subset="main")
    assert task.problems(1, seeded())[0].prompt == "main-test"
    with pytest.raises(UserError, match=r"split train, cannot be loaded: no other/thing$"):
        Dataset(path="other/thing").load()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        Dataset(path="third/thing").load()
