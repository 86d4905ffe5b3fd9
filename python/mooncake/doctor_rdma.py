"""Checks of `mooncake doctor` for RDMA: devices, rights, ports, addresses, packet sizes, filters, the way to a peer.

All but the library and the peer is read from files below a root, so a check can be shown any machine.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import re
import resource
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mooncake.finding import FAIL, OK, WARN, Finding, read, size

LOCKED_WANTED = 1 << 30
IB_MTUS = (4096, 2048, 1024, 512, 256)
ROCE_OVERHEAD = 52  # bytes of headers that a RoCE v2 packet with an IPv6 address needs besides its payload
CONNECT_S = 3.0


@dataclass
class Gid:
    index: int
    address: ipaddress.IPv6Address
    kind: str  # "RoCE v2", "IB/RoCE v1"
    netdev: str

    def is_v2(self) -> bool:
        return "v2" in self.kind

    def text(self) -> str:
        mapped = self.address.ipv4_mapped
        return f"{self.index} ({mapped or self.address}, {self.kind or 'no type'})"

    def rank(self) -> tuple[bool, bool, bool]:
        """Larger is better: as the engine chooses."""
        return self.is_v2(), self.address.ipv4_mapped is not None, not self.address.is_link_local


@dataclass
class Port:
    device: str
    number: int
    state: str
    is_ethernet: bool
    gids: list[Gid] = field(default_factory=list)

    def is_active(self) -> bool:
        return "ACTIVE" in self.state

    def __str__(self) -> str:
        return f"{self.device} port {self.number}"


def number_order(name: str) -> list[tuple[int, str]]:
    """mlx5_2 before mlx5_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def device_names(root: Path) -> list[str]:
    found = (path.name for path in (root / "sys/class/infiniband").glob("*"))
    return sorted(found, key=number_order)


def listed(text: str) -> list[str]:
    """Names of a comma list; addresses in it are rails of TCP and no devices."""
    names = [part.strip() for part in text.split(",")]
    return [name for name in names if name and not is_address(name)]


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def used_devices(root: Path, device_name: str) -> list[str]:
    """Those that no filter leaves out."""
    filters = [listed(text) for text in (device_name, os.environ.get("MC_TE_FILTERS", ""))]
    return [name for name in device_names(root) if all(not names or name in names for names in filters)]


def gids_of(root: Path, base: str) -> list[Gid]:
    gids = []
    for path in (root / base / "gids").glob("*"):
        try:
            address = ipaddress.IPv6Address(read(f"{base}/gids/{path.name}", root) or "::")
            index = int(path.name)
        except ValueError:
            continue
        if address == ipaddress.IPv6Address("::"):
            continue
        kind = read(f"{base}/gid_attrs/types/{index}", root) or ""
        gids.append(Gid(index, address, kind, read(f"{base}/gid_attrs/ndevs/{index}", root) or ""))
    return sorted(gids, key=lambda gid: gid.index)


def ports_of(root: Path, device_name: str) -> list[Port]:
    ports = []
    for device in used_devices(root, device_name):
        numbers = sorted(int(path.name) for path in (root / f"sys/class/infiniband/{device}/ports").glob("[0-9]*"))
        for number in numbers:
            base = f"sys/class/infiniband/{device}/ports/{number}"
            is_ethernet = read(f"{base}/link_layer", root) == "Ethernet"
            ports.append(Port(device, number, read(f"{base}/state", root) or "", is_ethernet, gids_of(root, base)))
    return ports


def check_filter(root: Path, device_name: str) -> Finding:
    """A list of devices that names none of this machine is an error; no device at all means TCP."""
    existing = device_names(root)
    if not existing:
        return Finding("RDMA devices", OK, "none in /sys/class/infiniband: TCP and shared memory are used")
    for source, text in (("the device list", device_name), ("MC_TE_FILTERS", os.environ.get("MC_TE_FILTERS", ""))):
        missing = [name for name in listed(text) if name not in existing]
        if missing:
            status = FAIL if len(missing) == len(listed(text)) else WARN
            return Finding(
                "RDMA devices",
                status,
                f"{source} names {', '.join(missing)}, which is not there; there is {', '.join(existing)}",
                f"correct {source}: {','.join(existing)}",
            )
    used = used_devices(root, device_name)
    if not used:
        return Finding(
            "RDMA devices", FAIL, f"the device list and MC_TE_FILTERS leave none of {', '.join(existing)}", "widen one of them"
        )
    return Finding("RDMA devices", OK, ", ".join(used))


def load_verbs() -> str:
    """Why libibverbs cannot be loaded; empty when it can."""
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError as why:
        return str(why)
    return ""


def check_verbs(root: Path, device_name: str) -> Finding:
    why = load_verbs()
    if not why:
        return Finding("libibverbs", OK, "libibverbs.so.1 loads")
    if not used_devices(root, device_name):
        return Finding("libibverbs", OK, "not installed, and there is no RDMA device that needs it")
    return Finding(
        "libibverbs",
        FAIL,
        f"{why}: RDMA devices are there and cannot be used",
        "install libibverbs1 and ibverbs-providers (rdma-core of the distribution), in the container, too",
    )


