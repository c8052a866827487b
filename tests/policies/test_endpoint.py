"""The client of OpenAI-compatible endpoints, against a server that speaks, stutters, hangs and lies."""

import asyncio
import math
import socket
import threading
import time
from dataclasses import replace
from email.utils import formatdate

import pytest
import torch

from partita.core.errors import UserError
from partita.policies.complaints import Complaint, plain, retry_after
from partita.policies.endpoint import Asking, Client, ContextFull, Endpoint, RequestFailed, address, served
from speaking import error, said, speaking

ASKING = Asking(16, 0.0, ("\n",))
KEY = "sk-very-secret-123"


def ask(url, said="hello", asking=ASKING, **settings):
    """One question; the answer and the client."""
    endpoint = Endpoint(**{"url": url, "model": "tiny", "chat": False, "backoff": 0.001, "timeout": 5.0, **settings})

    async def run():
        async with Client(endpoint) as client:
            return await client.ask(said, asking, torch.Generator().manual_seed(0)), client

    return asyncio.run(run())


def refused(reply, models=("tiny",), **settings):
    """What the client raises at such replies, and how often it asked."""
    with speaking(reply, models) as (url, heard):
        with pytest.raises(RequestFailed) as failure:
            ask(url, **settings)
        return failure.value, len(heard)


def test_text_and_messages_go_where_the_protocol_has_them():
    with speaking(lambda heard: said("n")) as (url, heard):
        answer, client = ask(url, key=KEY)
        assert (answer.text, answer.cut) == ("n", False)
        assert heard[0].path == "/v1/completions" and heard[0].headers["Authorization"] == f"Bearer {KEY}"
        assert heard[0].body == {
            "model": "tiny", "prompt": "hello", "max_tokens": 16, "temperature": 0.0, "stop": ["\n"],
        }  # fmt: skip
        talk = [{"role": "user", "content": "hello"}]
        ask(url + "/chat/completions/", talk, Asking(9, 0.7, (), 5), chat=True)
        assert heard[1].path == "/v1/chat/completions" and "Authorization" not in heard[1].headers
        assert heard[1].body == {"model": "tiny", "messages": talk, "max_tokens": 9, "temperature": 0.7, "seed": 5}
        assert (client.traffic.requests, client.traffic.answered, client.traffic.retries) == (1, 1, 0)
        assert (client.traffic.prompt_tokens, client.traffic.completion_tokens) == (7, 2)


def test_answers_without_usage_or_content_and_cut_ones_are_counted():
    with speaking(lambda heard: said(None, "length", None)) as (url, _):
        answer, client = ask(url, [], chat=True)
        assert (answer.text, answer.cut) == ("", True)
        assert (client.traffic.uncounted, client.traffic.cut, client.traffic.completion_tokens) == (1, 1, 0)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    with speaking(lambda heard: said(parts)) as (url, _):
        assert ask(url, [], chat=True)[0].text == "ab"


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(status):
    with speaking(lambda heard: error(status) if heard.number < 2 else said("ok")) as (url, heard):
        answer, client = ask(url, retries=2)
        assert answer.text == "ok" and len(heard) == 3
        assert (client.traffic.requests, client.traffic.retries) == (3, 2)
    failure, count = refused(lambda heard: error(status, "busy"), retries=1)
    assert count == 2 and not failure.final and str(failure) == f"HTTP {status}: busy, after 2 tries"


def test_errors_that_routers_wrap_into_200_are_errors():
    reply = (200, {"error": {"message": "upstream is busy", "code": 502}})
    failure, count = refused(lambda heard: reply, retries=1)
    assert count == 2 and "502: upstream is busy" in str(failure)


def test_waits_double_and_jitter_by_half_and_honour_the_server_within_bounds():
    endpoint = Endpoint("http://h/v1", "m", backoff=0.5, longest=10.0)

    def waits(k, asked=0.0):
        generator = torch.Generator().manual_seed(1)
        return [endpoint.wait(k, asked, generator) for _ in range(200)]

    for k in range(4):
        assert 0.5 * 2**k / 2 <= min(waits(k)) and max(waits(k)) < 0.5 * 2**k
        assert max(waits(k)) - min(waits(k)) > 0.2 * 2**k
    assert waits(0) == waits(0) and waits(9) == [10.0] * 200
    assert waits(0, 3.0) == [3.0] * 200 and waits(0, 3600.0) == [10.0] * 200


