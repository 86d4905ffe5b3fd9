"""Run a program as a container would: `confine.py '{"uid": 7, …}' PROGRAM ARG…`. Linux, as root.

Settings, all optional, applied in this order:
  netns   a named network namespace (ip netns)
  mounts  {place: directory | "tmpfs:OPTIONS" | "gone"}: over place, in a mount namespace of its own
  visible [directory, …]: what others may reach although a directory above it is closed to them
  pidns   true: a pid namespace of its own with its own /proc
  limits  {"NOFILE": [soft, hard], …}: RLIMIT_*
  uid     user and group of the program
  userns  true: a user namespace in which the program's user is 0
  refuse  [[system call, …], "EPERM" | "ENOSYS"]: what seccomp answers
"""

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
CHECKOUT = Path(__file__).resolve().parents[2]
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_ALLOW, SECCOMP_ERRNO = 0x7FFF0000, 0x00050000
LD_W_ABS, JEQ_K, RET_K = 0x20, 0x15, 0x06  # classic BPF

# Of linux/audit.h, and asm/unistd.h of each architecture; numbers from 424 on are the same everywhere.
ARCHES = {
    "x86_64": (0xC000003E, {"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "memfd_create": 319}),
    "aarch64": (0xC00000B7, {"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "memfd_create": 279}),
}
COMMON = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "pidfd_open": 434, "pidfd_getfd": 438}

libc = ctypes.CDLL(None, use_errno=True)


def check(rc: int, what: str) -> None:
    if rc < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def prctl(option: int, value: object, more: object = 0) -> None:
    """Arguments that are numbers are passed as longs, which is what the kernel reads."""
    values = [ctypes.c_ulong(v) if isinstance(v, int) else v for v in (value, more, 0, 0)]
    check(libc.prctl(option, *values), f"prctl {option}")


def unshare(flags: int) -> None:
    check(libc.unshare(flags), f"unshare {flags:#x}")


def enter_netns(name: str) -> None:
    with open(f"/run/netns/{name}", "rb") as file:
        check(libc.setns(file.fileno(), CLONE_NEWNET), f"setns {name}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    done = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    check(done, f"mount {kind} {source} on {target}")


def keep(path: str, fd: int) -> None:
    """What lay below a place that is covered now is shown there again."""
    os.makedirs(path, exist_ok=True)
    mount(f"/proc/self/fd/{fd}", path, "", MS_BIND | MS_REC)


def mount_all(mounts: dict[str, str]) -> None:
    """The checkout and the interpreter's environment stay visible, also where they lie below a place that is covered."""
    unshare(CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    needed = {path: os.open(path, os.O_PATH) for path in sorted({str(CHECKOUT), sys.prefix})}
    for place, what in sorted(mounts.items(), key=lambda one: one[0] == "/proc"):  # needed until the end
        below = {path: fd for path, fd in needed.items() if Path(place) in Path(path).parents}
        if what == "gone":
            check(libc.umount2(place.encode(), MNT_DETACH), f"umount {place}")
        elif what.startswith("tmpfs:"):
            options = what.removeprefix("tmpfs:").split(",")
            mount("tmpfs", place, "tmpfs", 0, ",".join(o for o in options if o != "ro"))
            for path, fd in below.items():
                keep(path, fd)
            if "ro" in options:
                mount("tmpfs", place, "", MS_REMOUNT | MS_BIND | MS_RDONLY)
        else:
            mount(what, place, "", MS_BIND)
            for path, fd in below.items():
                keep(path, fd)
    os.chdir("/")
    for fd in needed.values():
        os.close(fd)


def show(paths: list[str]) -> None:
    """Cover each directory above that is closed to others by an open one, with nothing but these paths in it."""
    kept = {path: os.open(path, os.O_PATH) for path in paths}
    above = {str(parent) for path in paths for parent in Path(path).parents}
    closed = [place for place in sorted(above) if not os.stat(place).st_mode & 1]
    outer = [place for place in closed if not any(Path(other) in Path(place).parents for other in closed)]
    for place in outer:
        mount("tmpfs", place, "tmpfs", 0, "mode=755,size=64k")
    for path, fd in kept.items():
        if any(Path(place) in Path(path).parents for place in outer):
            os.makedirs(path, exist_ok=True)
            mount(f"/proc/self/fd/{fd}", path, "", MS_BIND)


def enter_pidns() -> None:
    """Goes on in a child, process 1 there; this process passes on how it ended."""
    unshare(CLONE_NEWPID | CLONE_NEWNS)
    child = os.fork()
    if child:
        for fd in (0, 1):
            os.close(fd)  # their ends are seen by whoever holds the others
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", 0)


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def enter_userns() -> None:
    uid, gid = os.getuid(), os.getgid()
    prctl(PR_SET_DUMPABLE, 1)  # setresuid() took the right to write one's own maps
    unshare(CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        # Not open(), which may look for a codec, in files that nobody can read at this moment.
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(fd, text.encode())
        os.close(fd)


def refuse(calls: list[str], answer: str) -> None:
    """Answer these calls with an errno; let all others pass, and those of a foreign architecture."""
    arch, numbers = ARCHES[platform.machine()]
    numbers = numbers | COMMON
    code = [(LD_W_ABS, 0, 0, 4), (JEQ_K, 0, len(calls) + 1, arch), (LD_W_ABS, 0, 0, 0)]
    code += [(JEQ_K, len(calls) - i, 0, numbers[call]) for i, call in enumerate(calls)]
    code += [(RET_K, 0, 0, SECCOMP_ALLOW), (RET_K, 0, 0, SECCOMP_ERRNO | getattr(errno, answer))]
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)


def main() -> None:
    settings = json.loads(sys.argv[1])
    if "netns" in settings:
        enter_netns(settings["netns"])
    if "mounts" in settings:
        mount_all(settings["mounts"])
    if "visible" in settings:
        show(settings["visible"])
    if settings.get("pidns"):
        enter_pidns()
    for name, both in settings.get("limits", {}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), tuple(both))
    if "uid" in settings:
        become(settings["uid"])
    if settings.get("userns"):
        enter_userns()
    if "refuse" in settings:
        refuse(*settings["refuse"])
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
