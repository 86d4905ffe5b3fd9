"""Every collective in all its forms against what one process computes."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ReduceOp

SIZES = (1, 7, 1000, 300_001)  # elements: within a page, and in several chunks
INTS = [torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
ORDERED = [ReduceOp.SUM, ReduceOp.PRODUCT, ReduceOp.MIN, ReduceOp.MAX]
BITS = [ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR]


def data(rank: int, count: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed * 100 + rank)
    if dtype == torch.bool or dtype in INTS:
        return torch.randint(0, 2 if dtype == torch.bool else 5, (count,), generator=g).to(dtype)
    if dtype.is_complex:
        return torch.complex(torch.randn(count, generator=g), torch.randn(count, generator=g)).to(dtype)
    return torch.randn(count, generator=g).to(dtype)


def fold(op, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Slot by slot; narrow floats in f32, rounded once."""
    dtype = inputs[0].dtype
    wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32}.get(dtype, dtype)
    wide = torch.int64 if dtype in INTS else wide
    if dtype == torch.bool:
        op = {ReduceOp.SUM: ReduceOp.BOR, ReduceOp.PRODUCT: ReduceOp.BAND, ReduceOp.MIN: ReduceOp.BAND,
              ReduceOp.MAX: ReduceOp.BOR}.get(op, op)  # fmt: skip
    two = {ReduceOp.SUM: torch.add, ReduceOp.AVG: torch.add, ReduceOp.PRODUCT: torch.mul, ReduceOp.MIN: torch.minimum,
           ReduceOp.MAX: torch.maximum, ReduceOp.BAND: torch.bitwise_and, ReduceOp.BOR: torch.bitwise_or,
           ReduceOp.BXOR: torch.bitwise_xor}[op]  # fmt: skip
    out = inputs[0].to(wide)
    for x in inputs[1:]:
        out = two(out, x.to(wide))
    return (out / len(inputs) if op == ReduceOp.AVG else out).to(dtype)


def same(got: torch.Tensor, want: torch.Tensor, is_rounded: bool = False) -> None:
    assert got.dtype == want.dtype
    if is_rounded:
        torch.testing.assert_close(got, want)
    else:
        assert torch.equal(got.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8)), (got, want)


def reduces(rank: int, dtype: torch.dtype, ops: list) -> None:
    n = dist.get_world_size()
    for op in ops:
        for count in SIZES:
            inputs = [data(r, count, dtype, count) for r in range(n)]
            want = fold(op, inputs)
            is_rounded = dtype.is_complex or op == ReduceOp.AVG
            got = inputs[rank].clone()
            dist.all_reduce(got, op)
            same(got, want, is_rounded)
            got = inputs[rank].clone()
            dist.reduce(got, n - 1, op)
            same(got, want if rank == n - 1 else inputs[rank], is_rounded and rank == n - 1)
            whole = [data(r, count * n, dtype, count) for r in range(n)]
            want = fold(op, whole)[rank * count : (rank + 1) * count]
            got = torch.empty(count, dtype=dtype)
            dist.reduce_scatter_tensor(got, whole[rank], op)
            same(got, want, is_rounded)
            got = torch.empty(count, dtype=dtype)
            dist.reduce_scatter(got, list(whole[rank].chunk(n)), op)
            same(got, want, is_rounded)


@pytest.mark.parametrize("dtype", [*INTS, *FLOATS, torch.bool, torch.complex64, torch.complex128], ids=str)
def test_reductions_equal_one_process(three, dtype):
    ops = [ReduceOp.SUM] if dtype.is_complex else list(ORDERED)  # torch itself refuses the others
    ops += BITS if dtype in INTS or dtype == torch.bool else []
    ops += [ReduceOp.AVG] if dtype.is_floating_point else []
    three(reduces, dtype, ops)


