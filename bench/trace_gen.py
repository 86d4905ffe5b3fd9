"""A request trace of the shape of conversations with long shared prefixes, for machines without a recorded one.

Sessions begin at random, each on one of a few system prompts; a session's next turn repeats its whole history and adds
to it, after a pause of seconds to minutes; some sessions end after one turn. Deterministic by its seed. The format is
that of the FAST'25 Mooncake traces: timestamp (ms), input_length, output_length (tokens), hash_ids (blocks of 512).
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Iterator
from typing import Any

BLOCK = 512
SYSTEM_PROMPTS = (1, 2, 2, 4, 8, 16)  # blocks


def requests(count: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(seed)
    fresh = iter(range(1 << 40))
    prompts = [[next(fresh) for _ in range(n)] for n in SYSTEM_PROMPTS]
    waiting: list[tuple[float, int, list[int]]] = []  # (due, tie, history)
    now, serial = 0.0, 0
    for _ in range(count):
        now += rng.expovariate(1 / 300.0)
        if waiting and waiting[0][0] <= now:
            history = heapq.heappop(waiting)[2]
        else:
            history = list(rng.choice(prompts))
        asked = history + [next(fresh) for _ in range(1 + int(rng.paretovariate(1.2)) % 120)]
        answered = rng.randrange(1, 4)
        partial = rng.randrange(1, BLOCK)
        yield {
            "timestamp": int(now),
            "input_length": (len(asked) - 1) * BLOCK + partial,
            "output_length": answered * BLOCK,
            "hash_ids": asked,
        }
        if rng.random() < 0.55:
            serial += 1
            # The last block was not whole: with the answer it becomes another one.
            history = asked[:-1] + [next(fresh) for _ in range(answered)]
            heapq.heappush(waiting, (now + rng.lognormvariate(11.7, 1.1), serial, history))


def write(path: str, count: int, seed: int) -> None:
    with open(path, "w") as f:
        for request in requests(count, seed):
            f.write(json.dumps(request) + "\n")
