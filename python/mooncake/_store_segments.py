"""Segments that a store gives to the pool at run time, with upstream's arguments and results."""

from __future__ import annotations

import logging
import re

from mooncake._codes import INTERNAL_ERROR, INVALID_PARAMS, NOT_SUPPORTED

_log = logging.getLogger("mooncake")

UNIT = 16 << 20  # memory is given in multiples of it
GRACE_MAX_S = 3600
OK = 0


class Segments:
    """A part of MooncakeDistributedStore. A segment's id is a text, "number-number"."""

    _has_disk = False

    def mount_segment(self, path: str, size: int, offset: int = 0, protocol: str = "tcp", location: str = "") -> dict:
        """Give a range of a file, mostly of /dev/shm, to the pool; what is in it is lost. The offset is a page's."""
        if size < 0 or offset < 0:
            _log.warning("mount_segment(): sizes are not negative: size %d, offset %d", size, offset)
            return {"ret": INTERNAL_ERROR, "segment_ids": []}
        if size == 0:
            return {"ret": OK, "segment_ids": []}
        return self._mount("mount_segment", size, path, offset, protocol, location)

    def allocate_and_mount_segment(self, size: int, protocol: str = "tcp", location: str = "") -> dict:
        """Give `size` bytes of memory, rounded up to 16 MiB, to the pool. The location is the kernel's choice."""
        if size <= 0:
            _log.warning("allocate_and_mount_segment(): there is no segment of %d bytes", size)
            return {"ret": INTERNAL_ERROR, "segment_ids": [], "allocated_size": 0}
        if location not in ("", "*"):
            _log.warning("allocate_and_mount_segment(): not supported: location %r", location)
            return {"ret": INVALID_PARAMS, "segment_ids": [], "allocated_size": 0}
        given = -(-size // UNIT) * UNIT
        answer = self._mount("allocate_and_mount_segment", given, None, 0, protocol, location)
        return answer | {"allocated_size": given if answer["ret"] == OK else 0}

    def unmount_segment(self, segment_ids: list[str], grace_period_seconds: int = 0) -> int:
        """Take back what mount_segment() gave. Its objects are dropped; read, but not added to, for the grace period."""
        return self._unmount("unmount_segment", segment_ids, True, grace_period_seconds)

    def unmount_and_free_segment(self, segment_ids: list[str], grace_period_seconds: int = 0) -> int:
        """The same for allocate_and_mount_segment()."""
        return self._unmount("unmount_and_free_segment", segment_ids, False, grace_period_seconds)

    def unmount_local_disk_segment(self, grace_period_seconds: int = 0) -> int:
        """0 where this client has no disk. One that it has leaves the pool with close(), a node's with its mooncake_client."""
        if not self.is_open():
            return INTERNAL_ERROR
        if self._has_disk:
            _log.warning("unmount_local_disk_segment(): not supported: the disk leaves the pool when the store is closed")
            return NOT_SUPPORTED
        _log.warning("unmount_local_disk_segment(): this client has no disk; a node's ends with its mooncake_client")
        return OK

    def get_offload_rpc_read_count(self) -> int:
        """How often this client asked an owner to bring an object back from its disk."""
        return self.fetches()

    def _mount(self, what: str, size: int, path: str | None, offset: int, protocol: str, location: str) -> dict:
        code, why, first, second = self.mount(size, path, offset, protocol or "tcp", location or "*")
        if code != OK:
            _log.warning("%s(): %s", what, why or f"code {code}")
            return {"ret": INTERNAL_ERROR, "segment_ids": []}
        return {"ret": OK, "segment_ids": [f"{first}-{second}"]}

    def _unmount(self, what: str, segment_ids: list[str], is_file: bool, grace: int) -> int:
        if isinstance(segment_ids, str):
            raise TypeError(f"{what}(): segment_ids is a list of str")
        if not 0 <= grace <= GRACE_MAX_S:
            _log.warning("%s(): grace_period_seconds is 0 to %d, not %d", what, GRACE_MAX_S, grace)
            return INTERNAL_ERROR
        if not self.is_open():
            return INTERNAL_ERROR
        result = OK
        for text in segment_ids:
            found = re.fullmatch(r"(\d{1,20})-(\d{1,20})", text)
            numbers = [int(n) for n in found.groups()] if found else []
            if not numbers or max(numbers) >= 1 << 64 or self.unmount(*numbers, is_file, grace * 1000) != OK:
                _log.warning("%s(): %r is no segment that this store has mounted that way", what, text)
                result = INTERNAL_ERROR
        return result
