"""mooncake.mooncake_elastic_buffer against one process that computes the same."""

import expert_layer as layer
import pytest
import torch
import torch.distributed as dist
from crew import Crew, assert_each_names, refusals
from expert_layer import Case

from mooncake.mooncake_elastic_buffer import ElasticBuffer

CASE = Case(experts=12, hidden=256, topk=4, most=20, empty=(1,))
_mine: dict[str, ElasticBuffer] = {}


def make(rank: int) -> None:
    _mine["buffer"] = ElasticBuffer(dist.group.WORLD, num_max_tokens_per_rank=CASE.most, hidden=CASE.hidden, num_topk=CASE.topk)


def update(rank: int) -> None:
    _mine["buffer"].update_ep_member()


def by_rank(rank: int, seed: int, there: int = 0b111) -> None:
    """A row for each token that has an expert here; the expert's weights are applied here."""
    buffer, case, here = _mine["buffer"], CASE, CASE.experts // 3
    x, topk, weights = layer.tokens(case, seed, rank)
    recv, idx, recv_weights, handle, event = buffer.dispatch(x, topk, weights, case.experts)
    with event:
        pass
    rows, numbers, parts, per_rank, per_expert = [], [], [], [], torch.zeros(here, dtype=torch.int64)
    for q in range(3):
        theirs, to, by = layer.tokens(case, seed, q)
        local = torch.where((to >= rank * here) & (to < (rank + 1) * here), to - rank * here, -1)
        mine = (local >= 0).any(dim=1) & bool(there >> q & 1)
        rows.append(theirs[mine])
        numbers.append(local[mine])
        parts.append(by[mine])
        per_rank.append(int(mine.sum()))
        per_expert += torch.bincount(local[mine][local[mine] >= 0], minlength=here)
    assert torch.equal(recv, torch.cat(rows))
    assert torch.equal(idx, torch.cat(numbers))
    assert torch.equal(recv_weights, torch.cat(parts))
    assert handle.num_recv_tokens_per_expert_list == per_expert.tolist()
    assert handle.psum_num_recv_tokens_per_expert.tolist() == per_expert.cumsum(0).tolist()
    assert handle.psum_num_recv_tokens_per_scaleup_rank.tolist() == torch.tensor(per_rank).cumsum(0).tolist()
    assert handle.recv_src_metadata[:, 0].tolist() == [q for q in range(3) for _ in range(per_rank[q])]
    # Route the same again.
    again, idx2, none, _, _ = buffer.dispatch(x, handle=handle)
    assert torch.equal(again[: len(recv)], recv) and torch.equal(idx2[: len(idx)], idx) and none is None
    made = torch.zeros((len(recv), case.hidden))
    for k in range(case.topk):
        for e in range(here):
            at = idx[:, k] == e
            made[at] += recv_weights[at, k].unsqueeze(1) * layer.expert(rank * here + e, recv[at]).float()
    sums, _, event = buffer.combine(made.to(torch.bfloat16), handle, async_with_compute_stream=True)
    event.current_stream_wait()
    assert torch.equal(sums, rank_sums(case, x, topk, weights, there))


def rank_sums(case: Case, x, topk, weights, there: int) -> torch.Tensor:
    """Each rank's part rounded, then added in the order of the ranks that dispatch() gives them: the last first."""
    here, out = case.experts // 3, torch.zeros((len(x), case.hidden))
    for q in reversed(range(3)):
        part = torch.zeros((len(x), case.hidden))
        for k in range(case.topk):
            for e in range(q * here, (q + 1) * here):
                at = topk[:, k] == e
                part[at] += weights[at, k].unsqueeze(1) * layer.expert(e, x[at]).float()
        if there >> q & 1:
            out += part.to(torch.bfloat16).float()
    return out.to(torch.bfloat16)


