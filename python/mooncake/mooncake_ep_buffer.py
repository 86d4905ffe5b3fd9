"""Expert parallelism for few tokens: to the ranks of their experts, and back, among ranks that may die or be late.

    buffer = Buffer(group)                 # of the backend mooncake-cpu; all ranks
    recv_x, counts, handle, event, hook = buffer.dispatch(x, topk_idx, active_ranks, tokens_max, num_experts, timeout_us)
    y = experts(recv_x, counts)            # in the places of recv_x
    out, event, hook = buffer.combine(y, topk_idx, topk_weights, active_ranks, timeout_us, handle)

A rank that dies, or is later than timeout_us, is left out by all alike: `active_ranks` gets a 0 for it, and what its
experts would have added is missing from the sums. After `update_ep_member()` of all ranks whoever is in the group is in
again. See docs/ep.md.
"""

from __future__ import annotations

from collections.abc import Callable

try:
    import torch
except ImportError as exc:  # pragma: no cover - depends on what is installed
    raise ImportError("mooncake.mooncake_ep_buffer needs torch: pip install torch") from exc

from mooncake import _ep_core as core
from mooncake import _ep_cuda as cuda
from mooncake._ep_core import EventOverlap

__all__ = ["Buffer", "EventOverlap"]


class Buffer:
    """One rank's end. Any hidden size divisible by 16, top-k to 32, any number of tokens. Tensors of the CPU; in a group of
    the backend mooncake also of GPUs: by kernels where all ranks can, else through the host."""

    def __init__(self, group, num_ep_buffer_bytes: int = 0, disable_p2p: bool = False) -> None:
        """num_ep_buffer_bytes: memory on the GPU, as get_ep_buffer_size_hint() says; the CPU's is made as it is needed.
        disable_p2p: GPUs do not read each other's memory: through the host."""
        self.group = self.backend = group
        self.num_ep_buffer_bytes, self.disable_p2p = int(num_ep_buffer_bytes), bool(disable_p2p)
        self._core = core.Core(group)
        self.runtime = self._core.ep
        is_for_gpus = group.name() == "mooncake" and not disable_p2p
        self._gpu = cuda.Gpu(group, self.num_ep_buffer_bytes) if is_for_gpus else None
        self._lent_at = 0
        self.connect()

    def connect(self, is_update: bool = False) -> None:
        """Meet the others: all active ranks of the group have to call it."""
        self._core.update()
        if self._gpu:
            self._gpu.update()
        self.rank, self.group_size = self.group.rank(), self._core.ranks

    def update_ep_member(self) -> None:
        """Whoever is active in the group takes part from here on, as if nobody had ever been missing. All ranks call it;
        a replacement may call Buffer() instead."""
        self.connect(True)

    @staticmethod
    def get_ep_buffer_size_hint(num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int) -> int:
        return 4 * num_experts * (4 + num_max_dispatch_tokens_per_rank * (32 + 2 * hidden))

    # ---- who takes part ----

    def _ends(self):
        return [self.runtime, self._gpu.place.ep] if self._gpu and self._gpu.place else [self.runtime]

    def query_mask_buffer(self, mask_status: torch.Tensor) -> None:
        """Write 1 for each rank that halves without `active_ranks` do without."""
        device = getattr(mask_status, "device", core.CPU)
        core.need("mask_status", mask_status, torch.int32, (self.group_size,), device)
        masked = 0
        for end in self._ends():
            masked |= end.masked() | ~end.members()
        mask_status.copy_(torch.tensor([masked >> i & 1 for i in range(self.group_size)], dtype=torch.int32))

    def update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        if not 0 <= int(rank_to_mask) < self.group_size:
            raise ValueError(f"rank_to_mask: 0 to {self.group_size - 1}, not {rank_to_mask}")
        for end in self._ends():
            end.mask(1 << int(rank_to_mask), bool(mask))

    def clean_mask_buffer(self) -> None:
        for end in self._ends():
            end.mask((1 << 64) - 1, False)

    # ---- halves ----

    def _place(self, x):
        """Where halves of such a tensor run; None: through the host."""
        if not getattr(x, "is_cuda", False):
            return self._core.place
        if self.group.name() != "mooncake":
            raise NotImplementedError(f"x: tensors of the CPU, not of {x.device}: the group is of the backend mooncake-cpu")
        return self._gpu.place if self._gpu else None

    def _shape(self, experts: int, hidden: int, topk: int, tokens_max: int, tokens: int) -> tuple[int, ...]:
        for name, value in (("num_experts", experts), ("num_max_dispatch_tokens_per_rank", tokens_max)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 32:
                raise ValueError(f"{name}: a number above 0, not {value!r}")
        if experts % self.group_size:
            raise ValueError(f"num_experts: a multiple of the {self.group_size} ranks, not {experts}")
        if hidden == 0 or hidden % 16:
            raise ValueError(f"x: rows of a multiple of 16 elements, not {hidden}")
        if not 0 < topk <= core.TOPK_MAX:
            raise ValueError(f"topk_idx: 1 to {core.TOPK_MAX} experts for each token, not {topk}")
        if tokens > tokens_max:
            raise ValueError(f"x: {tokens} tokens, num_max_dispatch_tokens_per_rank is {tokens_max}")
        return (self.group_size, experts, hidden, topk, tokens_max, tokens, 0)

    def dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        active_ranks: torch.Tensor | None,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        timeout_us: int = -1,
        use_fp8: bool = True,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        *,
        round_scale: bool = False,
        use_ue8m0: bool = False,
    ) -> tuple[torch.Tensor | tuple[torch.Tensor, torch.Tensor], torch.Tensor, tuple, EventOverlap, Callable[[], None]]:
        """Send tokens to their experts.

        x: bf16 [n, hidden]; topk_idx: int64 [n, k], -1: none; active_ranks: int32, one for each rank, read and written;
        None: see update_mask_buffer(). timeout_us: -1: nobody alive is left out.
        use_fp8: e4m3 with one float32 scale for 128 elements; round_scale: a power of two; use_ue8m0: that, as four
        exponents in an int32.
        -> recv_x [experts, ranks * max, hidden] (with FP8 and its scales [experts, ranks * max, groups]), of which the
        first recv_count[expert] rows count; recv_count int32 [experts]; handle, for combine(); event; hook.
        return_recv_hook: results are there after hook(), async_finish: after event.current_stream_wait().
        """
        place = self._place(x)
        if place is None:
            return cuda.dispatch_by_host(self, x, topk_idx, active_ranks, num_max_dispatch_tokens_per_rank, num_experts,
                                         timeout_us, use_fp8, async_finish, return_recv_hook, round_scale=round_scale,
                                         use_ue8m0=use_ue8m0)  # fmt: skip
        core.one_of(async_finish, return_recv_hook)
        n, hidden = core.need("x", x, torch.bfloat16, (None, None), place.device).shape
        topk = core.need("topk_idx", topk_idx, torch.int64, (n, None), place.device).shape[1]
        active = core.mirror("active_ranks", active_ranks, self.group_size, place.device)
        if (round_scale or use_ue8m0) and not use_fp8:
            raise ValueError("round_scale, use_ue8m0: with use_fp8 only")
        shape = self._shape(num_experts, hidden, topk, num_max_dispatch_tokens_per_rank, n)
        experts, room = num_experts // self.group_size, self.group_size * num_max_dispatch_tokens_per_rank
        kind = core.SAME if not use_fp8 else core.FP8_POW2 if round_scale or use_ue8m0 else core.FP8
        self._core.drain()
        half = self._core.begin(place.ep.dispatch(
            shape, active.data_ptr() if active is not None else 0, core.timeout_ns(timeout_us), kind, 2, x.data_ptr(), 0, 0,
            topk_idx.data_ptr(), *place.stream()))  # fmt: skip
        rows = place.empty((experts, room, hidden), dtype=torch.float8_e4m3fn if use_fp8 else torch.bfloat16)
        groups = -(-hidden // core.GROUP)
        scales = None
        if use_fp8:
            columns, kept = (-(-groups // 4), torch.int32) if use_ue8m0 else (groups, torch.float32)
            # Column by column, as grouped GEMM kernels read them.
            scales = torch.empty((experts, columns, room), dtype=kept, device=place.device).transpose(1, 2)
        counts = torch.zeros(experts, dtype=torch.int32, device=place.device)
        tokens = torch.empty((experts, room), dtype=torch.int32, device=place.device)
        ranges = torch.zeros((experts, self.group_size), dtype=torch.int64, device=place.device)

        def end(_kept=(x, topk_idx, active)) -> None:
            core.check(half.dispatch(rows.data_ptr(), scales.data_ptr() if scales is not None else 0, 0, counts.data_ptr(),
                                     tokens.data_ptr(), ranges.data_ptr(), use_ue8m0, *place.stream()))  # fmt: skip

        event, hook = place.finish(end, async_finish, return_recv_hook)
        handle = (tokens, ranges, num_max_dispatch_tokens_per_rank, hidden, num_experts)
        kept = (x, topk_idx, rows, counts, tokens, ranges) if async_finish else None
        return (rows, scales) if use_fp8 else rows, counts, handle, EventOverlap(event, kept), hook

    def _handle(self, handle, device) -> tuple[torch.Tensor, int, int, int]:
        """(ranges, max, hidden, experts) of a dispatch's."""
        if not isinstance(handle, tuple) or len(handle) != 5:
            raise TypeError("handle: what dispatch() returned")
        ranges, tokens_max, hidden, experts = handle[1:]
        if experts % self.group_size:
            raise ValueError(f"handle: of {experts} experts, which are not on {self.group_size} ranks")
        core.need("handle", ranges, torch.int64, (experts // self.group_size, self.group_size), device)
        return ranges, tokens_max, hidden, experts

    def combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        active_ranks: torch.Tensor | None,
        timeout_us: int,
        handle: tuple,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, EventOverlap, Callable[[], None]]:
        """Send back what the experts made of the rows, and add it up.

        x: bf16 [experts, ranks * max, hidden], in the places of recv_x; topk_idx: as dispatched; topk_weights: float32
        [n, k]. zero_copy: x is what get_next_combine_buffer() gave. out: bf16 [n, hidden], to be used for the result.
        -> combined_x bf16 [n, hidden], rounded once from float32; event; hook, as dispatch().
        """
        place = self._place(x)
        if place is None:
            if zero_copy:
                raise NotImplementedError("zero_copy: not through the host")
            return cuda.combine_by_host(self, x, topk_idx, topk_weights, active_ranks, timeout_us, handle, async_finish,
                                        return_recv_hook, out)  # fmt: skip
        core.one_of(async_finish, return_recv_hook)
        ranges, tokens_max, hidden, experts = self._handle(handle, place.device)
        core.need("x", x, torch.bfloat16, (experts // self.group_size, self.group_size * tokens_max, hidden), place.device)
        n, topk = core.need("topk_idx", topk_idx, torch.int64, (None, None), place.device).shape
        core.need("topk_weights", topk_weights, torch.float32, (n, topk), place.device)
        active = core.mirror("active_ranks", active_ranks, self.group_size, place.device)
        if out is None:
            out = place.empty((n, hidden), dtype=torch.bfloat16)
        core.need("out", out, torch.bfloat16, (n, hidden), place.device)
        if zero_copy and x.data_ptr() != self._lent_at:
            raise ValueError("x: with zero_copy it is the tensor of get_next_combine_buffer()")
        shape = self._shape(experts, hidden, topk, tokens_max, n)
        self._core.drain()
        half = self._core.begin(place.ep.combine(
            shape, active.data_ptr() if active is not None else 0, core.timeout_ns(timeout_us), x.data_ptr(),
            not return_recv_hook, topk_idx.data_ptr(), ranges.data_ptr(), *place.stream()))  # fmt: skip
        self._lent_at = 0

        def end(_kept=(x, topk_idx, active)) -> None:
            core.check(half.combine(topk_weights.data_ptr(), out.data_ptr(), *place.stream()))

        event, hook = place.finish(end, async_finish, return_recv_hook)
        kept = (x, topk_idx, topk_weights, out) if async_finish else None
        return out, EventOverlap(event, kept), hook

    def get_next_combine_buffer(self, handle: tuple) -> torch.Tensor:
        """Memory for the next combine()'s x, which the other ranks read where it is: bf16 [experts, ranks * max, hidden]."""
        on_gpu = isinstance(handle, tuple) and len(handle) == 5 and getattr(handle[1], "is_cuda", False)
        place = self._place(handle[1]) if on_gpu else self._core.place
        _, tokens_max, hidden, experts = self._handle(handle, place.device)
        shape = self._shape(experts, hidden, 1, tokens_max, 0)
        self._core.drain()
        address = place.ep.combine_rows(shape, 0, core.NEVER_NS, *place.stream())
        if isinstance(address, tuple):
            core.fail(*address)
        self._lent_at = address
        places = (experts // self.group_size, self.group_size * tokens_max, hidden)
        return place.lent(address, places, torch.bfloat16, place.ep)
