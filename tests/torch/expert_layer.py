"""A layer of experts over mooncake's buffers, and the same in one process, for tests. Part of test_ep.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    experts: int
    hidden: int
    topk: int
    most: int  # tokens of a rank, at most
    fp8: bool = False
    route: str = "random"  # random, one (everything to expert 0), none
    empty: tuple[int, ...] = ()  # ranks without tokens


def tokens(case: Case, seed: int, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, topk_idx, topk_weights of a rank."""
    rng = torch.Generator().manual_seed(seed * 1000 + rank)
    n = 0 if rank in case.empty else max(case.most - rank, 0)
    x = (torch.randn((n, case.hidden), generator=rng) * (1 + rank)).to(torch.bfloat16)
    topk = torch.rand((n, case.experts), generator=rng).argsort(dim=1)[:, : case.topk].contiguous()
    if case.route == "one":
        topk[:] = -1
        topk[:, case.topk // 2] = 0
    elif case.route == "none":
        topk[:] = -1
    else:
        topk[torch.rand(topk.shape, generator=rng) < 0.1] = -1
    return x, topk, torch.rand((n, case.topk), generator=rng)


def to_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    groups = -(-x.shape[1] // 128)
    padded = torch.zeros((x.shape[0], groups * 128))
    padded[:, : x.shape[1]] = x.float()
    padded = padded.view(x.shape[0], groups, 128)
    amax = padded.abs().amax(dim=2).clamp(1e-4)
    # 448.0 / amax would be the product with a reciprocal, which rounds twice.
    codes = (padded * torch.full_like(amax, 448.0).div(amax).unsqueeze(2)).to(torch.float8_e4m3fn)
    return codes.view(x.shape[0], groups * 128)[:, : x.shape[1]].contiguous(), amax * torch.tensor(1.0 / 448.0)


def from_fp8(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    wide = scales.repeat_interleave(128, dim=-1)[..., : codes.shape[-1]]
    return (codes.float() * wide).to(torch.bfloat16)


def expert(e: int, x: torch.Tensor) -> torch.Tensor:
    return (x.float() * (0.5 + e % 7) - e / 16).to(torch.bfloat16)


def received(case: Case, x: torch.Tensor) -> torch.Tensor:
    return from_fp8(*to_fp8(x)) if case.fp8 else x


def sums(case: Case, seed: int, rank: int, experts_of: list[bool]) -> torch.Tensor:
    """What combine() has to give, without experts that are not there: bit by bit, so in the order of k."""
    x, topk, weights = tokens(case, seed, rank)
    got, out = received(case, x), torch.zeros((x.shape[0], case.hidden))
    made = {e: expert(e, got) for e in range(case.experts) if experts_of[e]}
    for k in range(case.topk):
        for e, rows in made.items():
            mine = topk[:, k] == e
            out[mine] += weights[mine, k].unsqueeze(1) * rows[mine].float()
    return out.to(torch.bfloat16)


def check_arrival(case: Case, seed: int, rank: int, ranks: int, there: list[bool], recv, counts, handle) -> None:
    """The rows of every expert here: source by source, token by token, bit by bit."""
    here = case.experts // ranks
    src_info, ranges = handle[0], handle[1]
    for e in range(here):
        want, at = [], 0
        for q in range(ranks):
            x, topk, _ = tokens(case, seed, q)
            mine = (topk == rank * here + e).any(dim=1).nonzero().view(-1) if there[q] else torch.zeros(0, dtype=torch.int64)
            assert ranges[e, q].item() == at << 32 | len(mine), (e, q, hex(ranges[e, q].item()), at, len(mine))
            assert src_info[e, at : at + len(mine)].tolist() == mine.tolist()
            want.append(x[mine])
            at += len(mine)
        assert counts[e].item() == at
        rows = torch.cat(want)
        if case.fp8:
            codes, scales = to_fp8(rows)
            assert torch.equal(recv[0][e, :at].view(torch.uint8), codes.view(torch.uint8))
            assert torch.equal(recv[1][e, :at], scales)
        else:
            assert torch.equal(recv[e, :at], rows)


def compute(case: Case, rank: int, ranks: int, recv, counts, into: torch.Tensor | None = None) -> torch.Tensor:
    here = case.experts // ranks
    shape = (recv[0] if case.fp8 else recv).shape
    out = into if into is not None else torch.zeros(shape, dtype=torch.bfloat16)
    for e in range(here):
        n = int(counts[e])
        rows = from_fp8(recv[0][e, :n], recv[1][e, :n]) if case.fp8 else recv[e, :n]
        out[e, :n] = expert(rank * here + e, rows)
    return out