def test_retry_after_is_seconds_or_a_date():
    assert (retry_after("2.5"), retry_after(""), retry_after("soon"), retry_after("-4")) == (2.5, 0, 0, 0)
    assert retry_after("inf") == retry_after("nan") == 0
    assert 3590 < retry_after(formatdate(time.time() + 3600, usegmt=True)) <= 3600
    with speaking(lambda heard: error(429, headers={"Retry-After": "0.2"}) if not heard.number else said("ok")) as (
        url, _,
    ):  # fmt: skip
        loop_time = []

        async def run():
            loop = asyncio.get_running_loop()
            start = loop.time()
            async with Client(Endpoint(url, "tiny", chat=False, backoff=0.0)) as client:
                await client.ask("x", ASKING, torch.Generator())
            loop_time.append(loop.time() - start)

        asyncio.run(run())
        assert loop_time[0] >= 0.2


def test_a_request_that_hangs_or_drips_is_cut_off_in_time():
    go = threading.Event()
    failure, count = refused(lambda heard: (go.wait(2), said("late"))[1], timeout=0.05, retries=1)
    go.set()
    assert count == 2 and str(failure) == "no answer within 0.05 s, after 2 tries"
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip():
        line, _ = listener.accept()
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not over.wait(0.02):
            try:
                line.sendall(b" ")
            except OSError:
                return

    threading.Thread(target=drip, daemon=True).start()
    with pytest.raises(RequestFailed, match="no answer within"):
        ask(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.1, retries=0)
    over.set()
    listener.close()


def test_nobody_there_says_so_after_the_retries():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RequestFailed) as failure:
        ask(f"http://127.0.0.1:{port}/v1", retries=2)
    assert failure.value.final
    assert str(failure.value) == (
        f"--endpoint http://127.0.0.1:{port}/v1: no connection after 3 tries (connection refused); "
        "is the server running there?"
    )


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named_by_its_variable_and_never_shown(status):
    failure, count = refused(lambda heard: error(status, f"bad key {KEY}"), key=KEY, key_env="MY_KEY")
    assert failure.final and count == 1
    assert "set MY_KEY to one that it takes" in str(failure) and "bad key ***" in str(failure)
    assert KEY not in str(failure) and KEY not in repr(Endpoint("http://h", "m", key=KEY))
    failure, _ = refused(lambda heard: error(status))
    assert "asks for a key" in str(failure) and "OPENAI_API_KEY" in str(failure)
    failure, _ = refused(lambda heard: (200, f"hello {KEY}".encode()), key=KEY)
    assert KEY not in str(failure)


@pytest.mark.parametrize("status", [400, 404])
def test_an_unknown_model_is_answered_by_those_that_are_served(status):
    failure, _ = refused(lambda heard: error(status, "x"), models=("qwen3-4b", "gpt-big"), model="qwen3-8b")
    assert failure.final and "--model qwen3-8b" in str(failure) and "did you mean qwen3-4b?" in str(failure)


def test_a_path_that_is_not_there_says_what_to_try():
    failure, _ = refused(lambda heard: error(404), models=None)
    assert failure.final and "no completions for tiny there" in str(failure) and "ends in /v1" in str(failure)
    failure, _ = refused(lambda heard: error(404))
    assert "try --chat" in str(failure)
    failure, _ = refused(lambda heard: (308, b"", {"Location": "https://h/v1"}))
    assert failure.final and "sends on to https://h/v1" in str(failure)


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        ((200, b"<html>\x1b[31mhi</html>"), "not JSON but begins '<html> [31mhi</html>'"),
        ((200, b""), "not JSON"),
        ((200, b"[" * 50_000), "not JSON"),
        ((200, []), "no choices[0].text"),
        ((200, {"choices": []}), "no choices[0].text"),
        ((200, {"choices": ["a"]}), "no choices[0].text"),
        ((200, {"choices": [{"message": {"content": "n"}}]}), "no choices[0].text"),
        ((400, {"error": "odd"}), "HTTP 400: odd"),
        ((418, b"tea"), "HTTP 418: tea"),
    ],
)
def test_garbage_is_named_and_not_asked_for_again(reply, what):
    failure, count = refused(lambda heard: reply)
    assert what in str(failure) and count == 1 and not failure.final and "\n" not in str(failure)