def by_expert(rank: int, seed: int, fp8: bool) -> None:
    """A row for each expert of a token, experts one behind the other at multiples of 8."""
    buffer, case, here = _mine["buffer"], CASE, CASE.experts // 3
    x, topk, weights = layer.tokens(case, seed, rank)
    given = layer.to_fp8(x) if fp8 else x
    recv, idx, recv_weights, handle, _ = buffer.dispatch(given, topk, weights, case.experts, expert_alignment=8, do_expand=True)
    assert idx is None
    made, base = torch.zeros((handle.num_recv_tokens, case.hidden), dtype=torch.bfloat16), 0
    for e in range(here):
        base = -(-base // 8) * 8
        rows, by = [], []
        for q in range(3):
            theirs, to, w = layer.tokens(case, seed, q)
            at = to == rank * here + e
            rows.append(theirs[at.any(dim=1)])
            by.append(w[at])
        want, n = torch.cat(rows), sum(len(r) for r in rows)
        mine = slice(base, base + n)
        assert handle.num_recv_tokens_per_expert_list[e] == n
        assert handle.psum_num_recv_tokens_per_expert[e] == base + n
        assert torch.equal(recv_weights[mine], torch.cat(by))
        if fp8:
            codes, scales = layer.to_fp8(want)
            assert torch.equal(recv[0][mine].view(torch.uint8), codes.view(torch.uint8)) and torch.equal(recv[1][mine], scales)
        else:
            assert torch.equal(recv[mine], want)
        got = layer.from_fp8(recv[0][mine], recv[1][mine]) if fp8 else recv[mine]
        made[mine] = layer.expert(rank * here + e, got)
        base += n
    sums, _, _ = buffer.combine(made, handle, weights)
    told = Case(case.experts, case.hidden, case.topk, case.most, fp8=fp8, empty=case.empty)
    assert torch.equal(sums, layer.sums(told, seed, rank, [True] * case.experts))


def wrong(rank: int) -> list[str]:
    buffer, case = _mine["buffer"], CASE
    x, topk, weights = layer.tokens(case, 1, 0)
    handle = buffer.dispatch(x, topk, weights, case.experts)[3]
    calls = [
        lambda: buffer.dispatch(x.float(), topk), lambda: buffer.dispatch(x), lambda: buffer.dispatch(x, topk.int()),
        lambda: buffer.dispatch(x, topk, weights[:1]), lambda: buffer.dispatch(x, topk, num_experts=13),
        lambda: buffer.dispatch(x, topk, num_experts=6), lambda: buffer.dispatch(x, topk, weights, 12, 3),
        lambda: buffer.dispatch(x, topk, handle=handle), lambda: buffer.combine(x[:0], handle),
        lambda: buffer.combine(x, handle, weights), lambda: buffer.combine(x, None),
        lambda: ElasticBuffer(dist.group.WORLD, transport="rdma"),
    ]  # fmt: skip
    return refusals(calls)


@pytest.fixture(scope="module")
def three_elastic() -> Crew:
    crew = Crew(3)
    crew(make)
    yield crew
    crew.close()


def test_a_row_for_each_rank_of_a_token(three_elastic: Crew) -> None:
    for seed in range(3):
        three_elastic(by_rank, seed)


@pytest.mark.parametrize("fp8", [False, True])
def test_a_row_for_each_expert_of_a_token(three_elastic: Crew, fp8: bool) -> None:
    for seed in range(3):
        three_elastic(by_expert, seed, fp8)


def test_a_dead_rank_is_left_out_here_too(crew) -> None:
    ranks = crew(3)
    ranks(make)
    ranks(by_rank, 1)
    ranks.kill(1)
    ranks(by_rank, 2, 0b101)


def test_wrong_use_is_named(three_elastic: Crew) -> None:
    names = ["x: ", "topk_idx: needed", "topk_idx: torch.int64", "topk_weights: shape", "num_experts", "topk_idx: experts",
             "num_max_tokens_per_rank", "with a handle", "x: a row", "topk_weights: None", "handle", "transport"]  # fmt: skip
    for said in three_elastic(wrong):
        assert_each_names(said, names)
