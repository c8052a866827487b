"""Served models play worlds; the server of these tests plays by heart, or badly."""

import threading
from dataclasses import dataclass

import pytest
import torch
from served import at, by_heart, drawn, expert, found, words

import troubled
from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.core.task import Problem
from partita.lab.endpoint import Asked, manual, play
from partita.lab.endpoint_command import main
from partita.lab.evaluate import interval, rollout
from partita.loops.run import Generators
from partita.policies.language import Language
from partita.policies.sampling import Sampling
from partita.tasks.language.arithmetic import Arithmetic
from partita.tasks.language.dataset import Dataset
from partita.tasks.worlds.base import Episode, Reply, World
from partita.tasks.worlds.keydoor import Keydoor
from partita.tasks.worlds.lookup import Lookup
from speaking import error, said, speaking

BASE = "abcdefghij"


def test_an_expert_behind_an_endpoint_solves_every_problem(capsys):
    task, size = Keydoor(level=2), 12
    with speaking(by_heart(task, size)) as (url, heard):
        out = found(capsys, words(url, "--task.level", "2", world="keydoor", size=size, jobs=4))
    value = out["values"][0]
    assert value["metric"] == "success" and value["value"] == 1.0
    assert (value["low"], value["high"]) == interval([1.0] * size)[2:]
    optima = [len(expert(task, p)) for p in drawn(task, size)]
    assert [r["turns"] for r in out["results"]] == optima and out["turns"] == sum(optima) / size
    assert out["requests"] == out["answered"] == sum(optima) == len(heard)
    assert (out["prompt_tokens"], out["completion_tokens"]) == (7 * sum(optima), 2 * sum(optima))
    assert (out["malformed"], out["failed"], out["retries"]) == (0.0, [], 0) and out["ended"] == {"done": size}
    assert out["settings"]["level"] == 2 and len(out["values"]) == 1


def test_a_conversation_is_the_worlds_transcript(capsys):
    task = Lookup(level=2)
    with speaking(by_heart(task, 3, 4)) as (url, heard):
        out = found(capsys, words(url, "--world.level=2", world="lookup", size=3, seed=4, jobs=1, show=2))
    problem = drawn(task, 3, 4)[0]
    actions = expert(task, problem)
    text = task.transcript(problem, actions).text
    assert out["transcripts"][0] == text and len(out["transcripts"]) == 2
    talk = heard[2].body["messages"]
    assert [m["role"] for m in talk] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "".join(m["content"] + "\n" * (m["role"] == "assistant") for m in talk[1:]) + actions[2] == text
    assert heard[0].body["stop"] == ["\n"] and "seed" not in heard[0].body
    assert [(v["metric"], v["value"]) for v in out["values"][1:]] == [("tool_calls", 2.0), ("tool_productivity", 3 / 6)]


def test_in_plain_text_a_served_policy_does_just_what_it_does_here():
    task = Lookup(level=1)
    policy, lock = Language().build(task, False, torch.Generator().manual_seed(0)), threading.Lock()

    def reply(heard):
        stop, most = tuple(heard.body["stop"]), heard.body["max_tokens"]
        with lock:
            sampling = Sampling(max_tokens=most, stop=stop, greedy=True)
            text = policy.generate([heard.body["prompt"]], 1, sampling, torch.Generator()).texts[0]
        return said(text.removesuffix("\n"), "stop" if text.endswith("\n") else "length")

    with speaking(reply) as (url, heard):
        report = play(at(url, chat=False, connections=2), Asked(task, 6, 3))
    here = rollout(policy, task, 6, 3)
    assert [p.score for p in report.played] == here.outcome.tolist()
    for p, record in zip(report.played, here.records, strict=True):
        assert p.text == record["prompt"] + record["response"]
        assert p.parts == record["parts"]
    assert heard[0].path.endswith("/v1/completions") and heard[0].body["max_tokens"] == task.max_tokens


def test_in_plain_text_an_action_that_was_cut_has_no_end_and_nothing_is_trimmed():
    task = Lookup(level=1, max_turns=2)
    with speaking(lambda heard: said(" ans a", "stop" if heard.number else "length")) as (url, heard):
        report = play(at(url, chat=False), Asked(task, 1))
    prompt = drawn(task, 1)[0].prompt
    assert report.played[0].text == f"{prompt} ans a?> ans a\n?>" and heard[1].body["prompt"] == f"{prompt} ans a?>"
    assert (report.played[0].malformed, report.traffic.cut) == (2, 1)


