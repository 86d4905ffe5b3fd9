"""The Store over HTTP (mc_store_rest_server): upstream's paths and answers on a real master and node, and requests that are none."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import free_port, wait_for_port
from pool import MIB, Pool, connect

from mooncake.mooncake_store_service import BODY_BYTES_MAX, parse_arguments, sync_main

HOST = "127.0.0.1"
RUN = [sys.executable, "-P", "-m", "mooncake.mooncake_store_service"]
JSON = "application/json; charset=utf-8"
BYTES = "application/octet-stream"


def configuration(pool_address: str) -> dict[str, str]:
    return {"local_hostname": HOST, "metadata_server": "P2PHANDSHAKE", "master_server_address": pool_address,
            "global_segment_size": "0", "local_buffer_size": "16MB", "protocol": "tcp"}  # fmt: skip


class Rest:
    """The program, and requests to it."""

    def __init__(self, pool: Pool, *flags: str) -> None:
        config = pool.folder / "rest.json"
        config.write_text(json.dumps(configuration(pool.address)))
        self.process = subprocess.Popen([*RUN, f"--config={config}", f"--host={HOST}", "--port=0", *flags], stdout=subprocess.PIPE,
                                        stderr=(pool.folder / "rest.log").open("wb"), text=True)  # fmt: skip
        line = self.process.stdout.readline()
        found = re.fullmatch(rf"mc_store_rest_server serves on {HOST}:(\d+)\n", line)
        assert found, (line, (pool.folder / "rest.log").read_text())
        self.port = int(found.group(1))

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, str, bytes]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{HOST}:{self.port}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.headers["Content-Type"], reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read()

    def json(self, method: str, path: str, body: object = None) -> tuple[int, dict]:
        status, kind, text = self.ask(method, path, body)
        assert kind == JSON, text
        return status, json.loads(text)

    def raw(self, request: bytes) -> bytes:
        """What comes back for these bytes until the connection ends, or stays quiet."""
        with socket.create_connection((HOST, self.port), 10) as sock:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            got = b""
            while part := sock.recv(65536):
                got += part
        return got

    def close(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.stdout.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("rest"), "--default_kv_lease_ttl=1")
    pool.node("128 MB")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def rest(pool: Pool) -> Iterator[Rest]:
    rest = Rest(pool)
    yield rest
    assert rest.close() == 0


# ---- objects ----


def test_put_get_exist_remove(rest: Rest) -> None:
    assert rest.json("PUT", "/api/put", {"key": "a", "value": "värde"}) == (200, {"status": "success"})
    assert rest.ask("GET", "/api/get/a") == (200, BYTES, "värde".encode())
    assert rest.json("GET", "/api/exist/a") == (200, {"exists": True})
    time.sleep(0.05)  # leases of 1 ms
    assert rest.json("DELETE", "/api/remove/a") == (200, {"status": "success"})
    assert rest.json("GET", "/api/get/a") == (404, {"error": "Key not found"})
    assert rest.json("GET", "/api/exist/a") == (200, {"exists": False})
    assert rest.json("DELETE", "/api/remove/a") == (500, {"error": "Remove operation failed", "code": -704})


def test_remove_all(rest: Rest) -> None:
    rest.json("DELETE", "/api/remove_all")
    for key in ("x", "y", "z"):
        assert rest.json("PUT", "/api/put", {"key": key, "value": "v"})[0] == 200
    assert rest.json("DELETE", "/api/remove_all") == (200, {"status": "success removed 3 keys"})
    assert rest.json("DELETE", "/api/remove_all") == (200, {"status": "success removed 0 keys"})


def test_bytes_that_another_client_put(pool: Pool, rest: Rest) -> None:
    store = connect(pool)
    value = os.urandom(5 * MIB + 3)
    assert store.put("binary", value) == 0
    assert rest.ask("GET", "/api/get/binary") == (200, BYTES, value)
    head = rest.raw(b"HEAD /api/get/binary HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and f"Content-Length: {len(value)}".encode() in head and head.endswith(b"\r\n\r\n")
    assert rest.json("PUT", "/api/put", {"key": "theirs", "value": "text"})[0] == 200
    assert store.get("theirs") == b"text"
    store.close()


@pytest.mark.parametrize("key", ["a/b c", "ключ?x=1", "%", "..", "a\nb", "x" * 3000, "🗝"])
def test_keys_of_any_text(rest: Rest, key: str) -> None:
    path = urllib.parse.quote(key, safe="")
    assert rest.json("PUT", "/api/put", {"key": key, "value": key})[0] == 200
    assert rest.ask("GET", f"/api/get/{path}") == (200, BYTES, key.encode())
    assert rest.json("GET", f"/api/exist/{path}") == (200, {"exists": True})


def test_requests_of_many_threads_on_connections_that_stay(rest: Rest) -> None:
    import http.client

    wrong: list[object] = []

    def work(number: int) -> None:
        connection = http.client.HTTPConnection(HOST, rest.port, timeout=60)
        for i in range(20):
            value = f"{number}/{i}" * 1000
            connection.request("PUT", "/api/put", json.dumps({"key": f"t{number}-{i}", "value": value}))
            if connection.getresponse().read() != b'{"status": "success"}':
                wrong.append((number, i, "put"))
            connection.request("GET", f"/api/get/t{number}-{i}")
            if connection.getresponse().read() != value.encode():
                wrong.append((number, i, "get"))
        connection.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads) and not wrong


# ---- segments ----


def test_memory_is_mounted_and_unmounted(pool: Pool, rest: Rest) -> None:
    before = pool.json("/get_segments_detail")
    status, answer = rest.json("POST", "/api/mount", {"size": 1})
    assert status == 200 and answer["status"] == "success" and answer["allocated_size"] == 16 * MIB
    assert len(pool.json("/get_segments_detail")) == len(before) + 1
    assert rest.json("POST", "/api/unmount", {"segment_ids": answer["segment_ids"][0]}) == (200, {"status": "success"})
    assert rest.json("POST", "/api/unmount", {"segment_ids": answer["segment_ids"]}) == (500, {"error": "Unmount and free failed, ret=-1"})
    pool.wait(lambda: len(pool.json("/get_segments_detail")) == len(before), "it stays mounted")


@pytest.fixture
def shm(tmp_path: Path) -> Iterator[list[str]]:
    names = [f"mc_rest_{os.getpid()}_{i}" for i in range(2)]
    for name in names:
        with open(f"/dev/shm/{name}", "wb") as file:
            file.truncate(8 * MIB)
    yield names
    for name in names:
        os.unlink(f"/dev/shm/{name}")


def test_shared_memory_is_mounted_and_unmounted(rest: Rest, shm: list[str]) -> None:
    status, answer = rest.json("POST", "/api/mount_shm", {"name": shm[0], "size": 4 * MIB, "offset": 4 * MIB, "protocol": "tcp", "location": ""})
    assert status == 200, answer
    (one,) = answer["segment_ids"]
    status, answer = rest.json("POST", "/api/unmount_shm", {"segment_ids": [one, "1-2"], "grace_period_seconds": 0})
    assert (status, answer) == (500, {"error": "Unmount failed for one or more segments", "failed_segment_ids": ["1-2"]})
    assert rest.json("POST", "/api/mount_shm", {"name": f"/{shm[0]}", "size": MIB, "offset": 3})[0] == 500, "no page"
    for name in (None, "", "/", "..", "/../x", "a/b", 5):
        assert rest.json("POST", "/api/mount_shm", {"name": name, "size": MIB}) == (400, {"error": "Missing or invalid name or size"})
    assert rest.json("POST", "/api/mount_shm", {"name": shm[0]}) == (400, {"error": "Missing or invalid name or size"})


def test_modes_of_prefill_and_decode(rest: Rest, shm: list[str]) -> None:
    first, second = (f"/dev/shm/{name}" for name in shm)
    status, answer = rest.json("POST", "/api/reconfigure", {"mode": "decode", "path": first, "size": 8 * MIB})
    assert (status, answer["status"], answer["mode"], len(answer["segment_ids"])) == (200, "success", "decode", 1)
    status, again = rest.json("POST", "/api/reconfigure", {"mode": "DECODE", "path": "/dev/shm/mc_rest_none", "size": 8 * MIB})
    assert (status, again) == (500, {"error": "Mount failed, ret=-1; keeping previous decode segments", "mode": "decode"})
    status, other = rest.json("POST", "/api/reconfigure", {"mode": "decode", "path": second, "size": 8 * MIB})
    assert status == 200 and other["segment_ids"] != answer["segment_ids"] and len(other["segment_ids"]) == 1
    assert rest.json("POST", "/api/unmount_shm", {"segment_ids": answer["segment_ids"]})[0] == 500, "it went when the other came"
    assert rest.json("POST", "/api/reconfigure", {"mode": "prefill"}) == (200, {"status": "success", "mode": "prefill"})
    assert rest.json("POST", "/api/unmount_shm", {"segment_ids": other["segment_ids"]})[0] == 500
    status, again = rest.json("POST", "/api/reconfigure", {"mode": "decode", "path": "/dev/shm/mc_rest_none", "size": 8 * MIB})
    assert (status, again) == (500, {"error": "Mount failed, ret=-1; rolled back to prefill", "mode": "prefill"})
    assert rest.json("POST", "/api/reconfigure", {"mode": "decode"}) == (400, {"error": "Missing path or size for decode mode"})
    for mode in ("", "both", None, 5, []):
        assert rest.json("POST", "/api/reconfigure", {"mode": mode}) == (400, {"error": "Invalid mode. Use 'decode' or 'prefill'"})


def test_local_disk(rest: Rest) -> None:
    assert rest.json("POST", "/api/unmount_local_disk", {}) == (200, {"status": "success"})
    for wrong in (-1, 3601, "5", 1.5, True, None):
        status, answer = rest.json("POST", "/api/unmount_local_disk", {"grace_period_seconds": wrong})
        assert status == 400 and "no greater than 3600" in answer["error"]


def test_a_service_with_a_disk_keeps_it_until_it_ends(pool: Pool, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    rest = Rest(pool, "-D", "global_segment_size=32MB", "-D", "enable_ssd_offload=true", "-D", f"ssd_offload_path={folder}")
    try:
        assert rest.json("PUT", "/api/put", {"key": "on disk", "value": "value"})[0] == 200
        assert rest.ask("GET", "/api/get/on%20disk")[2] == b"value"
        assert rest.json("POST", "/api/unmount_local_disk", {}) == (500, {"error": "Unmount local disk failed, ret=-1012"})
        assert any(folder.iterdir())
    finally:
        assert rest.close() == 0


# ---- as upstream answers ----


class Theirs(Rest):
    """Upstream's service, on upstream's master."""

    def __init__(self, python: str, folder: Path) -> None:
        rpc, http, self.port = (free_port(low, low + 1000) for low in (24_000, 25_000, 26_000))
        program = "import os, sys, mooncake; path = os.path.dirname(mooncake.__file__) + '/mooncake_master'; os.execv(path, [path, *sys.argv[1:]])"
        with (folder / "theirs.log").open("wb") as log:
            self.master = subprocess.Popen([python, "-I", "-c", program, f"--rpc_port={rpc}", f"--metrics_port={http}"], stdout=log, stderr=log)
            wait_for_port(rpc)
            (folder / "theirs.json").write_text(json.dumps(configuration(f"{HOST}:{rpc}") | {"global_segment_size": "32MB"}))
            self.process = subprocess.Popen(
                [python, "-I", "-m", "mooncake.mooncake_store_service", f"--config={folder / 'theirs.json'}", f"--port={self.port}"],
                stdout=log, stderr=log,
            )  # fmt: skip
        wait_for_port(self.port)

    def close(self) -> int:
        for process in (self.process, self.master):
            process.kill()
            process.wait(30)
        return 0


def test_answers_are_upstreams(upstream_python: str, pool: Pool, tmp_path: Path, shm: list[str]) -> None:
    requests = [
        ("DELETE", "/api/remove_all", None), ("PUT", "/api/put", {"key": "k", "value": "värde"}),
        ("DELETE", "/api/remove/k", None), ("DELETE", "/api/remove/k", None), ("GET", "/api/get/k", None), ("GET", "/api/exist/k", None),
        ("PUT", "/api/put", {"key": "k", "value": "value"}), ("PUT", "/api/put", {"key": "k", "value": "other"}),
        ("GET", "/api/exist/k", None), ("PUT", "/api/put", {"key": "k"}), ("PUT", "/api/put", {"value": "v"}),
        ("PUT", "/api/put", {"key": "", "value": "v"}), ("PUT", "/api/put", {"key": "e", "value": ""}),
        ("POST", "/api/mount", {"size": 0}), ("POST", "/api/mount", {"size": "5"}), ("POST", "/api/mount", {}),
        ("POST", "/api/unmount", {}), ("POST", "/api/unmount", {"segment_ids": "1-2"}), ("POST", "/api/unmount_shm", {"segment_ids": []}),
        ("POST", "/api/mount_shm", {"name": "a/b", "size": 5}), ("POST", "/api/mount_shm", {"name": shm[0]}),
        ("POST", "/api/reconfigure", {"mode": "x"}), ("POST", "/api/reconfigure", {"mode": "decode"}),
        ("POST", "/api/reconfigure", {"mode": "prefill"}),
        ("POST", "/api/unmount_local_disk", {"grace_period_seconds": -1}), ("POST", "/api/unmount_local_disk", b"{"),
        ("POST", "/api/unmount_local_disk", b"[]"),
    ]  # fmt: skip
    theirs, ours = Theirs(upstream_python, tmp_path), Rest(pool, "-D", "global_segment_size=32MB")
    try:
        ours.json("DELETE", "/api/remove_all")  # of other tests
        for method, path, body in requests:
            answers = [one.ask(method, path, body) for one in (theirs, ours)]
            said = [(status, kind.split(";")[0], json.loads(text)) for status, kind, text in answers]
            said[1][2].pop("code", None)  # ours tells the store's code, too
            assert said[1] == said[0], (method, path, body)
        assert ours.ask("GET", "/api/get/k")[:3] == theirs.ask("GET", "/api/get/k")[:3] == (200, BYTES, b"value")
        for path, body in (("/api/mount", {"size": 1}), ("/api/mount_shm", {"name": shm[0], "size": 8 * MIB})):
            answers = [one.json("POST", path, body) for one in (theirs, ours)]
            assert [(status, sorted(answer), answer.get("allocated_size")) for status, answer in answers[:1]] == [
                (status, sorted(answer), answer.get("allocated_size")) for status, answer in answers[1:]
            ]
            gone = [one.json("POST", path.replace("mount", "unmount"), {"segment_ids": answer["segment_ids"]})
                    for one, (_, answer) in zip((theirs, ours), answers)]  # fmt: skip
            assert gone[0] == gone[1]
    finally:
        theirs.close()
        assert ours.close() == 0


# ---- requests that are none ----


@pytest.mark.parametrize(("path", "method", "body", "said"), [
    ("/api/put", "PUT", {}, "Missing key or value"),
    ("/api/put", "PUT", {"key": "k"}, "Missing key or value"),
    ("/api/put", "PUT", {"key": "", "value": "v"}, "Missing key or value"),
    ("/api/put", "PUT", {"key": 5, "value": "v"}, "texts"),
    ("/api/put", "PUT", {"key": "k", "value": {}}, "texts"),
    ("/api/put", "PUT", b"", "Malformed JSON body"),
    ("/api/put", "PUT", b"{", "Malformed JSON body"),
    ("/api/put", "PUT", b"\xff\xfe\xfd", "Malformed JSON body"),
    ("/api/put", "PUT", b"[" * 100_000, "Malformed JSON body"),
    ("/api/put", "PUT", b"[]", "must be a JSON object"),
    ("/api/put", "PUT", b'{"key": "\\ud800", "value": "v"}', "surrogates"),
    ("/api/put", "PUT", b'{"key": "k", "value": "\\ud800"}', "surrogates"),
    ("/api/mount", "POST", {}, "Invalid size"),
    ("/api/mount", "POST", {"size": 0}, "Invalid size"),
    ("/api/mount", "POST", {"size": "1"}, "Invalid size"),
    ("/api/mount", "POST", {"size": True}, "Invalid size"),
    ("/api/mount", "POST", {"size": MIB, "protocol": 5}, "texts"),
    ("/api/mount_shm", "POST", {"name": "x", "size": -1}, "Invalid size"),
    ("/api/mount_shm", "POST", {"name": "x", "size": 1 << 64}, "Invalid size"),
    ("/api/mount_shm", "POST", {"name": "x", "size": MIB, "offset": "0"}, "Invalid offset"),
    ("/api/unmount", "POST", {}, "Missing segment_ids"),
    ("/api/unmount", "POST", {"segment_ids": [5]}, "list of texts"),
    ("/api/unmount_shm", "POST", {"segment_ids": {"a": "b"}}, "list of texts"),
    ("/api/unmount_shm", "POST", {"segment_ids": ["1-2"], "grace_period_seconds": 4000}, "no greater than 3600"),
    ("/api/get/%ff", "GET", None, "utf-8"),
])  # fmt: skip
def test_a_request_that_makes_no_sense_is_answered_400(rest: Rest, path: str, method: str, body: object, said: str) -> None:
    status, answer = rest.json(method, path, body)
    assert status == 400 and said in answer["error"]


def test_a_size_that_no_host_has_is_the_stores_error(rest: Rest) -> None:
    assert rest.json("POST", "/api/mount", {"size": 1 << 60}) == (500, {"error": "Allocate and mount failed, ret=-1"})
    for size in (10**40, (1 << 64) + 16 * MIB):
        assert rest.json("POST", "/api/mount", {"size": size})[0] == 400


@pytest.mark.parametrize(("method", "path", "status", "allow"), [
    ("GET", "/", 404, ""), ("GET", "/api/put/x", 404, ""), ("GET", "/api/get/", 404, ""), ("DELETE", "/api/remove", 404, ""),
    ("POST", "/api/put", 405, "PUT"), ("PUT", "/api/get/x", 405, "GET"), ("GET", "/api/remove_all", 405, "DELETE"),
    ("PATCH", "/api/mount", 405, "POST"), ("OPTIONS", "/api/exist/x", 405, "GET"),
])  # fmt: skip
def test_paths_and_methods_that_are_not_there(rest: Rest, method: str, path: str, status: int, allow: str) -> None:
    answer = rest.raw(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert (f"Allow: {allow}\r\n" in answer) == bool(allow)


@pytest.mark.parametrize(("request_", "status"), [
    (b"PUT /api/put HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1), 413),
    (b"PUT /api/put HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
    (b"PUT /api/put HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
    (b"PUT /api/put HTTP/1.1\r\nContent-Length: 0x10\r\n\r\n", 400),
    (b"PUT /api/put HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
    (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    (b"GET / HTTP/9.9\r\n\r\n", 505),
    (b"GET\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    (b"BREW /api/put HTTP/1.1\r\n\r\n", 501),
    (b"GET http://[ HTTP/1.1\r\n\r\n", 404),
])  # fmt: skip
def test_hostile_requests_are_refused_and_nothing_of_them_is_kept(rest: Rest, request_: bytes, status: int) -> None:
    answer = rest.raw(request_)
    assert answer.startswith(b"HTTP/1.1 %d " % status) or b"Error code: %d" % status in answer, answer[:200]
    assert rest.json("GET", "/api/exist/still_there")[0] == 200


def test_a_body_that_does_not_come_holds_nobody_up(rest: Rest) -> None:
    socks = []
    for _ in range(50):
        sock = socket.create_connection((HOST, rest.port), 10)
        sock.sendall(b"PUT /api/put HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n{")
        socks.append(sock)
    assert rest.json("PUT", "/api/put", {"key": "beside", "value": "them"})[0] == 200
    for sock in socks:
        sock.close()


def test_bodies_are_bounded_together(rest: Rest) -> None:
    """Each may be 100 MiB, all of them 1 GiB: what comes beyond that is told so, and may come again."""
    socks = []
    try:
        for _ in range(12):
            sock = socket.create_connection((HOST, rest.port), 10)
            sock.sendall(b"PUT /api/put HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES_MAX)
            socks.append(sock)
        socks[-1].settimeout(30)
        assert any(_answer_of(sock).startswith(b"HTTP/1.1 503 ") for sock in socks)
    finally:
        for sock in socks:
            sock.close()
    end = time.monotonic() + 30
    while rest.ask("PUT", "/api/put", {"key": "after", "value": "x"})[0] != 200:
        assert time.monotonic() < end
        time.sleep(0.05)


def _answer_of(sock: socket.socket) -> bytes:
    sock.settimeout(0.2)
    try:
        return sock.recv(100)
    except TimeoutError:
        return b""


# ---- the program ----


def test_help_names_every_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--config", "-D", "--port", "--host", "--max-wait-time"))
    done = subprocess.run([*RUN, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "mc_store_rest_server" in done.stdout


@pytest.mark.parametrize(("words", "said"), [
    (["--config=/nowhere/none.json"], "/nowhere/none.json"), (["-D", "port"], "KEY=VALUE"), (["--port=70000"], "0 to 65535"),
    ([], "MOONCAKE_CONFIG_PATH"), (["--no-such"], "--no-such"),
])  # fmt: skip
def test_wrong_options_are_named(words: list[str], said: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOONCAKE_CONFIG_PATH", "MOONCAKE_MASTER"):
        monkeypatch.delenv(name, raising=False)
    try:
        code = sync_main(words)
    except SystemExit as end:
        code = end.code
    assert code != 0
    assert said in capsys.readouterr().err


def test_unknown_members_of_the_configuration_are_named(pool: Pool, capsys: pytest.CaptureFixture) -> None:
    path = pool.folder / "one.json"
    path.write_text(json.dumps(configuration(pool.address)))
    assert sync_main([f"--config={path}", "-D", "no_such=1"]) == 1
    err = capsys.readouterr().err
    assert "no_such" in err and "global_segment_size" in err


def test_what_is_defined_on_the_command_line_wins(pool: Pool) -> None:
    before = len(pool.json("/get_segments_detail"))
    rest = Rest(pool, "-D", "global_segment_size=24MB", "-Dlocal_buffer_size=0")
    try:
        assert len(pool.json("/get_segments_detail")) == before + 1
    finally:
        assert rest.close() == 0
    pool.wait(lambda: len(pool.json("/get_segments_detail")) == before, "its memory stays")


def test_a_master_that_is_away_is_waited_for_and_named(tmp_path: Path) -> None:
    path = tmp_path / "away.json"
    address = f"{HOST}:{free_port(31_000, 32_000)}"
    path.write_text(json.dumps(configuration(address)))
    done = subprocess.run([*RUN, f"--config={path}", "--max-wait-time=1", f"--host={HOST}", "--port=0"], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == 1
    assert address in done.stderr and "Is mooncake_master running there" in done.stderr
    with subprocess.Popen([*RUN, f"--config={path}", f"--host={HOST}", "--port=0"], stderr=subprocess.PIPE, text=True) as process:
        while "trying again" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, "it is told to stop while it waits"


def test_a_port_that_is_taken_is_named(pool: Pool) -> None:
    path = pool.folder / "taken.json"
    path.write_text(json.dumps(configuration(pool.address)))
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        done = subprocess.run([*RUN, f"--config={path}", f"--host={HOST}", f"--port={port}"], capture_output=True, text=True, timeout=60,
                              check=False)  # fmt: skip
    assert done.returncode == 1 and f"port {port}" in done.stderr and "--port" in done.stderr
