"""What a collective returns. Part of mooncake.pg."""

from __future__ import annotations

import queue
import threading
from datetime import timedelta

import torch
import torch.distributed as dist

NEVER_NS = (1 << 64) - 1


class Outcome:
    """How an operation ended, for this rank."""

    __slots__ = ("error", "failed", "ranks")

    def __init__(self, ranks: int, failed: int, error: Exception | None):
        self.ranks, self.failed, self.error = ranks, failed, error


_ended_lock = threading.Lock()


class Work(dist.Work):
    """An operation: ended, with its outcome, or pending. `finish` turns the extension's answer into an Outcome, once."""

    _future = None
    _lock = _ended_lock

    def __init__(self, outputs, outcome: Outcome | None, finish=None, pending=None):
        super().__init__()
        self._outputs, self.outcome = outputs, outcome
        if outcome is None:
            self._finish, self._pending = finish, pending
            self._lock = threading.Lock()

    def _advance(self, timeout_ns: int) -> bool:
        if self.outcome is not None:
            return True
        answer = self._pending.wait(timeout_ns)
        if answer is None:
            return False
        with self._lock:
            if self.outcome is None:
                self.outcome = self._finish(answer)
        return True

    def wait(self, timeout: timedelta | None = None) -> bool:
        limit_ns = int(timeout.total_seconds() * 1e9) if timeout else 0
        if not self._advance(limit_ns or NEVER_NS):
            raise RuntimeError(f"the operation has not ended after {timeout}; it goes on")
        if self.outcome.error:
            raise self.outcome.error
        return True

    def synchronize(self) -> None:
        self.wait()

    def is_completed(self) -> bool:
        return self._advance(0)

    def is_success(self) -> bool:
        return self._advance(0) and self.outcome.error is None

    def exception(self):
        return self.outcome.error if self._advance(0) else None

    def result(self):
        self.wait()
        return self._outputs

    def source_rank(self) -> int:
        self.wait()
        return self.outcome.ranks.bit_length() - 1

    _source_rank = source_rank

    def get_future(self):
        with self._lock:
            if self._future is not None:
                return self._future
            self._future = torch.futures.Future()
        if self._advance(0):
            self.settle()
        else:
            completer().put(self)
        return self._future

    def settle(self) -> None:
        """Wait for the end and tell the future."""
        self._advance(NEVER_NS)
        if self.outcome.error:
            self._future.set_exception(self.outcome.error)
        else:
            self._future.set_result(self._outputs)


class Works(Work):
    """Several operations of one call, which end in their order."""

    def __init__(self, outputs, works: list[Work]):
        super().__init__(outputs, None, None, works)

    def _advance(self, timeout_ns: int) -> bool:
        if self.outcome is not None:
            return True
        if not all(work._advance(timeout_ns if i == 0 else NEVER_NS) for i, work in enumerate(reversed(self._pending))):
            return False
        ended = [work.outcome for work in self._pending]
        ranks, failed, error = NEVER_NS, 0, None
        for one in ended:
            ranks, failed, error = ranks & one.ranks, failed | one.failed, error or one.error
        self.outcome = Outcome(ranks, failed, error)
        return True


def all_of(outputs, works: list[Work]) -> Work:
    return works[0] if len(works) == 1 else Works(outputs, works)


class _Completer(threading.Thread):
    """Tells futures of their works' ends, in the order of the questions."""

    def __init__(self):
        super().__init__(name="mooncake-pg", daemon=True)
        self._works: queue.SimpleQueue = queue.SimpleQueue()

    def put(self, work: Work) -> None:
        self._works.put(work)

    def run(self) -> None:
        while True:
            self._works.get().settle()


_completer: list[_Completer] = []
_completer_lock = threading.Lock()


def completer() -> _Completer:
    with _completer_lock:
        if not _completer:
            _completer.append(_Completer())
            _completer[0].start()
        return _completer[0]
