"""The calls of mooncake.store that engines make, in their order, shapes and judgement, on a real master and node.

Each test is one engine: what it writes is read back by another client, byte for byte; what it takes for success, a miss or
a failure is asked as it asks. None of the engines has to be installed.
"""

import asyncio
import ctypes
import hashlib
import inspect
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import free_port, wait_for_port
from memory import Memory
from pool import MIB, PROGRAMS, Pool

from mooncake.engine import TransferEngine
from mooncake.mooncake_config import MooncakeConfig
from mooncake.store import MooncakeDistributedStore, MooncakeHostMemAllocator, ObjectDataType, ReplicateConfig, bind_to_numa_node

KIB = 1 << 10
HOST, P2P = "127.0.0.1", "P2PHANDSHAKE"
NO_AVAILABLE_HANDLE, INVALID_PARAMS, OBJECT_NOT_FOUND = -200, -600, -704


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("clients"))
    pool.node("192 MB")
    yield pool
    pool.close()


@pytest.fixture
def opened(pool: Pool) -> Iterator[list[MooncakeDistributedStore]]:
    """Stores that a test appends are closed, and the pool is empty again."""
    stores: list[MooncakeDistributedStore] = []
    yield stores
    for store in stores:
        store.remove_all(force=True)
        assert store.close() == 0


def hashes(n: int, salt: str = "") -> list[str]:
    """Names of blocks as engines make them."""
    return [hashlib.sha256(f"{salt}{i}".encode()).hexdigest() for i in range(n)]


def exactly_ints(result: object, n: int) -> bool:
    """A list of so many ints and of nothing that only looks like them."""
    return type(result) is list and len(result) == n and all(type(one) is int for one in result)


# ---- vLLM ----


class VllmLayers:
    """A paged KV cache: one storage a layer, of blocks; a block's value lies in all of them."""

    def __init__(self, layers: int, blocks: int, block_bytes: int, seed: int | None = None) -> None:
        self.block_bytes = block_bytes
        self.layers = [Memory(blocks * block_bytes, None if seed is None else seed + i) for i in range(layers)]

    def register(self, store: MooncakeDistributedStore) -> None:
        for layer in self.layers:
            assert store.register_buffer(layer.address, layer.size) == 0

    def describe(self, blocks: list[int]) -> tuple[list[list[int]], list[list[int]]]:
        addresses = [[layer.address + block * self.block_bytes for layer in self.layers] for block in blocks]
        return addresses, [[self.block_bytes] * len(self.layers) for _ in blocks]

    def block(self, block: int) -> bytes:
        return b"".join(layer.at(block * self.block_bytes, self.block_bytes) for layer in self.layers)


def vllm_store(opened: list, config: dict) -> MooncakeDistributedStore:
    store = MooncakeDistributedStore()
    opened.append(store)
    tenant = {"tenant_id": config["tenant_id"]} if config["tenant_id"] != "default" else {}
    ret = store.setup(
        HOST, config["metadata_server"], config["global_segment_size"], config["local_buffer_size"], config["protocol"],
        config["device_name"], config["master_server_address"], **tenant,
    )  # fmt: skip
    assert ret == 0
    return store


