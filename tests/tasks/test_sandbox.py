import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from partita.core.errors import UserError
from partita.tasks import sandbox_child
from partita.tasks.sandbox import run_python, sandbox_layers

LINUX = sys.platform.startswith("linux")


def test_a_program_runs_with_its_input():
    result = run_python("import math\nprint(input()[::-1], math.gcd(12, 18))", stdin="abc\n")
    assert (result.stdout, result.stderr, result.status) == ("cba 6\n", "", "ok")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(0)", "ok"),
        ("raise SystemExit(3)", "error"),
        ("raise SystemExit('no')", "error"),
        ("1 / 0", "error"),
        ("def f(:", "error"),
        ("\0", "error"),
        ("import no_such_module", "error"),
        ("import torch", "error"),  # no packages, only the standard library
        ("try:\n    open('/etc/passwd')\nexcept PermissionError:\n    pass", "ok"),
    ],
)
def test_how_programs_end(code, status):
    assert run_python(code).status == status


def test_a_traceback_shows_the_program_only():
    stderr = run_python("def f():\n    return 1 / 0\nf()").stderr
    assert 'File "program.py", line 2, in f' in stderr
    assert stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "sandbox" not in stderr


def test_endless_loop():
    assert run_python("print('a', flush=True)\nwhile True: pass", seconds=1).status == "timeout"


def test_endless_sleep():
    result = run_python("import time\nprint('a', flush=True)\ntime.sleep(1000)", seconds=0.1)
    assert (result.status, result.stdout) == ("timeout", "a\n")


@pytest.mark.skipif(not LINUX, reason="the address space is limited on Linux only")
@pytest.mark.parametrize("code", ["x = [0] * 10**9", "s = 'a'\nwhile True: s += s", "bytearray(10**12)"])
def test_memory_bomb(code):
    assert run_python(code).status == "memory"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.system('true')",
        "import os\nos.kill(1, 0)",
        "import subprocess\nsubprocess.run(['true'])",
        "import socket\nsocket.socket().connect(('127.0.0.1', 80))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
        "import ctypes",
        "import _ctypes",
        "__import__('ctypes').CDLL(None)",
        "import _posixsubprocess",
        "import sqlite3",
        "open('/etc/passwd').read()",
        "open('/etc/' + 'passwd')",
        "open('../escaped', 'w')",
        "open(b'/tmp/escaped', 'w')",
        "import os\nos.open('/tmp/escaped', os.O_CREAT | os.O_WRONLY)",
        "import os\nos.listdir('/')",
        "import os\nos.remove('/tmp/escaped')",
        "import os\nos.rename('program.py', '/tmp/escaped')",
        "import os\nos.mkdir('/tmp/escaped')",
        "import os\nos.symlink('/etc/passwd', 'mine')",
        "import os\nos.chdir('/')",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (100, 100))",
        "import pathlib\npathlib.Path('/proc/self/environ').read_bytes()",
    ],
)
def test_what_reaches_outside_is_refused(code):
    result = run_python(code)
    assert result.status == "refused", result
    assert "PermissionError: the sandbox refuses" in result.stderr  # the audit hook, before the kernel
    assert not Path("/tmp/escaped").exists()


def test_its_own_folder_is_its_own_and_is_removed():
    result = run_python("import os\nopen('x', 'w').write('hi')\nprint(open('x').read(), os.getcwd(), os.listdir())")
    words = result.stdout.split()
    assert words[0] == "hi"
    assert not Path(words[1]).exists()
    assert run_python("print(open('x').read())").status == "error"


def test_files_stay_small_and_few():
    assert "too large" in run_python("open('big', 'wb').write(bytes(10**8))").stderr.lower()
    many = "for k in range(1000):\n    open(f'{k}', 'w').close()"
    assert run_python(many).status == "refused"


def test_huge_output_ends_the_program():
    result = run_python("while True: print('a' * 1000)", output_bytes=5000)
    assert result.status == "error"
    assert len(result.stdout) == 5000
    assert "output beyond 5000 bytes" in result.stderr


def test_the_environment_is_empty_and_strings_hash_alike(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    code = "import os\nprint(sorted(os.environ), hash('partita'), list({'a', 'b', 'c', 'd'}))"
    first, second = run_python(code), run_python(code)
    assert "SECRET" not in first.stdout
    assert first == second


@pytest.mark.parametrize(("name", "value"), [("seconds", 0.0), ("seconds", float("nan")), ("memory_mb", -1)])
def test_bad_limits(name, value):
    with pytest.raises(UserError, match=name):
        run_python("", **{name: value})


def inside(layer: str, code: str, tmp_path: Path) -> str:
    """What a program prints that has gone through the kernel's layers, without the audit hook."""
    if layer not in sandbox_layers():
        pytest.skip(f"this machine offers no {layer}")
    script = f"""
        import os, sys
        sys.path.insert(0, {str(Path(sandbox_child.__file__).parent)!r})
        import ctypes, socket, subprocess, sandbox_child
        libc = ctypes.CDLL(None, use_errno=True)
        folder = os.path.realpath(os.getcwd())
        readable = [os.path.realpath(os.path.dirname(os.__file__)), "/usr/lib"]
    """
    run = {
        "namespaces": "assert sandbox_child.isolate(ctypes, libc)",
        "landlock": "libc.prctl(38, 1, 0, 0, 0)\nassert sandbox_child.restrict_files(ctypes, libc, folder, readable)",
        "seccomp": "libc.prctl(38, 1, 0, 0, 0)\nassert sandbox_child.filter_syscalls(ctypes, libc, os.uname().machine)",
    }[layer]
    tried = "try:\n" + textwrap.indent(code, "    ") + "\nexcept OSError as error:\n    print('stopped')\n"
    whole = "\n".join([textwrap.dedent(script), run, tried])
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("layer", "code", "printed"),
    [
        ("namespaces", "socket.create_connection(('127.0.0.1', 9), timeout=1)", "stopped\n"),
        ("namespaces", "print([name for _, name in socket.if_nameindex() if name != 'lo'])", "[]\n"),
        ("landlock", "open('/etc/passwd')", "stopped\n"),
        ("landlock", "open('/tmp/escaped', 'w')", "stopped\n"),
        ("landlock", "os.mkdir('/tmp/escaped')", "stopped\n"),
        ("landlock", "os.listdir('/')", "stopped\n"),
        ("landlock", "open('mine', 'w').write('hi'); print(open('mine').read())", "hi\n"),
        ("seccomp", "socket.socket()", "stopped\n"),
        ("seccomp", "os.fork()", "stopped\n"),
        ("seccomp", "subprocess.run(['/bin/true'])", "stopped\n"),
        ("seccomp", "os.execv('/bin/true', ['true'])", "stopped\n"),
        ("seccomp", "os.kill(os.getpid(), 0)", "stopped\n"),
        ("seccomp", "print(libc.ptrace(0, 0, 0, 0), libc.unshare(0x10000000))", "-1 -1\n"),
        (
            "seccomp",
            "import threading\nt = threading.Thread(target=print, args=('thread',))\nt.start()\nt.join()",
            "thread\n",
        ),
    ],
)
def test_the_kernel_holds_without_the_audit_hook(layer, code, printed, tmp_path):
    assert inside(layer, code, tmp_path) == printed


def test_layers_always_include_limits_and_audit():
    assert {"limits", "audit"} <= set(sandbox_layers())
