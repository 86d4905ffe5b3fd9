"""Two processes on one or two hosts: one offers memory, the other reads and writes it.

    python examples/two_processes.py target 127.0.0.1                       # prints NAME ADDRESS, then waits
    python examples/two_processes.py initiator 127.0.0.1 NAME ADDRESS       # in another terminal

The target takes no part in the transfers. It learns of them from a message that comes after the bytes.
"""

import sys
import time

from mooncake.engine import TransferEngine, TransferNotify, TransferOpcode

LENGTH = 1 << 20
HELLO = b"written by the target"
ANSWER = b"written by the initiator"
WAIT_S = 60


def check(rc: int, engine: TransferEngine) -> None:
    """Calls answer 0, or a negative code; last_error() says what is wrong and what to do."""
    if rc != 0:
        sys.exit(f"error {rc}: {engine.last_error()}")


def open_engine(host: str) -> tuple[TransferEngine, int]:
    """An engine at `host`, and memory of it that peers may read and write."""
    engine = TransferEngine()
    check(engine.initialize(host, "P2PHANDSHAKE", "tcp", ""), engine)
    buffer = engine.allocate_managed_buffer(LENGTH)  # or your own memory, after register_memory(address, length)
    if buffer == 0:
        sys.exit(engine.last_error())
    return engine, buffer


def target(host: str) -> None:
    engine, buffer = open_engine(host)
    check(engine.write_bytes_to_buffer(buffer, HELLO, len(HELLO)), engine)
    print(f"{host}:{engine.get_rpc_port()} {buffer}", flush=True)
    end = time.monotonic() + WAIT_S
    while not (notes := engine.get_notifies()):
        if time.monotonic() > end:
            sys.exit("nobody came")
        time.sleep(0.01)
    text = engine.read_bytes_from_buffer(buffer, len(ANSWER))
    print(f"message {notes[0].name!r}: {notes[0].msg!r}; memory: {text.decode()!r}")


def initiator(host: str, name: str, address: int) -> None:
    engine, buffer = open_engine(host)
    check(engine.transfer_sync_read(name, buffer, address, LENGTH), engine)
    print(f"read {LENGTH} bytes of {name}: {engine.read_bytes_from_buffer(buffer, len(HELLO)).decode()!r}")
    check(engine.write_bytes_to_buffer(buffer, ANSWER, len(ANSWER)), engine)
    note = TransferNotify("example", "done")
    check(engine.transfer_sync(name, buffer, address, LENGTH, TransferOpcode.Write, note), engine)
    print(f"wrote {LENGTH} bytes to {name}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["target", host]:
            target(host)
        case ["initiator", host, name, address]:
            initiator(host, name, int(address))
        case _:
            sys.exit(__doc__)