def premul(rank: int, dtype: torch.dtype) -> None:
    from torch._C._distributed_c10d import _make_nccl_premul_sum

    for count in SIZES:
        inputs = [data(r, count, dtype) for r in range(dist.get_world_size())]
        got = inputs[rank].clone()
        dist.all_reduce(got, _make_nccl_premul_sum(0.5))
        same(got, fold(ReduceOp.SUM, [(x.float() * 0.5).to(dtype) for x in inputs]), True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_premultiplied_sum(three, dtype):
    three(premul, dtype)


def moves(rank: int, dtype: torch.dtype) -> None:
    n = dist.get_world_size()
    for count in SIZES:
        inputs = [data(r, count, dtype, 1) for r in range(n)]
        got = inputs[rank].clone()
        dist.broadcast(got, 1)
        same(got, inputs[1])
        rows = [torch.empty(count, dtype=dtype) for _ in range(n)]
        dist.all_gather(rows, inputs[rank])
        for r in range(n):
            same(rows[r], inputs[r])
        whole = torch.empty(n * count, dtype=dtype)
        dist.all_gather_into_tensor(whole, inputs[rank])
        same(whole.view(torch.uint8), torch.cat([x.view(torch.uint8) for x in inputs]))
        rows = [torch.empty(count, dtype=dtype) for _ in range(n)] if rank == 0 else None
        dist.gather(inputs[rank], rows, 0)
        for r in range(n if rank == 0 else 0):
            same(rows[r], inputs[r])
        got = torch.empty(count, dtype=dtype)
        dist.scatter(got, inputs if rank == n - 1 else None, n - 1)
        same(got, inputs[rank])
        rows = [torch.empty(count, dtype=dtype) for _ in range(n)]
        dist.all_to_all(rows, [data(rank, count, dtype, 10 + d) for d in range(n)])
        for r in range(n):
            same(rows[r], data(r, count, dtype, 10 + rank))
        got = torch.empty(n * count, dtype=dtype)
        dist.all_to_all_single(got, torch.cat([data(rank, count, dtype, 10 + d).view(torch.uint8) for d in range(n)])
                               .view(dtype))  # fmt: skip
        same(got.view(torch.uint8), torch.cat([data(r, count, dtype, 10 + rank).view(torch.uint8) for r in range(n)]))


@pytest.mark.parametrize("dtype", [*INTS, *FLOATS, *FP8, torch.bool, torch.complex64, torch.complex128], ids=str)
def test_moves_equal_one_process(three, dtype):
    three(moves, dtype)


def uneven(rank: int) -> None:
    n = dist.get_world_size()
    for scale in (1, 40_000):
        rows = [torch.empty((r + 1) * scale) for r in range(n)]
        dist.all_gather(rows, torch.full(((rank + 1) * scale,), float(rank)))
        for r in range(n):
            same(rows[r], torch.full(((r + 1) * scale,), float(r)))
        # rank s sends (s + d) * scale rows of 2 to rank d; some are empty
        mine = torch.cat([torch.full(((rank + d) * scale, 2), rank * 10.0 + d) for d in range(n)])
        got = torch.empty(sum(s + rank for s in range(n)) * scale, 2)
        dist.all_to_all_single(got, mine, [(s + rank) * scale for s in range(n)], [(rank + d) * scale for d in range(n)])
        same(got, torch.cat([torch.full(((s + rank) * scale, 2), s * 10.0 + rank) for s in range(n)]))
        outs = [torch.empty((s + rank) * scale) for s in range(n)]
        dist.all_to_all(outs, [torch.full(((rank + d) * scale,), rank * 10.0 + d) for d in range(n)])
        for s in range(n):
            same(outs[s], torch.full(((s + rank) * scale,), s * 10.0 + rank))


def test_uneven_lists_and_splits(three):
    three(uneven)


def strided(rank: int) -> None:
    n = dist.get_world_size()
    base = torch.zeros(64, 6)
    base[:, ::2] = rank + 1.0
    dist.all_reduce(base[:, ::2])
    assert base[:, ::2].eq(n * (n + 1) / 2).all()
    assert base[:, 1::2].eq(0).all()
    wide = torch.zeros(n * 4, 8)
    dist.all_gather_into_tensor(wide[:, :5], torch.full((5, 4), float(rank)).t())
    assert wide[:, :5].eq(torch.arange(n).repeat_interleave(4)[:, None]).all()
    assert wide[:, 5:].eq(0).all()
    scalar = torch.tensor(float(rank))
    dist.all_reduce(scalar, ReduceOp.MAX)
    assert scalar.item() == n - 1
    dist.all_reduce(torch.empty(0))
    rows = torch.empty(n)
    dist.all_gather_into_tensor(rows, torch.tensor(float(rank)))
    assert rows.tolist() == list(range(n))


def test_strides_scalars_and_nothing(three):
    three(strided)


def coalesced(rank: int) -> None:
    n = dist.get_world_size()
    group = dist.group.WORLD
    tensors = [torch.full((k,), rank + 1.0) for k in (1, 50, 100_000)]
    dist.all_reduce_coalesced(tensors)
    for t in tensors:
        assert t.eq(n * (n + 1) / 2).all(), t
    ins = [torch.full((k,), float(rank)) for k in (2, 30)]
    outs = [torch.empty(n * k) for k in (2, 30)]
    group.allgather_into_tensor_coalesced(outs, ins).wait()
    for t, k in zip(outs, (2, 30), strict=True):
        same(t, torch.arange(n, dtype=torch.float32).repeat_interleave(k))
    rows = [[torch.empty(k) for k in (2, 30)] for _ in range(n)]
    dist.all_gather_coalesced(rows, ins)
    for r in range(n):
        for t in rows[r]:
            assert t.eq(r).all()
    outs = [torch.empty(k) for k in (2, 30)]
    group.reduce_scatter_tensor_coalesced(outs, [torch.full((n * k,), rank + 1.0) for k in (2, 30)]).wait()
    for t in outs:
        assert t.eq(n * (n + 1) / 2).all(), t


def test_coalesced_forms(three):
    three(coalesced)


def objects(rank: int) -> None:
    n = dist.get_world_size()
    mine = {"rank": rank, "blob": b"x" * (1000 * rank * rank)}
    got = [None] * n
    dist.all_gather_object(got, mine)
    assert [g["rank"] for g in got] == list(range(n))
    assert [len(g["blob"]) for g in got] == [1000 * r * r for r in range(n)]
    box = [mine if rank == 1 else None, rank]
    dist.broadcast_object_list(box, 1)
    assert box[0]["rank"] == 1 and box[1] == 1
    got = [None] * n if rank == 0 else None
    dist.gather_object(mine, got, 0)
    assert rank != 0 or [g["rank"] for g in got] == list(range(n))
    got = [None]
    dist.scatter_object_list(got, [f"for {r}" for r in range(n)] if rank == 0 else None, 0)
    assert got == [f"for {rank}"]
    if rank == 0:
        dist.send_object_list([mine, "b"], 1)
    elif rank == 1:
        got = [None, None]
        dist.recv_object_list(got, 0)
        assert got[0]["rank"] == 0 and got[1] == "b"


def test_objects(three):
    three(objects)


def background(rank: int) -> None:
    n = dist.get_world_size()
    tensors = [torch.full((1 + 1000 * (i % 5),), float(rank + i)) for i in range(300)]
    works = [dist.all_reduce(t, async_op=True) for t in tensors]
    dist.barrier()  # goes behind them
    for i, (t, w) in enumerate(zip(tensors, works, strict=True)):
        assert w.is_completed() and w.wait() and w.is_success()
        assert t.eq(n * i + n * (n - 1) / 2).all()
    t = torch.ones(5)
    future = dist.all_reduce(t, async_op=True).get_future()
    assert future.then(lambda f: f.value()[0].sum().item()).wait() == 5 * n


def test_many_at_once_and_futures(three):
    three(background)


def late(rank: int) -> float:
    import time

    t = torch.ones(3)
    if rank == 0:
        time.sleep(0.5)
    work = dist.all_reduce(t, async_op=True)
    if rank == 0:
        work.wait()
        return 0
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="not ended"):
        work.wait(timedelta(milliseconds=50))
    took = time.monotonic() - begin
    assert not work.is_completed()
    assert work.wait()
    assert t.eq(dist.get_world_size()).all()
    return took


