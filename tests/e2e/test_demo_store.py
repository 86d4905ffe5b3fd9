"""The store demo without vLLM: each of its checks on an answer that is wrong in one way only, its table and picture,
and the processes that it starts, kills and starts again."""

import asyncio
import io
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "demo"))

import demo
import kv_pool
import metrics
import store_demo
from client import Answer, read_event
from lifelines import picture
from process import HOST, DemoError, Process, Processes, Progress, free_ports
from store_demo import StoreDemo
from store_report import Load, Phase, Reading, parse_loads, table
from story import run

BLOCK = 128
TOKENS = 641
KV_BYTES = 23040
DUE_BYTES = 640 * KV_BYTES
LOG = (
    "100.5 INFO [x] Mooncake load tier summary: req_id=chatcmpl-B-0 batch_keys=5 memory_keys={} disk_keys={} "
    "unknown_keys=0 success_keys=5 failed_keys=0 bytes_by_tier={{'memory': {}, 'disk': {}, 'unknown': 0}}\n"
)


def answer(token_ids: list[int], ttft_s: float, tokens: int = TOKENS) -> Answer:
    times = [100.0 + ttft_s, 101.5 + ttft_s]
    return Answer(100.0, "the same", token_ids, tokens, times, ended=times[-1])


def computed(**changes) -> Reading:
    good = {"prompt": "x", "answer": answer([5, 6, 7], 2.0), "block_tokens": BLOCK, "external_tokens": 0}
    return Reading(**{**good, "load": Load(), "load_s": 0.0, **changes})


def shared(**changes) -> Reading:
    good = {"answer": answer([5, 6, 7], 0.25), "external_tokens": 640, "load_s": 0.02}
    return computed(**{**good, "load": Load(memory_keys=5, memory_bytes=DUE_BYTES), **changes})


def check(reading: Reading, name: str = "B", only_disk: bool = False) -> None:
    Phase(name, "a fresh process", only_disk=only_disk, readings=[reading]).check(0, computed(), KV_BYTES)


def test_all_full_blocks_and_the_same_tokens_pass():
    check(computed(), "A")
    check(shared())
    check(shared(load=Load(disk_keys=5, disk_bytes=DUE_BYTES)), "D", only_disk=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"answer": answer([5, 9, 7], 0.25)}, "from token 1 on: [9, 7] here, [6, 7] in instance A"),
        ({"answer": answer([5, 6], 0.25)}, "from token 2 on: [] here, [7]"),
        ({"external_tokens": 639}, "only 639 of 641 prompt tokens"),
        ({"load": Load(memory_keys=4, memory_bytes=DUE_BYTES, failed_keys=1)}, "could not read 1 of its blocks"),
        ({"load": Load(memory_keys=5, memory_bytes=DUE_BYTES - 1)}, f"{DUE_BYTES - 1} bytes by the store"),
    ],
)
def test_a_later_instance_that_is_wrong_in_one_way_fails_with_its_reason(changes, named):
    with pytest.raises(DemoError) as caught:
        check(shared(**changes))
    assert named in str(caught.value)
    assert "instance B (a fresh process)" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"external_tokens": 128}, "found 128 tokens in a pool that was empty"),
        ({"load": Load(memory_keys=1, memory_bytes=1)}, "in a pool that was empty"),
        ({"answer": answer([5], 2.0, tokens=128)}, "has 128 tokens, less than a block of 128 and one more"),
        ({"answer": answer([], 2.0)}, "without token ids"),
    ],
)
def test_a_first_instance_that_has_nothing_to_share_or_to_compare_fails(changes, named):
    with pytest.raises(DemoError) as caught:
        check(computed(**changes), "A")
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "load",
    [
        Load(memory_keys=5, memory_bytes=DUE_BYTES),
        Load(memory_keys=1, disk_keys=4, disk_bytes=DUE_BYTES),
        Load(unknown_keys=5, unknown_bytes=DUE_BYTES),
    ],
)
def test_after_the_nodes_restart_only_the_ssd_will_do(load):
    with pytest.raises(DemoError, match="elsewhere than the SSD"):
        check(shared(load=load), "D", only_disk=True)


