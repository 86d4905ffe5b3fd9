"""The calls of mooncake.engine that engines make, in their order, shapes and judgement, between two engines over TCP.

The C interface's clients (NIXL, TensorRT-LLM) are in tests/conform/capi.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import free_port, wait_for_port
from memory import Memory

from mooncake import engine as engine_module
from mooncake.engine import TransferEngine, TransferNotify, TransferOpcode

KIB, MIB = 1 << 10, 1 << 20
HOST, P2P = "127.0.0.1", "P2PHANDSHAKE"
NOBODY = f"{HOST}:1"


def engine(protocol: str = "tcp", device: str = "") -> tuple[TransferEngine, str]:
    """As all of them begin: an address without a port, and the session's name of it and of the port that was found."""
    one = TransferEngine()
    assert one.initialize(HOST, P2P, protocol, device) == 0, one.last_error()
    return one, f"{HOST}:{one.get_rpc_port()}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", "5")
    monkeypatch.setenv("MC_FORCE_TCP", "1")


@pytest.fixture
def pair() -> Iterator[tuple[TransferEngine, str, TransferEngine, str]]:
    yield *engine(), *engine()


def test_vllm_connector(pair) -> None:
    """The producer writes blocks of all layers into the consumer's cache, from ten threads at once."""
    producer, _, consumer, session = pair
    layers, blocks, size = 4, 16, 10 * KIB + 8
    sent = [Memory(blocks * size, i) for i in range(layers)]
    taken = [Memory(blocks * size) for _ in range(layers)]
    assert producer.batch_register_memory([m.address for m in sent], [m.size for m in sent]) == 0
    assert consumer.batch_register_memory([m.address for m in taken], [m.size for m in taken]) == 0

    def send(block: int) -> int:
        src = [m.address + block * size for m in sent]
        dst = [m.address + (blocks - 1 - block) * size for m in taken]
        return producer.batch_transfer_sync_write(session, src, dst, [size] * layers)

    with ThreadPoolExecutor(10) as workers:
        assert list(workers.map(send, range(blocks))) == [0] * blocks
    for a, b in zip(sent, taken):
        assert [b.at((blocks - 1 - i) * size, size) for i in range(blocks)] == [a.at(i * size, size) for i in range(blocks)]
    # 0.33 takes its caches out of the engine while it sleeps, and puts them back.
    addresses = [m.address for m in taken]
    assert consumer.batch_unregister_memory(addresses) == 0
    assert send(0) < 0, "nothing is written into memory that is not registered"
    assert consumer.batch_register_memory(addresses, [m.size for m in taken]) == 0
    assert send(0) == 0
    assert producer.batch_transfer_sync_write(NOBODY, [sent[0].address], [addresses[0]], [size]) < 0, "a peer that is gone"


def test_sglang_wrapper(pair) -> None:
    sender, own, receiver, session = pair
    assert hasattr(sender, "batch_register_memory") and hasattr(sender, "batch_transfer_sync_write")
    data, room = Memory(2 * MIB, 5), Memory(2 * MIB)
    assert sender.register_memory(data.address, data.size) == 0
    assert receiver.batch_register_memory([room.address], [room.size]) == 0
    assert sender.send_probe(session) == 0
    assert sender.transfer_sync_write(session, data.address, room.address, MIB) == 0
    assert sender.batch_transfer_sync_write(session, [data.address + MIB], [room.address + MIB], [MIB]) == 0
    assert room.raw == data.raw
    back = Memory(2 * MIB)
    assert sender.register_memory(back.address, back.size) == 0
    assert sender.batch_transfer_sync_read(session, [back.address, back.address + MIB], [room.address, room.address + MIB], [MIB] * 2) == 0
    assert back.raw == data.raw
    assert sender.get_engine() is not None and sender.get_engine().get_engine_ptr() == sender.get_engine_ptr()
    assert sender.send_probe(NOBODY) != 0, "it is blacklisted"
    assert receiver.batch_unregister_memory([room.address]) == 0
    assert sender.unregister_memory(data.address) == 0 and sender.unregister_memory(back.address) == 0
    assert own != session