def test_a_full_context_is_no_failure_of_the_server():
    for message, code in [
        ("This model's maximum context length is 4096 tokens. However, you requested 5000", ""),
        ("the request exceeds the available context size", "exceed_context_size_error"),
        ("too long", "context_length_exceeded"),
    ]:
        failure, count = refused(lambda heard, m=message, c=code: error(400, m, code=c))
        assert isinstance(failure, ContextFull) and count == 1


def test_settings_that_a_server_does_not_know_are_renamed_or_left_out():
    def strict(heard):
        body = heard.body
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: 'max_tokens'", code="unsupported_parameter", param="max_tokens")
        if "seed" in body:
            return 422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs"}]}
        return said("ok")

    with speaking(strict) as (url, heard):
        answer, client = ask(url, asking=Asking(16, 0.5, ("\n",), 3))
        assert answer.text == "ok" and client.left_out == {"seed"} and client.traffic.retries == 0
        assert heard[-1].body == {
            "model": "tiny", "prompt": "hello", "max_completion_tokens": 16, "temperature": 0.5, "stop": ["\n"],
        }  # fmt: skip
    # A value that is out of range is not left out behind the user's back.
    failure, count = refused(lambda heard: error(400, "temperature must be at most 2", param="temperature"))
    assert count == 1 and "at most 2" in str(failure)
    # A server that complains for ever is not asked for ever.
    always = error(400, "unsupported: 'max_tokens' 'max_completion_tokens' 'temperature' 'stop'")
    assert refused(lambda heard: always)[1] == 5


def test_an_exhausted_quota_is_final():
    failure, count = refused(lambda heard: error(429, "You exceeded your quota", code="insufficient_quota"))
    assert failure.final and count == 1


def test_models_are_listed_where_the_server_does():
    with speaking(lambda heard: said(""), ("a", "b")) as (url, _):
        assert served(Endpoint(url, "?")) == ["a", "b"]
    with speaking(lambda heard: said(""), None) as (url, _):
        assert served(Endpoint(url, "?")) == []


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("localhost:8000/v1", "not an address"), ("", "not an address"), ("http://", "not an address"),
        ("ftp://h/v1", "not an address"), ("http://h:abc/v1", "not an address"),
        ("http://h:99999/v1", "not an address"), ("http://a b/v1", "not an address"),
        ("http://me:pass@h/v1", "name or password"),
    ],
)  # fmt: skip
def test_bad_addresses_are_refused(url, what):
    with pytest.raises(UserError, match=what) as failure:
        Endpoint(url, "m")
    assert "pass@" not in str(failure.value) and "\n" not in str(failure.value)


def test_addresses_are_taken_with_or_without_their_end():
    for text in ("http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions", " http://h:1/v1/completions "):
        assert str(address(text)) == "http://h:1/v1"
        assert str(Endpoint(text, "m").at("models")) == "http://h:1/v1/models"
    azure = Endpoint("https://h/openai/v1?api-version=2", "m")
    assert str(azure.at("chat/completions")) == "https://h/openai/v1/chat/completions?api-version=2"
    assert azure.shown == "https://h/openai/v1" and str(Endpoint("http://h", "m").at("models")) == "http://h/models"


@pytest.mark.parametrize(
    "settings",
    [{"model": ""}, {"key": "a b"}, {"key": "a\n"}, {"timeout": 0.0}, {"timeout": math.nan}, {"retries": -1},
     {"connections": 0}, {"backoff": -1.0}, {"longest": math.inf}],
)  # fmt: skip
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError):
        replace(Endpoint("http://h/v1", "m"), **settings)


def test_complaints_are_one_legible_line():
    assert plain("a\n\x1b[2Jb\t c", 80) == "a [2Jb c" and plain("abcdefgh", 6) == "abc..."
    assert str(Complaint.of(None, "  ", "")) == "" and Complaint.of({"detail": "no"}, "", "").text == "no"
    assert Complaint.of({"error": {"message": "m", "type": "t"}}, "", "").code == "t"