def test_a_prompt_of_whole_blocks_computes_its_last_token():
    reading = computed(answer=answer([5], 2.0, tokens=640))
    assert (reading.full_blocks, reading.due_tokens) == (5, 512)


def test_the_connectors_log_is_read_line_by_line_and_summed():
    text = "100.1 INFO [x] something else memory_keys=7\n" + LOG.format(3, 0, 900, 0) + LOG.format(0, 2, 0, 600)
    total = Load.sum(parse_loads(text))
    assert total == Load(memory_keys=3, disk_keys=2, memory_bytes=900, disk_bytes=600)
    assert (total.bytes, total.tiers) == (1500, "memory + SSD")
    assert Load.sum(parse_loads("")) == Load()


def test_token_ids_of_a_stream_are_collected():
    got = Answer(sent=0.0)
    read_event(b'data: {"choices": [{"delta": {"content": "a"}, "token_ids": [1, 2]}]}\n', got, lambda piece: None)
    read_event(b'data: {"choices": [{"delta": {}, "token_ids": null}]}\n', got, lambda piece: None)
    assert (got.text, got.token_ids) == ("a", [1, 2])


def phases() -> list[Phase]:
    disk = Load(disk_keys=5, disk_bytes=DUE_BYTES)
    return [
        Phase("A", "the first", readings=[computed()]),
        Phase("B", "a fresh process", readings=[shared()]),
        Phase("D", "after a restart of the node", None, True, readings=[shared(load=disk)]),
    ]


def test_the_table_has_a_row_for_each_instance():
    rows = [line.split() for line in table(phases()).splitlines()]
    assert rows[2] == ["A", "the", "first", "641", "0", "-", "-", "-", "2.00", "s", "computed"]
    assert rows[3][:2] == ["B", "a"]
    assert rows[3][4:] == "641 640 14.7 MB memory 20.0 ms 250.0 ms 2.00 s equal".split()
    assert rows[4][-12:-1] == "641 640 14.7 MB SSD 20.0 ms 250.0 ms 2.00 s".split()


def test_the_json_says_what_the_table_says():
    told = phases()[2].as_json(phases()[0])
    assert (told["instance"], told["served_again_s"]) == ("D", None)
    reading = told["readings"][0]
    assert (reading["tokens_from_pool"], reading["bytes"], reading["tokens_equal"]) == (640, DUE_BYTES, True)
    assert (reading["ttft_s"], reading["ttft_without_s"]) == (0.25, 2.0)


def test_the_arguments_that_are_for_one_demo_need_its_name(capsys, monkeypatch):
    monkeypatch.setattr(demo, "BY_DEFAULT", ["pd", "store"])
    assert demo.parse_args(["store", "--keep"]).demos == ["store"]
    for argv in (["--keep"], ["--svg", "x.svg"]):
        with pytest.raises(SystemExit):
            demo.parse_args(argv)
        assert "is for one demo" in capsys.readouterr().err


def sleeper(name: str, tmp_path: Path, script: str = "exec sleep 60") -> Process:
    return Process(name, ["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin"}, tmp_path / f"{name}.log")


async def at_once(session) -> bool:
    return True


async def never(session) -> bool:
    return False


def in_a_demo(work) -> str:
    """Run work(processes) as a demo does; returns what it printed."""
    out = io.StringIO()

    async def whole() -> None:
        async with Processes(Progress(out)) as processes:
            await processes.while_alive(work(processes))

    asyncio.run(whole())
    return out.getvalue()


def test_a_killed_process_starts_again_and_the_picture_shows_both_lives(tmp_path):
    master, instance = sleeper("master", tmp_path), sleeper("instance A", tmp_path)

    async def work(processes: Processes) -> None:
        await processes.start(master, at_once, 5.0)
        await processes.start(instance, at_once, 5.0)
        await processes.kill(master)
        await processes.start(master, at_once, 5.0)
        assert await processes.stop(instance) == []

    in_a_demo(work)
    assert [life.killed for life in master.lives] == [True, False]
    assert all(life.end is not None for life in [*master.lives, *instance.lives])
    svg = ET.fromstring(picture([phases()[0]], [master, instance]))
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("kill -9") == 1
    assert "2.00 s, computed" in texts


