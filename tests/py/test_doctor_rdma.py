"""What `mooncake doctor` says of RDMA on machines that are only files below a folder."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mooncake import doctor, doctor_rdma
from mooncake.finding import FAIL, OK, WARN, Finding

IPV4 = "0000:0000:0000:0000:0000:ffff:0a4d:0001"
LINK_LOCAL = "fe80:0000:0000:0000:5054:00ff:fe12:3456"
V1, V2 = "IB/RoCE v1", "RoCE v2"


class Machine:
    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def device(
        self,
        name: str,
        number: int,
        state: str = "4: ACTIVE",
        gids: tuple[tuple[str, str], ...] = ((LINK_LOCAL, V2), (IPV4, V2)),
        mtu: int = 9000,
        netdev_here: bool = True,
        node: bool = True,
    ) -> None:
        port = f"sys/class/infiniband/{name}/ports/1"
        self.put(f"{port}/state", state)
        self.put(f"{port}/link_layer", "Ethernet")
        for index, (address, kind) in enumerate(gids):
            self.put(f"{port}/gids/{index}", address)
            self.put(f"{port}/gid_attrs/types/{index}", kind)
            self.put(f"{port}/gid_attrs/ndevs/{index}", f"eth{number}")
        self.put(f"{port}/gids/{len(gids)}", "0000:" * 7 + "0000")
        if netdev_here:
            self.put(f"sys/class/net/eth{number}/mtu", str(mtu))
        self.put(f"sys/class/infiniband_verbs/uverbs{number}/ibdev", name)
        if node:
            self.put(f"dev/infiniband/uverbs{number}", "")

    def look(self, check: Callable[[Path, str], Finding], device_name: str = "") -> Finding:
        finding = check(self.root, device_name)
        assert finding.status == OK or finding.fix, finding
        return finding


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in ("MC_TE_FILTERS", "MC_GID_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return Machine(tmp_path)


def test_a_machine_without_devices_has_nothing_to_mend(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_rdma, "load_verbs", lambda: "libibverbs.so.1: no such file")
    for check in doctor_rdma.CHECKS:
        assert machine.look(check, "mlx5_0").status == OK


def test_a_healthy_machine_passes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_rdma, "load_verbs", lambda: "")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (-1, -1))
    machine.device("mlx5_10", 1)
    machine.device("mlx5_2", 2)
    findings = [machine.look(check) for check in doctor_rdma.CHECKS]
    assert [finding for finding in findings if finding.status != OK] == []
    assert "mlx5_2, mlx5_10" in findings[0].found


def test_a_missing_library_is_named_where_devices_need_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.device("mlx5_0", 0)
    monkeypatch.setattr(doctor_rdma, "load_verbs", lambda: "libibverbs.so.1: no such file")
    finding = machine.look(doctor_rdma.check_verbs)
    assert finding.status == FAIL and "ibverbs-providers" in finding.fix


def test_a_list_without_any_device_of_the_machine_lists_those_that_exist(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.device("mlx5_0", 0)
    machine.device("mlx5_1", 1)
    finding = machine.look(doctor_rdma.check_filter, "mlx5_7, 10.0.0.1")
    assert finding.status == FAIL and "mlx5_7" in finding.found and "mlx5_0, mlx5_1" in finding.found
    assert machine.look(doctor_rdma.check_filter, "mlx5_7,mlx5_1").status == WARN
    assert machine.look(doctor_rdma.check_filter, "mlx5_1,10.0.0.1").found == "mlx5_1"
    monkeypatch.setenv("MC_TE_FILTERS", "mlx5_0")
    assert machine.look(doctor_rdma.check_filter, "mlx5_1").status == FAIL, "the two lists leave none"
    monkeypatch.setenv("MC_TE_FILTERS", "mlx4_0")
    finding = machine.look(doctor_rdma.check_filter)
    assert finding.status == FAIL and "MC_TE_FILTERS names mlx4_0" in finding.found


def test_devices_that_may_not_be_opened_are_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.device("mlx5_0", 0)
    machine.device("mlx5_1", 1, node=False)
    finding = machine.look(doctor_rdma.check_rights)
    assert finding.status == WARN and "/dev/infiniband/uverbs1 of mlx5_1" in finding.found
    assert "--device=/dev/infiniband" in finding.fix
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    finding = machine.look(doctor_rdma.check_rights)
    assert finding.status == FAIL and "/dev/infiniband/uverbs0 of mlx5_0" in finding.found and "chmod" in finding.fix


def test_ports_that_are_not_active_are_named(machine: Machine) -> None:
    machine.device("mlx5_0", 0, state="1: DOWN")
    finding = machine.look(doctor_rdma.check_port_states)
    assert finding.status == FAIL and "mlx5_0 port 1 is DOWN" in finding.found
    machine.device("mlx5_1", 1)
    assert machine.look(doctor_rdma.check_port_states).status == WARN
    assert machine.look(doctor_rdma.check_port_states, "mlx5_1").status == OK


@pytest.mark.parametrize(
    ("gids", "index", "status", "words"),
    [
        ((), "", FAIL, "no address"),
        (((LINK_LOCAL, V2),), "", WARN, "link-local"),
        (((IPV4, V1), (IPV4, V2)), "", OK, ""),
        (((IPV4, V1), (IPV4, V2)), "0", WARN, "not routable"),
        (((LINK_LOCAL, V2), (IPV4, V2)), "0", WARN, "another family"),
        (((LINK_LOCAL, V2), (IPV4, V2)), "1", OK, ""),
        (((LINK_LOCAL, V2), (IPV4, V2)), "7", FAIL, "MC_GID_INDEX=7 is empty"),
        (((LINK_LOCAL, V2), (IPV4, V2)), "two", FAIL, "no number"),
        (((LINK_LOCAL, V2), (IPV4, V2)), "-1", OK, ""),
    ],
)
def test_addresses_of_a_port_are_judged(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    gids: tuple[tuple[str, str], ...],
    index: str,
    status: str,
    words: str,
) -> None:
    machine.device("mlx5_0", 0, gids=gids)
    monkeypatch.setenv("MC_GID_INDEX", index)
    finding = machine.look(doctor_rdma.check_gids)
    assert (finding.status, words in finding.found) == (status, True), finding
    if status == WARN and "link-local" not in words:
        assert "MC_GID_INDEX=1" in finding.fix


def test_an_interface_of_another_namespace_is_told(machine: Machine) -> None:
    machine.device("mlx5_0", 0, netdev_here=False)
    finding = machine.look(doctor_rdma.check_gids)
    assert finding.status == FAIL and "network namespace" in finding.found and "--network=host" in finding.fix


def test_ports_of_different_packet_size_are_told(machine: Machine) -> None:
    machine.device("mlx5_0", 0, mtu=9000)
    machine.device("mlx5_1", 1, mtu=1500)
    finding = machine.look(doctor_rdma.check_mtus)
    assert finding.status == WARN and "mlx5_0 port 1 (eth0) 4096" in finding.found and "MC_MTU=1024" in finding.fix
    assert machine.look(doctor_rdma.check_mtus, "mlx5_1").status == OK


def test_a_small_limit_of_locked_memory_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.device("mlx5_0", 0)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 << 20, 8 << 20))
    finding = machine.look(doctor_rdma.check_locked_memory)
    assert finding.status == WARN and "8.0 MiB" in finding.found and "memlock=-1" in finding.fix


@pytest.mark.parametrize(
    ("rules", "drops"),
    [
        ("", False),
        ("-P INPUT ACCEPT\n-A INPUT -p tcp -j DROP\n", False),
        ("-P INPUT DROP\n-A INPUT -i lo -j ACCEPT\n", True),
        ("table inet filter {\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n", True),
        ("table inet filter {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n", False),
    ],
)
def test_a_firewall_that_drops_by_default_is_seen(rules: str, drops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_rdma, "firewall_rules", lambda: rules)
    finding = doctor_rdma.check_firewall((15000, 17000))
    assert finding.status == (WARN if drops else OK)
    assert not drops or ("15000:17000" in finding.fix and "4791" in finding.fix)


def test_a_peer_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    assert doctor_rdma.check_peer(f"127.0.0.1:{engine.get_rpc_port()}").status == OK
    assert doctor_rdma.check_peer("nowhere").status == FAIL
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        refused = doctor_rdma.check_peer(where)
        assert refused.status == FAIL and "refused" in refused.found
        listener.listen()
        monkeypatch.setattr(doctor_rdma, "CONNECT_S", 0.2)
        silent = doctor_rdma.check_peer(where)
        assert silent.status == FAIL and "firewall" in silent.fix
        listener.accept()[0].close()
        monkeypatch.setattr(doctor_rdma, "CONNECT_S", 10.0)
        answering = threading.Thread(target=lambda: answer(listener))
        answering.start()
        other = doctor_rdma.check_peer(where)
        answering.join()
        assert other.status == FAIL and "not as a transfer engine" in other.found


def answer(listener: socket.socket) -> None:
    conn, _ = listener.accept()
    with conn:
        conn.recv(64)
        conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_the_command_takes_list_and_peer() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mooncake.cli", "doctor", "--json", "--device-name", "10.0.0.1", "--peer", "127.0.0.1:x"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    findings = {one["name"]: one for one in json.loads(done.stdout)}
    assert done.returncode == 1 and findings["peer"]["status"] == FAIL
    assert findings["RDMA devices"]["status"] in (OK, WARN, FAIL)
    assert {"ports", "engine", "locked memory", "firewall"} <= set(findings)
    assert len(findings) == len(doctor.examine(peer="127.0.0.1:x"))
