"""The inner half of the sandbox: gives up rights, then runs `program.py` of the current folder.

Run by `partita.tasks.sandbox` as a script with the arguments CPU seconds, megabytes and, to list the layers
that hold instead of running anything, `layers`. Imports only the standard library.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from types import ModuleType
from typing import Any

EXIT_REFUSED, EXIT_MEMORY = 97, 98
FILE_BYTES = 16 << 20
OPEN_FILES = 64
MOST_WRITES = 256  # files opened for writing; with FILE_BYTES a bound on the disk that a program can fill

FORBIDDEN_MODULES = (
    "ctypes _ctypes _posixsubprocess _posixshmem _multiprocessing socket _socket _ssl _sqlite3 _dbm _gdbm readline "
    "_tkinter _curses _testcapi _testinternalcapi _xxsubinterpreters"
)
FORBIDDEN_EVENTS = (
    "os.exec os.fork os.forkpty os.posix_spawn os.spawn os.startfile os.system os.kill os.killpg os.link os.symlink "
    "os.chdir os.fchdir os.putenv os.setxattr os.lockf os.chroot pty.spawn signal.pthread_kill resource.setrlimit "
    "resource.prlimit"
)
FORBIDDEN_PREFIXES = ("socket.", "subprocess.", "ctypes.", "syslog.", "ftplib.", "http.", "smtplib.", "sqlite3.")
PATH_EVENTS = (
    "os.chmod os.chown os.chflags os.listdir os.mkdir os.remove os.rename os.rmdir os.scandir os.truncate os.utime "
    "os.getxattr os.listxattr os.removexattr os.walk"
)

# System calls that fail with EPERM, by machine: (audit architecture, clone, clone3, forbidden ones). The last
# row of numbers is the same everywhere: io_uring, pidfd and the new mount interface.
COMMON = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 442)
SYSCALLS = {
    # socket..., fork, vfork, execve, kill..., ptrace, set*limit, mount..., link..., modules, keys, bpf, perf, ipc
    "x86_64": (0xC000003E, 56, 435, (
        41, 42, 43, 44, 46, 49, 50, 53, 57, 58, 59, 62, 101, 160, 302, 165, 166, 155, 161, 272, 308, 321, 298, 248,
        249, 250, 310, 311, 200, 129, 297, 234, 322, 175, 313, 176, 246, 320, 169, 167, 168, 304, 303, 323, 135, 88,
        266, 86, 265, 133, 259, 29, 68, 64, *COMMON)),
    "aarch64": (0xC00000B7, 220, 435, (
        198, 199, 200, 201, 202, 203, 206, 211, 242, 129, 130, 131, 138, 240, 221, 281, 117, 164, 261, 40, 39, 41, 51,
        97, 268, 280, 241, 217, 218, 219, 270, 271, 105, 273, 106, 104, 294, 142, 224, 225, 265, 264, 282, 92, 36, 37,
        33, 194, 186, 190, *COMMON)),
}  # fmt: skip


def limit(seconds: int, megabytes: int) -> bool:
    """Lower the resource limits of this process, soft and hard."""
    for name, soft, hard in (
        ("RLIMIT_CPU", seconds, seconds + 1),
        ("RLIMIT_AS", megabytes << 20, megabytes << 20),
        ("RLIMIT_FSIZE", FILE_BYTES, FILE_BYTES),
        ("RLIMIT_NOFILE", OPEN_FILES, OPEN_FILES),
        ("RLIMIT_NPROC", 0, 0),
        ("RLIMIT_CORE", 0, 0),
    ):
        try:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        except (AttributeError, ValueError, OSError):  # macOS knows no limit of the address space
            continue
    return True


def isolate(c: ModuleType, libc: Any) -> bool:
    """Enter new user, network and IPC namespaces; false where the system does not permit it."""
    new_user, new_net, new_ipc = 0x10000000, 0x40000000, 0x08000000
    return libc.unshare(c.c_int(new_user | new_net | new_ipc)) == 0


def restrict_files(c: ModuleType, libc: Any, folder: str, readable: list[str]) -> bool:
    """Landlock: everything below `folder`, reading below `readable`, nothing else."""
    create, add, restrict = 444, 445, 446
    everything, reading = (1 << 13) - 1, (1 << 2) | (1 << 3)
    libc.syscall.restype = c.c_long
    attribute = c.create_string_buffer(struct.pack("=Q", everything), 8)
    ruleset = libc.syscall(c.c_long(create), attribute, c.c_size_t(8), c.c_uint32(0))
    if ruleset < 0:
        return False
    for path, access in [(folder, everything), *((path, reading) for path in readable)]:
        if not os.path.isdir(path):
            continue
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = c.create_string_buffer(struct.pack("=Qi", access, fd), 12)
        added = libc.syscall(c.c_long(add), c.c_int(ruleset), c.c_int(1), rule, c.c_uint32(0))
        os.close(fd)
        if added < 0:
            return False
    done = libc.syscall(c.c_long(restrict), c.c_int(ruleset), c.c_uint32(0)) == 0
    os.close(ruleset)
    return done


def filter_syscalls(c: ModuleType, libc: Any, machine: str) -> bool:
    """Seccomp: the system calls of `SYSCALLS` fail, and `clone` may only make threads."""
    if machine not in SYSCALLS:
        return False
    arch, clone, clone3, forbidden = SYSCALLS[machine]
    load, equal, at_least, has, back = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse, unknown = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38
    lines = [(load, 0, 0, 4), (equal, 1, 0, arch), (back, 0, 0, kill), (load, 0, 0, 0)]
    lines += [(at_least, 0, 1, 0x40000000), (back, 0, 0, refuse)]  # the x32 numbering of x86-64
    lines += [(equal, 0, 1, clone3), (back, 0, 0, unknown)]  # the C library then falls back to clone
    for number in forbidden:
        lines += [(equal, 0, 1, number), (back, 0, 0, refuse)]
    lines += [(equal, 0, 3, clone), (load, 0, 0, 16), (has, 1, 0, 0x00010000), (back, 0, 0, refuse)]
    lines += [(back, 0, 0, allow)]
    code = c.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = c.create_string_buffer(struct.pack("@HP", len(lines), c.addressof(code)))
    return libc.prctl(c.c_int(22), c.c_ulong(2), program, c.c_ulong(0), c.c_ulong(0)) == 0


def give_up_rights(folder: str, readable: list[str]) -> list[str]:
    """Apply the Linux layers that work here; returns their names."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        import ctypes as c

        libc = c.CDLL(None, use_errno=True)
        layers = []
        if isolate(c, libc):
            layers.append("namespaces")
        if libc.prctl(c.c_int(38), c.c_ulong(1), c.c_ulong(0), c.c_ulong(0), c.c_ulong(0)) == 0:  # no new privileges
            if restrict_files(c, libc, folder, readable):
                layers.append("landlock")
            if filter_syscalls(c, libc, os.uname().machine):
                layers.append("seccomp")
        return layers
    except (ImportError, OSError, AttributeError):
        return []
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("ctypes", "_ctypes")]:
            del sys.modules[name]


