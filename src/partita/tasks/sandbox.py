"""Run Python that a model wrote: a separate process with limits, no network and no files but its own.

What holds it, from the kernel outwards (`sandbox_layers` says which of them this machine offers):

- limits: CPU time, address space, file size, open files and processes (`setrlimit`);
- namespaces (Linux): its own user, network and IPC namespace, so that there is no network interface;
- landlock (Linux 5.13): its own temporary folder, and to read the standard library, are all it can open;
- seccomp (Linux, x86-64 and arm64): no socket, process, signal, mount or debugging system call;
- audit (everywhere): a Python audit hook refuses the same things, with a message that says so.

The audit hook alone, which is what macOS gets, stops accidents and ordinary code, not an attacker.
"""

from __future__ import annotations

import functools
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from partita.core.errors import UserError

Status = Literal["ok", "error", "timeout", "memory", "refused"]
CHILD = Path(__file__).with_name("sandbox_child.py")
EXIT_REFUSED, EXIT_MEMORY = 97, 98  # as in sandbox_child.py
CHUNK = 65536


@dataclass(frozen=True)
class SandboxResult:
    """What a program printed and how it ended.

    status: "ok" (ended by itself with exit code 0), "error" (an exception, another exit code, a crash, or more
    output than allowed), "timeout", "memory" (out of memory), "refused" (an uncaught PermissionError: it tried
    something that the sandbox does not allow).
    """

    stdout: str
    stderr: str
    status: Status


def run_python(
    code: str, stdin: str = "", seconds: float = 2.0, memory_mb: int = 256, output_bytes: int = 65536
) -> SandboxResult:
    """Run `code` as a program in a new process and an empty folder, which is removed afterwards.

    `seconds` limits CPU time, rounded up to whole seconds, so that verdicts do not depend on how busy the
    machine is; wall-clock time is limited to twice that plus one second. `memory_mb` limits the address space.
    Output beyond `output_bytes` ends the program. Reading is allowed in its folder and the standard library,
    nowhere else (not /etc/passwd); writing in its folder only. Strings hash the same in every run.
    Raises UserError on limits that are not positive, and where processes cannot be limited (Windows).
    """
    for name, value in (("seconds", seconds), ("memory_mb", memory_mb), ("output_bytes", output_bytes)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}: the sandbox needs a positive number, got {value!r}")
    if os.name != "posix":
        raise UserError("sandbox: needs Linux or macOS; use a verifier that runs no code")
    cpu = math.ceil(seconds)
    with tempfile.TemporaryDirectory(prefix="partita-") as folder, tempfile.TemporaryFile() as feed:
        feed.write(stdin.encode("utf-8", "replace"))
        feed.seek(0)
        program = Path(folder, "program.py")
        program.write_bytes(code.encode("utf-8", "replace"))
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-B", str(CHILD), str(cpu), str(memory_mb)],
            stdin=feed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, start_new_session=True,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
        )  # fmt: skip
        try:
            outputs, ended = _collect(process, time.monotonic() + 2 * cpu + 1, output_bytes)
        finally:
            _end(process)
    stdout, stderr = (part[:output_bytes].decode("utf-8", "replace") for part in outputs)
    if ended == "full":
        return SandboxResult(stdout, f"{stderr}\noutput beyond {output_bytes} bytes", "error")
    return SandboxResult(stdout, stderr, "timeout" if ended == "late" else _status(process.returncode))


def _collect(process: subprocess.Popen[bytes], deadline: float, most: int) -> tuple[tuple[bytes, bytes], str]:
    """Read both streams until they close ("closed"), the deadline ("late") or too much output ("full")."""
    assert process.stdout is not None
    assert process.stderr is not None
    kept: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    ended = "closed"
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0.0))
            if not ready:
                ended = "late"
                break
            for key, _ in ready:
                stream = key.fileobj  # type: ignore[assignment]
                data = os.read(key.fd, CHUNK)
                kept[stream] += data
                if not data:
                    selector.unregister(stream)
            if any(len(data) > most for data in kept.values()):
                ended = "full"
                break
    if ended == "closed":
        try:
            process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            ended = "late"
    return (bytes(kept[process.stdout]), bytes(kept[process.stderr])), ended


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group, whatever is left of it, and reap the process."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _status(returncode: int) -> Status:
    if returncode == 0:
        return "ok"
    if returncode == -signal.SIGXCPU:
        return "timeout"
    if returncode in (EXIT_MEMORY, -signal.SIGKILL):  # the kernel kills at the hard limits and when memory is out
        return "memory"
    return "refused" if returncode == EXIT_REFUSED else "error"


@functools.cache
def sandbox_layers() -> tuple[str, ...]:
    """The layers that hold programs on this machine, of limits, namespaces, landlock, seccomp, audit."""
    done = subprocess.run(
        [sys.executable, "-P", "-s", "-S", "-B", str(CHILD), "2", "256", "layers"],
        stdin=subprocess.DEVNULL, capture_output=True, cwd=tempfile.gettempdir(), env={}, check=False, timeout=30,
    )  # fmt: skip
    return tuple(done.stdout.decode().split())
