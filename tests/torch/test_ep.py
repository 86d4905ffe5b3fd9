"""mooncake.mooncake_ep_buffer against one process that computes the same, among ranks that die, are late, are replaced."""

import inspect
import os
import signal
import time

import expert_layer as layer
import pytest
import torch
import torch.distributed as dist
from crew import Crew, assert_each_names, refusals
from expert_layer import Case

from mooncake import ep, pg
from mooncake.mooncake_ep_buffer import Buffer, EventOverlap

SMALL = Case(experts=12, hidden=144, topk=4, most=20)
CASES = {
    "bf16": SMALL,
    "fp8": Case(12, 144, 4, 20, fp8=True),
    "one": Case(12, 256, 3, 33, fp8=True, route="one"),
    "none": Case(12, 16, 2, 5, route="none"),
    "empty": Case(24, 512, 8, 16, fp8=True, empty=(0, 2)),
    "long": Case(24, 32, 2, 1500),
    "wide": Case(48, 7168, 32, 3, fp8=True),
}
_mine: dict[str, object] = {}  # of a rank's process


def make(rank: int) -> None:
    _mine["buffer"] = Buffer(dist.group.WORLD, Buffer.get_ep_buffer_size_hint(128, 7168, dist.get_world_size(), 64))


def update(rank: int) -> int:
    _mine["buffer"].update_ep_member()
    return _mine["buffer"].group_size