@pytest.mark.parametrize(("mode", "tenant"), [("standalone-store", "default"), ("embedded", "team")])
def test_vllm_store_connector(pool: Pool, opened: list, mode: str, tenant: str) -> None:
    """Save, look up, load into other blocks of another instance; grouped keys, pressure, tiers, reset."""
    config = {
        "metadata_server": P2P, "master_server_address": pool.address, "protocol": "tcp", "device_name": "", "tenant_id": tenant,
        "global_segment_size": 0 if mode == "standalone-store" else 16 * MIB, "local_buffer_size": 16 * MIB,
    }  # fmt: skip
    first, second = vllm_store(opened, config), vllm_store(opened, config)
    written, read = VllmLayers(6, 8, 12 * KIB + 64, seed=1), VllmLayers(6, 8, 12 * KIB + 64)
    written.register(first)
    read.register(second)
    names = hashes(5, mode)
    keys = [f"prod@models/tiny@tp_rank:0@pcp0@dcp0@pp_rank:0@group:0@{name}" for name in names]

    assert hasattr(ReplicateConfig, "group_ids") or hasattr(ReplicateConfig(), "group_ids")
    replicate = ReplicateConfig()
    # Two saves of one request: the second finds the first one's keys, and sets new groups in the same object.
    for n in (3, 5):
        found = first.batch_is_exist(keys[:n])
        assert exactly_ints(found, n)
        assert found == [1] * (n - 2 if n == 5 else 0) + [0] * (n if n == 3 else 2)
        missing = [i for i in range(n) if found[i] != 1]
        addresses, sizes = written.describe([7 - i for i in missing])
        replicate.group_ids = [f"vllm-mooncake-store:models/tiny@{names[i]}" for i in missing]
        put = first.batch_put_from_multi_buffers([keys[i] for i in missing], addresses, sizes, replicate)
        assert exactly_ints(put, len(missing)) and put == [0] * len(missing)

    assert second.batch_is_exist([*keys, "prod@models/tiny@else"]) == [1, 1, 1, 1, 1, 0]
    tiers = second.batch_get_replica_desc([*keys, "prod@models/tiny@else"])
    assert sorted(tiers) == sorted(keys)
    assert tiers.get("prod@models/tiny@else") is None
    assert all(tiers[key][0].is_memory_replica() and not tiers[key][0].is_disk_replica() for key in keys)

    addresses, sizes = read.describe(list(range(5)))
    got = second.batch_get_into_multi_buffers(keys, addresses, sizes)
    assert exactly_ints(got, 5) and got == [6 * (12 * KIB + 64)] * 5
    assert [read.block(i) for i in range(5)] == [written.block(7 - i) for i in range(5)]
    assert read.block(5) == bytes(6 * (12 * KIB + 64)), "nothing beside the blocks that were asked for"
    got = second.batch_get_into_multi_buffers([keys[0], "prod@models/tiny@else"], addresses[:2], sizes[:2])
    assert got == [6 * (12 * KIB + 64), OBJECT_NOT_FOUND], "the block behind a miss is computed again"
    assert first.remove_all(force=True) == 5
    assert second.batch_is_exist(keys) == [0] * 5


