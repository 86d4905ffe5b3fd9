"""One rank of test_pg_hosts.py. A line of JSON in for each command, one out for each answer.

First out: the hub's address. First in: [rank, founders, slots, timeout in s, addresses]. Then ["sum", elements, times]: that
many all_reduces of 10**rank, until one fails or the ranks in it change -> [[code, ranks, first element], times done].
"""

import array
import json
import sys

from mooncake import _mooncake

ALL_REDUCE, F64, SUM = 1, 13, 0


def total(coll, rank: int, count: int) -> list:
    values = array.array("d", [10.0**rank]) * count
    part = values.buffer_info()
    code, _, ranks, _ = coll.run(ALL_REDUCE, F64, SUM, 0, 0.0, part, part)
    assert code < 0 or values == array.array("d", [values[0]]) * count
    return [code, ranks, values[0] if code == 0 else 0]


def main() -> None:
    hub = _mooncake.CollHub()
    print(json.dumps(hub.address()), flush=True)
    rank, founders, slots, timeout_s, addresses = json.loads(sys.stdin.readline())
    coll = _mooncake.Coll(hub, "wide", rank, founders, slots, timeout_s * 10**9, 0, addresses)
    print(json.dumps("open"), flush=True)
    for line in sys.stdin:
        _, count, times = json.loads(line)
        first = last = total(coll, rank, count)
        done = 1
        while done < times and last == first and last[0] == 0:
            last = total(coll, rank, count)
            done += 1
        print(json.dumps([last, done]), flush=True)
    coll.close()


main()