def test_a_process_that_ends_by_itself_ends_the_demo_by_name(tmp_path):
    async def work(processes: Processes) -> None:
        await processes.start(sleeper("node", tmp_path, "sleep 0.3; echo why; exit 3"), at_once, 5.0)
        await asyncio.sleep(30)

    with pytest.raises(DemoError, match=r"the node ended by itself \(exit status 3\); its log is .*node.log"):
        in_a_demo(work)
    assert (tmp_path / "node.log").read_text() == "why\n"


def test_a_process_that_does_not_start_is_named(tmp_path):
    async def ended(processes: Processes) -> None:
        await processes.start(sleeper("node", tmp_path, "exit 4"), never, 20.0)

    async def silent(processes: Processes) -> None:
        await processes.start(sleeper("master", tmp_path), never, 0.3)

    with pytest.raises(DemoError, match=r"the node ended while starting \(exit status 4\)"):
        in_a_demo(ended)
    with pytest.raises(DemoError, match=r"the master was not ready within 0.3 s"):
        in_a_demo(silent)


def test_what_does_not_end_when_asked_is_made_to_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr("process.STOP_S", 0.2)
    node = sleeper("node", tmp_path, "trap '' TERM; while :; do sleep 1; done")

    async def work(processes: Processes) -> None:
        await processes.start(node, at_once, 5.0)
        await asyncio.sleep(0.3)  # for the trap
        assert await processes.stop(node) == [node]

    in_a_demo(work)
    assert node.life.end is not None


class FakeMaster:
    """The routes of a master that the demo asks, over what a test puts into `objects`: key -> is it on the SSD."""

    def __init__(self) -> None:
        self.objects: dict[str, bool] = {}
        self.asked = 0

    async def keys(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(text="".join(f"{key}\n" for key in self.objects))

    async def describe(self, request: web.Request) -> web.Response:
        wanted = request.query["keys"].split(",")
        on_ssd = {key: [1] if self.objects.get(key) else None for key in wanted}
        data = {key: {"ok": key in self.objects, "local_disk_values": on_ssd[key]} for key in wanted}
        return web.json_response({"success": True, "data": data})


def with_fake_master(tmp_path: Path, monkeypatch, work) -> None:
    monkeypatch.setattr(kv_pool, "SETTLE_S", 0.3)
    monkeypatch.setattr(kv_pool, "program", lambda name, folder: f"/bin/{name}")
    master = FakeMaster()

    async def whole() -> None:
        it = kv_pool.Pool(Processes(Progress(io.StringIO())), tmp_path, "tcp", [], tmp_path)
        app = web.Application()
        app.add_routes([web.get("/get_all_keys", master.keys), web.get("/batch_query_keys", master.describe)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, HOST, int(it.http_url.rsplit(":", 1)[1])).start()
        try:
            await work(it, master)
        finally:
            await runner.cleanup()

    asyncio.run(whole())


def test_the_pool_waits_for_what_is_put_after_the_answer(tmp_path, monkeypatch):
    async def work(it: kv_pool.Pool, master: FakeMaster) -> None:
        master.objects = {"m@1": False}

        async def later() -> None:
            while master.asked < 2:
                await asyncio.sleep(0.01)
            master.objects["m@2"] = True

        task = asyncio.create_task(later())
        assert sorted(await it.wait_for_objects(2)) == ["m@1", "m@2"]
        await task
        with pytest.raises(DemoError, match="holds 2 objects .* 3 were due"):
            await it.wait_for_objects(3)

    with_fake_master(tmp_path, monkeypatch, work)


def test_an_object_that_stays_away_from_the_ssd_is_named(tmp_path, monkeypatch):
    async def work(it: kv_pool.Pool, master: FakeMaster) -> None:
        master.objects = {"m@1": True, "m@2": True}
        await it.wait_for_ssd(["m@1", "m@2"])
        master.objects["m@2"] = False
        with pytest.raises(DemoError, match=r"1 of 2 objects are not on the SSD .*'m@2'"):
            await it.wait_for_ssd(["m@1", "m@2"])

    with_fake_master(tmp_path, monkeypatch, work)


def test_a_master_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(kv_pool, "program", lambda name, folder: f"/bin/{name}")
    it = kv_pool.Pool(Processes(Progress(io.StringIO())), tmp_path, "tcp", [], tmp_path)
    with pytest.raises(DemoError, match=r"/get_all_keys cannot be read"):
        asyncio.run(it.keys())


def test_a_program_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DemoError, match=f"no program mooncake_master in {tmp_path}"):
        kv_pool.Pool(Processes(Progress(io.StringIO())), tmp_path, "tcp", [], tmp_path)


def test_ports_are_below_the_ephemeral_range_and_apart():
    ports = free_ports(8)
    assert len(set(ports)) == 8
    assert all(20000 <= port < 32768 for port in ports)


def story(tmp_path: Path, monkeypatch, fault: str, *argv: str) -> tuple[int, dict, str]:
    """The whole demo over stand-ins for its programs: exit status, JSON, and what a person reads."""
    fake = [sys.executable, str(Path(__file__).with_name("fake_store.py"))]
    shared = tmp_path / "shared"
    (tmp_path / "model").mkdir()
    shared.mkdir()
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"num_hidden_layers": 30, "num_key_value_heads": 3, "head_dim": 64})
    )
    for name, role in (("mooncake_master", "master"), ("mooncake_client", "node")):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nexec {" ".join(fake)} {role} {shared} {fault} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setattr(kv_pool, "program", lambda name, folder: str(tmp_path / name))
    monkeypatch.setattr(kv_pool, "SETTLE_S", 1.0)
    monkeypatch.setattr(metrics, "SETTLE_S", 1.0)
    monkeypatch.setattr(
        store_demo,
        "vllm_command",
        lambda model, port, transfer: [*fake, "vllm", str(shared), fault, f"--port={port}"],
    )
    monkeypatch.setattr(StoreDemo, "check_setup", lambda self: None)
    told: list[dict] = []
    args = demo.parse_args(["store", "--prompt", "a long one", *argv])
    whole = StoreDemo(args, tmp_path, told.append)
    whole.out = io.StringIO()
    whole.progress = Progress(whole.out)
    status = asyncio.run(run(whole))
    assert all(life.end is not None for process in whole.processes.all for life in process.lives)
    assert not (whole.work / "ssd").exists()
    return status, told[0], whole.out.getvalue()


