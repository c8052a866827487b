"""Preferences from files: what is learnt from them, how that is measured, and the command line."""

import json
import re

import pytest
import torch
from small_data import EXAMPLES, PAIRS, fresh, pair, task

from partita import cli
from partita.core.errors import UserError
from partita.lab.evaluate import evaluable, evaluate
from partita.loops.preference import Preference, train
from partita.loops.run import Run
from partita.parts.contrast import BradleyTerry, Direct, Kto, Regression
from partita.parts.pairs import BestWorst
from partita.parts.resample import Online
from partita.tasks.preferences.dataset import Comparisons

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
