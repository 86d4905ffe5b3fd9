"""The master's HTTP servers as a program: removal of all, /metadata, and what is wrong with their options."""

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
        assert ask(port, "GET", "/metadata?key=a") == (404, "metadata not found")
        assert ask(port, "PUT", "/metadata?key=a", b"value") == (200, "metadata updated")
        assert ask(port, "GET", "/metadata?key=a") == (200, "value")
        assert f"serves http://127.0.0.1:{port}/metadata\n" in pool.master.log.read_text()
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