@pytest.mark.parametrize("fault", ["none", "rounding"])
def test_the_whole_story_with_stand_ins(tmp_path, monkeypatch, fault):
    status, told, text = story(tmp_path, monkeypatch, fault)
    assert (status, told["ok"], told["error"]) == (0, True, None), text
    readings = {phase["instance"]: phase["readings"][0] for phase in told["phases"]}
    assert [readings[name]["tokens_from_pool"] for name in "ABCD"] == [0, 256, 256, 256]
    assert [readings[name]["blocks"]["disk"] for name in "ABCD"] == [0, 0, 0, 2]
    assert all(reading["tokens_equal"] for reading in readings.values())
    assert "demo store: ok" in text
    assert ("out of its own cache it answers" in text) == (fault == "rounding")
    svg = ET.fromstring(Path(told["timeline_svg"]).read_text())
    marks = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert (marks.count("kill -9"), marks.count("restart")) == (1, 1)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("lazy-put", "holds 1 objects"),
        ("other-tokens", "instance B (a fresh process) answered with other tokens"),
        ("no-cache", "instance A had 0 tokens in its own cache, 256 were due"),
        ("forgetful-master", "2 of 2 objects are not served 1 s after the restart of the master"),
        ("no-ssd", "2 of 2 objects are not on the SSD"),
        ("immortal-memory", "took blocks from elsewhere than the SSD"),
    ],
)
def test_one_lie_ends_the_story_with_its_reason(tmp_path, monkeypatch, capsys, fault, named):
    status, told, _ = story(tmp_path, monkeypatch, fault)
    assert (status, told["ok"]) == (1, False)
    assert named in told["error"]
    assert f"demo store: FAILED: {told['error']}" in capsys.readouterr().err
