"""What setup() is given, looked at before anything is opened: every refusal names the argument and what it may be."""

from __future__ import annotations

import functools
import logging
import operator

from mooncake._codes import INVALID_PARAMS
from mooncake.mooncake_config import parse_bool, parse_size

BYTES_MAX = (1 << 63) - 1

# What setup(dict) takes, with the other spellings that clients use.
CONFIG_KEYS = {
    "local_hostname": "local_hostname",
    "metadata_server": "metadata_server",
    "global_segment_size": "global_segment_size",
    "local_buffer_size": "local_buffer_size",
    "protocol": "protocol",
    "rdma_devices": "rdma_devices",
    "device_name": "rdma_devices",
    "master_server_addr": "master_server_addr",
    "master_server_address": "master_server_addr",
    "ipc_socket_path": "ipc_socket_path",
    "enable_ssd_offload": "enable_ssd_offload",
    "ssd_offload_path": "ssd_offload_path",
    "tenant_id": "tenant_id",
    "enable_client_http_server": "enable_client_http_server",
    "client_http_port": "client_http_port",
}
_SIZES = ("global_segment_size", "local_buffer_size")
_SWITCHES = ("enable_ssd_offload", "enable_client_http_server")


class Refused(Exception):
    """setup() cannot work with this; the code that it answers."""

    def __init__(self, why: str, code: int = INVALID_PARAMS) -> None:
        super().__init__(why)
        self.code = code


_log = logging.getLogger("mooncake")


def answered(method):
    """A method whose refusals are warnings, and its answer the code."""

    @functools.wraps(method)
    def call(*args, **kwargs):
        try:
            return method(*args, **kwargs)
        except Refused as why:
            _log.warning("%s(): %s", method.__name__, why)
            return why.code

    return call


def text(name: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"argument '{name}' must be a str, not {type(value).__name__}")
    if "\0" in value:
        raise Refused(f"{name} has a zero character in it: {value!r}")
    return value


def size(name: str, value: object) -> int:
    """Bytes of a number, or of "64 MB"."""
    if value is None or isinstance(value, (bytes, list, dict)):
        raise TypeError(f"argument '{name}' must be an int, not {type(value).__name__}")
    try:
        count = parse_size(value)
    except (ValueError, OverflowError):
        raise Refused(f"{name} {value!r} is no number of bytes; write 67108864, or '64MB'") from None
    if not 0 <= count <= BYTES_MAX:
        raise Refused(f"{name} {value!r} is not in 0 … {BYTES_MAX} bytes")
    return count


def port(name: str, value: object) -> int:
    try:
        number = int(value) if isinstance(value, str) else operator.index(value)
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise Refused(f"{name} {value!r} is not in 0 … 65535")
    return number


def from_dict(config: dict) -> dict:
    """Arguments of setup() by name. All values may be text; what is None was not given."""
    known: dict[str, object] = {}
    spelled: dict[str, str] = {}
    for key, value in config.items():
        name = CONFIG_KEYS.get(key)
        if name is None:
            _log.warning("setup(): %r is not an option; those there are: %s", key, ", ".join(CONFIG_KEYS))
        elif value is not None:
            if value != known.get(name, value):
                raise Refused(f"{spelled[name]!r} and {key!r} are the same option, with different values: {known[name]!r}, {value!r}")
            known[name], spelled[name] = value, key
    for name in ("local_hostname", "metadata_server"):
        if not known.get(name):
            raise Refused(f"{name!r} is missing")
    for name, value in known.items():
        if name in _SWITCHES:
            known[name] = parse_bool(value)
        elif name not in _SIZES:
            known[name] = str(value)
    return known
