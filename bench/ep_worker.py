"""One rank of `./run bench ep`: ours, or the same composed from all_to_all of Gloo.

ep_worker.py LIBRARY SOCKET RANK RANKS FOLDER; a command is "run WHAT TOKENS HIDDEN TOPK EXPERTS COUNT", an answer the minimum,
p50 and p99 of a step in ns, and the ns of CPU of one.
"""

from __future__ import annotations

import os
import socket
import sys
import time

import torch
import torch.distributed as dist


class Step:
    """Tokens of a rank, and what its experts made of those that came: the experts' own time is not measured."""

    def __init__(self, rank: int, ranks: int, tokens: int, hidden: int, topk: int, experts: int) -> None:
        rng = torch.Generator().manual_seed(rank)
        self.rank, self.ranks, self.experts, self.tokens = rank, ranks, experts, tokens
        self.x = torch.randn((tokens, hidden), generator=rng).to(torch.bfloat16)
        self.topk = torch.rand((tokens, experts), generator=rng).argsort(dim=1)[:, :topk].contiguous()
        self.weights = torch.rand((tokens, topk), generator=rng)


class Ours:
    def __init__(self) -> None:
        from mooncake.mooncake_ep_buffer import Buffer

        self.buffer = Buffer(dist.group.WORLD)

    def operation(self, what: str, s: Step):
        buffer = self.buffer
        active = torch.ones(s.ranks, dtype=torch.int32)
        made = torch.randn(s.x.shape[1]).to(torch.bfloat16)
        made = made.expand(s.experts // s.ranks, s.ranks * s.tokens, -1).contiguous()

        def once() -> torch.Tensor:
            _, _, handle, _, _ = buffer.dispatch(s.x, s.topk, active, s.tokens, s.experts, -1, use_fp8=what == "fp8")
            y = buffer.get_next_combine_buffer(handle) if what == "zero" else made
            return buffer.combine(y, s.topk, s.weights, active, -1, handle, zero_copy=what == "zero")[0]

        return once

    def through(self, s: Step) -> torch.Tensor:
        """The tokens themselves, back again."""
        buffer = self.buffer
        rows, _, handle, _, _ = buffer.dispatch(s.x, s.topk, None, s.tokens, s.experts, -1, use_fp8=False)
        return buffer.combine(rows, s.topk, s.weights, None, -1, handle)[0]


class Composed:
    """Numbers, then rows, by all_to_all; rows in the order of the experts; the same back, and a weighted sum."""

    def run(self, s: Step, made: torch.Tensor | None) -> torch.Tensor:
        here, (n, k) = s.experts // s.ranks, s.topk.shape
        order = s.topk.view(-1).argsort(stable=True)
        sent = torch.bincount(s.topk.view(-1), minlength=s.experts)
        came = torch.empty_like(sent)
        dist.all_to_all_single(came, sent)
        to = sent.view(s.ranks, here).sum(1).tolist()
        of = came.view(s.ranks, here).sum(1).tolist()
        rows = torch.empty((sum(of), s.x.shape[1]), dtype=s.x.dtype)
        dist.all_to_all_single(rows, s.x[order // k], of, to)
        by_expert = torch.arange(here).repeat(s.ranks).repeat_interleave(came).argsort(stable=True)
        rows = rows[by_expert]
        y = rows if made is None else made[: len(rows)]
        back = torch.empty_like(y)
        back[by_expert] = y
        returned = torch.empty((n * k, s.x.shape[1]), dtype=s.x.dtype)
        dist.all_to_all_single(returned, back, to, of)
        mine = torch.empty_like(returned)
        mine[order] = returned
        return torch.bmm(s.weights.unsqueeze(1), mine.view(n, k, -1).float()).squeeze(1).to(s.x.dtype)

    def operation(self, what: str, s: Step):
        made = torch.randn((s.ranks * s.tokens * s.topk.shape[1], s.x.shape[1])).to(torch.bfloat16)
        return lambda: self.run(s, made)

    def through(self, s: Step) -> torch.Tensor:
        return self.run(s, None)


def copies(s: Step):
    """The rows of a step, there and back, as plain copies in one process."""
    rows = torch.zeros((s.topk.numel(), s.x.shape[1]), dtype=torch.bfloat16)
    to = [torch.zeros_like(rows), torch.zeros_like(rows)]

    def once() -> None:
        to[0].copy_(rows)
        to[1].copy_(rows)

    return once


def check(side, rank: int, ranks: int) -> None:
    s = Step(rank, ranks, 16, 64, 4, 8)
    want = (s.x.float() * s.weights.sum(1, keepdim=True)).to(torch.bfloat16)
    if not torch.allclose(side.through(s).float(), want.float(), rtol=0.02, atol=0.02):
        raise SystemExit("a step's sums are wrong")


def measure(once, count: int) -> str:
    for _ in range(count // 10 + 2):
        once()
    clock, times = time.perf_counter_ns, [0] * count
    began, last = time.process_time_ns(), clock()
    for i in range(count):
        once()
        now = clock()
        times[i] = now - last
        last = now
    spent = (time.process_time_ns() - began) // count
    times.sort()
    return f"{times[0]} {times[count // 2]} {times[count * 99 // 100]} {spent}"


def main(library: str, path: str, rank_text: str, ranks_text: str, folder: str) -> None:
    rank, ranks = int(rank_text), int(ranks_text)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    if library == "mooncake-cpu":
        import mooncake.pg  # noqa: F401  registers the backend
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group(library, store=store, rank=rank, world_size=ranks)
    side = Ours() if library == "mooncake-cpu" else Composed()
    check(side, rank, ranks)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        with sock.makefile("rw") as lines:
            lines.write(f"{rank} -\n")
            lines.flush()
            for line in lines:
                if line.startswith("run "):
                    what, *numbers = line.split()[1:]
                    *shape, count = map(int, numbers)
                    step = Step(rank, ranks, *shape)
                    lines.write(measure(copies(step) if what == "copies" else side.operation(what, step), count) + "\n")
                else:  # addresses, which only programs in C need
                    lines.write("0\n")
                lines.flush()
    sys.stdout.flush()
    os._exit(0)  # the libraries' ends are not what is measured


if __name__ == "__main__":
    main(*sys.argv[1:])
