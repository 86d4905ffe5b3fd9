"""Expert parallelism for many tokens, with the calls of DeepEP's ElasticBuffer: a token goes once to each rank that has one
of its experts (do_expand=False: the caller adds up what its experts make of it), or once to each expert.

A rank that dies, or does not come for num_cpu_timeout_secs, is left out, as in mooncake.mooncake_ep_buffer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

try:
    import torch
    import torch.distributed as dist
except ImportError as exc:  # pragma: no cover - depends on what is installed
    raise ImportError("mooncake.mooncake_elastic_buffer needs torch: pip install torch") from exc

from mooncake import _ep_core as core
from mooncake._ep_core import EventOverlap

__all__ = ["EPHandle", "ElasticBuffer", "EventOverlap"]


@dataclass
class EPHandle:
    """What combine() needs of a dispatch(), and what arrived."""

    do_expand: bool
    num_experts: int
    expert_alignment: int
    num_max_tokens_per_rank: int
    num_sms: int
    topk_idx: torch.Tensor
    num_recv_tokens_per_expert_list: list[int]
    psum_num_recv_tokens_per_scaleup_rank: torch.Tensor  # int32 [ranks]
    psum_num_recv_tokens_per_expert: torch.Tensor  # int32 [experts here]; do_expand: ends of their rows
    recv_src_metadata: torch.Tensor  # int32 [rows, 2]: rank and token that each comes from
    dst_buffer_slot_idx: torch.Tensor  # int32 [n, k]: rank that each copy went to; -1: none
    token_metadata_at_forward: torch.Tensor | None
    channel_linked_list: torch.Tensor | None
    native_handle: tuple | None  # (routes, ranges, hidden)

    def __post_init__(self) -> None:
        self.num_recv_tokens = int(self.recv_src_metadata.shape[0])


class ElasticBuffer:
    """One rank's end. Tensors of the CPU, ranks of one host."""

    def __init__(
        self,
        group,
        num_bytes: int | None = None,
        num_max_tokens_per_rank: int = 0,
        hidden: int = 0,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
        deterministic: bool = False,
        allow_hybrid_mode: bool = True,
        allow_multiple_reduction: bool = True,
        prefer_overlap_with_compute: bool = True,
        sl_idx: int = 3,
        num_allocated_qps: int = 0,
        num_cpu_timeout_secs: int = 300,
        num_gpu_timeout_secs: int = 100,
        explicitly_destroy: bool = False,
        transport: str = "ibgda",
    ) -> None:
        """Arguments about NICs, GPUs and sizes are kept for callers; everything is deterministic."""
        if not allow_multiple_reduction:
            raise NotImplementedError("allow_multiple_reduction: True; sums are rounded once in any case")
        if transport not in ("ibgda", "nccl"):
            raise ValueError(f"transport: ibgda or nccl (either is shared memory here), not {transport!r}")
        if num_cpu_timeout_secs <= 0:
            raise ValueError(f"num_cpu_timeout_secs: above 0, not {num_cpu_timeout_secs}")
        self._core: core.Core | None = core.Core(group)
        self.group = self.backend = group
        self.runtime = self._core.ep
        self.num_max_tokens_per_rank, self.hidden, self.num_topk = num_max_tokens_per_rank, hidden, num_topk
        self.use_fp8_dispatch, self.deterministic = use_fp8_dispatch, deterministic
        self.allow_hybrid_mode, self.allow_multiple_reduction = allow_hybrid_mode, allow_multiple_reduction
        self.prefer_overlap_with_compute, self.sl_idx = prefer_overlap_with_compute, sl_idx
        self.num_allocated_qps, self.explicitly_destroy, self.transport = num_allocated_qps, explicitly_destroy, transport
        self.num_cpu_timeout_secs, self.num_gpu_timeout_secs = num_cpu_timeout_secs, num_gpu_timeout_secs
        self.update_ep_member()
        self.num_bytes = num_bytes if num_bytes is not None else self.get_buffer_size_hint(
            group, num_max_tokens_per_rank, hidden, num_topk, use_fp8_dispatch)  # fmt: skip

    # ---- life ----

    def _alive(self) -> core.Core:
        if self._core is None:
            raise RuntimeError("ElasticBuffer has been destroyed")
        return self._core

    def update_ep_member(self) -> None:
        """Whoever is active in the group takes part from here on. All ranks call it."""
        self._alive().update()
        self.rank_idx, self.num_ranks = self.group.rank(), self._alive().ranks
        self.num_rdma_ranks, self.num_nvlink_ranks = self.get_physical_domain_size()
        self.num_scaleout_ranks, self.num_scaleup_ranks = self.get_logical_domain_size()
        self.scaleout_rank_idx, self.scaleup_rank_idx = 0, self.rank_idx

    def destroy(self) -> None:
        if self._core is not None:
            self._core.drain()
        self._core = self.runtime = None

    def barrier(self, use_comm_stream: bool = True, with_cpu_sync: bool = False) -> None:
        self._alive().drain()
        dist.barrier(group=self.group)

    @staticmethod
    def capture() -> core.Event:
        """What the caller did before is done: there are no streams."""
        return core.Event()

    # ---- numbers ----

    def get_physical_domain_size(self) -> tuple[int, int]:
        """(hosts, ranks of each)"""
        return 1, self.num_ranks

    get_logical_domain_size = get_physical_domain_size

    def get_theoretical_num_sms(self, num_experts: int, num_topk: int) -> int:
        """Cores that a rank uses: one moves rows."""
        return 1 if self.prefer_overlap_with_compute else max(1, (os.cpu_count() or 1) // self.num_ranks)

    @staticmethod
    def get_buffer_size_hint(
        group,
        num_max_tokens_per_rank: int,
        hidden: int,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
        allow_hybrid_mode: bool = True,
        allow_multiple_reduction: bool = True,
    ) -> int:
        """Bytes of shared memory of one rank when all tokens of all ranks have an expert there: two dispatches that are
        shown, and two combines."""
        row = hidden + -(-hidden // core.GROUP) * 4 if use_fp8_dispatch else 2 * hidden
        extra = max(1, num_topk) * 12
        back = group.size() * num_max_tokens_per_rank * max(1, num_topk) * 2 * hidden
        return 2 * (num_max_tokens_per_rank * (row + extra + 64) + back) + core.PAGE

    @staticmethod
    def get_engram_storage_size_hint(
        num_entries: int, hidden: int, num_max_tokens_per_rank: int, dtype: torch.dtype = torch.bfloat16
    ) -> int:
        scales = -(-hidden // core.GROUP) * 4 if dtype.itemsize == 1 else 0
        return -(-(hidden * dtype.itemsize + scales) // 32) * 32 * (num_entries + num_max_tokens_per_rank)

    @staticmethod
    def get_pp_buffer_size_hint(num_max_tensor_bytes: int, num_max_inflight_tensors: int) -> int:
        return -(-num_max_tensor_bytes // 32) * 32 * num_max_inflight_tensors * 4

    @staticmethod
    def get_agrs_buffer_size_hint(group, num_max_session_bytes: int) -> int:
        return num_max_session_bytes

    # ---- dispatch ----

    def _routes(self, topk_idx: torch.Tensor, experts: int, do_expand: bool) -> torch.Tensor:
        """What each token goes to: experts, or the different ranks of them."""
        if do_expand:
            return topk_idx
        here = experts // self.num_ranks
        is_to = torch.zeros((topk_idx.shape[0], self.num_ranks + 1), dtype=torch.bool)
        is_to.scatter_(1, torch.where(topk_idx < 0, self.num_ranks, topk_idx.div(here, rounding_mode="floor")), True)
        ranks = torch.where(is_to[:, :-1], torch.arange(self.num_ranks), -1)
        return ranks.sort(dim=1, descending=True).values[:, : min(topk_idx.shape[1], self.num_ranks)].contiguous()

    def _input(self, x, topk_idx, topk_weights):
        """(rows, bytes that go with each): topk_idx, weights, scales."""
        rows, scales = x if isinstance(x, tuple) else (x, None)
        if scales is not None:
            core.need("x", rows, torch.float8_e4m3fn, (None, None))
            scales = scales.contiguous().view(torch.uint8)
        else:
            core.need("x", rows, torch.bfloat16, (None, None))
        core.need("topk_idx", topk_idx, torch.int64, (rows.shape[0], None))
        parts = [topk_idx.view(torch.uint8)]
        if topk_weights is not None:
            core.need("topk_weights", topk_weights, torch.float32, tuple(topk_idx.shape))
            parts.append(topk_weights.view(torch.uint8))
        if scales is not None:
            core.need("x", scales, torch.uint8, (rows.shape[0], None))
            parts.append(scales)
        return rows, torch.cat(parts, dim=1).contiguous()

    def dispatch(
        self,
        x: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        num_experts: int | None = None,
        num_max_tokens_per_rank: int | None = None,
        expert_alignment: int | None = None,
        handle: EPHandle | None = None,
        do_expand: bool = False,
        do_cpu_sync: bool | None = None,
        num_sms: int | None = None,
        async_with_compute_stream: bool = False,
    ):
        """x: bf16 [n, hidden], or (e4m3, scales [n, any]); topk_idx: int64 [n, k], -1: none.

        -> recv_x, recv_topk_idx, recv_topk_weights, handle, event. do_expand=False: a row for each token that has an expert
        here, topk_idx as numbers of this rank's experts (-1: elsewhere). do_expand=True: a row for each expert of a token,
        expert behind expert, each at a multiple of expert_alignment; topk_idx None, one weight a row.
        handle: route as then; do_cpu_sync=False: tensors of full size.
        """
        running = self._alive()
        if handle is not None:
            if topk_idx is not None or topk_weights is not None:
                raise ValueError("topk_idx, topk_weights: None with a handle")
            if do_expand or handle.do_expand or do_cpu_sync:
                raise ValueError("handle: with neither do_expand nor do_cpu_sync")
            topk_idx, num_experts = handle.topk_idx, num_experts or handle.num_experts
            num_max_tokens_per_rank = num_max_tokens_per_rank or handle.num_max_tokens_per_rank
            expert_alignment = expert_alignment or handle.expert_alignment
        elif topk_idx is None:
            raise ValueError("topk_idx: needed without a handle")
        rows, extra = self._input(x, topk_idx, topk_weights)
        (n, hidden), k = rows.shape, topk_idx.shape[1]
        experts = num_experts if num_experts is not None else self.num_ranks * -(-(int(topk_idx.max()) + 1) // self.num_ranks)
        most = num_max_tokens_per_rank or self.num_max_tokens_per_rank or n
        self._check(experts, hidden, k, n, most, topk_idx)
        routes = self._routes(topk_idx, experts, do_expand)
        align = (expert_alignment or 1) if do_expand else 1
        lists = experts // self.num_ranks if do_expand else 1
        room = self.num_ranks * most
        capacity = room * min(k, lists) + lists * (align - 1) if do_expand else room
        shape = (self.num_ranks, lists * self.num_ranks, hidden, routes.shape[1], most, n, align)
        running.drain()
        half = running.begin(self.runtime.dispatch(
            shape, 0, int(self.num_cpu_timeout_secs * 1e9), core.SAME, rows.element_size(), rows.data_ptr(), extra.shape[1],
            extra.data_ptr(), routes.data_ptr()))  # fmt: skip
        came = running.pool.tensor((capacity, hidden), rows.dtype)
        beside = running.pool.tensor((capacity, extra.shape[1]), torch.uint8)
        counts = torch.zeros(lists, dtype=torch.int32)
        tokens = torch.zeros(capacity, dtype=torch.int32)
        ranges = torch.zeros((lists, self.num_ranks), dtype=torch.int64)
        core.check(half.dispatch(came.data_ptr(), 0, beside.data_ptr(), counts.data_ptr(), tokens.data_ptr(),
                                 ranges.data_ptr(), False))  # fmt: skip
        arrived = _Arrived(self, experts, k, do_expand, align, counts, ranges, came, beside, tokens)
        sizes = slice(0, arrived.rows if do_cpu_sync is not False and handle is None else capacity)
        made = arrived.handle(topk_idx if handle is not None else topk_idx.clone(), routes, most, num_sms or 1, sizes)
        recv_idx, recv_weights = arrived.routing(topk_weights is not None, sizes)
        recv_x = came[sizes]
        if isinstance(x, tuple):
            at = k * (12 if topk_weights is not None else 8)
            recv_x = (recv_x, beside[sizes, at:].contiguous().view(x[1].dtype))
        kept = (rows, topk_idx, came, made.topk_idx) if async_with_compute_stream else None
        return recv_x, recv_idx, recv_weights, made, EventOverlap(core.Event(), kept)

    def _check(self, experts: int, hidden: int, k: int, n: int, most: int, topk_idx: torch.Tensor) -> None:
        if experts <= 0 or experts % self.num_ranks:
            raise ValueError(f"num_experts: a multiple of the {self.num_ranks} ranks, not {experts}")
        if hidden == 0 or hidden % 16:
            raise ValueError(f"x: rows of a multiple of 16 elements, not {hidden}")
        if not 0 < k <= core.TOPK_MAX:
            raise ValueError(f"topk_idx: 1 to {core.TOPK_MAX} experts for each token, not {k}")
        if n > most:
            raise ValueError(f"x: {n} tokens, num_max_tokens_per_rank is {most}")
        if n and (int(topk_idx.max()) >= experts or int(topk_idx.min()) < -1):
            raise ValueError(f"topk_idx: experts 0 to {experts - 1}, or -1")

    # ---- combine ----

    def combine(
        self,
        x: torch.Tensor,
        handle: EPHandle,
        topk_weights: torch.Tensor | None = None,
        num_sms: int | None = None,
        async_with_compute_stream: bool = False,
    ) -> tuple[torch.Tensor, None, EventOverlap]:
        """The sum of a token's rows, in float32, rounded once; topk_weights: float32 [n, k], with do_expand only."""
        running = self._alive()
        if not isinstance(handle, EPHandle) or handle.native_handle is None:
            raise TypeError("handle: what dispatch() returned")
        routes, ranges, hidden = handle.native_handle
        core.need("x", x, torch.bfloat16, (None, hidden))
        n = handle.topk_idx.shape[0]
        if topk_weights is not None:
            if not handle.do_expand:
                raise ValueError("topk_weights: None without do_expand, where a row is of several experts")
            core.need("topk_weights", topk_weights, torch.float32, (n, handle.topk_idx.shape[1]))
        if x.shape[0] < handle.num_recv_tokens:
            raise ValueError(f"x: a row for each of the {handle.num_recv_tokens} that came, not {x.shape[0]}")
        align = handle.expert_alignment if handle.do_expand else 1
        shape = (self.num_ranks, ranges.shape[0] * self.num_ranks, hidden, routes.shape[1], handle.num_max_tokens_per_rank, n,
                 align)  # fmt: skip
        running.drain()
        half = running.begin(self.runtime.combine(shape, 0, int(self.num_cpu_timeout_secs * 1e9), x.data_ptr(), True,
                                                  routes.data_ptr(), ranges.data_ptr()))  # fmt: skip
        out = running.pool.tensor((n, hidden), torch.bfloat16)

        def end(_kept=(x, handle)) -> None:
            core.check(half.combine(topk_weights.data_ptr() if topk_weights is not None else 0, out.data_ptr()))

        event, _ = running.finish(end, async_with_compute_stream, False)
        return out, None, EventOverlap(event, (x, out) if async_with_compute_stream else None)


class _Arrived:
    """What the tensors of a dispatch say."""

    def __init__(self, buffer, experts, k, do_expand, align, counts, ranges, came, beside, tokens) -> None:
        self.buffer, self.experts, self.k, self.do_expand, self.align = buffer, experts, k, do_expand, align
        self.counts, self.ranges, self.came, self.beside, self.tokens = counts.tolist(), ranges, came, beside, tokens
        self.bases, end = [], 0
        for count in self.counts:
            self.bases.append(-(-end // align) * align)
            end = self.bases[-1] + count
        self.rows = end
        here = experts // buffer.num_ranks
        idx = beside[:, : 8 * k].contiguous().view(torch.int64) - buffer.rank_idx * here
        self.idx = torch.where((idx >= 0) & (idx < here), idx, -1)
        self.per_expert = self.counts if do_expand else torch.bincount(
            self.idx[:end][self.idx[:end] >= 0], minlength=here).tolist()  # fmt: skip

    def handle(self, topk_idx, routes, most, num_sms, sizes) -> EPHandle:
        sources = torch.full((self.came.shape[0], 2), -1, dtype=torch.int32)
        per_rank = (self.ranges & 0xFFFFFFFF).sum(dim=0)
        for row, base in zip(self.ranges.tolist(), self.bases, strict=True):
            for rank, word in enumerate(row):
                first, n = base + (word >> 32), word & 0xFFFFFFFF
                sources[first : first + n, 0] = rank
                sources[first : first + n, 1] = self.tokens[first : first + n]
        ends = [b + c for b, c in zip(self.bases, self.counts, strict=True)] if self.do_expand else None
        per_expert = torch.tensor(ends, dtype=torch.int32) if ends else torch.tensor(self.per_expert).cumsum(0).int()
        here = self.experts // self.buffer.num_ranks
        return EPHandle(
            self.do_expand, self.experts, self.align, most, num_sms, topk_idx, list(self.per_expert), per_rank.cumsum(0).int(),
            per_expert, sources[sizes], torch.where(topk_idx < 0, -1, topk_idx.div(here, rounding_mode="floor")).int(), None,
            None, (routes, self.ranges, self.came.shape[1]))  # fmt: skip

    def routing(self, has_weights: bool, sizes):
        """recv_topk_idx, recv_topk_weights."""
        weights = self.beside[:, 8 * self.k : 12 * self.k].contiguous().view(torch.float32) if has_weights else None
        if not self.do_expand:
            return self.idx[sizes], weights[sizes] if weights is not None else None
        if weights is None:
            return None, None
        of_row = torch.full((self.came.shape[0], 1), -2)
        for expert, (base, count) in enumerate(zip(self.bases, self.counts, strict=True)):
            of_row[base : base + count] = expert
        return None, torch.where(self.idx == of_row, weights, 0).sum(dim=1)[sizes]