def test_what_a_model_says_beside_its_action_is_cut_and_malformed_actions_are_counted(capsys):
    task = Keydoor(level=1)

    def spoil(i, turn, action):
        return said("\n " + action.strip() + " \nbecause", "length") if turn else "go north"

    with speaking(by_heart(task, 2, spoil=spoil)) as (url, _):
        out = found(capsys, words(url, "--task.level", "1", "--no-stop", world="keydoor", size=2, max_tokens=30))
    assert [r["malformed"] for r in out["results"]] == [1, 1] and out["malformed"] == 2 / out["actions"]
    assert out["cut"] == out["requests"] - 2 and out["max_tokens"] == 30


def test_a_random_player_is_scored_as_the_world_scores_its_actions():
    task, size = Keydoor(level=1, max_turns=8), 10
    played = {p.prompt: task.demonstrate(p, Generators(i)["x"], "random") for i, p in enumerate(drawn(task, size))}

    def reply(heard):
        talk = heard.body["messages"]
        return said(played[talk[1]["content"]][sum(m["role"] == "assistant" for m in talk)])

    with speaking(reply) as (url, _):
        report = play(at(url), Asked(task, size))
    transcripts = [task.transcript(p, played[p.prompt]) for p in drawn(task, size)]
    assert [p.score for p in report.played] == [t.score for t in transcripts]
    assert [p.text for p in report.played] == [t.text for t in transcripts]
    assert {p.why for p in report.played if not p.score} == {"turns"}


def test_errors_that_pass_cost_retries_and_nothing_else(capsys):
    task, lock, seen = Keydoor(level=1), threading.Lock(), set()

    def spoil(i, turn, action):
        with lock:
            for n in range(2):
                if (i, turn, n) not in seen:
                    seen.add((i, turn, n))
                    return error(500, "busy")
        return action

    with speaking(by_heart(task, 3, spoil=spoil)) as (url, _):
        out = found(capsys, words(url, "--task.level=1", world="keydoor", size=3))
    assert out["values"][0]["value"] == 1.0 and out["failed"] == []
    assert out["retries"] == 2 * out["actions"] and out["requests"] == 3 * out["actions"]


def test_an_episode_whose_requests_fail_is_named_and_the_others_go_on(capsys):
    task, go = Lookup(level=2), threading.Event()

    def spoil(i, turn, action):
        if (i, turn) == (0, 0):
            go.wait(2)
        return {(1, 1): error(500, "out of memory"), (2, 1): (200, b"garbage")}.get((i, turn), action)

    with speaking(by_heart(task, 5, spoil=spoil)) as (url, _):
        argv = words(url, "--task.level=2", world="lookup", size=5, retries=0, timeout=1.0, jobs=2)
        out = found(capsys, argv)
        main(argv)
        go.set()
    assert out["failed"][0] == {"problem": 0, "why": "no answer within 1 s, after 1 try"}
    assert out["failed"][1] == {"problem": 1, "why": "HTTP 500: out of memory, after 1 try"}
    assert out["failed"][2]["problem"] == 2 and "not JSON" in out["failed"][2]["why"] and len(out["failed"]) == 3
    assert out["episodes"] == 2 and out["values"][0]["value"] == 1.0 and out["ended"] == {"done": 2}
    assert [r["turns"] for r in out["results"]][:3] == [0, 1, 1]
    printed = capsys.readouterr().out
    assert "failed            3 of 5" in printed and "problem 1: HTTP 500: out of memory, after 1 try" in printed


def test_a_full_context_ends_an_episode_with_the_score_it_has():
    task = Lookup(level=2)
    full = error(400, "maximum context length is 64 tokens")
    with speaking(by_heart(task, 2, spoil=lambda i, t, a: full if (i, t) == (1, 2) else a)) as (url, _):
        report = play(at(url), Asked(task, 2))
    assert [(p.why, p.score, p.turns) for p in report.played] == [("done", 1.0, 3), ("context", 0.0, 2)]


