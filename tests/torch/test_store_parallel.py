"""Tensors along several axes: every piece of every cut, read from every other cut, is that piece; upstream's names and codes."""

import itertools
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pool import MIB, Pool, connect
from test_store_tensors import HEAD, INVALID, Memory, random_of, same

from mooncake import _store_layout as layout
from mooncake import _store_tensor_format as form
from mooncake.store import MooncakeDistributedStore, ParallelAxis, ReadTarget, ReplicateConfig, TensorParallelism

SIZES = (1, 2, 3, 4, 8)


def tp(rank: int, size: int, dim: int = 0) -> ParallelAxis:
    return ParallelAxis("tp", rank, size, dim)


def dp(rank: int, size: int) -> ParallelAxis:
    return ParallelAxis("dp", rank, size)


def ep(rank: int, size: int, expert: int) -> ParallelAxis:
    return ParallelAxis("ep", rank, size, expert_id=expert)


def pp(rank: int, size: int, stage: int) -> ParallelAxis:
    return ParallelAxis("pp", rank, size, stage_id=stage)


def along(*axes: ParallelAxis) -> TensorParallelism:
    return TensorParallelism(list(axes))


def target(mode: str, *axes: ParallelAxis) -> ReadTarget:
    return ReadTarget(mode, along(*axes) if axes else None)


def put_shards(store, key: str, x: torch.Tensor, size: int, dim: int = 0) -> None:
    for rank, shard in enumerate(x.chunk(size, dim)):
        assert store.put_tensor_with_parallelism(key, shard, along(tp(rank, size, dim))) == 0


def keys_of(pool) -> set[str]:
    return set((pool.get("/get_all_keys") or "").split())


# ---- one cut from another ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_any_shard_is_read_from_any_cut(store, size: int, dim: int, dtype: torch.dtype) -> None:
    """The oracle is torch.chunk() in this process."""
    x = random_of(dtype, 24, 48, 24)
    put_shards(store, "k", x, size, dim)
    assert same(store.get_tensor_with_parallelism("k", target("full", tp(0, 1, dim))), x)
    assert same(store.get_tensor_with_parallelism("k", target("full")), x)
    wanted = [(rank, n, d) for n in SIZES for d in range(3) for rank in range(n)]
    got = store.batch_get_tensor_with_parallelism(["k"] * len(wanted), [target("shard", tp(*one)) for one in wanted])
    for one, tensor in zip(wanted, got, strict=True):
        assert same(tensor, x.chunk(one[1], one[2])[one[0]]), f"{one} of shards in {size} along {dim}"


def test_large_shards_and_small_ones_are_read_alike(store) -> None:
    """Up to 1 MiB a shard is read at once, a larger one after a look at its header; a writer's part is the second choice."""
    m = Memory(room=4 * MIB)
    for rows in (8, 3 * 1024):
        x = random_of(torch.int32, rows, 512)
        put_shards(store, f"{rows}", x, 2)
        for rank in range(4):
            assert store.put_tensor_with_parallelism(f"{rows}", x + 1, writer_partition=tp(rank, 4)) == 0
        assert store.put_tensor_with_tp(f"legacy {rows}", x, 0, 2) == 0
        for one, want in ((tp(1, 2), x.chunk(2)[1]), (tp(3, 4), (x + 1).chunk(4)[3]), (tp(5, 8), x.chunk(8)[5])):
            assert same(store.get_tensor_with_parallelism(f"{rows}", target("shard", one)), want)
            at = (m.address, len(m.bytes))
            assert same(store.get_tensor_with_parallelism_into(f"{rows}", *at, target("shard", one)), want)
        assert same(store.get_tensor_with_tp(f"legacy {rows}", 1, 2), x.chunk(2)[1])
        assert same(store.get_tensor_with_tp_into(f"legacy {rows}", *at, 2, 4), x.chunk(4)[2])