def test_wait_keeps_its_timeout_and_the_operation_goes_on(three):
    for took in three(late):
        assert took < 0.4


def groups(rank: int) -> None:
    n = dist.get_world_size()
    made = [dist.new_group([a, b], backend="mooncake-cpu") for a in range(n) for b in range(a + 1, n)]
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    for group, pair in zip(made, pairs, strict=True):
        if rank not in pair:
            continue
        t = torch.tensor([float(rank)])
        dist.all_reduce(t, group=group)
        assert t.item() == sum(pair) and dist.get_world_size(group) == 2
        t = torch.tensor([float(rank)])
        dist.broadcast(t, pair[1], group=group)
        assert t.item() == pair[1]
        dist.barrier(group)
        dist.destroy_process_group(group)
    for _ in range(20):
        group = dist.new_group(list(range(n)), backend="mooncake-cpu")
        dist.barrier(group)
        dist.destroy_process_group(group)


def test_groups_of_some_and_twenty_in_a_row(three):
    three(groups)


def wrong(rank: int) -> list[str]:
    said = []

    def fails(call, kind=Exception):
        with pytest.raises(kind) as caught:
            call()
        said.append(str(caught.value))

    fails(lambda: dist.all_reduce(torch.ones(3 + rank)))
    fails(lambda: dist.all_reduce(torch.ones(4, dtype=torch.float32 if rank else torch.float64)))
    fails(lambda: dist.all_reduce(torch.ones(4)) if rank else dist.barrier())
    fails(lambda: dist.broadcast(torch.ones(4 + rank), 0) if rank else dist.all_reduce(torch.ones(4)))
    fails(lambda: dist.all_reduce(torch.ones(4), ReduceOp.BAND))
    fails(lambda: dist.all_reduce(torch.ones(4, dtype=torch.float8_e4m3fn)), TypeError)
    fails(lambda: dist.all_to_all_single(torch.ones(4), torch.ones(4), [1, 1], [2, 2]), (ValueError, RuntimeError))
    dist.barrier()  # the group is of use
    return said


def test_wrong_use_is_named_and_the_group_goes_on(two):
    for said in two(wrong):
        assert "count 3" in said[0] and "count 4" in said[0]
        assert "float32" in said[1] and "float64" in said[1]
        assert "all_reduce" in said[2] and "barrier" in said[2]
        assert "float32" in said[4]
        assert "float8_e4m3fn" in said[5]
        assert "[1, 1]" in said[6] or "split" in said[6].lower()