def verbs_file(root: Path, device: str) -> str | None:
    """Path of a device's file below /dev; None when the kernel has none for it."""
    for path in (root / "sys/class/infiniband_verbs").glob("uverbs*"):
        if read(f"sys/class/infiniband_verbs/{path.name}/ibdev", root) == device:
            return f"/dev/infiniband/{path.name}"
    return None


def check_rights(root: Path, device_name: str) -> Finding:
    missing, forbidden, good = [], [], []
    for device in used_devices(root, device_name):
        name = verbs_file(root, device)
        path = root / name.lstrip("/") if name else None
        if not path or not path.exists():
            missing.append(f"{name or '/dev/infiniband/uverbs*'} of {device}")
        elif not os.access(path, os.R_OK | os.W_OK):
            forbidden.append(f"{name} of {device}")
        else:
            good.append(device)
    if forbidden:
        return Finding(
            "RDMA rights",
            WARN if good else FAIL,
            f"uid {os.geteuid()} may not open {', '.join(forbidden)}",
            "chmod 0666 them (rdma-core's udev rules do), add the user to their group, or allow them to the container",
        )
    if missing:
        return Finding(
            "RDMA rights",
            WARN if good else FAIL,
            f"no file {', '.join(missing)}",
            "modprobe ib_uverbs; give a container --device=/dev/infiniband",
        )
    return Finding("RDMA rights", OK, f"{len(good)} devices can be opened" if good else "no device to open")


def check_port_states(root: Path, device_name: str) -> Finding:
    ports = ports_of(root, device_name)
    dead = [port for port in ports if not port.is_active()]
    told = ", ".join(f"{port} is {port.state.split(':')[-1].strip() or 'without state'}" for port in dead)
    fix = "plug the cable, `ip link set … up` for RoCE, start a subnet manager (opensm) for InfiniBand"
    if ports and len(dead) == len(ports):
        return Finding("RDMA ports", FAIL, f"no port is active: {told}", fix)
    if dead:
        return Finding("RDMA ports", WARN, told + ": left out until it is active", fix)
    return Finding("RDMA ports", OK, f"{len(ports)} active" if ports else "no port")


def gid_problem(port: Port, wanted: int | None, root: Path) -> tuple[str, str, str] | None:
    """Status, what is wrong with a port's addresses, and the fix."""
    if wanted is not None:
        chosen = next((gid for gid in port.gids if gid.index == wanted), None)
        have = ", ".join(gid.text() for gid in port.gids) or "none"
        if not chosen:
            return FAIL, f"{port}: MC_GID_INDEX={wanted} is empty; there is {have}", "unset it or name one of these"
    elif not port.gids:
        return FAIL, f"{port} has no address (GID)", "give its network interface an IP address and set it up"
    else:
        chosen = max(port.gids, key=lambda gid: (is_here(gid, root), *gid.rank(), -gid.index))
    if not port.is_ethernet:
        return None
    if not is_here(chosen, root):
        where = f"its interface {chosen.netdev or '?'} is not in this network namespace"
        return FAIL, f"{port}: GID {chosen.text()}: {where}", "move the interface in, or use the host's network (--network=host)"
    better = next((gid for gid in port.gids if gid.rank() > chosen.rank() and is_here(gid, root)), None)
    if better and not chosen.is_v2():
        return WARN, f"{port}: GID {chosen.text()} is not routable", f"MC_GID_INDEX={better.index} is {better.text()}"
    if better and chosen.address.ipv4_mapped is None:
        return WARN, f"{port}: GID {chosen.text()} is of another family than {better.text()}", f"MC_GID_INDEX={better.index}"
    if chosen.address.is_link_local:
        return WARN, f"{port} has only the link-local GID {chosen.text()}", "give its interface a routable address"
    return None


def is_here(gid: Gid, root: Path) -> bool:
    return bool(gid.netdev) and (root / "sys/class/net" / gid.netdev).exists()


def check_gids(root: Path, device_name: str) -> Finding:
    ports = [port for port in ports_of(root, device_name) if port.is_active()]
    text = os.environ.get("MC_GID_INDEX", "")
    if text and not re.fullmatch(r"-?\d+", text):
        return Finding("RDMA addresses", FAIL, f"MC_GID_INDEX={text} is no number", "unset it")
    wanted = int(text) if text and int(text) >= 0 else None
    problems = [problem for port in ports if (problem := gid_problem(port, wanted, root))]
    if problems:
        worst = FAIL if any(status == FAIL for status, _, _ in problems) else WARN
        return Finding(
            "RDMA addresses", worst, "; ".join(found for _, found, _ in problems), "; ".join(dict.fromkeys(fix for _, _, fix in problems))
        )
    return Finding("RDMA addresses", OK, f"{len(ports)} ports have a usable GID" if ports else "no active port")