def test_vllm_store_connector_prefers_a_segment_and_sees_pressure(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    stores: list[MooncakeDistributedStore] = []
    try:
        pool.node("16 MB"), pool.node("16 MB")
        preferred = pool.segments()[1]
        store = vllm_store(stores, {
            "metadata_server": P2P, "master_server_address": pool.address, "protocol": "tcp", "device_name": "",
            "tenant_id": "default", "global_segment_size": 0, "local_buffer_size": MIB,
        })  # fmt: skip
        replicate = ReplicateConfig()
        replicate.preferred_segment = preferred
        data = Memory(MIB, 1)
        assert store.register_buffer(data.address, data.size) == 0
        keys = [f"m@{name}" for name in hashes(40)]
        assert store.batch_put_from_multi_buffers(keys[:3], [[data.address]] * 3, [[MIB]] * 3, replicate) == [0] * 3
        where = store.batch_get_replica_desc(keys[:3])
        assert {where[key][0].get_memory_descriptor().buffer_descriptor.transport_endpoint for key in keys[:3]} == {preferred}
        replicate.with_hard_pin = True  # so that nothing may be evicted
        codes = store.batch_put_from_multi_buffers(keys[3:], [[data.address]] * 37, [[MIB]] * 37, replicate)
        assert set(codes) == {0, NO_AVAILABLE_HANDLE}
        there = store.batch_is_exist(keys[3:])
        assert there == [1 if code == 0 else 0 for code in codes]
    finally:
        for store in stores:
            store.close()
        pool.close()


def test_vllm_encoder_cache(pool: Pool, opened: list) -> None:
    """A header and a tensor are one object; registrations come and go with each; only known codes leave the client healthy."""
    store = vllm_store(opened, {
        "metadata_server": P2P, "master_server_address": pool.address, "protocol": "tcp", "device_name": "",
        "tenant_id": "default", "global_segment_size": 0, "local_buffer_size": MIB,
    })  # fmt: skip
    safe = {-200, -703, -704, -705, -900, -901, -600, -702, -707}
    replicate = ReplicateConfig()
    replicate.data_type = ObjectDataType.TENSOR
    header, room = Memory(24), Memory(2 * MIB)
    assert store.register_buffer(header.address, 24) == 0
    assert store.register_buffer(room.address, room.size) == 0
    shapes = {"embed/v3/a": (100, 512), "embed/v3/b": (7, 512)}
    sent = {}
    for key, (tokens, hidden) in shapes.items():
        tensor = Memory(tokens * hidden * 2, tokens)
        ctypes.memmove(header.address, struct.pack("<IIQQ", 0x4D4F4F4E, 12, tokens, hidden), 24)
        assert store.register_buffer(tensor.address, tensor.size) == 0
        for _ in range(2):  # another worker publishes the same
            result = store.batch_put_from_multi_buffers([key], [[header.address, tensor.address]], [[24, tensor.size]], replicate)
            assert exactly_ints(result, 1) and result == [0]
        assert store.unregister_buffer(tensor.address) == 0
        sent[key] = header.raw + tensor.raw
    keys = [*shapes, "embed/v3/none"]
    sizes = [len(sent["embed/v3/a"]), len(sent["embed/v3/b"]) - 1, 4096]
    offsets = [0, sizes[0], sizes[0] + sizes[1]]
    got = store.batch_get_into(keys, [room.address + offset for offset in offsets], sizes)
    assert exactly_ints(got, 3) and got == [sizes[0], INVALID_PARAMS, OBJECT_NOT_FOUND]
    assert all(code in safe for code in got[1:])
    assert room.at(0, sizes[0]) == sent["embed/v3/a"]
    assert room.at(sizes[0], 8192) == bytes(8192), "a buffer that is too small stays as it was"
    assert store.batch_get_into(["embed/v3/b"], [room.address], [sizes[1] + 1]) == [sizes[1] + 1]
    assert room.at(0, sizes[1] + 1) == sent["embed/v3/b"]
    assert store.batch_is_exist(keys) == [1, 1, 0]
    for address in (room.address, header.address):
        assert store.unregister_buffer(address) == 0


# ---- SGLang ----


def sglang_warm_up(store: MooncakeDistributedStore) -> None:
    key, value = "sglang_mooncake_store_warmup_key" + os.urandom(16).hex(), bytes(4 * KIB)
    assert store.put(key, value) == 0, "it would wait a second and try again"
    assert store.is_exist(key) == 1
    assert store.get(key) == value


def sglang_host_pool(size: int) -> Memory:
    """Memory of Mooncake's allocator, used through ctypes."""
    address = MooncakeHostMemAllocator().alloc(size)
    assert type(address) is int and address != 0
    memory = Memory(0)
    memory.address, memory.size = address, size
    return memory


@pytest.mark.parametrize("client", ["own", "standalone"])
@pytest.mark.parametrize("groups", [False, True])
def test_sglang_hicache(tmp_path: Path, client: str, groups: bool) -> None:
    """K and V of a page are two keys of a flat list; pages that exist are not written again; a page is there when both are."""
    pool = Pool(tmp_path)
    node = pool.node("64 MB")
    address = next(flag.removeprefix("--port=") for flag in node.flags if flag.startswith("--port="))
    with urllib.request.urlopen(f"http://{HOST}:{pool.http}/get_all_segments", timeout=3) as reply:
        assert reply.read() != b"", "the engine waits for ten minutes while it is empty"
    page, pages = 40 * KIB, 8
    stores, memories = [], []
    try:
        for _ in range(2):
            store = MooncakeDistributedStore()
            if client == "standalone":
                ret = store.setup_dummy(2 * page * pages, 16 * MIB, f"{HOST}:{address}")
            else:
                ret = store.setup(HOST, P2P, 4 * MIB // 2, 16 * MIB, "tcp", "", pool.address, None, ssd_offload_path="/nowhere")
            assert not ret
            stores.append(store)
            sglang_warm_up(store)
            memories.append(sglang_host_pool(2 * page * pages))
            assert store.register_buffer(memories[-1].address, memories[-1].size) == 0
        writer, reader = stores
        ctypes.memmove(memories[0].address, Memory(2 * page * pages, 5).raw, 2 * page * pages)
        tagged = [f"backend_models-tiny_{name}" for name in hashes(pages)]
        keys = [f"{key}_0_{half}" for key in tagged for half in "kv"]
        where = [memories[0].address + i * page for i in range(2 * pages)]
        config = ()
        if groups:
            assert hasattr(ReplicateConfig, "group_ids")
            config = (ReplicateConfig(),)
            config[0].group_ids = [f"sglang-hicache:{key}" for key in tagged[:3] for _ in "kv"]
        assert writer.batch_put_from(keys[:6], where[:6], [page] * 6, *config) == [0] * 6
        there = writer.batch_is_exist(keys)
        assert there == [1] * 6 + [0] * 10
        missing = [i for i, state in enumerate(there) if state != 1]
        if groups:
            config[0].group_ids = [f"sglang-hicache:{tagged[i // 2]}" for i in missing]
        put = writer.batch_put_from([keys[i] for i in missing], [where[i] for i in missing], [page] * 10, *config)
        assert put == [0] * 10
        assert all(state == 1 for state in reader.batch_is_exist(keys)), "the longest prefix is all of it"
        got = reader.batch_get_into(keys, [memories[1].address + i * page for i in range(2 * pages)], [page] * 2 * pages)
        assert exactly_ints(got, 2 * pages) and all(n > 0 for n in got) and got == [page] * 2 * pages
        assert ctypes.string_at(memories[1].address, 2 * page * pages) == ctypes.string_at(memories[0].address, 2 * page * pages)
        # MLA, layer first: several buffers an object.
        layers, into = [where[:4], where[4:8]], [[memories[1].address + i * page for i in (8, 9, 10, 11)]]
        assert writer.batch_put_from_multi_buffers(["mla__k", "mlb__k"], layers, [[page] * 4] * 2, ReplicateConfig()) == [0, 0]
        assert reader.batch_get_into_multi_buffers(["mla__k"], into, [[page] * 4]) == [4 * page]
        assert ctypes.string_at(into[0][0], 4 * page) == ctypes.string_at(where[0], 4 * page)
        assert type(writer.remove_all()) is int
    finally:
        for store in stores:
            store.close()
        pool.close()


def test_sglang_takes_a_type_error_with_the_name_for_an_old_version() -> None:
    with pytest.raises(TypeError, match="not_there_yet"):
        MooncakeDistributedStore().setup(HOST, P2P, 0, 0, "tcp", "", "127.0.0.1:1", None, not_there_yet=True)


def test_sglang_loads_layer_by_layer_in_a_session(pool: Pool, opened: list) -> None:
    writer = MooncakeDistributedStore()
    opened.append(writer)
    assert writer.setup(HOST, P2P, 0, 16 * MIB, "tcp", "", pool.address, None) == 0
    layers, part, pages = 4, 9 * KIB, 3
    source = [Memory(2 * layers * part, i) for i in range(pages)]
    keys = [f"linked_{name}_cp0_pp0_k" for name in hashes(pages, "linker")]
    for memory in source:
        assert writer.register_buffer(memory.address, memory.size) in (0, None)
    put = writer.batch_put_from_multi_buffers(keys, [[m.address] for m in source], [[m.size] for m in source], ReplicateConfig())
    assert put == [0] * pages
    room = Memory(pages * 2 * layers * part)
    assert writer.register_buffer(room.address, room.size) in (0, None)
    assert writer.batch_get_session_start(keys) == [0] * pages
    for layer in range(layers):  # K and V of the layer, of every page
        pieces = [[2 * layer * part, (2 * layer + 1) * part] for _ in keys]
        into = [[room.address + k * source[0].size + offset for offset in offsets] for k, offsets in enumerate(pieces)]
        got = writer.batch_get_into_multi_buffer_ranges(keys, into, [[part, part]] * pages, pieces)
        assert list(got) == [2 * part] * pages
    assert writer.batch_get_session_end(keys) == 0
    assert room.raw == b"".join(memory.raw for memory in source)
    assert writer.batch_get_session_start([*keys, "linked_none"]) != [0] * (pages + 1), "what is missing is an error of the load"


def test_sglang_leaves_without_closing(pool: Pool) -> None:
    """Its close() does nothing: the process ends with a store that is open, at once and with its own status."""
    program = textwrap.dedent(f"""
        from mooncake.store import MooncakeDistributedStore
        store = MooncakeDistributedStore()
        assert store.setup("{HOST}", "{P2P}", {8 * MIB}, {MIB}, "tcp", "", "{pool.address}", None) == 0
        assert store.put("left behind", b"x") == 0
        raise SystemExit(7)
    """)
    before = pool.segments()
    assert subprocess.run([sys.executable, "-P", "-c", program], timeout=60, check=False).returncode == 7
    pool.wait(lambda: pool.segments() == before, "its memory does not leave the pool")


# ---- LMCache ----


def lmcache_setup_dict(raw: dict) -> dict[str, str]:
    """All values are text; a prefix is taken off; what is not given is filled in under older names."""
    given = {key.removeprefix("mooncake_"): str(value) for key, value in raw.items()}
    return {"global_segment_size": "3355443200", "local_buffer_size": "1073741824", "protocol": "tcp", "device_name": ""} | given


@pytest.mark.parametrize("spelling", ["master_server_address", "mooncake_master_server_addr", "mooncake_master_server_address"])
def test_lmcache(pool: Pool, opened: list, spelling: str) -> None:
    store = MooncakeDistributedStore()
    opened.append(store)
    store.setup(lmcache_setup_dict({  # its code is ignored: a wrong one shows in the first put
        "local_hostname": HOST, "metadata_server": P2P, spelling: pool.address, "mooncake_global_segment_size": 16 * MIB,
        "local_buffer_size": 32 * MIB,
    }))  # fmt: skip
    replicate = ReplicateConfig()
    replicate.replica_num = 1
    replicate.preferred_segment = store.get_hostname()  # prefer_local_alloc
    buffer = Memory(4 * MIB, 3)
    assert store.register_buffer(buffer.address, buffer.size) == 0
    keys = [f"vllm@tiny@1@0@{name}@bfloat16" for name in hashes(4, spelling)]

    async def use() -> None:
        assert not store.is_exist(keys[0]), "any number but 0 is a hit"
        await asyncio.wait_for(asyncio.to_thread(store.put_from, keys[0], buffer.address, MIB, replicate), timeout=10)
        pointers = [buffer.address + MIB, buffer.address + 2 * MIB]
        await asyncio.wait_for(asyncio.to_thread(store.batch_put_from, keys[1:3], pointers, [MIB, 1000], replicate), timeout=10)
        head, body = bytes(range(28)), memoryview(buffer.raw)[:777]
        await asyncio.wait_for(asyncio.to_thread(store.put_parts, keys[3], head, body), timeout=10)
        assert all(store.is_exist(key) for key in keys)
        (where,) = store.get_replica_desc(keys[0])
        assert where.get_memory_descriptor().buffer_descriptor.transport_endpoint == store.get_hostname()
        room = Memory(4 * MIB)
        into = [room.address + i * MIB for i in range(3)]
        read = await asyncio.to_thread(store.batch_get_into, [*keys[:2], keys[3] + "!"], into, [MIB] * 3)
        assert read[:2] == [MIB, MIB] and read[2] <= 0, "a miss"
        assert room.at(0, 2 * MIB) == buffer.at(0, 2 * MIB)
        assert room.at(2 * MIB, MIB) == bytes(MIB)
        read = await asyncio.to_thread(store.batch_get_into, keys[2:3], into[:1], [MIB])
        assert read == [1000], "a partial chunk tells its length"
        buffers = await asyncio.to_thread(store.batch_get_buffer, [keys[3], "vllm@none"])
        assert buffers[1] is None
        view = memoryview(buffers[0])
        assert (len(view), view.format, view.itemsize, view.ndim) == (28 + 777, "B", 1, 1)
        assert view[:28] == head and bytes(view[28:]) == body

    asyncio.run(use())
    bind_to_numa_node(0)
    assert store.unregister_buffer(buffer.address) == 0


def test_lmcache_lookup_client(pool: Pool, opened: list) -> None:
    writer, looker = MooncakeDistributedStore(), MooncakeDistributedStore()
    opened += [writer, looker]
    common = {"local_hostname": HOST, "metadata_server": P2P, "master_server_address": pool.address}
    assert writer.setup(lmcache_setup_dict(common | {"global_segment_size": 0})) == 0
    assert looker.setup(lmcache_setup_dict(common | {"global_segment_size": "0", "local_buffer_size": "0"})) == 0
    keys = [f"vllm@lookup@{name}" for name in hashes(6)]
    assert [writer.put_parts(key, b"x" * 100) for key in keys[:4]] == [0] * 4
    assert looker.batch_is_exist(keys) == [1, 1, 1, 1, 0, 0]


# ---- vllm-ascend ----


def test_vllm_ascend_backend(pool: Pool, opened: list) -> None:
    """Every argument by its name, on an engine that the process has already; then the same by position."""
    assert "enable_ssd_offload" in inspect.signature(MooncakeDistributedStore.setup).parameters
    assert "enable_ssd_offload" in (MooncakeDistributedStore.setup.__doc__ or "")
    engine = TransferEngine()
    assert engine.initialize(HOST, P2P, "tcp", "") == 0
    segment = f"{HOST}:{engine.get_rpc_port()}"
    named, placed = MooncakeDistributedStore(), MooncakeDistributedStore()
    opened += [named, placed]
    assert named.setup(
        local_hostname=segment, metadata_server=P2P, global_segment_size=16 * MIB, local_buffer_size=MIB, protocol="tcp",
        rdma_devices="", master_server_addr=pool.address, engine=engine.get_engine(), enable_ssd_offload=False, ssd_offload_path="",
    ) == 0  # fmt: skip
    assert named.get_hostname() == segment, "the store uses the engine and its port"
    assert placed.setup(HOST, P2P, 0, 0, "tcp", "", pool.address) == 0
    blocks = VllmLayers(3, 4, 5000, seed=40)
    for layer in blocks.layers:  # on the engine, not on the store
        assert engine.register_memory(layer.address, layer.size) == 0
    replicate = ReplicateConfig()
    replicate.preferred_segment = segment
    replicate.prefer_alloc_in_same_node = True
    keys = [f"tiny@head_or_tp_rank:0@{name}" for name in hashes(3, "ascend")]
    addresses, sizes = blocks.describe([2, 0, 1])
    assert named.batch_put_from_multi_buffers(keys, addresses, sizes, replicate) == [0] * 3
    (where,) = named.get_replica_desc(keys[0])
    assert where.get_memory_descriptor().buffer_descriptor.transport_endpoint == segment
    assert placed.batch_is_exist([*keys, "tiny@none"]) == [1, 1, 1, 0]
    read = VllmLayers(3, 4, 5000)
    addresses, sizes = read.describe([0, 1, 2])
    assert list(placed.batch_get_into_multi_buffers(keys, addresses, sizes)) == [15_000] * 3
    assert [read.block(i) for i in range(3)] == [blocks.block(i) for i in (2, 0, 1)]
    for layer in blocks.layers:
        assert engine.unregister_memory(layer.address) == 0


# ---- FlexKV ----


def test_flexkv(pool: Pool, opened: list) -> None:
    """One client with memory, and one that asks only; a read counts when its bytes are those that were asked for."""
    store, query = MooncakeDistributedStore(), MooncakeDistributedStore()
    opened += [store, query]
    assert not store.setup(HOST, P2P, 16 * MIB, 16 * MIB, "tcp", "", pool.address)
    assert not query.setup(HOST, P2P, 0, 0, "rpc_only", "", pool.address)
    key = "flexkv_mooncake_store_warmup_key" + os.urandom(16).hex()
    assert (store.put(key, bytes(4 * KIB)), store.is_exist(key), store.get(key)) == (0, 1, bytes(4 * KIB))
    data, room = Memory(6 * 30_000, 9), Memory(6 * 30_000)
    for memory in (data, room):
        assert store.register_buffer(memory.address, memory.size) == 0
    keys = [f"flexkv:{name}:kv" for name in hashes(6, "flexkv")]
    pointers = [data.address + i * 30_000 for i in range(6)]
    assert query.batch_is_exist(keys) == [0] * 6
    assert store.batch_put_from(keys[:5], pointers[:5], [30_000] * 5) == [0] * 5
    assert query.batch_is_exist(keys) == [1] * 5 + [0]
    got = store.batch_get_into(keys, [room.address + i * 30_000 for i in range(6)], [30_000] * 6)
    assert [actual == expected for actual, expected in zip(got, [30_000] * 6)] == [True] * 5 + [False]
    assert room.raw[:150_000] == data.raw[:150_000] and room.raw[150_000:] == bytes(30_000)
    for memory in (data, room):
        assert store.unregister_buffer(memory.address) == 0
    assert type(store.remove_all()) is int


# ---- TorchSpec ----


def test_torchspec(tmp_path: Path, opened: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts its own master, with a metadata server inside; hidden states by name, hard pinned, taken away by force."""
    monkeypatch.setenv("PATH", f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MC_TCP_BIND_ADDRESS", HOST)
    rpc, http = free_port(), free_port(30_000, 32_000)
    with (tmp_path / "log").open("wb") as log:
        master = subprocess.Popen(
            [shutil.which("mooncake_master"), f"--port={rpc}", f"--http_metadata_server_port={http}", f"--http_metadata_server_host={HOST}",
             "--enable_http_metadata_server=true", "--default_kv_lease_ttl=100", "--metrics_port=0", f"--state_dir={tmp_path}"],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for_port(rpc)
        wait_for_port(http)
        stores = [MooncakeDistributedStore(), MooncakeDistributedStore()]
        for store in stores:
            result = store.setup(
                local_hostname=HOST, metadata_server=f"http://{HOST}:{http}/metadata", global_segment_size=24 * MIB,
                local_buffer_size=4 * MIB, protocol="tcp", rdma_devices="", master_server_addr=f"{HOST}:{rpc}",
            )  # fmt: skip
            assert result is None or result == 0
        put, get = stores
        assert "force" in (put.batch_remove.__doc__ or ""), "it reads there whether objects can be removed by force"
        pinned = ReplicateConfig()
        assert hasattr(pinned, "with_hard_pin")
        pinned.with_hard_pin = True
        staging = Memory(3 * MIB, 12)
        assert put.register_buffer(staging.address, staging.size) == 0
        assert put.batch_put_from(["_warmup_1"], [staging.address], [4096]) == [0]
        assert put.batch_remove(["_warmup_1"], force=True) == [0]
        sizes = [2 * MIB, 8 * 1000, 333]
        keys = [f"sample{suffix}" for suffix in ("_hs", "_ids", "_lhs")]
        offsets = [0, sizes[0], sizes[0] + sizes[1]]
        with ThreadPoolExecutor(2) as workers:
            pointers = [staging.address + offset for offset in offsets]
            results = workers.submit(put.batch_put_from, keys, pointers, sizes, config=pinned).result()
        assert all(result == 0 for result in results)
        assert get.is_exist(keys[0]) == 1
        room = Memory(3 * MIB)
        results = get.batch_get_into(keys, [room.address + offset for offset in offsets], sizes)
        assert all(r == 0 or r == size for r, size in zip(results, sizes))
        assert room.at(0, sum(sizes)) == staging.at(0, sum(sizes))
        handles = get.batch_get_buffer([*keys, "sample_tgt"])
        assert handles[3] is None
        for handle, offset, size in zip(handles, offsets, sizes):
            assert handle.size() == size
            assert ctypes.string_at(handle.ptr(), handle.size()) == staging.at(offset, size), "read in place"
        assert put.remove(keys[0]) in (0, None, -706)
        assert put.batch_remove(keys[1:], force=True) == [0, 0]
        assert put.remove(keys[1]) == OBJECT_NOT_FOUND
        for store in stores:
            assert store.close() == 0
    finally:
        os.killpg(master.pid, signal.SIGTERM)
        assert master.wait(30) in (0, -signal.SIGTERM), (tmp_path / "log").read_text()


# ---- ROLL, and others that read upstream's configuration ----


def test_roll_and_others_that_read_the_configuration(pool: Pool, opened: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"local_hostname": HOST, "metadata_server": P2P, "master_server_address": pool.address, "protocol": "tcp",
              "device_name": "", "global_segment_size": "8MB", "local_buffer_size": "1.5 mb"}  # fmt: skip
    path = tmp_path / "mooncake.json"
    path.write_text(json.dumps(values))
    names = {"local_hostname": "MOONCAKE_LOCAL_HOSTNAME", "metadata_server": "MOONCAKE_TE_META_DATA_SERVER",
             "master_server_address": "MOONCAKE_MASTER", "protocol": "MOONCAKE_PROTOCOL", "device_name": "MOONCAKE_DEVICE",
             "global_segment_size": "MOONCAKE_GLOBAL_SEGMENT_SIZE", "local_buffer_size": "MOONCAKE_LOCAL_BUFFER_SIZE"}  # fmt: skip
    for name, variable in names.items():
        monkeypatch.setenv(variable, values[name])
    of_environment = MooncakeConfig.load_from_env()
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", str(path))
    of_file = MooncakeConfig.load_from_env()
    assert of_file == of_environment
    assert (of_file.global_segment_size, of_file.local_buffer_size) == (8 * MIB, 3 * MIB // 2)
    store = MooncakeDistributedStore()
    opened.append(store)
    assert store.setup(
        of_file.local_hostname, of_file.metadata_server, of_file.global_segment_size, of_file.local_buffer_size, of_file.protocol,
        of_file.device_name, of_file.master_server_address,
    ) == 0  # fmt: skip
    assert (store.put("roll", b"batch"), store.get("roll")) == (0, b"batch")
    with pytest.raises(ImportError):  # it looks for a module that no version of upstream's wheel has
        __import__("mooncake.dataproto_transfer")


# ---- what all of them rely on ----


def test_calls_of_many_threads_do_not_wait_for_each_other(pool: Pool, opened: list) -> None:
    """Save and load threads of an engine call at once; none holds the interpreter while it waits."""
    store = MooncakeDistributedStore()
    opened.append(store)
    assert store.setup(HOST, P2P, 0, MIB, "tcp", "", pool.address) == 0
    data = Memory(MIB, 77)
    wrong: list[object] = []

    def work(number: int) -> None:
        room = Memory(MIB)
        for i in range(20):
            key = f"threads/{number}/{i}"
            size = 1 + (i * 7919 + number) % MIB
            if store.batch_put_from([key], [data.address], [size]) != [0]:
                wrong.append(("put", key))
            if store.batch_get_into([key], [room.address], [size]) != [size] or room.at(0, size) != data.at(0, size):
                wrong.append(("get", key))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), time.monotonic() - start
    assert not wrong


def test_arguments_may_be_whatever_holds_numbers(pool: Pool, opened: list) -> None:
    """Engines pass addresses as lists, tuples or arrays of numpy, and their elements."""
    numpy = pytest.importorskip("numpy")
    store = MooncakeDistributedStore()
    opened.append(store)
    assert store.setup(HOST, P2P, numpy.int64(0), numpy.int32(MIB), "tcp", "", pool.address) == 0
    data, room = numpy.arange(3000, dtype=numpy.uint32), numpy.zeros(3000, dtype=numpy.uint32)
    assert store.register_buffer(numpy.uint64(data.ctypes.data), numpy.int64(data.nbytes)) == 0
    pointers = data.ctypes.data + numpy.array([0, 4000, 8000], dtype=numpy.uint64)
    keys = ("array/0", "array/1", "array/2")
    assert store.batch_put_from(keys, pointers, numpy.array([4000] * 3)) == [0] * 3
    assert store.batch_put_from_multi_buffers(["array/all"], [tuple(pointers)], numpy.array([[4000] * 3]), ReplicateConfig()) == [0]
    assert store.get_into("array/all", numpy.uint64(room.ctypes.data), numpy.uint32(12_000)) == 12_000
    assert (room == data).all()
    room[:] = 0
    assert store.batch_get_into(list(keys), tuple(int(p) - data.ctypes.data + room.ctypes.data for p in pointers), (4000,) * 3) == [4000] * 3
    assert (room == data).all()
    assert store.put("array/value", data) == 0, "anything with the buffer protocol is a value"
    assert store.get("array/value") == data.tobytes()
    assert store.unregister_buffer(numpy.uint64(data.ctypes.data)) == 0


def test_numbers_beyond_64_bits_are_named_and_not_cut(pool: Pool, opened: list) -> None:
    store = MooncakeDistributedStore()
    opened.append(store)
    assert store.setup(HOST, P2P, 0, MIB, "tcp", "", pool.address) == 0
    for wrong in (-1, 1 << 64, (1 << 64) + MIB):
        for call in (
            lambda: store.register_buffer(wrong, 8), lambda: store.register_buffer(8, wrong), lambda: store.unregister_buffer(wrong),
            lambda: store.get_into("key", wrong, 8), lambda: store.batch_put_from(["key"], [8], [wrong]),
            lambda: store.alloc_from_mem_pool(wrong), lambda: store.query_task((wrong, 0)),
            lambda: store.put("key", b"x", ReplicateConfig(replica_num=wrong)),
            lambda: store.put("key", b"x", ReplicateConfig(soft_pin_ttl_ms=wrong)),
        ):  # fmt: skip
            with pytest.raises((OverflowError, TypeError), match=r"2\*\*64|not negative"):
                call()
    with pytest.raises(OverflowError):
        store.allocate_and_mount_segment((1 << 64) + MIB)
    assert store.put("key", b"x", ReplicateConfig(replica_num=(1 << 32) + 1)) == INVALID_PARAMS
    assert store.is_exist("key") == 0


# ---- SGLang with --enable-metrics: each rank serves its own ----


def page(port: int, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=20) as reply:
            return reply.status, reply.headers["Content-Type"], reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_sglang_asks_a_rank_for_its_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(tmp_path)
    ranks = [MooncakeDistributedStore(), MooncakeDistributedStore()]
    port = free_port(31_000, 32_000)
    try:
        for rank in ranks:  # the second one finds the port taken, and works without
            assert rank.setup(HOST, P2P, 8 * MIB, MIB, "tcp", "", pool.address, None, enable_client_http_server=True,
                              client_http_port=port) == 0  # fmt: skip
        assert f"no HTTP on port {port}" in caplog.text and "client_http_port" in caplog.text
        assert ranks[0].put("counted", bytes(1000)) == 0 and ranks[1].get("counted") == bytes(1000)
        status, kind, text = page(port, "/health")
        assert (status, json.loads(text)) == (200, {"status": "healthy", "code": 0}) and kind.startswith("application/json")
        status, kind, text = page(port, "/metrics")
        assert status == 200 and kind.startswith("text/plain; version=0.0.4")
        written = [line for line in text.splitlines() if line.startswith("mooncake_transfer_write_bytes{")]
        assert [line.split()[1] for line in written] == ["1000"]
        assert "bytes written 1000, " in page(port, "/metrics/summary")[2]
        assert page(port, "/other")[0] == 404
        pool.master.kill()
        assert page(port, "/health")[0] == 503
        assert json.loads(page(port, "/health")[2]) == {"status": "master_unreachable", "code": 2}
    finally:
        for rank in ranks:
            rank.close()
        pool.close()
    with pytest.raises(OSError):
        page(port, "/health")
    again = MooncakeDistributedStore()
    assert again.setup(HOST, P2P, 0, 0, "tcp", "", "127.0.0.1:1", None, enable_client_http_server=True, client_http_port=port) == -900
    with pytest.raises(OSError):
        page(port, "/health")  # only a store that is set up has it


def test_children_of_a_process_that_serves_its_metrics_end(pool: Pool) -> None:
    """Engines fork workers after they have set their store up; neither the store nor its server is in a child's way."""
    port = free_port(31_000, 32_000)
    program = textwrap.dedent(f"""
        import os, sys, urllib.request
        from mooncake.store import MooncakeDistributedStore
        store = MooncakeDistributedStore()
        assert store.setup("{HOST}", "{P2P}", 0, 0, "tcp", "", "{pool.address}", enable_client_http_server=True, client_http_port={port}) == 0
        child = os.fork()
        if child == 0:
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert urllib.request.urlopen("http://{HOST}:{port}/health", timeout=20).status == 200
        sys.exit(4)
    """)
    assert subprocess.run([sys.executable, "-P", "-c", program], timeout=60, check=False).returncode == 4
