"""`partita evaluate --endpoint`: its words, what it refuses, and what it reports."""

from dataclasses import replace

import pytest
from served import by_heart, words

from partita.cli import main as cli
from partita.core.errors import UserError
from partita.lab.endpoint import Asked, Played, Report
from partita.lab.endpoint_command import lines, main, summary
from partita.policies.endpoint import Endpoint, Traffic
from partita.tasks.worlds.keydoor import Keydoor
from partita.tasks.worlds.lookup import Lookup
from speaking import error, said, speaking


@pytest.mark.parametrize(
    ("reply", "what", "most"),
    [
        (error(401, "who?"), "asks for a key", 2), (error(404, "no"), "no chat/completions", 2),
        (error(500, "down"), "none of 3 requests was answered: HTTP 500: down, after 2 tries", 6),
        ((200, b"<html>"), "none of 3 requests was answered: the reply is not JSON", 3),
        (error(400, "maximum context length is 4"), "none of 3 requests was answered", 3),
    ],
)  # fmt: skip
def test_an_endpoint_that_never_answers_is_given_up_soon(reply, what, most, capsys):
    with speaking(lambda heard: reply) as (url, heard):
        with pytest.raises(UserError) as failure:
            main(words(url, world="keydoor", size=50, jobs=2, retries=1))
        assert what in str(failure.value) and "\n" not in str(failure.value)
        assert len(heard) <= most
    assert capsys.readouterr().out == ""


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-hidden-1\n")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other-2")
    task = Keydoor(level=1)
    with speaking(by_heart(task, 1)) as (url, heard):
        argv = words(url, "--task.level=1", world="keydoor", size=1)
        for more, key in (([], "sk-other-2"), (["--api-key-env", "MY_KEY"], "sk-hidden-1")):
            main([*argv, *more, "--json", "--show", "1"])
            assert heard[-1].headers["Authorization"] == f"Bearer {key}" and key not in capsys.readouterr().out
    with speaking(lambda heard: error(401, "bad sk-hidden-1")) as (url, _), pytest.raises(SystemExit) as end:
        cli(["evaluate", *words(url, world="keydoor", api_key_env="MY_KEY")])
    assert end.value.code == 2 and "MY_KEY" in (err := capsys.readouterr().err) and "sk-hidden" not in err


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--world", "kedoor"], "did you mean keydoor?"),
        (["--world", "cartpole"], "acts in words"),
        (["--task", "gym:CartPole-v1"], "acts in words"),
        ([], "--world: is missing"),
        (["--world", "keydoor", "--task", "lookup"], "give one of them"),
        (["--world", "keydoor", "--chat", "--completions"], "give one of them"),
        (["--world", "keydoor", "--task.level", "9"], "level: 9"),
        (["--world", "keydoor", "--task.levle", "1"], "did you mean"),
        (["--world", "keydoor", "--tempature", "1"], "did you mean --temperature"),
        (["--world", "keydoor", "--temperature", "-1"], "--temperature: expected a number of 0 or more"),
        (["--world", "keydoor", "--temperature", "nan"], "--temperature: expected"),
        (["--world", "keydoor", "--size", "0"], "--size: expected a whole number of 1 or more"),
        (["--world", "keydoor", "--jobs", "many"], "--jobs: expected"),
        (["--world", "keydoor", "--retries", "-1"], "--retries: expected"),
        (["--world", "keydoor", "--max-tokens", "0"], "--max-tokens: expected"),
        (["--world", "keydoor", "--timeout", "0"], "--timeout: expected a number above 0"),
        (["--world", "keydoor", "--metric", "pass@k"], "measured by success"),
        (["--world", "keydoor", "--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE: that variable is not set"),
        (["--world", "keydoor", "--manual", "/nowhere/m.txt"], "--manual /nowhere/m.txt: cannot be read"),
        (["runs/first", "--world", "keydoor"], "the folder of a run, or an endpoint"),
        (["--world", "keydoor", "--endpoint", "localhost:8000"], "--endpoint localhost:8000: not an address"),
    ],
)
def test_bad_words_get_one_line_before_anything_is_asked(argv, what):
    with speaking(lambda heard: said("n")) as (url, heard):
        rest = words(url)
        if "--endpoint" in argv:
            rest = rest[2:]
        with pytest.raises(UserError) as failure:
            main([*argv, *rest])
        assert what in str(failure.value) and "\n" not in str(failure.value) and not heard


def test_without_a_model_the_served_ones_are_named():
    with speaking(lambda heard: error(404), ("small", "large")) as (url, _):
        with pytest.raises(UserError, match=r"--model: is missing; name the model, .* serves small, large"):
            main(["--endpoint", url, "--world", "keydoor"])
        with pytest.raises(UserError, match=r"--model big: .*/v1 has no such model; known: large, small"):
            main(words(url, world="keydoor", model="big"))


def test_the_report_counts_what_was_played_and_names_what_was_not():
    played = (
        Played(0, "", 1, 1.0, 4, 1, "done", {"calls": 3.0}), Played(1, "", 1, 0.0, 6, 0, "turns", {"calls": 0.0}),
        Played(2, "", 1, 0.0, 2, 2, "failed: HTTP 500", {"calls": 9.0}),
        Played(3, "", 1, 1.0, 2, 1, "done", {"calls": 2.0}),
    )  # fmt: skip
    report = Report(played, Traffic(20, 3, 14, 1, 100, 40, 2), ("stop",), 1.5)
    out = summary(Endpoint("http://h/v1?key=x", "m"), Asked(Lookup(), 4), report)
    assert out["values"][0]["value"] == 2 / 3 and out["turns"] == 4.0 and out["malformed"] == 2 / 12
    assert [(v["metric"], v["value"]) for v in out["values"][1:]] == [
        ("tool_calls", 5 / 3), ("tool_productivity", pytest.approx(2 / 5)),
    ]  # fmt: skip
    assert out["failed"] == [{"problem": 2, "why": "HTTP 500"}]
    text = "\n".join(lines(out))
    for part in (
        "success           0.667", "tool_productivity 0.400", "2 came to an end, 1 took all turns",
        "16.7% of 12 actions", "tool_calls        1.667", "20, 3 of them retries",
        "100 tokens read, 40 written (2 of 14",
        "1 answers reached 256 tokens", "stop: the server does not know it", "1 of 4", "problem 2: HTTP 500",
    ):  # fmt: skip
        assert part in text
    assert "key=x" not in text
    none = summary(Endpoint("http://h", "m"), Asked(Lookup(), 1), replace(report, played=played[1:2]))
    assert [v["metric"] for v in none["values"]] == ["success", "tool_calls"]


def test_the_command_line_knows_it(capsys):
    task = Keydoor(level=1)
    with speaking(by_heart(task, 2)) as (url, _):
        cli(["evaluate", *words(url, "--task.level=1", world="keydoor", size=2, show=1)])
    out = capsys.readouterr().out
    assert f"tiny at {url} (chat/completions) on keydoor: 2 problems, temperature 0\nsuccess           1.000" in out
    assert "problem 0: score 1 after" in out
    cli(["evaluate", "--help"])
    assert "--endpoint URL" in capsys.readouterr().out
