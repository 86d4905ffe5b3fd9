"""mooncake.pg and the buffers of expert parallelism on tensors of a GPU, which all ranks share: needs one, and a torch for it."""

import expert_layer as layer
import pytest
import torch
import torch.distributed as dist
from crew import Crew
from expert_layer import Case

from mooncake import _mooncake
from mooncake.mooncake_ep_buffer import Buffer

CASES = {
    "bf16": Case(experts=12, hidden=144, topk=4, most=20),
    "fp8": Case(12, 144, 4, 20, fp8=True),
    "one": Case(12, 256, 3, 33, fp8=True, route="one"),
    "empty": Case(24, 512, 8, 16, fp8=True, empty=(0, 2)),
    "wide": Case(48, 7168, 8, 128, fp8=True),
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
_mine: dict[str, object] = {}  # of a rank's process


@pytest.fixture(scope="module")
def crew():
    crew = Crew(3, backend="mooncake")
    yield crew
    crew.close()


# ---- groups ----


def reduce(rank: int, device: str) -> list[float]:
    x = torch.full((1000,), float(rank + 1), device=device)
    dist.all_reduce(x)
    assert x.device.type == torch.device(device).type and bool((x == x[0]).all())
    parts = [torch.empty(7, dtype=torch.int32, device=device) for _ in range(3)]
    dist.all_gather(parts, torch.full((7,), rank, dtype=torch.int32, device=device))
    strided = torch.arange(12.0, device=device).view(3, 4).t()
    work = dist.broadcast(strided if rank == 0 else strided.zero_(), 0, async_op=True)
    work.wait()
    return [x[0].item(), *(p[-1].item() for p in parts), strided.sum().item()]


@needs_gpu
def test_collectives_take_tensors_of_a_gpu(crew):
    assert crew(reduce, "cuda") == [[6.0, 0, 1, 2, 66.0]] * 3


# ---- experts ----


def make(rank: int, by_host: bool) -> str:
    if not by_host:
        assert _mooncake.ep_cuda_check()[0] == 0
    buffer = _mine["buffer"] = Buffer(dist.group.WORLD, Buffer.get_ep_buffer_size_hint(128, 7168, 3, 48), disable_p2p=by_host)
    return "kernels" if buffer._gpu and buffer._gpu.place else "host"


def step(rank: int, case: Case, seed: int, how: str) -> list[int]:
    """One step on the GPU, compared with the oracle."""
    buffer = _mine["buffer"]
    active = torch.ones(buffer.group_size, dtype=torch.int32, device="cuda")
    flags = {"async_finish": how == "async", "return_recv_hook": how == "hook"}
    x, topk, weights = (t.cuda() for t in layer.tokens(case, seed, rank))
    recv, counts, handle, event, hook = buffer.dispatch(x, topk, active, case.most, case.experts, -1, use_fp8=case.fp8, **flags)
    x.zero_()
    hook()
    event.current_stream_wait()
    recv_host = tuple(t.cpu() for t in recv) if case.fp8 else recv.cpu()
    on_host = [t.cpu() if isinstance(t, torch.Tensor) else t for t in handle]
    there = [True] * buffer.group_size
    layer.check_arrival(case, seed, rank, buffer.group_size, there, recv_host, counts.cpu(), on_host)
    made = layer.compute(case, rank, buffer.group_size, recv_host, counts.cpu()).cuda()
    if how == "zero":
        into = buffer.get_next_combine_buffer(handle)
        into.copy_(made)
        made = into
    sums, event, hook = buffer.combine(made, topk, weights, active, -1, handle, zero_copy=how == "zero", **flags)
    hook()
    event.current_stream_wait()
    assert torch.equal(sums.cpu(), layer.sums(case, seed, rank, [True] * case.experts))
    return active.tolist()


@needs_gpu
@pytest.mark.parametrize("by_host", [False, True], ids=["kernels", "host"])
def test_layers_on_a_gpu_are_what_one_process_computes(crew, by_host):
    assert crew(make, by_host) == ["host" if by_host else "kernels"] * 3
    for case in CASES.values():
        for seed, how in enumerate(["plain", "hook", "async", "plain" if by_host else "zero"]):
            assert crew(step, case, seed, how) == [[1, 1, 1]] * 3, (case, how)


# ---- without a GPU ----


def without(rank: int) -> str:
    buffer = Buffer(dist.group.WORLD)
    case = Case(experts=12, hidden=144, topk=4, most=20)
    x, topk, _ = layer.tokens(case, 0, rank)
    recv, counts, handle, _, _ = buffer.dispatch(x, topk, None, case.most, case.experts, use_fp8=False)
    layer.check_arrival(case, 0, rank, 3, [True] * 3, recv, counts, handle)
    return buffer._gpu.why


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_buffer_says_why_and_serves_the_cpu(crew):
    assert all(why.startswith("not available: ") for why in crew(without))
