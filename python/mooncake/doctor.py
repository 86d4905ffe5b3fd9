"""What of this machine keeps the engine from working, or from working well, and how to mend it.

Each check looks at one thing and says what it found; nothing is changed. `mooncake doctor` shows them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from mooncake import doctor_rdma
from mooncake.finding import FAIL, OK, WARN, Finding, read, size

PORTS_DEFAULT = (15000, 17000)
OPEN_FILES_WANTED = 4096
PORTS_WANTED = 16
SHM_WANTED = 1 << 30
SOCKET_DIR_MAX = 108 - 32  # of a Unix socket's path; without the name of the socket itself
SYS_IO_URING_SETUP = 425  # the same number on every architecture


def check_library(_root: Path) -> Finding:
    try:
        from mooncake import _mooncake
    except ImportError as why:
        return Finding("library", FAIL, str(why), "reinstall the package: pip install --force-reinstall mooncake-c")
    return Finding("library", OK, f"libmooncake {_mooncake.version()}")


def port_range() -> tuple[int, int, str]:
    """The engine's ports as the environment sets them; the text names a value that is no port."""
    ports, wrong = [], ""
    for name, default in zip(("MC_MIN_RPC_PORT", "MC_MAX_RPC_PORT"), PORTS_DEFAULT):
        text = os.environ.get(name) or str(default)
        if text.isascii() and text.isdigit() and 1024 <= int(text) <= 65535:
            ports.append(int(text))
        else:
            wrong = f"{name}={text} is no port from 1024 to 65535"
            ports.append(default)
    if not wrong and ports[0] > ports[1]:
        wrong = f"MC_MIN_RPC_PORT={ports[0]} is above MC_MAX_RPC_PORT={ports[1]}"
    return ports[0], ports[1], wrong


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def check_ports(root: Path) -> Finding:
    low, high, wrong = port_range()
    if wrong:
        return Finding("ports", FAIL, wrong, "unset it or name a port")
    ephemeral = [int(word) for word in (read("/proc/sys/net/ipv4/ip_local_port_range", root) or "32768 60999").split()]
    if low <= ephemeral[1] and ephemeral[0] <= high:
        return Finding(
            "ports",
            WARN,
            f"{low}-{high} overlap the ephemeral ports {ephemeral[0]}-{ephemeral[1]}: connections may take them",
            "set MC_MIN_RPC_PORT and MC_MAX_RPC_PORT outside of net.ipv4.ip_local_port_range",
        )
    step = max(1, (high - low) // 64)
    tried = range(low, high + 1, step)
    free = sum(port_is_free(port) for port in tried)
    if free == 0:
        return Finding("ports", FAIL, f"no port of {low}-{high} is free", "set MC_MIN_RPC_PORT and MC_MAX_RPC_PORT")
    if free * step < PORTS_WANTED:
        return Finding("ports", WARN, f"few ports of {low}-{high} are free", "widen MC_MIN_RPC_PORT to MC_MAX_RPC_PORT")
    return Finding("ports", OK, f"{low}-{high}, {free} of {len(tried)} tried are free")


def check_addresses(_root: Path) -> Finding:
    wanted = os.environ.get("MC_TCP_BIND_ADDRESS", "")
    if wanted:
        try:
            family = socket.getaddrinfo(wanted, 0)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.bind((wanted, 0))
        except OSError as why:
            return Finding(
                "addresses",
                FAIL,
                f"MC_TCP_BIND_ADDRESS={wanted} is no address of this machine ({why.strerror or why})",
                "set it to one of `ip -brief address`",
            )
        return Finding("addresses", OK, f"MC_TCP_BIND_ADDRESS={wanted}")
    names = [name for _, name in socket.if_nameindex() if name != "lo" and interface_is_up(name)]
    if not names:
        return Finding(
            "addresses",
            WARN,
            "no interface but loopback is up: other hosts cannot reach this one",
            "bring one up, or give initialize() the address 127.0.0.1 for peers on this host only",
        )
    return Finding("addresses", OK, "up: " + ", ".join(names))


def interface_is_up(name: str) -> bool:
    try:
        return bool(int(Path(f"/sys/class/net/{name}/flags").read_text(), 16) & 1)
    except (OSError, ValueError):
        return False


def check_host_name(_root: Path) -> Finding:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError as why:
        return Finding(
            "host name",
            WARN,
            f"{name} does not resolve ({why.strerror})",
            "use an address as local_hostname, or add the name to /etc/hosts",
        )
    return Finding("host name", OK, name)


def check_open_files(_root: Path) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES_WANTED:
        return Finding(
            "open files",
            WARN,
            f"limit {soft}, at most {hard}: enough for about {hard // 5} peers",
            f"ulimit -n 65536, LimitNOFILE= of the unit, --ulimit nofile= of the container",
        )
    return Finding("open files", OK, f"limit {soft}, at most {'any' if hard < 0 else hard}")


def check_huge_pages(root: Path) -> Finding:
    words = dict(line.split(":", 1) for line in (read("/proc/meminfo", root) or "").splitlines() if ":" in line)
    total, free = (int(words.get(f"HugePages_{name}", "0").split()[0]) for name in ("Total", "Free"))
    transparent = read("/sys/kernel/mm/transparent_hugepage/enabled", root) or ""
    if total:
        return Finding("huge pages", OK, f"{free} of {total} free")
    if "[never]" in transparent:
        return Finding(
            "huge pages",
            WARN,
            "none, and transparent ones are off: large pools cost more time to touch",
            "sysctl vm.nr_hugepages=N, or echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    mode = transparent[transparent.find("[") + 1 : transparent.find("]")] if "[" in transparent else "unknown"
    return Finding("huge pages", OK, f"none reserved; transparent ones: {mode}")


def check_shared_memory(_root: Path) -> Finding:
    try:
        fd = os.memfd_create("mooncake-doctor", os.MFD_CLOEXEC)
    except OSError as why:
        return Finding(
            "shared memory",
            WARN,
            f"memfd_create is refused ({why.strerror}): peers on this host use slower paths",
            "allow memfd_create in the seccomp profile",
        )
    os.close(fd)
    try:
        shm = os.statvfs("/dev/shm")
    except OSError:
        return Finding("shared memory", OK, "memfd works; there is no /dev/shm, and none is needed")
    found = f"memfd works; /dev/shm {size(shm.f_bavail * shm.f_frsize)} free of {size(shm.f_blocks * shm.f_frsize)}"
    if shm.f_blocks * shm.f_frsize < SHM_WANTED:
        fix = "--shm-size=8g of the container, or mount -o remount,size=8g /dev/shm"
        return Finding("shared memory", WARN, found + ": small for engines that use it", fix)
    return Finding("shared memory", OK, found)


def unfit_for_socket(place: Path) -> str:
    """Why the engine could not make its socket in this directory; empty when it could."""
    if len(os.fsencode(place)) > SOCKET_DIR_MAX:
        return f"{place} is longer than a socket's path may be"
    try:
        info = place.lstat()
    except OSError:
        return "" if os.access(place.parent, os.W_OK | os.X_OK) else f"{place.parent} is not writable"
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        return f"{place} is not a directory of uid {os.geteuid()} with mode 0700"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} is not writable"


def check_socket_place(_root: Path) -> Finding:
    """The directory where peers on this host find each other."""
    run = os.environ.get("XDG_RUNTIME_DIR", "")
    places = [Path(run) / "mooncake"] if run.startswith("/") else []
    places.append(Path(f"/tmp/mooncake-{os.geteuid()}"))
    reasons = []
    for place in places:
        why = unfit_for_socket(place)
        if not why:
            return Finding("socket directory", OK, f"{place}; peers on this host must see the same directory")
        reasons.append(why)
    return Finding(
        "socket directory",
        WARN,
        "; ".join(reasons) + ": peers on this host use TCP",
        "set XDG_RUNTIME_DIR to a writable directory of your own with a short path, mounted into all containers",
    )


class IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def process_vm_error(pid: int, address: int, length: int) -> int:
    """errno of reading a process's memory; 0 when it works."""
    libc = ctypes.CDLL(None, use_errno=True)
    to = ctypes.create_string_buffer(length)
    local = IoVec(ctypes.addressof(to), length)
    remote = IoVec(address, length)
    n = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    return 0 if n == length else ctypes.get_errno() or errno.EFAULT


def check_ptrace(root: Path) -> Finding:
    """Whether a process may read a sibling's memory: what peers on one host do with memory that is not the engine's."""
    shared = ctypes.create_string_buffer(b"x" * 8, 8)
    scope = read("/proc/sys/kernel/yama/ptrace_scope", root)
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    target = os.fork()
    if target == 0:
        os.write(ready_write, b"1")
        os.close(done_write)
        os.read(done_read, 1)  # until the parent has its answer
        os._exit(0)
    os.read(ready_read, 1)
    reader = os.fork()  # a sibling of the target, as two engines are; Yama lets a parent look at its child
    if reader == 0:
        os._exit(process_vm_error(target, ctypes.addressof(shared), 8) & 0x7F)
    error = os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1])
    for fd in (done_read, done_write, ready_read, ready_write):
        os.close(fd)
    os.waitpid(target, 0)
    if error == 0:
        return Finding("process memory", OK, f"process_vm_readv works (ptrace_scope {scope or 'absent'})")
    reason = f"process_vm_readv between processes: {os.strerror(error)} (ptrace_scope {scope or 'absent'})"
    if error == errno.ENOSYS or scope in (None, "0"):
        fix = "allow process_vm_readv and process_vm_writev in the seccomp profile, or add the capability SYS_PTRACE"
    else:
        fix = "sysctl kernel.yama.ptrace_scope=0, or memory from allocate_managed_buffer(), which does not need it"
    return Finding("process memory", WARN, reason + ": peers on this host copy through sockets", fix)


