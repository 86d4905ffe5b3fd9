"""The master as a program: removal of all and /metadata over HTTP, its configuration file, and what is wrong with its options."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cluster import free_port
from pool import PROGRAMS, Pool

COMMAND = Path(sys.executable).parent / "mooncake"


@pytest.fixture
def pool(tmp_path: Path):
    one = Pool(tmp_path, "--default_kv_lease_ttl=0")
    try:
        one.node("16 MB")
        yield one
    finally:
        one.close()


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_for_metadata(pool: Pool, port: int) -> None:
    """It opens a moment after the pages that the pool waits for."""
    pool.wait(lambda: f"serves http://127.0.0.1:{port}/metadata\n" in pool.master.log.read_text(), "no /metadata")
    assert ask(port, "GET", "/metadata?key=a") == (404, "metadata not found")


def test_remove_all_frees_what_nodes_hold(pool: Pool) -> None:
    for i in range(3):
        command = [COMMAND, "put", f"key-{i}", "-", "--master", pool.address]
        subprocess.run(command, input=bytes(1 << 20), check=True, timeout=60)
    assert sorted(pool.get("/get_all_keys").split()) == ["key-0", "key-1", "key-2"]
    status, text = ask(pool.http, "POST", "/api/v1/remove_all", Origin="http://example.com")
    assert status == 403 and "browser" in text
    status, text = ask(pool.http, "POST", "/api/v1/remove_all?force=1")
    assert (status, json.loads(text)) == (200, {"success": True, "removed": 3})
    assert pool.get("/get_all_keys") == ""
    pool.wait(lambda: pool.json("/get_segments_detail")[0]["used"] == 0, "the node still holds something")


def test_metadata_is_served_beside_the_store(tmp_path: Path) -> None:
    port = free_port(30000, 32000)
    flags = ["--enable_http_metadata_server=true", "--http_metadata_server_host=127.0.0.1", f"--http_metadata_server_port={port}"]
    pool = Pool(tmp_path, *flags)
    try:
        wait_for_metadata(pool, port)
        assert ask(port, "PUT", "/metadata?key=a", b"value") == (200, "metadata updated")
        assert ask(port, "GET", "/metadata?key=a") == (200, "value")
    finally:
        pool.close()
    assert pool.master.process.returncode == 0


def test_metadata_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", free_port(30000, 32000))) as taken:
        port = taken.getsockname()[1]
        flags = ["--enable_http_metadata_server", "--http_metadata_server_host=127.0.0.1", f"--http_metadata_server_port={port}"]
        done = subprocess.run(
            [PROGRAMS / "mooncake_master", "--rpc_address=127.0.0.1", f"--rpc_port={free_port()}", "--metrics_port=0",
             "--state_dir=-", *flags],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "--http_metadata_server_port" in done.stderr and str(port) in done.stderr


def start(*flags: str) -> subprocess.CompletedProcess[str]:
    """A master that cannot start."""
    return subprocess.run(
        [PROGRAMS / "mooncake_master", "--state_dir=-", *flags], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_configuration_file_is_below_the_command_line(tmp_path: Path, kind: str) -> None:
    port = free_port(30000, 32000)
    told = {"enable_http_metadata_server": True, "http_metadata_server_host": "127.0.0.1", "http_metadata_server_port": port,
            "rpc_port": 1, "metrics_port": 2, "client_live_ttl_sec": 7, "eviction_ratio": 0.1, "enable_ha": False, "cluster_id": ""}  # fmt: skip
    path = tmp_path / f"master.{kind}"
    path.write_text(json.dumps(told) if kind == "json" else "".join(f"{key}: {json.dumps(value)}\n" for key, value in told.items()))
    pool = Pool(tmp_path, f"--config_path={path}")  # with --rpc_port and --metrics_port of its own
    try:
        wait_for_metadata(pool, port)
        assert pool.segments() == []
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("eviction_ratoi: 0.1\n", ["line 1", "'eviction_ratoi'"]),
        ("rpc_port: 1\nrpc_port: 2\n", ["line 2", "before"]),
        ("# many\n\neviction_ratio: 7\n", ["line 3", "eviction_ratio", "7"]),
        ("enable_ha: true\n", ["line 1", "enable_ha"]),
        ('{"rpc_port": [1]}', ["'rpc_port'"]),
        ("client_ttl: soon\n", ["client_ttl", "soon"]),
    ],
)
def test_configuration_file_that_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "master.conf"
    path.write_text(text)
    done = start(f"--config_path={path}")
    assert done.returncode == 1
    for word in words + ([str(path)] if "ttl" not in text else []):
        assert word in done.stderr, done.stderr


def test_configuration_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = start(f"--config_path={tmp_path / 'nowhere'}")
    assert done.returncode == 1 and str(tmp_path / "nowhere") in done.stderr and "No such file" in done.stderr
