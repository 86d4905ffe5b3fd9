"""The commands: transfer_engine_bench, transfer_engine_topology_dump, mooncake."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def run(*words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / words[0]), *words[1:]], capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture
def target() -> Iterator[str]:
    """A transfer_engine_bench that serves; the name of its segment."""
    words = ["--mode=target", "--local_server_name=127.0.0.1", "--buffer_size=64mb", "--protocol=tcp", "--json"]
    with subprocess.Popen([BIN / "transfer_engine_bench", *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())["segment_id"]
        finally:
            process.terminate()
            assert process.wait(30) == 0


def bench(segment: str, *words: str) -> subprocess.CompletedProcess[str]:
    small = ["--local_server_name=127.0.0.1", "--protocol=tcp", "--buffer_size=32mb", "--duration=1", "--threads=2"]
    return run("transfer_engine_bench", f"--segment_id={segment}", *small, "--batch_size=16", *words)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_bench_ends_with_upstreams_line(target: str, operation: str) -> None:
    done = bench(target, "--operation", operation, "--report_unit=MiB", "--report_precision=3")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"Test completed: duration \d+\.\d{3}, batch count \d+, throughput \d+\.\d{3} MiB/s", last)
    assert "p99" in done.stdout


def test_bench_compares_every_byte(target: str) -> None:
    done = bench(target, "--verify", "--json", "--block_size", "10007")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wrong_bytes"] == 0 and result["batches"] > 0
    assert result["bytes"] == result["batches"] * 16 * 10007
    assert 0 < result["batch_latency_us"]["p50"] <= result["batch_latency_us"]["max"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--blok_size=3"], "--blok_size=3"),
        (["--block_size=3x"], "3x"),
        (["--threads"], "needs a value"),
        (["--report_unit=GX"], "GX"),
        (["--use_vram"], "--use_vram"),
        (["--mode=both"], "both"),
        (["--backend=tent"], "tent"),
        (["--buffer_size=1mb"], "--buffer_size"),
        (["--segment_id=127.0.0.1:1"], "127.0.0.1:1"),
        (["--segment_id="], "--segment_id"),
    ],
)
def test_bench_names_what_is_wrong(words: list[str], says: str) -> None:
    done = run("transfer_engine_bench", "--segment_id=127.0.0.1:1", "--local_server_name=127.0.0.1", *words)
    assert done.returncode == 1
    assert says in done.stderr


def test_topology_dump_prints_upstreams_line(tmp_path: Path) -> None:
    done = run("transfer_engine_topology_dump")
    head, _, text = done.stdout.strip().partition(": ")
    assert head == "Local topology [te/discover]" and isinstance(json.loads(text), dict)
    (tmp_path / "topology.json").write_text('{"cpu:0": [["a"], []]}')
    done = run("transfer_engine_topology_dump", "--use-custom-topo", "--custom-topo-json", str(tmp_path / "topology.json"))
    assert '{"cpu:0": [["a"], []]}' in done.stdout
    done = run("transfer_engine_topology_dump", "--use-custom-topo", "--custom-topo-json", str(tmp_path / "none"))
    assert done.returncode != 0 and str(tmp_path / "none") in done.stderr


@pytest.mark.parametrize(
    "words",
    [["mooncake"], ["mooncake", "doctor"], ["mooncake", "topology"], ["mooncake", "version"], ["mooncake", "bench"],
     ["mooncake", "bench", "transfer"], ["transfer_engine_bench"], ["transfer_engine_topology_dump"]],
    ids=" ".join,
)  # fmt: skip
def test_every_command_explains_itself(words: list[str]) -> None:
    done = run(*words, "--help")
    assert done.returncode == 0 and "sage:" in done.stdout + done.stderr


def test_doctor_finds_the_engine_working() -> None:
    done = run("mooncake", "doctor", "--json")
    findings = {one["name"]: one for one in json.loads(done.stdout)}
    assert findings["engine"]["status"] == "ok", findings["engine"]
    assert all(one["fix"] for one in findings.values() if one["status"] != "ok")
    assert "\x1b" not in run("mooncake", "doctor").stdout, "no colours into a pipe"


def test_doctor_tells_what_is_wrong_and_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mooncake import doctor

    (tmp_path / "proc/sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "proc/sys/net/ipv4/ip_local_port_range").write_text("10000\t60999\n")
    ports = doctor.check_ports(tmp_path)
    assert ports.status == doctor.WARN and "10000-60999" in ports.found and "MC_MIN_RPC_PORT" in ports.fix
    monkeypatch.setenv("MC_MIN_RPC_PORT", "many")
    assert doctor.check_ports(Path("/")).status == doctor.FAIL
    monkeypatch.setenv("MC_TCP_BIND_ADDRESS", "192.0.2.1")
    address = doctor.check_addresses(Path("/"))
    assert address.status == doctor.FAIL and "192.0.2.1" in address.found


def test_version_is_the_packages() -> None:
    import mooncake

    assert json.loads(run("mooncake", "version", "--json").stdout)["package"] == mooncake.__version__
