"""`partita evaluate RUN --certify`: the table, what it is made of, and what is said of bad words."""

import json

import pytest

from partita.core.errors import UserError
from partita.lab.certify import main
from partita.lab.config import Config, Settings
from partita.lab.train import default_policy, launch
from partita.papers.baselines.dqn import DQN
from partita.papers.baselines.ppo import PPO
from partita.parts.rollout import Segments
from partita.policies.feed_forward import FeedForward
from partita.tasks.control.classic import Cartpole, Pendulum
from partita.tasks.control.noisy import Noisy

FEW = ("--episodes", "200")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root, none = tmp_path_factory.mktemp("runs"), Settings(eval_size=0)
    dqn = DQN.but(steps=1, updates=4, start=8, batch_size=8)
    noisy = Noisy("cartpole", {"max_steps": 12}, sigma=0.3)
    launch(Config("dqn", dqn, noisy, FeedForward(hidden=(8,)), none), root / "noisy")
    launch(Config("dqn", dqn, Cartpole(max_steps=12), FeedForward(hidden=(8,)), none), root / "plain")
    ppo = PPO.but(steps=1, batch_size=4, rollout=Segments(steps=8), minibatches=1)
    launch(Config("ppo", ppo, Pendulum(), default_policy(Pendulum(), ppo), none), root / "ppo")
    return root


def found(capsys, *words):
    main([*map(str, words), "--certify", "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_guarantee_is_below_what_attacks_leave(capsys, runs):
    about = found(capsys, runs / "noisy", "--budgets", "0,0.3", *FEW)
    assert about["task"] == "cartpole" and about["sigma"] == 0.3 and about["lowest"] == 0.0
    assert [row["budget"] for row in about["rows"]] == [0.0, 0.3]
    certified = [row["certified"] for row in about["rows"]]
    assert certified == sorted(certified, reverse=True) and certified[0] < about["clean"] <= 12
    assert about["rows"][0]["attacked"] == about["clean"]
    assert all(row["certified"] <= row["attacked"] for row in about["rows"])
    words = (runs / "noisy", "--budgets", "0,0.3", "--attack", "steady", *FEW)
    first = found(capsys, *words)
    assert first == found(capsys, *words) and first != found(capsys, *words, "--seed", "1")


def test_what_is_printed(capsys, runs):
    main([str(runs / "noisy"), "--certify", "--budgets=0.1,0.2", "--attack", "steady", *FEW])
    lines = capsys.readouterr().out.splitlines()
    assert "on cartpole through noise of 0.3: return" in lines[0] and "over 200 episodes" in lines[0]
    assert lines[1].split() == ["budget", "certified", "attacked", "undefended"]
    assert [line.split()[0] for line in lines[2:4]] == ["0.1", "0.2"]
    assert "strongest of 10 attacks, on 4 episodes each" in lines[4]


def test_without_attacks_only_the_guarantee_is_given(capsys, runs):
    about = found(capsys, runs / "noisy", "--attack", "none", *FEW)
    assert all(row["attacked"] is None for row in about["rows"][1:]) and about["attacks"] == 0
    main([str(runs / "noisy"), "--certify", "--attack", "none", *FEW])
    assert capsys.readouterr().out.splitlines()[3].split()[2:] == ["-", "-"]


def test_noise_and_the_least_return_can_be_given(capsys, runs):
    words = (runs / "plain", "--attack", "none", "--budgets", "0.1", *FEW)
    found(capsys, *words, "--sigma", "0.5")
    assert found(capsys, *words, "--sigma", "0")["rows"][0]["certified"] == 0.0  # no noise, no guarantee
    about = found(
        capsys, runs / "ppo", "--sigma", "0.1", "--lowest", "-4000", "--budgets", "0.1,0.5", "--attack", "none", *FEW
    )
    assert -4000 <= about["rows"][-1]["certified"] <= about["rows"][0]["certified"] <= about["clean"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plain",), "--sigma: the policy learnt on cartpole without noise"),
        (("noisy", "--sigma", "-1"), "--sigma: expected a number of at least 0, got '-1'"),
        (("noisy", "--budgets", "0,x"), "--budgets: expected a number, got 'x'"),
        (("noisy", "--alpha", "1"), "alpha: expected a number between 0 and 1"),
        (("noisy", "--episodes", "3"), "--episodes: expected a whole number of 50 or more"),
        (("noisy", "--attack", "greed"), "--attack greed: no such attack; did you mean greedy"),
        (("noisy", "--lowest", "5000"), "lowest: a return of"),
        (("noisy", "--flag", "1"), "evaluate: no flag --flag"),
        (("ppo", "--sigma", "0.1"), "--lowest: the least return that pendulum can give is not known"),
        (("ppo", "--sigma", "0.1", "--lowest", "-4000", "--attack", "greedy"), "--attack greedy: needs a policy"),
    ],
)
def test_bad_words_get_one_line(runs, words, message):
    with pytest.raises(UserError) as error:
        main([str(runs / words[0]), "--certify", *words[1:], *(FEW if "--episodes" not in words else ())])
    assert message in str(error.value) and "\n" not in str(error.value)
