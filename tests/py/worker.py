"""A process that holds one engine and does what it is told: one JSON request a line, one JSON answer a line.

Runs under our package and under upstream's wheel alike, so it uses only what both have. Started by cluster.py.
"""

import ctypes
import json
import mmap
import os
import random
import sys
import threading
import time
import traceback
import zlib


class Worker:
    def __init__(self):
        self.engine = None
        self.maps = []  # keeps memory alive

    def start(self, host="127.0.0.1", metadata="P2PHANDSHAKE", protocol="tcp", device=""):
        from mooncake.engine import TransferEngine

        self.engine = TransferEngine()
        rc = self.engine.initialize(host, metadata, protocol, device)
        return [rc, self.engine.get_rpc_port() if rc == 0 else 0]

    def buffer(self, size, seed=None):
        """Anonymous memory, filled from a seed; its address."""
        memory = mmap.mmap(-1, size)
        self.maps.append(memory)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        if seed is not None:
            self.fill(address, size, seed)
        return address

    def fill(self, address, size, seed):
        ctypes.memmove(address, random.Random(seed).randbytes(size), size)

    def crc(self, address, size):
        return zlib.crc32(ctypes.string_at(address, size))

    def crcs(self, addresses, size):
        return [self.crc(address, size) for address in addresses]

    def peek(self, address, size):
        return ctypes.string_at(address, size).hex()

    def call(self, method, *args):
        return getattr(self.engine, method)(*[self.argument(arg) for arg in args])

    def argument(self, arg):
        from mooncake.engine import TransferNotify, TransferOpcode

        if isinstance(arg, dict) and "opcode" in arg:
            return getattr(TransferOpcode, arg["opcode"])
        if isinstance(arg, dict) and "notify" in arg:
            return TransferNotify(*arg["notify"])
        return arg

    def notifies(self, count, timeout):
        """Wait for `count` messages at most `timeout` seconds."""
        end, got = time.monotonic() + timeout, []
        while len(got) < count and time.monotonic() < end:
            got += [[one.name, one.msg] for one in self.engine.get_notifies()]
            time.sleep(0.005)
        return got

    def poll(self, batch, timeout):
        """transfer_check_status() until it is not 0."""
        end = time.monotonic() + timeout
        while (status := self.engine.transfer_check_status(batch)) == 0 and time.monotonic() < end:
            time.sleep(0.001)
        return status

    def hammer(self, method, threads, rounds, jobs):
        """Each thread makes the call of its job `rounds` times; all results that are not 0."""
        wrong = []

        def run(args):
            for _ in range(rounds):
                rc = self.call(method, *args)
                if rc != 0:
                    wrong.append(rc)

        running = [threading.Thread(target=run, args=(jobs[i % len(jobs)],)) for i in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return wrong

    def loop(self, method, *args):
        """Make the call again and again until it fails. Answers at once; loop_end() tells the result."""

        def run():
            while (rc := self.call(method, *args)) == 0:
                pass
            self.loop_result = rc

        self.loop_thread = threading.Thread(target=run, daemon=True)
        self.loop_thread.start()

    def loop_end(self, timeout):
        """What ended the loop; None when it still runs."""
        self.loop_thread.join(timeout)
        return None if self.loop_thread.is_alive() else self.loop_result

    def is_mix(self, address, size, old_seed, new_seed):
        """Whether every byte is the one of either pattern."""
        now = ctypes.string_at(address, size)
        old, new = (random.Random(seed).randbytes(size) for seed in (old_seed, new_seed))
        return now in (old, new) or all(byte in pair for byte, *pair in zip(now, old, new))

    def usage(self):
        """Open files, threads, resident KiB."""
        with open("/proc/self/status", encoding="ascii") as file:
            words = dict(line.split(":", 1) for line in file)
        return [len(os.listdir("/proc/self/fd")), int(words["Threads"]), int(words["VmRSS"].split()[0])]

    def drop(self):
        self.engine = None


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    worker = Worker()
    for line in sys.stdin:
        name, args = json.loads(line)
        try:
            answer = {"value": getattr(worker, name)(*args)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
