"""MC_TE_METRIC: a line for each interval says what moved in it, whatever the log level is."""

import re
import time
from collections.abc import Callable

from cluster import Node

SIZE = 1 << 20
LINE = re.compile(r'msg="transfer engine metrics" segment=(\S+) read_MBps=([\d.]+) write_MBps=([\d.]+) groups=(\d+) failed=(\d+)')


def lines(node: Node) -> list[tuple[str, float, float, int, int]]:
    found = LINE.findall(node.log.read_text(errors="replace"))
    return [(name, float(read), float(write), int(groups), int(failed)) for name, read, write, groups, failed in found]


def lines_until(node: Node, count: int) -> list[tuple[str, float, float, int, int]]:
    end = time.monotonic() + 20
    while len(lines(node)) < count and time.monotonic() < end:
        time.sleep(0.05)
    return lines(node)


def test_lines_say_what_moved_in_their_interval(node: Callable[..., Node]) -> None:
    metric = {"MC_TE_METRIC": "1", "MC_TE_METRIC_INTERVAL_SECONDS": "1", "MC_LOG_LEVEL": "ERROR"}
    a, b = node(env=metric).start("127.0.0.1", "P2PHANDSHAKE"), node().start("127.0.0.1", "P2PHANDSHAKE")
    here, there = a.memory(SIZE, 1), b.memory(SIZE, 0)
    for _ in range(3):
        assert a.call("transfer_sync_write", b.name, here, there, SIZE) == 0, a.tail()
    assert a.call("transfer_sync_read", b.name, here, there, SIZE) == 0, a.tail()
    seen = lines_until(a, len(lines(a)) + 2)
    assert {line[0] for line in seen} == {a.name}
    assert sum(line[3] for line in seen) == 4
    assert sum(line[4] for line in seen) == 0
    # An interval is a second or, on a machine that stands still, longer; figures have one decimal.
    assert 0 < sum(line[1] for line in seen) < 1.2
    assert 0 < sum(line[2] for line in seen) < 3.5
    assert lines_until(a, len(seen) + 1)[-1][1:] == (0.0, 0.0, 0, 0)


def test_no_lines_unless_asked_for(node: Callable[..., Node]) -> None:
    a = node(env={"MC_TE_METRIC_INTERVAL_SECONDS": "1"}).start("127.0.0.1", "P2PHANDSHAKE")
    time.sleep(1.3)
    assert lines(a) == []
