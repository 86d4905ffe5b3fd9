"""Replicas of real nodes: copied, moved, drained, made again; and what becomes of it when somebody dies meanwhile."""

import json
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pool import Pool, Process
from test_store import MIB, connect

from mooncake.store import MooncakeDistributedStore, ReplicateConfig, TaskStatus, TaskType

COMMAND = Path(sys.executable).parent / "mooncake"
TTL = "--client_ttl=1500ms"


def value(key: str, size: int = 200_000) -> bytes:
    return random.Random(key).randbytes(size)


def places(store: MooncakeDistributedStore, key: str) -> list[str]:
    return [r.get_memory_descriptor().buffer_descriptor.transport_endpoint for r in store.get_replica_desc(key)]


def put_at(store: MooncakeDistributedStore, key: str, segment: str, size: int = 200_000) -> None:
    assert store.put(key, value(key, size), ReplicateConfig(preferred_segments=[segment])) == 0


def ended(store: MooncakeDistributedStore, task: tuple[int, int]):
    end = time.monotonic() + 30
    while (found := store.query_task(task))[0].status in (TaskStatus.PENDING, TaskStatus.PROCESSING):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found[0]


def ask(pool: Pool, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{pool.http}{path}", data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def drain(pool: Pool, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [COMMAND, "drain", *words, "--admin", f"127.0.0.1:{pool.http}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    one = Pool(tmp_path, "--default_kv_lease_ttl=100", TTL)
    yield one
    one.close()


@pytest.fixture
def store(pool: Pool) -> Iterator[MooncakeDistributedStore]:
    for _ in range(3):
        pool.node("64 MB")
    one = connect(pool)
    yield one
    one.close()


def test_copy_and_move_tasks(pool: Pool, store: MooncakeDistributedStore) -> None:
    a, b, c = pool.segments()
    put_at(store, "k", a)
    assert places(store, "k") == [a]
    task, code = store.create_copy_task("k", [b])
    assert code == 0 and task != (0, 0)
    done = ended(store, task)
    assert (done.status, done.type, done.id, done.assigned_client) == (TaskStatus.SUCCESS, TaskType.REPLICA_COPY, task, b)
    assert sorted(places(store, "k")) == sorted([a, b])
    task, code = store.create_move_task("k", a, c)
    assert code == 0 and ended(store, task).status == TaskStatus.SUCCESS
    assert sorted(places(store, "k")) == sorted([b, c])
    assert store.get("k") == value("k")
    assert store.create_copy_task("k", ["127.0.0.1:1"]) == ((0, 0), -600)
    assert store.create_copy_task("k", [b]) == ((0, 0), -600)
    assert store.create_copy_task("k", []) == ((0, 0), -600)
    assert store.create_copy_task("none", [a]) == ((0, 0), -704)
    assert store.create_move_task("k", b, b) == ((0, 0), -600)
    assert store.query_task((1, 2)) == (None, -1400)


def test_replicas_are_cleared_in_one_segment_or_all(pool: Pool, store: MooncakeDistributedStore) -> None:
    a, b, _ = pool.segments()
    for key in ("both", "alone"):
        put_at(store, key, a)
    task, _ = store.create_copy_task("both", [b])
    assert ended(store, task).status == TaskStatus.SUCCESS
    time.sleep(0.2)  # leases of what was looked up
    assert store.batch_replica_clear(["both", "alone", "none"], "127.0.0.1:1") == []
    assert store.batch_replica_clear(["both", "alone", "none"], a) == ["both", "alone"]
    assert places(store, "both") == [b] and store.get("both") == value("both")
    assert store.is_exist("alone") == 0
    assert store.batch_replica_clear(["both"]) == [], "a reader holds it"
    time.sleep(0.2)
    assert store.batch_replica_clear(["both", "none"]) == ["both"]
    assert store.is_exist("both") == 0


def test_drained_segment_is_empty_and_gets_nothing(pool: Pool, store: MooncakeDistributedStore) -> None:
    a, b, c = pool.segments()
    keys = [f"k{i}" for i in range(60)]
    for i, key in enumerate(keys):
        put_at(store, key, (a, a, b)[i % 3], 300_000)
    it = drain(pool, a, "--json")
    out, err = it.communicate(timeout=60)
    assert it.returncode == 0, err
    told = json.loads(out)
    assert (told["status_name"], told["succeeded_units"], told["failed_units"], told["remaining_units"]) == ("SUCCEEDED", 40, 0, 0)
    assert told["migrated_bytes"] == 40 * 300_000
    assert ask(pool, "GET", f"/api/v1/segments/status?segment={a}")[1]["status_name"] == "DRAINED"
    for key in keys:
        assert store.get(key) == value(key, 300_000), key
    for i in range(20):
        put_at(store, f"new{i}", a, 1000)
        assert places(store, f"new{i}")[0] in (b, c)
    again = drain(pool, a)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 1 and (b"drained already" in err or b"no such segment" in err)
    nobody = drain(pool, "127.0.0.1:1")
    out, err = nobody.communicate(timeout=60)
    assert nobody.returncode == 1 and b"no such segment" in err


def test_drain_jobs_answer_as_upstreams(pool: Pool, store: MooncakeDistributedStore) -> None:
    a, b, c = pool.segments()
    jobs = "/api/v1/drain_jobs"
    assert ask(pool, "POST", jobs, {"segments": ["nope"]})[0] == 404
    assert ask(pool, "POST", jobs, {"segments": []}) == (400, {"success": False, "error_code": -600, "error_message": "INVALID_PARAMS"})
    assert ask(pool, "POST", jobs, {"segments": "x"})[1]["error_code"] == -600
    assert ask(pool, "POST", jobs, {"segments": [a], "target_segments": [a]})[0] == 400
    assert ask(pool, "GET", f"{jobs}/query?job_id=1-2") == (404, {"success": False, "error_code": -1402, "error_message": "JOB_NOT_FOUND"})
    assert ask(pool, "GET", f"{jobs}/query")[0] == 400
    put_at(store, "k", a)
    status, told = ask(pool, "POST", jobs, {"segments": [a], "target_segments": [c]})
    assert status == 200 and told["success"] and told["status"] == "CREATED"
    job = told["job_id"]
    assert ask(pool, "POST", jobs, {"segments": [a]})[0] == 409
    pool.wait(lambda: ask(pool, "GET", f"{jobs}/query?job_id={job}")[1]["status"] == 3, "the drain does not end")
    told = ask(pool, "GET", f"{jobs}/query?job_id={job}")[1]
    assert told["type_name"] == "DRAIN" and told["segments"] == [a] and told["succeeded_units"] == 1 and told["error_code"] == 0
    assert places(store, "k") == [c]
    assert ask(pool, "POST", f"{jobs}/cancel?job_id={job}")[0] == 409
    status, told = ask(pool, "POST", jobs, {"segments": [b]})
    assert ask(pool, "POST", f"{jobs}/cancel?job_id={told['job_id']}")[0] == 200
    assert ask(pool, "GET", f"/api/v1/segments/status?segment={b}")[1]["status_name"] == "OK"


def test_drain_says_when_its_node_is_killed(pool: Pool, store: MooncakeDistributedStore) -> None:
    a = pool.segments()[0]
    victim = named(pool, a)
    for i in range(100):
        put_at(store, f"k{i}", a, 400_000)
    it = drain(pool, a, "--copies=1", "--json")
    pool.wait(lambda: objects(pool, a) < 95, "the drain does not begin")
    victim.kill()
    out, err = it.communicate(timeout=60)
    assert it.returncode == 1, err
    told = json.loads(out)
    assert told["status_name"] == "FAILED" and "has gone before it was empty" in told["message"]
    found = [i for i in range(100) if store.get(f"k{i}") != b""]
    assert len(found) >= told["succeeded_units"] > 0
    assert all(store.get(f"k{i}") == value(f"k{i}", 400_000) for i in found), "never wrong bytes"


def test_master_killed_with_tasks_under_way(pool: Pool, store: MooncakeDistributedStore) -> None:
    a, b, _ = pool.segments()
    keys = [f"k{i}" for i in range(60)]
    for key in keys:
        put_at(store, key, a, 500_000)
    tasks = [store.create_move_task(key, a, b)[0] for key in keys]
    status, job = ask(pool, "POST", "/api/v1/drain_jobs", {"segments": [a], "max_concurrency": 1})
    assert status == 200
    pool.wait(lambda: objects(pool, a) < 55, "nothing moves")
    pool.master.kill()
    pool.master.start()
    pool.wait(lambda: pool.get("/health") is not None and json.loads(pool.get("/health"))["service_ready"], "the master does not come back")
    for task in tasks:
        found, code = store.query_task(task)
        assert code == 0 and found.status == TaskStatus.FAILED and "restarted" in found.message
    for key in keys:
        assert store.get(key) == value(key, 500_000), "where it was, or where it went"
    status, told = ask(pool, "GET", f"/api/v1/drain_jobs/query?job_id={job['job_id']}")
    assert (status, told["error_code"]) == (404, -1402) and "restarted" in told["error_message"]


def test_replicas_of_a_dead_node_are_made_again(pool: Pool, store: MooncakeDistributedStore) -> None:
    keys = [f"k{i}" for i in range(40)]
    for key in keys:
        assert store.put(key, value(key), ReplicateConfig(replica_num=2)) == 0
        assert len(set(places(store, key))) == 2, "on two nodes"
    a = places(store, keys[0])[0]
    named(pool, a).kill()
    pool.wait(lambda: all(len(set(places(store, key)) - {a}) == 2 for key in keys), "replicas are not made again")
    metrics = pool.get("/metrics")
    made = int(next(line for line in metrics.splitlines() if line.startswith("master_repaired_replicas ")).split()[1])
    assert made > 0
    for key in keys:
        assert store.get(key) == value(key)


def test_quotas(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "--enable_multi_tenants=true", "--default_kv_lease_ttl=0")
    path = "/api/v1/tenant_quotas"
    try:
        pool.node("64 MB")
        one, other = connect(pool, tenant_id="one"), connect(pool, tenant_id="other")
        assert ask(pool, "GET", f"{path}?tenant_id=one")[1]["error_code"] == -704
        assert ask(pool, "PUT", f"{path}?tenant_id=one", {"requested_quota_bytes": 0})[0] == 400
        assert ask(pool, "PUT", path, {"requested_quota_bytes": 5})[0] == 400
        status, told = ask(pool, "PUT", f"{path}?tenant_id=one", {"requested_quota_bytes": 10 * MIB})
        assert status == 200 and told["data"]["requested_quota_bytes"] == 10 * MIB and told["data"]["has_explicit_policy"]
        for i in range(30):
            assert one.put(f"k{i}", bytes(MIB)) == 0
            assert other.put(f"k{i}", bytes(MIB)) == 0
        time.sleep(0.1)
        assert sum(one.is_exist(f"k{i}") for i in range(30)) == 10, "its own are evicted"
        assert sum(other.is_exist(f"k{i}") for i in range(30)) == 30, "those of others are not"
        hard = ReplicateConfig(with_hard_pin=True)
        one.remove_all(force=True)
        codes = [one.put(f"p{i}", bytes(MIB), hard) for i in range(12)]
        assert codes == [0] * 10 + [-1700] * 2, "nothing of its own may be evicted"
        assert f'mooncake_tenant_quota_charged_bytes{{tenant_id="one"}} {10 * MIB}' in pool.get("/metrics")
        time.sleep(0.2)
        pool.master.kill()
        pool.master.start()
        pool.wait(lambda: pool.get("/health") is not None, "the master does not come back")
        assert ask(pool, "GET", f"{path}?tenant_id=one")[1]["data"]["requested_quota_bytes"] == 10 * MIB
        assert ask(pool, "DELETE", f"{path}?tenant_id=one") == (200, {"success": True, "data": None})
        assert ask(pool, "DELETE", f"{path}?tenant_id=one")[0] == 404
    finally:
        pool.close()


def test_quotas_are_refused_when_they_are_off(pool: Pool) -> None:
    assert ask(pool, "GET", "/api/v1/tenant_quotas?tenant_id=a")[0] == 409
    assert ask(pool, "PUT", "/api/v1/tenant_quotas?tenant_id=a", {"requested_quota_bytes": 1})[1]["error_code"] == -1011


def objects(pool: Pool, segment: str) -> int:
    return next(one["objects"] for one in json.loads(pool.get("/get_segments_detail")) if one["name"] == segment)


def named(pool: Pool, segment: str) -> Process:
    """The node whose segment it is: its log says the name."""
    return next(node for node in pool.nodes if segment in node.log.read_text(errors="replace"))


def disk_node(pool: Pool, tmp_path: Path, size: str) -> tuple[Process, str]:
    """A node with a disk behind its memory, and its segment's name."""
    before = set(pool.segments())
    path = tmp_path / f"disk{len(before)}"
    node = pool.node(size, "--enable_offload=true", f"--ssd_offload_path={path}")
    return node, (set(pool.segments()) - before).pop()


def counts(pool: Pool) -> tuple[int, int]:
    """Replicas in memory and on disk."""
    text = pool.get("/metrics") or ""
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return int(float(found["mem_cache_nums_"])), int(float(found["file_cache_nums_"]))


@pytest.mark.parametrize("target", ["32 MB", "disk"])
def test_what_is_on_a_disk_alone_is_drained_too(pool: Pool, tmp_path: Path, target: str) -> None:
    """40 MB behind 16 MB of memory; to memory with room for it, and to a node like this one."""
    node, segment = disk_node(pool, tmp_path, "16 MB")
    with closing(connect(pool)) as store:
        keys = [f"k{i}" for i in range(100)]
        for key in keys:
            assert store.put(key, value(key, 400_000)) == 0
        pool.wait(lambda: counts(pool)[1] == len(keys), "not all is on the disk")
        assert counts(pool)[0] < len(keys) / 2
        if target == "disk":
            disk_node(pool, tmp_path, "16 MB")
        else:
            pool.node("64 MB")
        it = drain(pool, segment, "--json")
        out, err = it.communicate(timeout=40)
        assert it.returncode == 0, err
        told = json.loads(out)
        assert (told["status_name"], told["failed_units"], told["remaining_units"]) == ("SUCCEEDED", 0, 0)
        assert told["succeeded_units"] >= len(keys)
        node.kill()
        for key in keys:
            assert store.get(key) == value(key, 400_000), key
        assert counts(pool)[1] == (len(keys) if target == "disk" else 0)


def test_a_move_of_what_is_on_a_disk_alone(pool: Pool, tmp_path: Path) -> None:
    _, a = disk_node(pool, tmp_path, "16 MB")
    with closing(connect(pool)) as store:
        for i in range(100):
            assert store.put(f"k{i}", value(f"k{i}", 400_000)) == 0
        pool.wait(lambda: counts(pool)[1] == 100, "not all is on the disk")
        alone = next(k for k in (f"k{i}" for i in range(100)) if len(store.get_replica_desc(k)) == 1)
        pool.node("16 MB")
        b = (set(pool.segments()) - {a}).pop()
        task, code = store.create_copy_task(alone, [b])
        assert code == 0 and ended(store, task).status == TaskStatus.SUCCESS
        assert len(store.get_replica_desc(alone)) == 2
        assert store.get(alone) == value(alone, 400_000)