def check_io_uring(_root: Path) -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(120)
    fd = libc.syscall(SYS_IO_URING_SETUP, 2, params)
    if fd >= 0:
        os.close(fd)
        return Finding("io_uring", OK, "works")
    why = os.strerror(ctypes.get_errno())
    return Finding(
        "io_uring",
        WARN,
        f"refused ({why}): file segments use a pool of threads",
        "allow io_uring_setup, _enter and _register in the seccomp profile; sysctl kernel.io_uring_disabled=0",
    )


def check_engine(_root: Path) -> Finding:
    """Open an engine and move bytes through it, over whatever it chooses."""
    try:
        from mooncake.engine import TransferEngine
    except ImportError:
        return Finding("engine", FAIL, "not loaded", "see 'library'")
    engine = TransferEngine()
    if engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
        return Finding("engine", FAIL, engine.last_error(), "the message names the cause; see 'ports' and 'addresses'")
    length = 1 << 16
    here, there = engine.allocate_managed_buffer(length), engine.allocate_managed_buffer(length)
    if not here or not there:
        return Finding("engine", FAIL, engine.last_error(), "free some memory")
    data = os.urandom(length)
    engine.write_bytes_to_buffer(here, data, length)
    name = f"127.0.0.1:{engine.get_rpc_port()}"
    if engine.transfer_sync_write(name, here, there, length) != 0:
        return Finding("engine", FAIL, engine.last_error(), "MC_LOG_LEVEL=DEBUG tells more")
    if engine.read_bytes_from_buffer(there, length) != data:
        return Finding("engine", FAIL, "bytes came out wrong", "report this as a bug")
    return Finding("engine", OK, f"opened as {name}, moved {size(length)}")


CHECKS: tuple[Callable[[Path], Finding], ...] = (
    check_library,
    check_ports,
    check_addresses,
    check_host_name,
    check_open_files,
    check_huge_pages,
    check_shared_memory,
    check_socket_place,
    check_ptrace,
    check_io_uring,
    check_engine,
)


def examine(root: Path = Path("/"), device_name: str = "", peer: str = "") -> list[Finding]:
    """All findings, in order. `root` stands for / where a check reads files of the kernel; `device_name` is the list that
    the engine would get, `peer` a running engine to ask."""
    findings = [check(root) for check in CHECKS[:-1]]
    findings += [check(root, device_name) for check in doctor_rdma.CHECKS]
    findings.append(doctor_rdma.check_firewall(port_range()[:2]))
    if peer:
        findings.append(doctor_rdma.check_peer(peer))
    return [*findings, CHECKS[-1](root)]
