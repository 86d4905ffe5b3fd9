"""The transfer engine, with the names, arguments and results of upstream's `mooncake.engine`.

    engine = TransferEngine()
    engine.initialize("10.0.0.1", "P2PHANDSHAKE", "tcp", "")
    engine.register_memory(address, length)
    engine.transfer_sync_write("10.0.0.2:15123", address, peer_address, length)

A call that fails at run time answers with upstream's code; what went wrong is in `last_error()` and, once, a warning of
the logger "mooncake". An argument of a wrong type or out of range is an exception that names it.
"""

import enum
import logging
from dataclasses import dataclass

from mooncake import _mooncake
from mooncake._mooncake import InnerTransferEngine, TransferEngine

__all__ = [
    "READ",
    "SUPPORT_CUDA",
    "SUPPORT_EFA",
    "SUPPORT_HIP",
    "SUPPORT_INTRA_NVLINK",
    "SUPPORT_MNNVL",
    "SUPPORT_MUSA",
    "WRITE",
    "InnerTransferEngine",
    "Read",
    "TransferEngine",
    "TransferNotify",
    "TransferOpcode",
    "Write",
]

# Transports that only builds of upstream for one vendor have; engines ask before they use them.
SUPPORT_CUDA = False
SUPPORT_EFA = False
SUPPORT_HIP = False
SUPPORT_INTRA_NVLINK = False
SUPPORT_MNNVL = False
SUPPORT_MUSA = False


class TransferOpcode(enum.IntEnum):
    """Which way bytes go: from the peer (Read) or to it (Write)."""

    Read = 0
    Write = 1
    READ = 0
    WRITE = 1

    def __str__(self) -> str:
        return f"TransferOpcode.{self.name}"


Read = READ = TransferOpcode.Read
Write = WRITE = TransferOpcode.Write


@dataclass(slots=True)
class TransferNotify:
    """A message for the peer's program, sent once after the bytes of its transfer are visible there."""

    name: str = ""
    msg: str = ""


TransferEngine.TransferOpcode = TransferOpcode

_mooncake._bind(TransferNotify, logging.getLogger("mooncake").warning)
