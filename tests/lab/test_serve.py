"""`partita serve`: what is started and how it ends, what a person is told, and completions from a real server."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from partita.core.errors import UserError
from partita.lab import serve as module
from partita.lab.serve import called, check_free, check_packages, command, exported, lines, main, served, url
from partita.lab.source import opened, source
from partita.policies.loading import SHIPPED
from partita.policies.sampling import Sampling

FAKE = """
import json, os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        about = {"files": os.listdir(sys.argv[1]), "place": os.listdir(), "offline": os.environ["HF_HUB_OFFLINE"]}
        self.send_response(200), self.end_headers(), self.wfile.write(json.dumps(about).encode())

    def log_message(self, *_):
        pass

if "DEAF" not in os.environ:
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
HTTPServer((sys.argv[2], int(sys.argv[3])), Handler).serve_forever()
"""


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(SHIPPED / "tiny-0.3m", tmp_path / "my model")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A server of ours in place of the real one, that tells what it finds."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    start = [sys.executable, str(script)]
    monkeypatch.setattr(module, "command", lambda name, host, port: [*start, name, host, str(port)])
    monkeypatch.setattr(module, "check_packages", lambda: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what runs in the background
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def asked(port, path, body=None):
    """Status and JSON of a reply."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_missing_packages_are_named_with_the_line_that_installs_them(monkeypatch, tmp_path):
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("fastapi", "openai") else known(name) or True
    )
    with pytest.raises(UserError, match=r'^serve: needs fastapi, openai; install with pip install "partita\[serve\]"$'):
        main([str(tmp_path)])


def test_an_older_transformers_is_told(monkeypatch, tmp_path):
    (tmp_path / "transformers.py").touch()
    old = importlib.util.spec_from_file_location("transformers", tmp_path / "transformers.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: old)
    with pytest.raises(UserError, match="serve: needs a newer transformers"):
        check_packages()


def test_what_is_started():
    server = str(Path(module.__file__).with_name("server.py"))
    assert command("first", "127.0.0.1", 8000) == [sys.executable, "-P", server, "first", "127.0.0.1", "8000"]


def test_addresses():
    assert url("127.0.0.1", 80) == url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url("::1", 80) == "http://[::1]:80"
    assert called(Path("/runs/grpo-arithmetic-seed0")) == "grpo-arithmetic-seed0"
    assert called(Path("/runs/my run: a@b")) == "my-run-a-b" and called(Path("/")) == "model"


def test_what_a_person_is_told():
    first, curl = lines("first", "127.0.0.1", 8000, ("\n",))
    assert first == "first is served at http://127.0.0.1:8000/v1; Ctrl-C ends it"
    _, address, *_, body = shlex.split(curl)
    assert address == "http://127.0.0.1:8000/v1/completions"
    assert json.loads(body).items() >= {"model": "first", "stop": ["\n"], "max_tokens": 64}.items()
    assert lines("first", "0.0.0.0", 8000, ())[2:] == ["whoever reaches 0.0.0.0 can use it: there is no password"]


def test_a_run_is_exported_once(tmp_path, capsys):
    from test_export import trained

    run = trained(tmp_path / "run", group_size=2)
    out, stop = exported(run)
    assert (out, stop) == (run / "hf_step_00000002", ("\n",))
    assert capsys.readouterr().out == f"exporting {run / 'checkpoints' / 'step_00000002'} to {out}\n"
    made = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert exported(run) == (out, stop)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == made
    assert exported(out) == (out, ()) and capsys.readouterr().out == ""


def test_the_server_sees_one_model_and_no_hub_and_ends_with_the_block(model, port, fake):
    with served(model, "mine", "127.0.0.1", port) as process:
        status, about = asked(port, "/health")
        assert status == 200 and about["offline"] == "1" and about["place"] == ["mine"]
        assert "model.safetensors" in about["files"]
    assert process.returncode == 0
    assert (model / "model.safetensors").is_file()


def test_a_server_that_does_not_listen_is_killed(model, port, fake, monkeypatch):
    monkeypatch.setenv("DEAF", "1")
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with served(model, "mine", "127.0.0.1", port) as process:
        assert process.poll() is None
    assert process.returncode == -9


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_and_says_so(model, port, fake, monkeypatch, capsys, how):
    started = []

    def interrupted(process):
        started.append(process)
        signal.raise_signal(how)

    monkeypatch.setattr(module, "ends", interrupted)
    main([str(model), "--port", str(port)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"my-model is served at http://127.0.0.1:{port}/v1; Ctrl-C ends it" and said[-1] == "stopped"
    assert started[0].returncode == 0


@pytest.mark.parametrize("when", ["before it answers", "later"])
def test_a_server_that_ends_by_itself_is_an_error(model, port, fake, monkeypatch, when):
    if when == "later":
        monkeypatch.setattr(module, "ends", lambda process: 3)
    else:
        monkeypatch.setattr(module, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(UserError, match=r"serve.*: the server ended with code 3; what it said stands above"):
        main([str(model), "--port", str(port)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "serve: expected DIR, got nothing"),
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: neither a run nor a saved policy"),
        (["model", "more"], "serve: expected DIR, got model more"),
        (["model", "--port", "http"], "--port: expected a whole number of 1 or more, got 'http'"),
        (["model", "--port", "0"], "--port: expected a whole number of 1 or more, got '0'"),
        (["model", "--port", "70000"], "--port: expected a whole number from 1 to 65535, got 70000"),
        (["model", "--host", "no.such.host.invalid"], "--host no.such.host.invalid: not an address of this machine"),
        (["model", "--host", "192.0.2.1"], "--host 192.0.2.1: not an address of this machine"),
        (["model", "--prot", "1"], "serve: no flag --prot"),
        (["cut"], "cut has no model*.safetensors"),
    ],
)
def test_bad_words_get_one_line_and_start_nothing(words, message, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "check_packages", lambda: None)
    monkeypatch.setattr(module, "served", None)
    model.rename(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    shutil.copytree(tmp_path / "model", tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        main(words)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_port_in_use_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {number}: cannot be had on 127\.0\.0\.1 \(.*\); name another"):
            check_free("127.0.0.1", number)


def test_completions_of_a_real_server_are_those_of_the_policy(model, port):
    for package in module.NEEDS:
        pytest.importorskip(package, reason="needs the extra `serve`")
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**about, "dtype": "float32"}))
    policy, _ = opened(source(model))
    greedy = Sampling(max_tokens=12, stop=("\n",), greedy=True)
    expected = policy.generate(["12+34="], 1, greedy, torch.Generator()).texts[0]
    body = {"prompt": "12+34=", "max_tokens": 12, "stop": ["\n"], "temperature": 0}
    with served(model, "mine", "127.0.0.1", port):
        status, found = asked(port, "/v1/completions", {"model": "mine", **body})
        assert (status, found["choices"][0]["text"]) == (200, expected)
        assert [held["id"] for held in asked(port, "/v1/models")[1]["data"]] == ["mine"]
        assert asked(port, "/v1/completions", {"model": "another", **body})[0] == 400
        for path in ("/load_model", "/reset", "/v1/chat/completions", "/v1/audio/transcriptions"):
            assert asked(port, path, {"model": "mine", "messages": []})[0] == 404
