"""The program mooncake_client: options, HTTP, a master that is not there, a clean stop."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).parent / "mooncake_client"
NOBODY = "127.0.0.1:1"  # no master there


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def node() -> Iterator[str]:
    """A node that serves; the port of its HTTP."""
    words = ["--host=127.0.0.1", "--global_segment_size", "64 MB", f"--master_server_address={NOBODY}",
             "--enable_http_server", "--http_host=127.0.0.1", "--http_port=0", "--threads=2"]
    with subprocess.Popen([PROGRAM, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            yield re.fullmatch(r"mooncake_client serves on 127\.0\.0\.1:\d+, segment 127\.0\.0\.1:\d+, HTTP port (\d+)\n",
                               line).group(1)
        finally:
            process.terminate()
            assert process.wait(30) == 0


def fetch(port: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_node_without_a_master_waits_and_says_so(node: str) -> None:
    status, text = fetch(node, "/health")
    assert status == 503
    assert json.loads(text) == {"status": "unhealthy", "code": 1, "reason": "no master knows this node"}
    status, text = fetch(node, "/metrics/summary")
    assert status == 200 and "memory 0 of 67108864 bytes" in text and "not known to a master" in text
    status, text = fetch(node, "/metrics")
    assert status == 200
    assert "\nmc_owner_capacity_bytes 67108864\n" in text
    assert "\nmc_owner_adopted 0\n" in text
    assert fetch(node, "/other")[0] == 404


@pytest.mark.parametrize(("words", "said"), [
    (["--no_such_option=1"], "--no_such_option"),
    (["--global_segment_size=4 xx"], "global_segment_size"),
    (["--global_segment_size=1kb"], "global_segment_size"),
    (["--enable_offload=true", "--ssd_offload_path=/proc/none"], "/proc/none"),
    (["--http_port=70000"], "http_port"),
    (["--master_server_address="], "--master_server_address"),
    (["--master_server_address=no host here"], "no host here"),
    (["--host=192.0.2.1", "--global_segment_size=1mb"], "192.0.2.1"),
])
def test_what_is_wrong_is_named(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 1
    assert said in done.stderr


def test_offload_that_is_switched_off_is_taken() -> None:
    done = run("--enable_offload=false", "--http_port=x")
    assert "http_port" in done.stderr
    assert "offload" not in done.stderr


def test_a_disk_has_one_node_at_a_time(tmp_path: Path) -> None:
    words = ["--enable_offload=true", f"--ssd_offload_path={tmp_path / 'disk'}", "--host=127.0.0.1",
             "--global_segment_size=1mb", f"--master_server_address={NOBODY}"]
    with subprocess.Popen([PROGRAM, *words], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout.readline().startswith("mooncake_client serves on ")
            second = run(*words)
            assert (second.returncode, second.stdout) == (1, "")
            assert f"{tmp_path / 'disk'} is in use by pid {first.pid}" in second.stderr
        finally:
            first.terminate()
            assert first.wait(30) == 0


def test_a_disk_needs_room_and_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--enable_ssd_offload", f"--ssd_offload_path={tmp_path}", "--host=127.0.0.1", "--global_segment_size=1mb"]
    monkeypatch.setenv("MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES", "1mb")
    done = run(*words)
    assert (done.returncode, "64 MiB" in done.stderr) == (1, True), done.stderr
    monkeypatch.setenv("MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES", "1 xb")
    done = run(*words)
    assert (done.returncode, "MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES" in done.stderr) == (1, True), done.stderr
    monkeypatch.delenv("MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES")
    (tmp_path / "letter.txt").write_text("mine")
    done = run(*words)
    assert (done.returncode, str(tmp_path) in done.stderr) == (1, True), done.stderr


def test_help_names_the_options() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name in ["--host", "--master_server_address", "--global_segment_size", "--http_port", "--enable_offload"]:
        assert name in done.stdout
