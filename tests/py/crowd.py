"""A process with many engines, each a peer of its own. Reads one JSON line, says "ready", starts on the next line, and
answers with [rc, seconds] of each engine's first write."""

import ctypes
import json
import mmap
import random
import sys
import threading
import time


def main():
    job = json.loads(sys.stdin.readline())
    from mooncake.engine import TransferEngine

    size, count = job["size"], job["count"]
    memory = mmap.mmap(-1, size * count)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    engines = []
    for i in range(count):
        engine = TransferEngine()
        if engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            sys.exit(engine.last_error())
        ctypes.memmove(base + i * size, random.Random(job["seed"] + i).randbytes(size), size)
        if engine.register_memory(base + i * size, size) != 0:
            sys.exit(engine.last_error())
        engines.append(engine)
    results = [None] * count
    gate = threading.Event()

    def run(i):
        gate.wait()
        begin = time.monotonic()
        rc = engines[i].transfer_sync_write(job["target"], base + i * size, job["remote"] + i * size, size)
        results[i] = [rc, time.monotonic() - begin]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    gate.set()
    for thread in threads:
        thread.join()
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