def test_checkpoint_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not initialize is thrown away, and another one tried: nothing of the first is in its way."""
    failed = [TransferEngine() for _ in range(8)]
    assert all(one.initialize("203.0.113.7", P2P, "tcp", "") != 0 for one in failed)
    del failed
    owner, address = engine()
    reader, _ = engine()
    weights, room = Memory(3 * MIB, 8), Memory(3 * MIB)
    cuts = [0, 1000, MIB, 3 * MIB]
    names = {f"bucket{i}": (weights.address + cuts[i], cuts[i + 1] - cuts[i]) for i in range(3)}
    assert owner.batch_register_memory([a for a, _ in names.values()], [n for _, n in names.values()]) == 0
    assert reader.batch_register_memory([room.address], [room.size]) == 0
    remotes = [a for a, _ in names.values()]
    assert reader.batch_transfer_sync_read(address, [room.address + c for c in cuts[:3]], remotes, [n for _, n in names.values()]) == 0
    assert room.raw == weights.raw
    assert owner.batch_unregister_memory(remotes) == 0
    assert reader.batch_unregister_memory([room.address]) == 0


def test_lmdeploy() -> None:
    """It asks for RDMA; where no NIC is, the engine uses TCP."""
    owner, session = engine("rdma")
    reader, _ = engine("rdma")
    cache, room = Memory(300 * KIB, 3), Memory(300 * KIB)
    assert owner.register_memory(cache.address, cache.size) == 0 == reader.register_memory(room.address, room.size)
    for at in range(0, 300 * KIB, 60 * KIB):
        assert reader.transfer_sync_read(session, room.address + at, cache.address + at, 60 * KIB) == 0
    assert room.raw == cache.raw


def test_lmcache_channel(pair) -> None:
    """It submits, and asks for the state until that is an end: 1 done, -1 failed, -2 too late, 0 not yet, and nothing else."""
    reader, _, owner, session = pair
    cache, room = Memory(8 * MIB, 4), Memory(8 * MIB)
    assert owner.register_memory(cache.address, cache.size) == 0 == reader.register_memory(room.address, room.size)
    pieces = [i * MIB for i in range(8)]

    def wait(batch: int) -> int:
        assert 0 < batch < 1 << 63, "a number that it takes for a batch"
        end = time.monotonic() + 30
        while (state := reader.transfer_check_status(batch)) == 0:
            assert time.monotonic() < end
            time.sleep(0.0005)
        return state

    read = reader.batch_transfer_async_read(session, [room.address + p for p in pieces], [cache.address + p for p in pieces], [MIB] * 8)
    assert wait(read) == 1
    assert room.raw == cache.raw
    failed = reader.batch_transfer_async_read(NOBODY, [room.address], [cache.address], [MIB])
    assert failed == 0 or failed < 0 or failed >= 1 << 63 or wait(failed) in (-1, -2)
    assert owner.unregister_memory(cache.address) == 0 == reader.unregister_memory(room.address)


def test_flexkv(tmp_path: Path) -> None:
    """Peers that find each other in a metadata service; every transfer tells the other side, one of no bytes, too."""
    port = free_port(30_000, 32_000)
    with subprocess.Popen([sys.executable, "-P", "-m", "mooncake.http_metadata_server", "--host", HOST, "--port", str(port)],
                          stderr=(tmp_path / "log").open("wb")) as service:  # fmt: skip
        try:
            wait_for_port(port)
            url = f"http://{HOST}:{port}/metadata"
            names = [f"{HOST}:{free_port(24_000 + i * 100, 29_000)}" for i in range(2)]
            one, two = TransferEngine(), TransferEngine()
            for name, each in zip(names, (one, two)):
                assert each.initialize_ext(name, url, "tcp", "", "http") == 0, each.last_error()
            data, room = Memory(100 * KIB, 6), Memory(100 * KIB)
            assert one.register_memory(data.address, data.size) == 0 == two.register_memory(room.address, room.size)
            note = engine_module.TransferNotify("flexkv", "blocks 1 to 3")
            assert one.transfer_sync(names[1], data.address, room.address, data.size, engine_module.TransferOpcode.Write, note) == 0
            assert one.transfer_sync(names[1], data.address, room.address, 0, TransferOpcode.Write, TransferNotify("flexkv", "done")) == 0
            assert [(n.name, n.msg) for n in two.get_notifies()] == [("flexkv", "blocks 1 to 3"), ("flexkv", "done")]
            assert room.raw == data.raw
            assert two.get_notifies() == []
            assert one.transfer_sync_read(names[1], data.address, room.address, 5) == 0
            assert one.batch_transfer_sync_write(names[1], [data.address], [room.address], [7]) == 0
            for each, memory in ((one, data), (two, room)):
                assert each.unregister_memory(memory.address) == 0
            del one, two, each
        finally:
            service.terminate()


def test_calls_of_one_engine_in_many_threads_do_not_wait_for_a_peer_that_is_gone(pair) -> None:
    sender, _, receiver, session = pair
    data, room = Memory(MIB, 1), Memory(MIB)
    assert sender.register_memory(data.address, data.size) == 0 == receiver.register_memory(room.address, room.size)
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(sender.transfer_sync_write(NOBODY, data.address, room.address, MIB)))
               for _ in range(4)]  # fmt: skip
    for thread in threads:
        thread.start()
    assert [sender.transfer_sync_write(session, data.address, room.address, MIB) for _ in range(50)] == [0] * 50
    for thread in threads:
        thread.join(60)
    assert len(results) == 4 and all(code < 0 for code in results)
    assert room.raw == data.raw