def experts_of(case: Case, ranks: int, there: list[bool]) -> list[bool]:
    return [there[e // (case.experts // ranks)] for e in range(case.experts)]


def step(rank: int, case: Case, seed: int, how: str = "plain", timeout_us: int = -1, dies: int = -1) -> list[int]:
    """One step, compared with the oracle. -> active_ranks. `dies`: that rank, its tokens sent, before anything came."""
    buffer = _mine["buffer"]
    ranks = buffer.group_size
    active = torch.ones(ranks, dtype=torch.int32)
    flags = {"async_finish": how == "async", "return_recv_hook": how == "hook" or dies >= 0}
    x, topk, weights = layer.tokens(case, seed, rank)
    recv, counts, handle, event, hook = buffer.dispatch(x, topk, active, case.most, case.experts, timeout_us, use_fp8=case.fp8,
                                                        **flags)  # fmt: skip
    if dies == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    x.zero_()  # it has been read
    hook() if flags["return_recv_hook"] else event.current_stream_wait()
    there = [bool(a) for a in active.tolist()]
    layer.check_arrival(case, seed, rank, ranks, there, recv, counts, handle)
    into = buffer.get_next_combine_buffer(handle) if how == "zero" else None
    made = layer.compute(case, rank, ranks, recv, counts, into)
    out = torch.empty((topk.shape[0], case.hidden), dtype=torch.bfloat16) if how == "out" else None
    sums, event, hook = buffer.combine(made, topk, weights, active, timeout_us, handle, zero_copy=how == "zero", out=out, **flags)
    if how == "hook":
        made.zero_()
        hook()
    else:
        hook()
        with event:
            pass
    assert out is None or sums is out
    there = [a and bool(b) for a, b in zip(there, active.tolist(), strict=True)]
    assert torch.equal(sums, layer.sums(case, seed, rank, experts_of(case, ranks, there)))
    return active.tolist()


def steps(rank: int, case: Case, count: int, how: str = "plain") -> list[int]:
    return [step(rank, case, seed, how) for seed in range(count)][-1]


@pytest.fixture(scope="module")
def layer_of_three() -> Crew:
    crew = Crew(3)
    crew(make)
    yield crew
    crew.close()


@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_what_one_process_computes(layer_of_three: Crew, name: str) -> None:
    assert layer_of_three(steps, CASES[name], 3) == [[1, 1, 1]] * 3


@pytest.mark.parametrize("how", ["hook", "async", "zero", "out"])
@pytest.mark.parametrize("name", ["bf16", "fp8"])
def test_every_way_to_call_it(layer_of_three: Crew, name: str, how: str) -> None:
    assert layer_of_three(steps, CASES[name], 5, how) == [[1, 1, 1]] * 3


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_any_number_of_ranks(crew, size: int) -> None:
    ranks = crew(size)
    ranks(make)
    for fp8 in (False, True):
        case = Case(experts=8 * size, hidden=272, topk=min(8, 8 * size), most=12, fp8=fp8)
        assert ranks(steps, case, 3) == [[1] * size] * size


# ---- scales of other kinds ----


def powers(rank: int, case: Case) -> None:
    buffer, ranks = _mine["buffer"], _mine["buffer"].group_size
    x, topk, _ = layer.tokens(case, 1, rank)
    active = torch.ones(ranks, dtype=torch.int32)
    (plain, scales), counts, *_ = buffer.dispatch(x, topk, active, case.most, case.experts, -1, round_scale=True)
    (codes, packed), again, *_ = buffer.dispatch(x, topk, active, case.most, case.experts, -1, use_ue8m0=True)
    assert torch.equal(counts, again)
    for e, n in enumerate(counts.tolist()):
        exponents = packed[e, :n].contiguous().view(torch.uint8).int()[:, : scales.shape[2]]
        assert torch.equal(torch.exp2((exponents - 127).float()), scales[e, :n])
        assert torch.equal(plain[e, :n].view(torch.uint8), codes[e, :n].view(torch.uint8))
        # No larger than needed: twice as fine would not hold the largest.
        most = plain[e, :n].float().abs().view(n, -1, 128).amax(dim=2)
        assert bool(((most <= 448) & ((most >= 224) | (scales[e, :n] < 2e-6))).all())


def test_scales_that_are_powers_of_two(layer_of_three: Crew) -> None:
    layer_of_three(powers, Case(12, 768, 4, 20, fp8=True))


# ---- masks ----


def masked(rank: int, case: Case) -> None:
    """Rank 2 takes part in nothing, by what the buffer keeps."""
    buffer = _mine["buffer"]
    for q in (2,) if rank != 2 else (0, 1):
        buffer.update_mask_buffer(q, True)
    seen = torch.zeros(3, dtype=torch.int32)
    buffer.query_mask_buffer(seen)
    assert seen.tolist() == ([1, 1, 0] if rank == 2 else [0, 0, 1])
    there = [not m for m in seen.tolist()]
    x, topk, weights = layer.tokens(case, 7, rank)
    recv, counts, handle, _, _ = buffer.dispatch(x, topk, None, case.most, case.experts, -1, use_fp8=case.fp8)
    layer.check_arrival(case, 7, rank, 3, there, recv, counts, handle)
    sums, _, _ = buffer.combine(layer.compute(case, rank, 3, recv, counts), topk, weights, None, -1, handle)
    assert torch.equal(sums, layer.sums(case, 7, rank, experts_of(case, 3, there)))
    buffer.clean_mask_buffer()
    buffer.query_mask_buffer(seen)
    assert not seen.any()


def test_masks_that_the_buffer_keeps(layer_of_three: Crew) -> None:
    layer_of_three(masked, CASES["fp8"])
    assert layer_of_three(steps, SMALL, 2) == [[1, 1, 1]] * 3


# ---- deaths ----


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("name", ["bf16", "fp8"])
def test_a_rank_dies_with_tokens_on_their_way_and_is_replaced(crew, name: str, victim: int) -> None:
    """Tokens go around it, as if its experts were not there; a new process in its place, and all is as before."""
    case, ranks = CASES[name], crew(3)
    ranks(make)
    others = [r for r in range(3) if r != victim]
    want = [int(r != victim) for r in range(3)]
    assert ranks(steps, case, 2) == [[1, 1, 1]] * 3
    ranks.start(step, case, 5, "plain", -1, victim)
    ranks.bury(victim)
    # Its tokens had been sent: they count in the dispatch, and nothing of it in the combine.
    assert ranks.wait(others) == [want] * 2
    assert ranks(steps, case, 2, ranks=others) == [want] * 2
    ranks.replace(victim)
    ranks(ready, victim, ranks=others[:1])
    ranks.start(join, ranks=[victim])
    assert ranks(recover, victim, ranks=others[:1]) == [1]
    ranks.wait([victim])
    ranks.start(make, ranks=[victim])
    assert ranks(update, ranks=others) == [3, 3]
    ranks.wait([victim])
    assert ranks(steps, case, 3) == [[1, 1, 1]] * 3


def ready(rank: int, other: int) -> None:
    end = time.monotonic() + 30
    while not pg.get_peer_state(dist.group.WORLD, [other])[0]:
        assert time.monotonic() < end
        time.sleep(0.01)


def recover(rank: int, other: int) -> int:
    return int(pg.recover_ranks(dist.group.WORLD, [other]).status)


def join(rank: int) -> None:
    pg.join_group(dist.group.WORLD)


def stream(rank: int, case: Case, count: int) -> list[list[int]]:
    return [step(rank, case, seed) for seed in range(count)]


def come_or_not(rank: int, comes: bool) -> str:
    try:
        update(rank) if comes else dist.barrier()
    except (ValueError, dist.DistBackendError) as error:
        return str(error)
    return ""


def query_mask(rank: int) -> list[int]:
    mask = torch.zeros(_mine["buffer"].group_size, dtype=torch.int32)
    _mine["buffer"].query_mask_buffer(mask)
    return mask.tolist()


def test_after_a_meeting_that_failed_all_have_to_meet_again(crew) -> None:
    case, ranks = CASES["bf16"], crew(2)
    ranks(make)
    assert ranks(steps, case, 2) == [[1, 1]] * 2
    ranks.start(come_or_not, False, ranks=[0])
    assert ranks(come_or_not, True, ranks=[1])[0]
    assert ranks.wait([0])[0]
    assert ranks(query_mask, ranks=[1]) == [[1, 1]]
    assert "meet again" in ranks(refused, case, ranks=[1])[0]
    ranks(update)
    assert ranks(steps, case, 2) == [[1, 1]] * 2


@pytest.mark.parametrize("trial", range(4))
def test_a_rank_killed_at_any_moment(crew, trial: int) -> None:
    """Survivors see the same ranks in the same steps."""
    case, ranks, victim = Case(24, 2048, 8, 64, fp8=trial % 2 == 1), crew(3), trial % 3
    ranks(make)
    ranks.start(stream, case, 25)
    time.sleep(0.15 + 0.11 * trial)
    ranks.kill(victim)
    first, second = ranks.wait([r for r in range(3) if r != victim])
    assert first == second
    assert first[-1] == [int(r != victim) for r in range(3)]


# ---- late ----


def refused(rank: int, case: Case) -> str:
    try:
        step(rank, case, 3)
    except dist.DistBackendError as error:
        return str(error)
    return ""


def test_a_stopped_rank_is_left_out_after_timeout_us_and_told_so(crew) -> None:
    case, ranks = CASES["fp8"], crew(3)
    ranks(make)
    assert ranks(steps, case, 2) == [[1, 1, 1]] * 3
    pid = ranks(os_pid, ranks=[1])[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        ranks.start(refused, case, ranks=[1])
        began = time.monotonic()
        assert ranks(step, case, 3, "plain", 1_500_000, ranks=[0, 2]) == [[1, 0, 1]] * 2
        assert 1.4 < time.monotonic() - began < 20
        # From here on nobody waits for it.
        assert ranks(step, case, 4, "plain", 1_500_000, ranks=[0, 2]) == [[1, 0, 1]] * 2
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "left out" in ranks.wait([1])[0]
    ranks(update)
    assert ranks(steps, case, 3) == [[1, 1, 1]] * 3


def os_pid(rank: int) -> int:
    return os.getpid()


# ---- as SGLang calls it ----


def as_sglang(rank: int) -> None:
    group, case = dist.group.WORLD, Case(12, 7168, 4, 16, fp8=True)
    buffer = Buffer(group, Buffer.get_ep_buffer_size_hint(128, case.hidden, group.size(), case.experts))
    active = torch.ones(group.size(), dtype=torch.int32)
    for timeout_us in (-1, 10_000_000):
        x, topk, weights = layer.tokens(case, 2, rank)
        (codes, scales), counts, handle, event, hook = buffer.dispatch(
            x, topk, active, 128, case.experts, timeout_us, use_fp8=True, async_finish=True, return_recv_hook=False)  # fmt: skip
        event.current_stream_wait()
        assert codes.shape == (12 // buffer.group_size, 128 * buffer.group_size, 7168)
        assert scales.shape == (12 // buffer.group_size, 128 * buffer.group_size, 56) and scales.stride()[1] == 1
        made = layer.compute(case, rank, buffer.group_size, (codes, scales), counts)
        sums, event, hook = buffer.combine(made, topk, weights, active, timeout_us, handle, async_finish=True,
                                           return_recv_hook=False)  # fmt: skip
        event.current_stream_wait()
        assert torch.equal(sums, layer.sums(case, 2, rank, [True] * 12))


def test_sglangs_calls(layer_of_three: Crew) -> None:
    layer_of_three(as_sglang)


def test_names_and_arguments_are_upstreams() -> None:
    def names(function) -> list[str]:
        return [p for p in inspect.signature(function).parameters if p != "self"]

    assert names(Buffer) == ["group", "num_ep_buffer_bytes", "disable_p2p"]
    assert names(Buffer.dispatch)[:9] == ["x", "topk_idx", "active_ranks", "num_max_dispatch_tokens_per_rank", "num_experts",
                                          "timeout_us", "use_fp8", "async_finish", "return_recv_hook"]  # fmt: skip
    assert names(Buffer.combine) == ["x", "topk_idx", "topk_weights", "active_ranks", "timeout_us", "handle", "zero_copy",
                                     "async_finish", "return_recv_hook", "out"]  # fmt: skip
    assert names(Buffer.get_ep_buffer_size_hint) == ["num_max_dispatch_tokens_per_rank", "hidden", "num_ranks", "num_experts"]
    assert Buffer.get_ep_buffer_size_hint(128, 7168, 8, 288) == 4 * 288 * 4 + 4 * 288 * 128 * (32 + 2 * 7168)
    assert names(EventOverlap) == ["event", "extra_tensors"]
    for name in ("update_ep_member", "connect", "get_next_combine_buffer"):
        assert callable(getattr(Buffer, name))
    for name in ("get_active_ranks", "MooncakeBackendOptions", "get_ep_buffer_size_hint", "recover_ranks"):
        assert hasattr(ep, name)


# ---- wrong use ----


def wrong(rank: int) -> list[str]:
    buffer, case = _mine["buffer"], SMALL
    x, topk, weights = layer.tokens(case, 1, rank)
    active = torch.ones(3, dtype=torch.int32)
    recv, counts, handle, _, _ = buffer.dispatch(x, topk, active, case.most, case.experts, -1, use_fp8=False)
    good = (x, topk, active, case.most, case.experts, -1)

    def dispatch(at: int, value, **more):
        return lambda: buffer.dispatch(*good[:at], value, *good[at + 1 :], **more)

    def combine(**more):
        args = {"x": recv, "topk_idx": topk, "topk_weights": weights, "active_ranks": active, "timeout_us": -1, "handle": handle}
        return lambda: buffer.combine(**(args | more))

    calls = [
        dispatch(0, x.float()), dispatch(0, x[0]), dispatch(0, x.t()), dispatch(0, x[:, :24].contiguous()), dispatch(1, topk.int()),
        dispatch(1, topk[:1]), dispatch(1, topk + 100), dispatch(1, topk * 0), dispatch(2, active[:2]), dispatch(2, active.long()),
        dispatch(3, 2), dispatch(3, "many"), dispatch(4, 13), dispatch(4, 0),
        dispatch(4, 12, async_finish=True, return_recv_hook=True), dispatch(4, 12, use_fp8=False, use_ue8m0=True),
        combine(x=recv[:1]), combine(x=recv.float()), combine(topk_weights=weights[:, :2]), combine(handle=handle[:3]),
        combine(out=torch.zeros(1)), combine(zero_copy=True), lambda: Buffer(object()),
        lambda: buffer.update_mask_buffer(3, True), lambda: buffer.query_mask_buffer(torch.zeros(2, dtype=torch.int32)),
    ]  # fmt: skip
    said = refusals(calls)
    # The others have not noticed.
    buffer.combine(recv, topk, weights, active, -1, handle)
    return said


def test_wrong_use_is_named(layer_of_three: Crew) -> None:
    names = ["x: torch.bfloat16", "x: shape", "x: ", "x: rows", "topk_idx: torch.int64", "topk_idx: shape", "expert", "twice",
             "active_ranks: one number", "active_ranks: torch.int32", "num_max_dispatch_tokens_per_rank", "num_max_dispatch",
             "num_experts: a multiple of the 3", "num_experts", "async_finish and return_recv_hook", "use_ue8m0", "x: shape",
             "x: torch", "topk_weights: shape", "handle", "out: torch", "get_next_combine_buffer", "mooncake-cpu", "rank_to_mask",
             "mask_status"]  # fmt: skip
    for said in layer_of_three(wrong):
        assert_each_names(said, names)
    assert layer_of_three(steps, SMALL, 2) == [[1, 1, 1]] * 3


def memory_is_used_again(rank: int) -> int:
    buffer, case = _mine["buffer"], SMALL
    x, topk, _ = layer.tokens(case, 1, rank)
    seen = set()
    for _ in range(20):
        recv, *_ = buffer.dispatch(x, topk, None, case.most, case.experts, -1, use_fp8=False)
        seen.add(recv.data_ptr())
        del recv
    return len(seen)


def test_memory_of_results_is_used_again(layer_of_three: Crew) -> None:
    assert max(layer_of_three(memory_is_used_again)) <= 2
