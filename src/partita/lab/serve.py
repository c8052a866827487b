"""`partita serve`: a trained language model behind the OpenAI protocol, by `transformers`' own server."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from partita.core.errors import UserError
from partita.core.words import positional, take, whole

NEEDS = ("fastapi", "uvicorn", "openai", "pydantic")
LOCAL = ("127.0.0.1", "localhost", "::1")
PATIENCE = 10.0  # seconds that requests under way have once the server is told to stop


def main(argv: list[str]) -> None:
    """Serve what the words name until Ctrl-C."""
    words = list(argv)
    host, port = take(words, "--host") or LOCAL[0], whole("--port", take(words, "--port"), 8000, 1)
    folder = Path(positional(words, "serve", "DIR", 1)[0])
    check_packages()
    check_free(host, port)
    model, stop = exported(folder)
    name = called(folder)
    with suppress(ValueError):  # not the main thread: whoever owns it handles signals
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C
    try:
        with served(model, name, host, port) as process:
            print("\n".join(lines(name, host, port, stop)), flush=True)
            code = ends(process)
    except KeyboardInterrupt:
        print("stopped")
        return
    raise UserError(f"serve {folder}: the server ended with code {code}; what it said stands above")


def check_packages() -> None:
    """Raise UserError unless `transformers`' server and the packages that it needs are there."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    theirs = importlib.util.find_spec("transformers")
    if theirs is None or theirs.origin is None or not (Path(theirs.origin).parent / "cli" / "serving").is_dir():
        missing.append("a newer transformers")
    if missing:
        raise UserError(f'serve: needs {", ".join(missing)}; install with pip install "partita[serve]"')


def check_free(host: str, port: int) -> None:
    """Raise UserError for an address at which nothing can be served."""
    if port > 65535:
        raise UserError(f"--port: expected a whole number from 1 to 65535, got {port}")
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        if isinstance(error, socket.gaierror | UnicodeError) or error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host}: not an address of this machine; leave it out for {LOCAL[0]}") from error
        raise UserError(f"--port {port}: cannot be had on {host} ({error.strerror}); name another") from error


def exported(folder: Path) -> tuple[Path, Sequence[str]]:
    """The folder of the whole model, exported if that has not been done yet; and what ends a response, if known."""
    from partita.lab.export import export, free, place
    from partita.lab.source import source
    from partita.policies.loading import check_folder

    found = source(folder)
    task: Any = None if found.config is None else found.config.task
    stop = () if task is None else tuple(task.stop)
    if found.config is None and not (folder / "adapter_config.json").is_file():
        check_folder(str(folder))
        return folder, stop
    target = place(folder, found)
    if not (target / "config.json").is_file():
        print(f"exporting {found.weights} to {target}", flush=True)
        export(found, free(target, folder, force=False), None)
    return target, stop


def called(folder: Path) -> str:
    """The name under which a folder is served: its own, in characters that need no quoting."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-") or "model"


def command(name: str, host: str, port: int) -> list[str]:
    """What is started; nothing is imported from the folder that it runs in."""
    return [sys.executable, "-P", str(Path(__file__).with_name("server.py")), name, host, str(port)]


@contextmanager
def served(model: Path, name: str, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The process that serves a model, once it answers; told to stop at the end of the block.

    It runs in a folder of its own, where the model has its name; it fetches nothing from the hub, and Ctrl-C does not
    reach it. Raises UserError where it ends before it answers.
    """
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / name).symlink_to(model.resolve(), target_is_directory=True)
        process = subprocess.Popen(
            command(name, host, port), cwd=place, env=offline, stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            _wait(process, url(host, port))
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ends(process: subprocess.Popen[bytes]) -> int:
    """Wait until a server ends by itself; its exit code."""
    return process.wait()


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    """Return once the server answers."""
    ask = build_opener(ProxyHandler({})).open
    while process.poll() is None:
        try:
            with ask(f"{address}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise UserError(f"serve: the server ended with code {process.returncode}; what it said stands above")


def url(host: str, port: int) -> str:
    """The address that clients on this machine use."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def lines(name: str, host: str, port: int, stop: Sequence[str]) -> list[str]:
    """What a person should know of a server that runs."""
    asked = {"model": name, "prompt": "2 + 2 =", "max_tokens": 64, "temperature": 0} | ({"stop": stop} if stop else {})
    body, address = shlex.quote(json.dumps(asked)), url(host, port)
    out = [
        f"{name} is served at {address}/v1; Ctrl-C ends it",
        f"curl {address}/v1/completions -H 'Content-Type: application/json' \\\n  -d {body}",
    ]
    if host not in LOCAL:
        out.append(f"whoever reaches {host} can use it: there is no password")
    return out
