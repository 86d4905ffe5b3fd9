"""Ranks that call different things are told who called what, and go on."""

import time

import pytest
import torch
import torch.distributed as dist

F32, I32 = torch.float32, torch.int32


def gather_to(root: int, t: torch.Tensor) -> None:
    rows = [torch.empty_like(t) for _ in range(dist.get_world_size())]
    dist.gather(t, rows if dist.get_rank() == root else None, dst=root)


def all_to_all(t: torch.Tensor) -> None:
    dist.all_to_all_single(torch.empty_like(t), t)


def all_gather(t: torch.Tensor) -> None:
    dist.all_gather_into_tensor(torch.empty(t.numel() * dist.get_world_size(), dtype=t.dtype), t)


def scatter_from(root: int, t: torch.Tensor) -> None:
    rows = [t.clone() for _ in range(dist.get_world_size())]
    dist.scatter(t, rows if dist.get_rank() == root else None, src=root)


CASES = {
    "order": (lambda: dist.all_reduce(torch.ones(6)), lambda: dist.broadcast(torch.ones(6), 1), "broadcast"),
    "size": (lambda: dist.all_reduce(torch.ones(6)), lambda: dist.all_reduce(torch.ones(7)), "count 7"),
    "reduction": (lambda: dist.all_reduce(torch.ones(6)), lambda: dist.all_reduce(torch.ones(6), dist.ReduceOp.MAX),
                  "reduction 3"),
    "root": (lambda: dist.broadcast(torch.ones(6), 0), lambda: dist.broadcast(torch.ones(6), 1), "root 1"),
    "type of a sum": (lambda: dist.all_reduce(torch.ones(6)), lambda: dist.all_reduce(torch.ones(6, dtype=I32)), "int32"),
    "type of a broadcast": (lambda: dist.broadcast(torch.ones(6), 0), lambda: dist.broadcast(torch.ones(6, dtype=I32), 0),
                            "int32"),
    "type of a gather": (lambda: gather_to(0, torch.ones(6)), lambda: gather_to(0, torch.ones(6, dtype=I32)), "int32"),
    "type of a scatter": (lambda: scatter_from(0, torch.ones(6)), lambda: scatter_from(0, torch.ones(6, dtype=I32)),
                          "int32"),
    "type of an all_gather": (lambda: all_gather(torch.ones(6)), lambda: all_gather(torch.ones(6, dtype=I32)), "int32"),
    "type of an all_to_all": (lambda: all_to_all(torch.ones(6)), lambda: all_to_all(torch.ones(6, dtype=I32)), "int32"),
}  # fmt: skip


def differ(rank: int, case: str) -> list[str]:
    """What this rank was told in the operation, and in the next one."""
    plain, odd, _ = CASES[case]
    said = []
    begin = time.monotonic()
    for call in (odd if rank == 1 else plain, dist.barrier):
        try:
            call()
            said.append("")
        except dist.DistBackendError as exc:
            said.append(str(exc))
    assert time.monotonic() - begin < 10
    t = torch.ones(3)
    dist.all_reduce(t)
    assert t.tolist() == [2.0] * 3
    return said


@pytest.mark.parametrize("case", CASES)
def test_every_rank_is_told_in_the_operation_or_the_next(two, case):
    told = two(differ, case)
    assert all(any(said) for said in told), told
    assert any(CASES[case][2] in text for said in told for text in said), told
    assert all("rank 0" in text and "rank 1" in text for said in told for text in said if text)


def test_and_over_hosts(crew):
    world = crew(2, hosts=2)
    for case in CASES:
        told = world(differ, case)
        assert all(any(said) for said in told), (case, told)
