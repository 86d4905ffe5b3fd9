"""One rank of ./run demo ep: a quarter of the experts of a layer, and tokens of its own that go to all of them.

moe_rank.py SOCKET NAME RANK RANKS STORE_PORT [joins]; commands and answers are lines of JSON. Every step's output is compared
with what this process alone computes, without the experts of ranks that the layer does without.
"""

import json
import socket
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from mooncake import pg
from mooncake.mooncake_ep_buffer import Buffer

EXPERTS, HIDDEN, INNER, TOPK, TOKENS = 32, 512, 128, 4, 48
GROUP = 128


class Layer:
    """Random weights, the same in every process: a rank computes with its own experts', the others' are for comparing."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(1)
        self.router = torch.randn((HIDDEN, EXPERTS), generator=rng)
        # In float64 a row's result does not depend on what else is in the batch.
        self.up = torch.randn((EXPERTS, HIDDEN, INNER), generator=rng, dtype=torch.float64) / HIDDEN**0.5
        self.down = torch.randn((EXPERTS, INNER, HIDDEN), generator=rng, dtype=torch.float64) / INNER**0.5

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, idx = (x.float() @ self.router).softmax(dim=1).topk(TOPK)
        return idx.contiguous(), (weights / weights.sum(dim=1, keepdim=True)).contiguous()

    def expert(self, e: int, rows: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.silu(rows.double() @ self.up[e]) @ self.down[e]).to(torch.bfloat16)

    def alone(self, x: torch.Tensor, is_fp8: bool, is_there: list[bool]) -> torch.Tensor:
        """One process: no buffer, no other rank."""
        idx, weights = self.route(x)
        rows, out = from_fp8(*to_fp8(x)) if is_fp8 else x, torch.zeros(x.shape)
        made = torch.zeros((TOPK, *x.shape))
        here = EXPERTS // len(is_there)
        for e in (e for e in range(EXPERTS) if is_there[e // here]):
            for k in range(TOPK):
                mine = idx[:, k] == e
                made[k, mine] = weights[mine, k].unsqueeze(1) * self.expert(e, rows[mine]).float()
        for k in range(TOPK):
            out += made[k]
        return out.to(torch.bfloat16)


def to_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    groups = x.float().view(x.shape[0], -1, GROUP)
    amax = groups.abs().amax(dim=2).clamp(1e-4)
    codes = (groups * torch.full_like(amax, 448.0).div(amax).unsqueeze(2)).to(torch.float8_e4m3fn)
    return codes.view(x.shape), amax * torch.tensor(1.0 / 448.0)


def from_fp8(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (codes.float() * scales.repeat_interleave(GROUP, dim=-1)).to(torch.bfloat16)


class Rank:
    def __init__(self, lines, rank: int, ranks: int, port: int, joins: bool) -> None:
        self.lines, self.rank, self.ranks, self.layer = lines, rank, ranks, Layer()
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
        options = pg.MooncakeBackendOptions(ranks, joins)
        dist.init_process_group("mooncake-cpu", store=store, rank=rank, world_size=ranks, pg_options=options)
        self.group, self.active = dist.group.WORLD, torch.ones(ranks, dtype=torch.int32)
        self.buffer = None if joins else Buffer(self.group)

    def tell(self, event: str, **more) -> None:
        self.lines.write(json.dumps({"event": event, **more}) + "\n")
        self.lines.flush()

    def step(self, number: int, is_fp8: bool, timeout_us: int, is_paused: bool) -> tuple[float, bool]:
        """(ms, is the output what one process computes)"""
        rng = torch.Generator().manual_seed(number * 100 + self.rank)
        x = torch.randn((TOKENS, HIDDEN), generator=rng).to(torch.bfloat16)
        idx, weights = self.layer.route(x)
        began = time.perf_counter()
        recv, counts, handle, _, hook = self.buffer.dispatch(x, idx, self.active, TOKENS, EXPERTS, timeout_us, use_fp8=is_fp8,
                                                             return_recv_hook=True)  # fmt: skip
        if is_paused:
            self.tell("routed", step=number)
            self.lines.readline()
        hook()
        rows, scales = recv if is_fp8 else (recv, None)
        made = self.buffer.get_next_combine_buffer(handle)
        here = EXPERTS // self.ranks
        for e, n in enumerate(counts.tolist()):
            mine = from_fp8(rows[e, :n], scales[e, :n]) if is_fp8 else rows[e, :n]
            made[e, :n] = self.layer.expert(self.rank * here + e, mine)
        out, _, _ = self.buffer.combine(made, idx, weights, self.active, timeout_us, handle, zero_copy=True)
        took = (time.perf_counter() - began) * 1000
        return took, torch.equal(out, self.layer.alone(x, is_fp8, [a != 0 for a in self.active.tolist()]))

    def serve(self, first: int, count: int, timeout_us: int, pause_at: int) -> None:
        took, equal, error = [], 0, None
        try:
            for number in range(first, first + count):
                ms, is_equal = self.step(number, number % 2 == 1, timeout_us, number == pause_at)
                took.append(ms)
                equal += is_equal
        except (dist.DistBackendError, TimeoutError) as exc:
            error = str(exc)
        self.tell("served", ms=took, equal=equal, active=self.active.tolist(), error=error)

    def recover(self, rank: int) -> None:
        end = time.monotonic() + 30
        while not pg.get_peer_state(self.group, [rank])[0]:
            if time.monotonic() > end:
                raise SystemExit(f"rank {rank} does not come")
            time.sleep(0.001)
        pg.recover_ranks(self.group, [rank])
        self.tell("recovered")

    def join(self) -> None:
        pg.join_group(self.group)
        self.buffer = Buffer(self.group)
        self.tell("joined")

    def update(self) -> None:
        self.buffer.update_ep_member()
        self.active.fill_(1)
        self.tell("updated")


def main(path: str, name: str, rank: str, ranks: str, port: str, *joins: str) -> None:
    torch.set_num_threads(1)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        with sock.makefile("rw") as lines:
            member = Rank(lines, int(rank), int(ranks), int(port), bool(joins))
            member.tell("ready", name=name)
            for line in lines:
                order = json.loads(line)
                getattr(member, order.pop("do"))(**order)


if __name__ == "__main__":
    main(*sys.argv[1:])