@pytest.mark.parametrize("shape", [(24,), (8, 1, 24), (24, 0), (0, 24), (24, 3, 1, 2, 1, 1, 1, 2)], ids=str)
def test_tensors_of_any_shape_are_read_in_another_cut(store, shape: tuple[int, ...]) -> None:
    x = random_of(torch.int16, *shape)
    cuts = [(n, d) for n in (1, 2, 4, 8) for d in range(len(shape)) if shape[d] % n == 0]
    for (n, d), (m, e) in itertools.product(cuts, cuts):
        key = f"{n}/{d}"
        put_shards(store, key, x, n, d) if (m, e) == cuts[0] else None
        for rank in range(m):
            want = x.narrow(e, rank * shape[e] // m, shape[e] // m)
            assert same(store.get_tensor_with_parallelism(key, target("shard", tp(rank, m, e))), want), (n, d, m, e, rank)


def test_a_shard_that_would_not_be_even_is_none_and_says_so(store, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(12, 8)
    put_shards(store, "k", x, 2)
    for one in (tp(1, 5), tp(0, 3, 1), tp(0, 2, 2), tp(0, 2, -1)):
        caplog.clear()
        assert store.get_tensor_with_parallelism("k", target("shard", one)) is None
        assert "(12, 8)" in caplog.text
    assert store.get_tensor_with_parallelism("missing", target("shard", tp(0, 2))) is None


def test_whole_tensors_and_those_of_put_tensor_with_tp_are_cut_too(store) -> None:
    """Upstream reads no shard of a whole tensor."""
    x = torch.randn(16, 6)
    assert store.put_tensor("whole", x) == store.put_tensor_with_tp("legacy", x, 0, 4, 0) == 0
    for key in ("whole", "legacy"):
        for n, d in ((2, 0), (8, 0), (3, 1)):
            for rank in range(n):
                assert same(store.get_tensor_with_parallelism(key, target("shard", tp(rank, n, d))), x.chunk(n, d)[rank])
        assert same(store.get_tensor_with_parallelism(key, target("full")), x)
    assert same(store.get_tensor_with_tp("whole", 1, 2), x.chunk(2)[1])


def test_only_what_is_asked_for_is_read(store) -> None:
    x = torch.randint(0, 255, (2048, 4096), dtype=torch.uint8)  # 8 MiB
    put_shards(store, "rows", x, 4)
    put_shards(store, "columns", x, 4, 1)
    for key, one, extra in (
        ("rows", tp(5, 8), 4096), ("rows", tp(1, 2), 4096), ("rows", tp(1, 64), 4096),
        ("columns", tp(0, 1, 1), 4096), ("columns", tp(3, 4, 1), 4096), ("columns", tp(0, 8), 4096),
    ):  # fmt: skip
        before = store.read
        want = x.chunk(one.size, one.split_dim)[one.rank]
        assert same(store.get_tensor_with_parallelism(key, target("shard", one)), want)
        assert want.numel() <= store.read - before <= want.numel() + extra, (key, one)
    wide = torch.randint(0, 255, (300, 16384), dtype=torch.uint8)
    assert store.put_tensor("wide", wide) == 0
    before = store.read
    assert same(store.get_tensor_with_parallelism("wide", target("shard", tp(1, 4, 1))), wide.chunk(4, 1)[1])
    assert store.read - before <= wide.numel() // 4 + 4096, "pieces that are far enough from each other"


def test_a_shard_of_more_pieces_than_one_object_may_have_is_read(store) -> None:
    """70,000 pieces of 16 bytes, 2 KiB from each other."""
    whole = form.pack_header(form.Header("uint8", (70_000, 2048), (70_000, 2048)))
    x = torch.arange(70_000, dtype=torch.int32).reshape(-1, 1).expand(-1, 512).contiguous().view(torch.uint8)
    assert store.put_parts("k", whole, memoryview(x.numpy()).cast("B")) == 0
    want = target("shard", tp(3, 128, 1))
    assert same(store.get_tensor_with_parallelism("k", want), x[:, 48:64])
    ranges = store.ranges

    def lossy(is_put, keys, ptrs, sizes, offsets) -> list[int]:
        got = ranges(is_put, keys, ptrs, sizes, offsets)
        return [*got[:-1], -800] if sum(map(sum, sizes)) > 1_000_000 else got

    store.ranges = lossy
    assert store.get_tensor_with_parallelism("k", want) is None, "the last pieces are lost on the way"


# ---- several axes ----


def test_axes_of_every_kind_have_shards_of_their_own(store, pool) -> None:
    x = torch.randn(8, 6)
    for i, axes in enumerate((
        (dp(1, 2),), (ep(1, 2, 5),), (pp(1, 2, 3),), (dp(0, 2), tp(1, 2, 1)), (tp(1, 2, 1), dp(0, 3)),
        (pp(1, 3, 1), ep(0, 4, 9), tp(0, 2), dp(1, 2)),
    )):  # fmt: skip
        value = x + i
        assert store.put_tensor_with_parallelism("k", value, along(*axes)) == 0
        cut = next((axis for axis in axes if axis.kind == "tp"), None)
        want = value.chunk(cut.size, cut.split_dim)[cut.rank] if cut else value
        for order in itertools.permutations(axes):
            assert same(store.get_tensor_with_parallelism("k", target("shard", *order)), want)
            assert same(store.get_tensor_with_parallelism("k", target("as_stored", *order)), want)
    assert keys_of(pool) == {
        "k__dp_1of2", "k__ep_1of2_eid5", "k__pp_1of2_sid3", "k__dp_0of2__tp_1of2_sd1", "k__dp_0of3__tp_1of2_sd1",
        "k__dp_1of2__tp_0of2_sd0__ep_0of4_eid9__pp_1of3_sid1", "k__parallelism_manifest",
    }  # fmt: skip


@pytest.mark.parametrize("size", [2, 4])
def test_shards_along_several_axes_are_read_in_another_cut(store, size: int) -> None:
    xs = [torch.randn(24, 8), torch.randn(24, 8)]
    places = [(dp(0, 2), ep(0, 2, 4)), (dp(1, 2), ep(1, 2, 5))]
    for x, place in zip(xs, places):
        for rank in range(size):
            assert store.put_tensor_with_parallelism("k", x, along(*place, tp(rank, size))) == 0
    for x, place in zip(xs, places):
        assert same(store.get_tensor_with_parallelism("k", target("full", *place, tp(0, size))), x)
        assert same(store.get_tensor_with_parallelism("k", target("full", *place)), x)
        for n, rank in ((1, 0), (3, 2), (8, 5), (size, 1)):
            want = x.chunk(n)[rank]
            assert same(store.get_tensor_with_parallelism("k", target("shard", tp(rank, n), *place)), want)
    assert store.get_tensor_with_parallelism("k", target("shard", dp(0, 2), ep(0, 2, 7), tp(0, 2))) is None
    assert store.get_tensor_with_parallelism("k", target("shard", tp(0, 2))) is None, "which replica is not said"


def test_one_axis_takes_the_shard_and_several_the_whole(store) -> None:
    x = torch.randn(8, 6)
    assert store.put_tensor_with_parallelism("one", x, along(tp(1, 2))) == 0
    assert store.put_tensor_with_parallelism("two", x, along(dp(0, 1), tp(1, 2))) == 0
    shards = {key: store.get_tensor(key) for key in ("one_tp_1", "two__dp_0of1__tp_1of2_sd0")}
    assert same(shards["one_tp_1"], x) and same(shards["two__dp_0of1__tp_1of2_sd0"], x[4:])


# ---- several writers ----


@pytest.mark.parametrize("dim", [0, 1])
def test_writers_write_a_tensor_together(store, pool, dim: int) -> None:
    x = torch.randn(12, 24)
    for rank in range(3):
        assert store.get_tensor_with_parallelism("k", target("full")) is None, "it is not whole yet"
        assert store.put_tensor_with_parallelism("k", x, writer_partition=tp(rank, 3, dim)) == 0
    assert keys_of(pool) == {*(f"k__writer_{rank}of3_sd{dim}" for rank in range(3)), "k__writer_manifest"}
    assert same(store.get_tensor_with_parallelism("k", target("full")), x)
    for n, d in ((3, dim), (4, 0), (2, 1), (12, 0)):
        for rank in range(n):
            assert same(store.get_tensor_with_parallelism("k", target("shard", tp(rank, n, d))), x.chunk(n, d)[rank])


def test_what_lies_under_one_key_is_read_in_upstreams_order(store) -> None:
    x = torch.zeros(12, 8)
    assert store.put_tensor("k", x) == 0
    put_shards(store, "k", x + 1, 2)
    for rank in range(3):
        assert store.put_tensor_with_parallelism("k", x + 2, writer_partition=tp(rank, 3)) == 0
    for mode, axes, want in (
        ("as_stored", (), 0), ("full", (), 2), ("full", (tp(0, 2),), 1), ("full", (tp(0, 3),), 1),
        ("shard", (tp(1, 2),), 1), ("shard", (tp(1, 3),), 2), ("shard", (tp(1, 4),), 1),
    ):  # fmt: skip
        got = store.get_tensor_with_parallelism("k", target(mode, *axes))
        assert got.unique().tolist() == [want], (mode, axes)
    assert same(store.get_tensor_with_parallelism("k"), x)


# ---- from and into memory ----


def test_memory_with_the_whole_tensor_stores_all_its_shards(store, pool) -> None:
    x = torch.randn(8, 6)
    m = Memory(x)
    at = (m.address, m.size)
    assert store.put_tensor_with_parallelism_from("a", *at) == 0
    assert store.put_tensor_with_parallelism_from("b", *at, along(tp(1, 2, 1))) == 0
    assert store.put_tensor_with_parallelism_from("c", *at, along(dp(0, 2), tp(1, 2)), ReplicateConfig()) == 0
    assert store.put_tensor_with_parallelism_from("d", *at, along(dp(1, 2))) == 0
    assert store.put_tensor_with_parallelism_from("e", *at, writer_partition=tp(1, 2)) == 0
    assert keys_of(pool) == {
        "a", "b_tp_0", "b_tp_1", "b__parallelism_manifest", "c__dp_0of2__tp_0of2_sd0", "c__dp_0of2__tp_1of2_sd0",
        "c__parallelism_manifest", "d__dp_1of2", "e__writer_1of2_sd0", "e__writer_manifest",
    }  # fmt: skip
    assert same(store.get_tensor("e__writer_1of2_sd0"), x[4:])
    for key, axes in (("b", (tp(0, 1),)), ("c", (dp(0, 2), tp(0, 1))), ("d", (dp(1, 2),))):
        assert same(store.get_tensor_with_parallelism(key, target("full", *axes)), x)
    assert store.upsert_tensor_with_parallelism_from("a", *at) == 0
    codes = store.batch_put_tensor_with_parallelism_from(["f", "g"], [m.address] * 2, [m.size, 9], [along(tp(0, 2)), None])
    assert codes == [0, INVALID]
    two = [m.address] * 2, [m.size] * 2
    codes = store.batch_upsert_tensor_with_parallelism_from(["h", "i"], *two, writer_partitions=[tp(0, 2), None])
    assert codes == [0, 0]
    assert store.batch_put_tensor_with_parallelism_from(["j", "k"], [m.address], [m.size, m.size]) == [INVALID, INVALID]


def test_pieces_are_read_into_memory_behind_a_header_of_theirs(store) -> None:
    x = torch.randn(12, 8)
    put_shards(store, "k", x, 2)
    m = Memory(room=4096)
    for mode, one, want in (("shard", tp(1, 4), x[3:6]), ("full", tp(0, 2), x), ("shard", tp(1, 4, 1), x[:, 2:4])):
        need = HEAD + want.numel() * 4
        m.bytes[:] = b"\x55" * 4096
        assert store.get_tensor_with_parallelism_into("k", m.address, need - 1, target(mode, one)) is None
        got = store.get_tensor_with_parallelism_into("k", m.address, need, target(mode, one))
        assert same(got, want) and got.data_ptr() == m.address + HEAD
        assert m.bytes[need:] == b"\x55" * (4096 - need)
        header = form.parse_header(m.bytes, need)
        axes = (form.Axis(form.TP, one.rank, one.size, one.split_dim),) if mode == "shard" else ()
        assert (header.whole, header.shape, header.axes) == (x.shape, want.shape, axes)
        assert store.put_tensor_from(f"again {mode} {one.split_dim}", m.address, need) == 0, "what is read can be put"
    assert store.get_tensor_with_parallelism_into("k", 0, 4096, target("shard", tp(1, 4))) is None
    assert store.put_tensor("whole", x) == 0
    got = store.batch_get_tensor_with_parallelism_into(
        ["k", "whole"], [m.address, m.address + 2048], [2048, 2048], [target("shard", tp(1, 4)), None]
    )
    assert same(got[0], x[3:6]) and same(got[1], x)
    assert store.batch_get_tensor_with_parallelism_into(["k"], [m.address], []) == [INVALID]


# ---- wrong use ----


WRONG_AXES = {
    "none": [],
    "of an unknown kind": [ParallelAxis("xx", 0, 2)],
    "of no kind": [ParallelAxis()],
    "tp without a dimension": [ParallelAxis("tp", 0, 2)],
    "a dimension beyond": [tp(0, 2, 9)],
    "a dimension below 0": [tp(0, 2, -1)],
    "a rank beyond": [tp(2, 2)],
    "a rank below 0": [tp(-1, 2)],
    "no ranks": [tp(0, 0)],
    "ranks below 0": [tp(0, -1)],
    "a kind twice": [tp(0, 2), tp(0, 2, 1)],
    "dp with a dimension": [ParallelAxis("dp", 0, 2, 0)],
    "ep without an expert": [ParallelAxis("ep", 0, 2)],
    "ep with a dimension": [ParallelAxis("ep", 0, 2, 0, 1)],
    "pp without a stage": [ParallelAxis("pp", 0, 2)],
    "pp with a dimension": [ParallelAxis("pp", 0, 2, 0, None, 1)],
    "five": [dp(0, 1), tp(0, 1), ep(0, 1, 0), pp(0, 1, 0), dp(0, 1)],
    "uneven": [dp(0, 1), tp(0, 3)],
}


@pytest.mark.parametrize("name", WRONG_AXES)
def test_axes_that_cannot_be_are_refused_by_name(store, name: str, caplog: pytest.LogCaptureFixture) -> None:
    place, x = along(*WRONG_AXES[name]), torch.randn(8, 6)
    m = Memory(x)
    assert store.put_tensor_with_parallelism("k", x, place) == INVALID
    assert "put_tensor_with_parallelism()" in caplog.text
    assert store.upsert_tensor_with_parallelism("k", x, place) == INVALID
    assert store.put_tensor_with_parallelism_from("k", m.address, m.size, place) == INVALID
    assert store.batch_put_tensor_with_parallelism(["k", "b"], [x, x], [place, along(tp(0, 2))]) == [INVALID, 0]
    assert store.get_tensor_with_parallelism("k", ReadTarget("shard", place)) is None
    assert store.is_exist("b_tp_0") == 1 and store.remove_by_regex("^k", force=True) == 0


def test_what_upstream_takes_is_taken(store) -> None:
    x = torch.randn(8, 6)
    for key, place in (
        ("an expert below 0", along(ep(0, 2, -1))),
        ("a stage below 0", along(pp(0, 2, -4))),
        ("capitals", along(ParallelAxis("TP", 0, 2, 0))),
        ("tp with an expert", along(ParallelAxis("tp", 0, 2, 0, 1))),
        ("any object", SimpleNamespace(axes=[SimpleNamespace(kind="tp", rank=0, size=2, split_dim=0)])),
    ):  # fmt: skip
        assert store.put_tensor_with_parallelism(key, x, place) == 0
    axis = ParallelAxis("tp")
    axis.rank, axis.size, axis.split_dim = torch.tensor([1, 2, 0]).numpy()
    assert (axis.rank, axis.size, axis.split_dim) == (1, 2, 0), "numpy's ints are ints"
    assert store.put_tensor_with_parallelism("w", x, writer_partition=SimpleNamespace(rank=0, size=2, split_dim=0)) == 0
    assert store.put_tensor_with_parallelism("w", x, writer_partition=ParallelAxis("", 1, 2, 0)) == 0
    assert same(store.get_tensor_with_parallelism("w", target("full")), x)


def test_requests_that_cannot_be_are_refused(store) -> None:
    x, place = torch.randn(8, 6), along(tp(0, 2))
    put = store.put_tensor_with_parallelism
    for wrong in (5, "tp", [tp(0, 2)], tp(0, 2), {"axes": []}, ReadTarget()):
        assert put("k", x, wrong) == INVALID
    for wrong in (5, place, tp(0, 3), tp(2, 2), tp(0, 2, 7), tp(0, 2, -1), ParallelAxis("tp", 0, 2), tp(0, 0)):
        assert put("k", x, writer_partition=wrong) == INVALID
    assert put("k", x, place, writer_partition=tp(0, 2)) == INVALID
    for wrong in (None, 5, torch.tensor(1.0), torch.zeros(4, dtype=torch.complex64)):
        assert put("k", wrong, place) == INVALID
    assert store.remove_all(force=True) == 0
    batch, two = store.batch_put_tensor_with_parallelism, ["a", "b"]
    for args in (([x],), ([x, x], place), ([x, x], [place]), ([x, x], (place, place)), ([x], [place, place])):
        assert batch(two, *args) == [INVALID, INVALID]
    for wrong in (tp(0, 2), [tp(0, 2)], (None, None)):
        assert batch(two, [x, x], writer_partitions=wrong) == [INVALID, INVALID]
    for places, writers in (([place, place], [tp(0, 2)] * 2), ([place, None], [None, tp(0, 2)]), ([None, None], [tp(0, 2)] * 2)):
        assert batch(two, [x, x], places, writer_partitions=writers) == [INVALID, INVALID]
    assert store.remove_all(force=True) == 0
    assert batch(two, [x, 5]) == [0, INVALID] and batch(["c", "d"], [x, x], [None, place]) == [0, 0]
    assert store.batch_upsert_tensor_with_parallelism(["e", "f"], [x, x], writer_partitions=[None, tp(1, 2)]) == [0, 0]
    assert batch([], []) == batch([], [], []) == store.batch_get_tensor_with_parallelism([]) == []


def test_targets_that_cannot_be_read_nothing(store) -> None:
    x = torch.randn(8, 6)
    assert store.put_tensor("k", x) == 0
    get = store.batch_get_tensor_with_parallelism
    for wrong in (5, along(tp(0, 2)), "full", target("shard")):
        assert store.get_tensor_with_parallelism("k", wrong) is None
        got = get(["k", "k"], [wrong, None])
        assert got[0] is None and same(got[1], x)
    for wrong in (target("full"), [None], (None, None)):
        assert get(["k", "k"], wrong) == [None, None]
    assert same(store.get_tensor_with_parallelism("k", target("as_stored")), x)


def test_the_classes_take_upstreams_types() -> None:
    axis = ParallelAxis()
    assert (axis.kind, axis.rank, axis.size, axis.split_dim, axis.expert_id, axis.stage_id) == ("", 0, 1, None, None, None)
    for name, value in (("kind", 3), ("rank", "x"), ("rank", 1 << 40), ("size", None), ("split_dim", "x"), ("expert_id", 1.5)):
        with pytest.raises(TypeError, match=name):
            setattr(axis, name, value)
    with pytest.raises(AttributeError):
        axis.other = 1
    assert axis != ParallelAxis() and len({axis, axis}) == 1
    place = TensorParallelism()
    for wrong in (None, [1], axis):
        with pytest.raises(TypeError, match="axes"):
            place.axes = wrong
    place.axes = (axis,)
    place.axes.append(axis)
    assert len(place.axes) == 2
    want = ReadTarget()
    assert (want.mode, want.parallelism) == ("as_stored", None)
    with pytest.raises(RuntimeError, match="as_stored, shard, full"):
        want.mode = "other"
    for name, wrong in (("mode", None), ("mode", 1), ("parallelism", axis)):
        with pytest.raises(TypeError, match=name):
            setattr(want, name, wrong)


# ---- shards that are missing, or are not what the manifest says ----


def test_a_missing_shard_is_missed_only_by_who_needs_it(store) -> None:
    x = torch.randn(12, 8)
    put_shards(store, "k", x, 4)
    assert store.remove("k_tp_2", force=True) == 0
    there, gone = (tp(0, 4), tp(0, 2), tp(3, 4), tp(5, 12)), (tp(1, 2), tp(2, 4))
    for one, is_there in [*((one, True) for one in there), *((one, False) for one in gone)]:
        got = store.get_tensor_with_parallelism("k", target("shard", one))
        assert same(got, x.chunk(one.size)[one.rank]) if is_there else got is None
    assert store.get_tensor_with_parallelism("k", target("full", tp(0, 2))) is None
    assert store.remove("k_tp_0", force=True) == store.remove("k__parallelism_manifest", force=True) == 0
    assert same(store.get_tensor_with_parallelism("k", target("shard", tp(1, 4))), x[3:6]), "the very shard needs nothing else"


def test_shards_of_different_cuts_are_never_mixed(store) -> None:
    x = torch.randn(12, 8)
    put_shards(store, "k", x, 2)
    for rank, shard in enumerate((x + 500).chunk(4)):
        got = store.get_tensor_with_parallelism("k", target("full", tp(0, 2)))
        assert got is None or same(got, x) or same(got, x + 500)
        assert store.upsert_tensor_with_parallelism("k", shard, along(tp(rank, 4))) == 0
    assert same(store.get_tensor_with_parallelism("k", target("full", tp(0, 2))), x + 500)
    assert same(store.get_tensor_with_parallelism("k", target("shard", tp(1, 2))), (x + 500)[6:])


@pytest.mark.parametrize("shape, dtype", [((5, 8), "float32"), ((6, 8), "int32"), ((6, 9), "float32"), ((6,), "float32")])
def test_shards_that_do_not_fit_together_are_no_tensor(store, shape: tuple[int, ...], dtype: str) -> None:
    other = torch.zeros(shape, dtype=getattr(torch, dtype))
    assert store.put_tensor_with_parallelism("k", torch.zeros(6, 8), along(tp(0, 2))) == 0
    assert store.put_tensor_with_parallelism("k", other, along(tp(1, 2))) == 0
    assert store.get_tensor_with_parallelism("k", target("full", tp(0, 2))) is None
    assert store.get_tensor_with_parallelism("k", target("shard", tp(3, 4))) is None
    assert same(store.get_tensor_with_parallelism("k", target("shard", tp(1, 2))), other), "alone it is one"


@pytest.mark.parametrize(
    "manifest",
    [
        form.Manifest("float32", (1 << 50, 8), 0, 2), form.Manifest("float32", (12, 1 << 40), 1, 1 << 16),
        form.Manifest("float64", (12, 8), 0, 2), form.Manifest("float32", (12, 8), 1, 2), form.Manifest("float32", (12, 8), 0, 4),
        form.Manifest("float32", (12,), 0, 2),
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_lies_is_not_believed(store, manifest: form.Manifest) -> None:
    """And nothing of the size it says is allocated."""
    x = torch.randn(12, 8)
    put_shards(store, "k", x, 2)
    lie = form.pack_manifest(manifest)
    assert store.upsert("k__parallelism_manifest", lie) == store.put("k__writer_manifest", lie) == 0
    assert same(store.get_tensor_with_parallelism("k", target("full", tp(0, 2))), x), "the first shard tells too"
    assert same(store.get_tensor_with_parallelism("k", target("shard", tp(1, 3))), x[4:8])
    assert store.remove("k_tp_0", force=True) == 0
    assert store.get_tensor_with_parallelism("k", target("full", tp(0, 2))) is None
    for cut_short in (lie[:95], lie[:10], b"x" * 96, lie[:12] + b"\xff" * 84):
        assert store.upsert("k__parallelism_manifest", cut_short) == 0
        assert store.get_tensor_with_parallelism("k", target("full", tp(0, 2))) is None


def test_manifests_are_upstreams(store) -> None:
    put_shards(store, "k", torch.zeros(12, 8, dtype=torch.float16), 2, 1)
    want = bytes.fromhex("4e414d57010060000b000000020000000100000002000000") + bytes(8)
    want += b"".join(n.to_bytes(8, "little", signed=True) for n in (12, 8, -1, -1, -1, -1, -1, -1))
    assert store.get("k__parallelism_manifest") == want
    assert form.parse_manifest(want) == form.Manifest("float16", (12, 8), 1, 2)
    axes = bytes.fromhex("0100000000000000010000000200000001000000000000000400000000000000")
    assert store.get("k_tp_1")[176:208] == axes


# ---- geometry, without a store ----


def test_runs_cover_every_part_once() -> None:
    """Against torch: copying the runs of all shards gives the wanted shard."""
    shape = (4, 6, 4)
    whole = torch.arange(96).reshape(shape)
    cuts = [form.Axis(form.TP, r, n, d) for d in range(3) for n in (1, 2, shape[d]) for r in range(n)]
    for cut in cuts:
        dst = layout.box_of(shape, form.shard_shape(shape, cut), cut)
        for n, d in {(c.size, c.dim) for c in cuts}:
            got = torch.full((96,), -1)
            for rank in range(n):
                src = layout.box_of(shape, form.shard_shape(shape, form.Axis(form.TP, rank, n, d)), form.Axis(form.TP, rank, n, d))
                part = layout.overlap(src, dst)
                if part is None:
                    continue
                have = whole.chunk(n, d)[rank].reshape(-1)
                runs = layout.runs_of(part, src, dst)
                starts = layout.run_starts(part, src, dst, runs.dims)
                assert len(starts) == runs.count
                assert starts[-1][0] + runs.length - starts[0][0] == runs.span
                for fro, to in starts:
                    assert (got[to : to + runs.length] == -1).all()
                    got[to : to + runs.length] = have[fro : fro + runs.length]
            want = whole.chunk(cut.size, cut.dim)[cut.rank].reshape(-1)
            assert torch.equal(got[: want.numel()], want) and (got[want.numel() :] == -1).all()


# ---- at once ----


def test_readers_of_a_cut_that_is_replaced_see_one_or_the_other_or_none(store, pool) -> None:
    x = torch.arange(16 * 64, dtype=torch.int64).reshape(16, 64)
    put_shards(store, "k", x, 2)
    stop, wrong, seen = threading.Event(), [], set()

    def read() -> None:
        reader = connect(pool)
        while not stop.is_set():
            got = reader.get_tensor_with_parallelism("k", target("shard", tp(1, 8)))
            if got is None:
                continue
            base = int(got[0, 0]) - 128
            seen.add(base)
            if base % 10_000 or not torch.equal(got - base, x[2:4]):
                wrong.append(got)
        reader.close()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(60):
        size = (2, 4)[i % 2]
        for rank, shard in enumerate((x + 10_000 * i).chunk(size)):
            assert store.upsert_tensor_with_parallelism("k", shard, along(tp(rank, size))) == 0
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not wrong and len(seen) > 1


# ---- other clients, other places ----


def test_a_dummy_client_reads_any_cut(pool) -> None:
    x = torch.randn(2000, 1000)
    dummy = MooncakeDistributedStore()
    assert dummy.setup_dummy(16 * MIB, 0, pool.nodes[0].address) == 0
    assert dummy.upsert_tensor("whole", x) == 0
    put_shards(dummy, "dummy", x, 4, 1)
    assert same(dummy.get_tensor("whole"), x)
    assert same(dummy.get_tensor_with_parallelism("dummy", target("shard", tp(1, 5))), x.chunk(5)[1])
    at = dummy.alloc_from_mem_pool(2 * MIB)
    got = dummy.get_tensor_with_parallelism_into("dummy", at, 2 * MIB, target("shard", tp(6, 8, 1)))
    assert same(got, x.chunk(8, 1)[6])
    dummy.close()


def test_shards_on_a_disk_are_read_in_any_cut(tmp_path: Path) -> None:
    """40 MB of shards through 32 MB of memory."""
    (tmp_path / "disk").mkdir()
    pool = Pool(tmp_path, "--default_kv_lease_ttl=100", "--enable_offload=true")
    try:
        pool.node("32 MB", "--enable_offload=true", env={"MOONCAKE_OFFLOAD_FILE_STORAGE_PATH": str(tmp_path / "disk")})
        store = connect(pool)
        xs = [torch.randn(256, 1024) for _ in range(40)]
        for i, x in enumerate(xs):
            for rank, shard in enumerate(x.chunk(2)):
                end = time.monotonic() + 30  # until enough is on the disk
                while store.put_tensor_with_parallelism(f"{i}", shard, along(tp(rank, 2))) != 0:
                    assert time.monotonic() < end
                    time.sleep(0.02)
        places = store.batch_get_replica_desc([f"{i}_tp_0" for i in range(40)]).values()
        assert any(not any(one.is_memory_replica() for one in replicas) for replicas in places), "some had to leave the memory"
        for i, x in enumerate(xs):
            assert same(store.get_tensor_with_parallelism(f"{i}", target("shard", tp(1, 4, 1))), x.chunk(4, 1)[1])
        store.close()
    finally:
        pool.close()


def test_a_shard_that_does_not_fit_has_its_code(store) -> None:
    """Though its manifest does."""
    shard = torch.zeros(600 << 20, dtype=torch.uint8)
    assert store.put_tensor_with_parallelism("k", shard, along(tp(0, 2))) == -200
    assert store.get_tensor_with_parallelism("k", target("shard", tp(0, 2))) is None
