"""Types of mooncake.engine."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

SUPPORT_CUDA: bool
SUPPORT_EFA: bool
SUPPORT_HIP: bool
SUPPORT_INTRA_NVLINK: bool
SUPPORT_MNNVL: bool
SUPPORT_MUSA: bool

class TransferOpcode(enum.IntEnum):
    Read = 0
    Write = 1
    READ = 0
    WRITE = 1

Read: TransferOpcode
Write: TransferOpcode
READ: TransferOpcode
WRITE: TransferOpcode

@dataclass(slots=True)
class TransferNotify:
    name: str = ""
    msg: str = ""

class InnerTransferEngine:
    def get_engine_ptr(self) -> int: ...

_Ints = Sequence[SupportsIndex]

class TransferEngine:
    TransferOpcode: type[TransferOpcode]

    def __init__(self) -> None: ...
    def initialize(
        self, local_hostname: str, metadata_server: str, protocol: str | None, device_name: str | None
    ) -> int: ...
    def initialize_ext(
        self,
        local_hostname: str,
        metadata_server: str,
        protocol: str | None,
        device_name: str | None,
        metadata_type: str,
    ) -> int: ...
    def get_rpc_port(self) -> int: ...
    def get_engine(self) -> InnerTransferEngine | None: ...
    def get_engine_ptr(self) -> int: ...
    def last_error(self) -> str: ...
    def metrics_text(self) -> str: ...
    def get_local_topology(self, device_name: str | None = None) -> str: ...
    def get_first_buffer_address(self, segment_name: str) -> int: ...
    def warmup_efa_segment(self, segment_name: str) -> int: ...
    def send_probe(self, peer_server_name: str) -> int: ...
    def get_notifies(self) -> list[TransferNotify]: ...
    def register_memory(self, buffer_addr: SupportsIndex, capacity: SupportsIndex, location: str = "*") -> int: ...
    def unregister_memory(self, buffer_addr: SupportsIndex) -> int: ...
    def batch_register_memory(self, buffer_addresses: _Ints, capacities: _Ints, location: str = "*") -> int: ...
    def batch_unregister_memory(self, buffer_addresses: _Ints) -> int: ...
    def allocate_managed_buffer(self, length: SupportsIndex) -> int: ...
    def free_managed_buffer(self, buffer_addr: SupportsIndex, length: SupportsIndex) -> int: ...
    def write_bytes_to_buffer(
        self, dest_address: SupportsIndex, src: bytes | bytearray | memoryview | str, length: SupportsIndex
    ) -> int: ...
    def read_bytes_from_buffer(self, src_address: SupportsIndex, length: SupportsIndex) -> bytes: ...
    def transfer_sync_write(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        transport_hint: str = "",
    ) -> int: ...
    def transfer_sync_read(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        transport_hint: str = "",
    ) -> int: ...
    def transfer_sync(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        opcode: TransferOpcode,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
    ) -> int: ...
    def transfer_submit_write(
        self,
        target_hostname: str,
        buffer: SupportsIndex,
        peer_buffer_address: SupportsIndex,
        length: SupportsIndex,
        transport_hint: str = "",
    ) -> int: ...
    def transfer_check_status(self, batch_id: SupportsIndex) -> int: ...
    def batch_transfer_sync_write(
        self,
        target_hostname: str,
        buffers: _Ints,
        peer_buffer_addresses: _Ints,
        lengths: _Ints,
        transport_hint: str = "",
    ) -> int: ...
    def batch_transfer_sync_read(
        self,
        target_hostname: str,
        buffers: _Ints,
        peer_buffer_addresses: _Ints,
        lengths: _Ints,
        transport_hint: str = "",
    ) -> int: ...
    def batch_transfer_sync(
        self,
        target_hostname: str,
        buffers: _Ints,
        peer_buffer_addresses: _Ints,
        lengths: _Ints,
        opcode: TransferOpcode,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
    ) -> int: ...
    def batch_transfer_async_write(
        self,
        target_hostname: str,
        buffers: _Ints,
        peer_buffer_addresses: _Ints,
        lengths: _Ints,
        transport_hint: str = "",
    ) -> int: ...
    def batch_transfer_async_read(
        self,
        target_hostname: str,
        buffers: _Ints,
        peer_buffer_addresses: _Ints,
        lengths: _Ints,
        transport_hint: str = "",
    ) -> int: ...
    def batch_transfer_async(
        self,
        target_hostname: str,
        buffers: _Ints,
        peer_buffer_addresses: _Ints,
        lengths: _Ints,
        opcode: TransferOpcode,
        transport_hint: str = "",
    ) -> int: ...
    def get_batch_transfer_status(self, batch_ids: _Ints) -> int: ...
