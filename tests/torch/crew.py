"""Ranks of a torch world, each a process that runs what a test orders. Forked from one server that imported torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

from mooncake import pg

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed.tensor", "torch.distributed.fsdp", "mooncake.pg"])


def _member(pipe, rank: int, hosts: int) -> None:
    torch.set_num_threads(1)
    if hosts:  # that share nothing but loopback
        os.environ |= {"MC_COLL_HOST": f"host{rank % hosts}", "MC_COLL_IP": "127.0.0.1"}
    while True:
        try:
            job, args = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (None, job(rank, *args))
        except BaseException:  # noqa: BLE001 - the test tells of it
            answer = (traceback.format_exc(), None)
        try:
            pipe.send(answer)
        except OSError:
            return


def enter(rank: int, port: int, size: int, slots: int, timeout_s: float, is_extension: bool = False,
          backend: str = "mooncake-cpu") -> None:  # fmt: skip
    """Make the default group."""
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
    slots = max(slots, size)
    options = pg.MooncakeBackendOptions(torch.zeros(slots, dtype=torch.int32), is_extension, slots)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, pg_options=options,
                            timeout=timedelta(seconds=timeout_s))  # fmt: skip


def doom(delay_s: float) -> None:
    """SIGKILL for this process after a while, wherever it is then."""
    threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()


def refusals(calls) -> list[str]:
    """What each call says to wrong arguments; "nothing" where it takes them."""
    said = []
    for call in calls:
        try:
            call()
            said.append("nothing")
        except (ValueError, TypeError) as error:
            said.append(str(error))
    return said


def assert_each_names(said: list[str], names: list[str]) -> None:
    assert len(said) == len(names)
    for text, name in zip(said, names, strict=True):
        assert name in text, (text, name)


class Crew:
    """`size` founders in one default group of max(slots, size) slots. With `hosts` rank i is on host i % hosts."""

    def __init__(self, size: int, slots: int = 0, timeout_s: float = 60, hosts: int = 0, backend: str = "mooncake-cpu"):
        self.size, self.slots, self.timeout_s, self.hosts = size, slots, timeout_s, hosts
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._ranks: dict[int, tuple] = {}
        for rank in range(size):
            self.spawn(rank)
        self(enter, self._store.port, size, slots, timeout_s, False, backend)

    def spawn(self, rank: int) -> None:
        ours, theirs = _context.Pipe()
        process = _context.Process(target=_member, args=(theirs, rank, self.hosts), daemon=True)
        process.start()
        theirs.close()
        self._ranks[rank] = (process, ours)

    def start(self, job, *args, ranks=None) -> None:
        for rank in self._ranks if ranks is None else ranks:
            self._ranks[rank][1].send((job, args))

    def wait(self, ranks=None, timeout_s: float = 90) -> list:
        """What they answer, by rank; a job that failed fails the test."""
        end, answers, errors = time.monotonic() + timeout_s, [], []
        for rank in sorted(self._ranks) if ranks is None else ranks:
            pipe = self._ranks[rank][1]
            if not pipe.poll(max(end - time.monotonic(), 0)):
                raise AssertionError(f"rank {rank} has not answered after {timeout_s} s")
            error, answer = pipe.recv()
            answers.append(answer)
            if error is not None:
                errors.append(f"rank {rank}:\n{error}")
        assert not errors, "\n".join(errors)
        return answers

    def __call__(self, job, *args, ranks=None) -> list:
        self.start(job, *args, ranks=ranks)
        return self.wait(ranks)

    def kill(self, rank: int) -> None:
        os.kill(self._ranks[rank][0].pid, signal.SIGKILL)
        self.bury(rank)

    def bury(self, rank: int, timeout_s: float = 60) -> None:
        """Wait for the death of a rank that doom() set a time for."""
        process, pipe = self._ranks.pop(rank)
        process.join(timeout_s)
        assert process.exitcode == -signal.SIGKILL, f"rank {rank} ended with {process.exitcode}"
        pipe.close()

    def replace(self, rank: int) -> None:
        """A new process in the slot, which opens the default group as an extension and does not join yet."""
        self.spawn(rank)
        self(enter, self._store.port, self.size, self.slots, self.timeout_s, True, ranks=[rank])

    def close(self) -> None:
        for process, pipe in self._ranks.values():
            pipe.close()
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
