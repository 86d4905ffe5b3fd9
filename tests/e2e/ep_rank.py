"""One rank of test_ep_hosts.py. A line of JSON in for each command, one out for each answer.

First as pg_rank.py; a joiner (0 founders) is active before its first meeting. Then

["meet"] -> [code, text, members]
["activate", slots] -> [code, dropped]
["steps", count, timeout in us, hidden] -> [code, text, ranks in both halves, steps done]: steps until one fails or somebody
is missing in one; "code" is 1 where a sum is not what one process computes.
["hold", hidden] -> [0]: two dispatches are begun and none is ended.
["ahead", timeout in us, hidden] -> [code, text]: the same, then the first is ended and a third begun in its place.
["die", hidden]: a dispatch is sent and nothing else happens any more: SIGKILL.
"""

import array
import json
import os
import signal
import struct
import sys

from mooncake import _mooncake

TOKENS, TOPK, LOCAL = 12, 2, 2  # of a rank; of a token; experts of a rank
NEVER_NS = (1 << 64) - 1


def bits(x: float) -> int:
    """Of a bf16; all numbers here are exact."""
    return struct.unpack("<I", struct.pack("<f", x))[0] >> 16


def value(of: int) -> float:
    return struct.unpack("<f", struct.pack("<I", of << 16))[0]


def token(seed: int, rank: int, t: int) -> tuple[int, list[int], list[float]]:
    """Its value, which all elements have; the experts' places, of all; their weights."""
    n = seed * 1009 + rank * 101 + t * 7
    return n % 15 - 7, [n % 97, n % 97 + 1 + n % 3], [0.5 + n % 2 / 2, 1.0]


def scale(expert: int) -> float:
    return float(1 << expert % 2)


def at(memory: array.array) -> int:
    return memory.buffer_info()[0]


class Rank:
    def __init__(self, coll, rank: int, ranks: int):
        self.coll, self.ep, self.rank, self.ranks, self.seed = coll, _mooncake.EpBuffer(coll), rank, ranks, 0

    def meet(self) -> list:
        return [*self.ep.update(), self.ep.members()]

    def dispatch(self, timeout_us: int, hidden: int):
        experts = LOCAL * self.ranks
        self.tokens = [token(self.seed, self.rank, t) for t in range(TOKENS)]
        self.shape = (self.ranks, experts, hidden, TOPK, TOKENS, TOKENS, 0)
        self.patience = (0, NEVER_NS if timeout_us < 0 else timeout_us * 1000)
        self.rows = array.array("H", [])
        for x, _, _ in self.tokens:
            self.rows.extend(array.array("H", [bits(x)]) * hidden)
        self.topk = array.array("q", [e % experts for _, where, _ in self.tokens for e in where])
        return self.ep.dispatch(self.shape, *self.patience, 0, 2, at(self.rows), 0, 0, at(self.topk))

    def compute(self, rows: array.array, counts: array.array, hidden: int) -> array.array:
        room = self.ranks * TOKENS
        for e, count in enumerate(counts):
            for i in range(e * room, e * room + count):
                x = rows[i * hidden]
                if rows[i * hidden : (i + 1) * hidden] != array.array("H", [x]) * hidden:
                    raise ValueError(f"row {i} is not of one token")
                rows[i * hidden : (i + 1) * hidden] = array.array("H", [bits(value(x) * scale(self.rank * LOCAL + e))]) * hidden
        return rows

    def is_right(self, out: array.array, there: int, hidden: int) -> bool:
        for t, (x, _, weights) in enumerate(self.tokens):
            where = self.topk[t * TOPK : (t + 1) * TOPK]
            want = sum(w * scale(e) * x for e, w in zip(where, weights, strict=True) if there >> e // LOCAL & 1)
            got = out[t * hidden : (t + 1) * hidden]
            if value(got[0]) != want or got != array.array("H", [got[0]]) * hidden:
                return False
        return True

    def step(self, timeout_us: int, hidden: int) -> tuple[int, str, int]:
        """-> code, text, ranks that are in both halves"""
        room = LOCAL * self.ranks * TOKENS
        half = self.dispatch(timeout_us, hidden)
        if isinstance(half, tuple):
            return (*half, 0)
        rows, counts = array.array("H", bytes(2 * room * hidden)), array.array("i", bytes(4 * LOCAL))
        ranges = array.array("q", bytes(8 * LOCAL * self.ranks))
        code, text, there, _ = half.dispatch(at(rows), 0, 0, at(counts), 0, at(ranges), False)
        if code < 0:
            return code, text, 0
        rows = self.compute(rows, counts, hidden)
        half = self.ep.combine(self.shape, *self.patience, at(rows), False, at(self.topk), at(ranges))
        if isinstance(half, tuple):
            return (*half, 0)
        weights = array.array("f", [w for _, _, weights in self.tokens for w in weights])
        out = array.array("H", bytes(2 * TOKENS * hidden))
        code, text, back, _ = half.combine(at(weights), at(out))
        if code < 0:
            return code, text, 0
        self.seed += 1
        return int(not self.is_right(out, there & back, hidden)), text, there & back

    def steps(self, count: int, timeout_us: int, hidden: int) -> list:
        whole, done = self.ep.members() & ~self.ep.masked(), 0
        while True:
            code, text, ranks = self.step(timeout_us, hidden)
            done += code == 0
            if code or ranks != whole or done == count:
                return [code, text, ranks, done]

    def hold(self, hidden: int) -> list:
        self.held = [self.dispatch(-1, hidden) for _ in range(2)]
        return [int(any(isinstance(half, tuple) for half in self.held))]

    def ahead(self, timeout_us: int, hidden: int) -> list:
        room = LOCAL * self.ranks * TOKENS
        rows, counts = array.array("H", bytes(2 * room * hidden)), array.array("i", bytes(4 * LOCAL))
        ranges = array.array("q", bytes(8 * LOCAL * self.ranks))
        self.held = [self.dispatch(timeout_us, hidden) for _ in range(2)]
        code, text, *_ = self.held[0].dispatch(at(rows), 0, 0, at(counts), 0, at(ranges), False)
        if code == 0:
            self.held.append(self.dispatch(timeout_us, hidden))
            code, text = self.held[2] if isinstance(self.held[2], tuple) else (0, text)
        return [code, text]

    def die(self, hidden: int) -> None:
        self.dispatch(-1, hidden)
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    hub = _mooncake.CollHub()
    print(json.dumps(hub.address()), flush=True)
    rank, founders, slots, timeout_s, addresses = json.loads(sys.stdin.readline())
    coll = _mooncake.Coll(hub, "wide", rank, founders, slots, timeout_s * 10**9, 0, addresses)
    print(json.dumps("open"), flush=True)
    if founders == 0 and coll.join(timeout_s * 10**9) < 0:
        raise SystemExit("not made active")
    one = Rank(coll, rank, slots)
    for line in sys.stdin:
        name, *args = json.loads(line)
        if name == "activate":
            print(json.dumps(coll.activate(args[0], 0, timeout_s * 10**9)), flush=True)
        else:
            print(json.dumps(getattr(one, name)(*args)), flush=True)


main()