@dataclass(frozen=True)
class Fragile(World):
    """A world that breaks where a problem says so."""

    hosted = False

    def problems(self, n, generator):
        return [Problem(f"{BASE[i]}>", {"at": i % 3 - 1}) for i in range(n)]

    def open(self, problem):
        if problem.data["at"] == 0:
            raise OSError("no such\nfile")
        return _Shard(problem.data["at"])


class _Shard(Episode):
    def __init__(self, at):
        self.at = at

    state = ""

    def act(self, action):
        if self.at == 1:
            raise KeyError("lost")
        return Reply("", 1.0, True, True, 1.0)


def test_a_world_that_raises_costs_its_own_episode():
    with speaking(lambda heard: said("x")) as (url, _):
        report = play(at(url), Asked(Fragile(), 6))
        assert [p.score for p in report.played if not p.failed] == [1.0, 1.0]
        assert [p.why for p in report.played] == [
            "done", "failed: the world: OSError: no such file", "failed: the world: KeyError: 'lost'",
        ] * 2  # fmt: skip
        with pytest.raises(UserError, match="all 1 episodes failed: the world: OSError: no such file"):
            play(at(url), Asked(OnlyBroken(), 1))


def test_a_hosted_world_that_hangs_or_dies_costs_its_own_episode():
    file = part_class("task", f"{troubled.__file__}:Troubled")
    for trouble, why in (("hang", "no answer within 1 s"), ("die", "its process died (signal 9)")):
        with speaking(lambda heard: said("x")) as (url, _):
            report = play(at(url, connections=3), Asked(file(trouble=trouble, turn=1, seconds=1.0), 3))
        assert [p.why for p in report.played] == ["done", f"failed: the world: {why}", "turns"]


@dataclass(frozen=True)
class OnlyBroken(Fragile):
    def problems(self, n, generator):
        return [Problem("a>", {"at": 0})] * n


def test_a_single_turn_task_is_asked_and_verified(capsys):
    task = Arithmetic(level=2)
    known = {p.prompt: expert(task, p) for p in drawn(task, 5)}
    wrong = drawn(task, 5)[3].prompt

    def reply(heard):
        system, user = heard.body["messages"]
        assert system["role"] == "system" and "347+589=" in system["content"]
        return said("no idea" if user["content"] == wrong else known[user["content"]])

    with speaking(reply) as (url, _):
        out = found(capsys, words(url, "--task.level", "2", world="arithmetic", size=5))
    assert [r["score"] for r in out["results"]] == [1.0, 1.0, 1.0, 0.0, 1.0] and out["values"][0]["value"] == 0.8
    assert out["results"][0]["parts"]["steps"] == 1.0 and out["requests"] == 5


def test_random_answers_have_seeds_that_do_not_depend_on_who_comes_first():
    task = Keydoor(level=1)

    def seeds(jobs, seed=0):
        with speaking(by_heart(task, 4, seed)) as (url, heard):
            play(at(url, connections=jobs), Asked(task, 4, seed, temperature=0.8))
        return {(h.body["messages"][1]["content"], len(h.body["messages"])): h.body["seed"] for h in heard}

    one = seeds(1)
    assert one == seeds(4) and len(set(one.values())) == len(one) and one != seeds(1, 1)


def test_the_first_to_fail_does_not_speak_for_the_others():
    task = Keydoor(level=1)
    spoil = lambda i, t, a: error(403, "moderated") if i == 0 else a  # noqa: E731
    with speaking(by_heart(task, 4, spoil=spoil)) as (url, _):
        report = play(at(url, connections=2), Asked(task, 4))
    assert [p.failed for p in report.played] == [True, False, False, False] and "moderated" in report.played[0].why


def test_a_world_is_described_by_its_manual_or_its_class(tmp_path):
    text = manual(Asked(Keydoor()))
    assert "20 actions" in text and "column b, row 1" in text and "`>`" in text
    assert "Raises" not in manual(Asked(Lookup(max_turns=5))) and "5 actions" in manual(Asked(Lookup(max_turns=5)))
    assert manual(Asked(Keydoor(), manual="Walk.")).endswith("read.\n\nWalk.")

    class Told(Fragile):
        manual = "Say x."

    assert manual(Asked(Told())).endswith("\n\nSay x.")
    assert manual(Asked(Dataset(path="x.jsonl"))) == "" and manual(Asked(Dataset(path="x"), manual="Sum.")) == "Sum."