def packet_size(port: Port, root: Path) -> tuple[str, int] | None:
    """The port's interface and the payload that its MTU leaves; None: unknown."""
    for gid in port.gids:
        mtu = read(f"/sys/class/net/{gid.netdev}/mtu", root) if gid.netdev else None
        if mtu and mtu.isdigit():
            fits = (size for size in IB_MTUS if size + ROCE_OVERHEAD <= int(mtu))
            return gid.netdev, next(fits, IB_MTUS[-1])
    return None


def check_mtus(root: Path, device_name: str) -> Finding:
    """Ports of one host with different packet sizes: a connection between two hosts has to agree, and upstream's does not ask."""
    sizes = {str(port): packet_size(port, root) for port in ports_of(root, device_name) if port.is_active() and port.is_ethernet}
    known = {name: found for name, found in sizes.items() if found}
    told = ", ".join(f"{name} ({netdev}) {payload}" for name, (netdev, payload) in known.items())
    if len({payload for _, payload in known.values()}) > 1:
        least = min(payload for _, payload in known.values())
        return Finding(
            "RDMA packet size",
            WARN,
            f"ports differ: {told} bytes",
            f"the same MTU on all interfaces and switches (9000 for 4096), or MC_MTU={least} on all hosts",
        )
    return Finding("RDMA packet size", OK, f"{told} bytes" if told else "no Ethernet port to look at")


def check_locked_memory(root: Path, device_name: str) -> Finding:
    if not used_devices(root, device_name):
        return Finding("locked memory", OK, "no RDMA device, so nothing needs to be locked")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and soft < LOCKED_WANTED:
        return Finding(
            "locked memory",
            WARN,
            f"limit {size(soft)}: RDMA cannot register more",
            "ulimit -l unlimited, LimitMEMLOCK=infinity of the unit, --ulimit memlock=-1 of the container",
        )
    return Finding("locked memory", OK, "limit " + ("unlimited" if soft < 0 else size(soft)))


def firewall_rules() -> str:
    """What iptables and nft say of incoming packets; empty when they are not there or not allowed."""
    told = ""
    for command in (["iptables", "-S", "INPUT"], ["nft", "list", "chains"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        told += done.stdout if done.returncode == 0 else ""
    return told


def drops_by_default(rules: str) -> bool:
    """Is there a chain for incoming packets whose policy is to drop?"""
    if re.search(r"^-P INPUT (DROP|REJECT)$", rules, re.M):
        return True
    return bool(re.search(r"hook input[^;]*; policy drop;", rules))


def check_firewall(ports: tuple[int, int]) -> Finding:
    """Handshakes of peers, also of RDMA ones, come over TCP."""
    low, high = ports
    if drops_by_default(firewall_rules()):
        return Finding(
            "firewall",
            WARN,
            f"incoming packets are dropped unless a rule lets them in: handshakes need TCP {low}-{high}, RoCE needs UDP 4791",
            f"iptables -I INPUT -p tcp --dport {low}:{high} -j ACCEPT; iptables -I INPUT -p udp --dport 4791 -j ACCEPT",
        )
    return Finding("firewall", OK, "none seen that drops incoming packets by default; --peer host:port asks a peer")


def split_peer(peer: str) -> tuple[str, int] | None:
    host, _, port = peer.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        return None
    return host.strip("[]"), int(port)


def check_peer(peer: str) -> Finding:
    """Can this host reach the handshake port of a running peer, and does a Mooncake answer there?"""
    where = split_peer(peer)
    if not where:
        return Finding("peer", FAIL, f"{peer} is no host:port", "the peer's segment name, as its log shows it")
    try:
        with socket.create_connection(where, CONNECT_S) as sock:
            sock.settimeout(CONNECT_S)
            sock.sendall(b"\x03\0\0\0\0\0\0\0\x03{}")
            answer = sock.recv(64)
    except (TimeoutError, socket.timeout):
        return Finding(
            "peer",
            FAIL,
            f"{peer}: no answer within {CONNECT_S:.0f} s: packets to it, or from it, are dropped on the way",
            f"let TCP port {where[1]} through the peer's firewall (all of MC_MIN_RPC_PORT to MC_MAX_RPC_PORT), and the security group",
        )
    except ConnectionRefusedError:
        return Finding("peer", FAIL, f"{peer}: connection refused", "start the peer; is this its port, and not that of an earlier run?")
    except OSError as why:
        return Finding("peer", FAIL, f"{peer}: {why.strerror or why}", "check the name and the routes (`ip route get`)")
    if len(answer) < 9 or answer[8] != 3:
        return Finding("peer", FAIL, f"{peer} answers, but not as a transfer engine", "name the engine's control port")
    return Finding("peer", OK, f"{peer} answers")


CHECKS: tuple[Callable[[Path, str], Finding], ...] = (
    check_filter,
    check_verbs,
    check_rights,
    check_port_states,
    check_gids,
    check_mtus,
    check_locked_memory,
)