def install_audit(folder: str, readable: list[str]) -> None:
    """Refuse, with a PermissionError that says what, whatever reaches outside of `folder`."""
    real, fspath, fsdecode = os.path.realpath, os.fspath, os.fsdecode
    inside = folder + os.sep
    allowed = tuple(path + os.sep for path in readable)
    modules, events, paths = (frozenset(t.split()) for t in (FORBIDDEN_MODULES, FORBIDDEN_EVENTS, PATH_EVENTS))
    writes = [0]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def refuse(what: str) -> None:
        raise PermissionError(f"the sandbox refuses {what}")

    def check(path: Any, write: bool, event: str) -> None:
        if path is None or isinstance(path, int):
            return
        full = real(fsdecode(fspath(path)))
        own = full == folder or full.startswith(inside)
        if write:
            writes[0] += 1
        if not own and (write or not (full + os.sep).startswith(allowed)):
            refuse(f"{event} of {full}")
        if writes[0] > MOST_WRITES:
            refuse(f"to open more than {MOST_WRITES} files for writing")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            mode, flags = args[1], args[2] or 0
            check(args[0], bool(flags & writing) or any(m in (mode or "") for m in "wax+"), "opening")
        elif event == "import":
            if args[0] in modules:
                refuse(f"to import {args[0]}")
        elif event in events or event.startswith(FORBIDDEN_PREFIXES):
            refuse(event)
        elif event in paths:
            for arg in args[: 2 if event == "os.rename" else 1]:
                check(arg, event not in ("os.listdir", "os.scandir"), event)

    sys.addaudithook(hook)


def run(path: str) -> int:
    """Run a program as `__main__`; returns the exit code."""
    import traceback

    try:
        with open(path, encoding="utf-8") as file:
            program = compile(file.read(), "program.py", "exec")
        exec(program, {"__name__": "__main__", "__builtins__": __builtins__})
        return 0
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 255
        print(error.code, file=sys.stderr)
        return 1
    except MemoryError:
        return EXIT_MEMORY
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)] if frames else []
        print("".join([*lines, *traceback.format_exception_only(error)]), end="", file=sys.stderr)
        return EXIT_REFUSED if isinstance(error, PermissionError) else 1


def main() -> None:
    """Give up rights, then run the program or list the layers."""
    seconds, megabytes, *rest = sys.argv[1:]
    sys.argv = ["program.py"]
    folder = os.path.realpath(os.getcwd())
    base = os.path.realpath(os.path.dirname(os.__file__))
    readable = [base, *(os.path.realpath(p) for p in ("/lib", "/lib64", "/usr/lib", "/usr/lib64"))]
    import linecache  # noqa: F401 - traceback printing must not need what is refused later
    import traceback  # noqa: F401

    sys.path[:] = [p for p in sys.path if os.path.realpath(p).startswith(base)]
    layers = ["limits"] if limit(int(seconds), int(megabytes)) else []
    layers += give_up_rights(folder, readable)
    install_audit(folder, readable)
    if rest == ["layers"]:
        print(*layers, "audit")
        return
    code = run("program.py")
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        code = code or 1
    os._exit(code)


if __name__ == "__main__":
    main()
