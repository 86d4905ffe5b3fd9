"""What a client of the Store needs to know, from a JSON file or the environment."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

DEFAULT_GLOBAL_SEGMENT_SIZE = 3355443200
DEFAULT_LOCAL_BUFFER_SIZE = 1 << 30

_log = logging.getLogger("mooncake")
_PROTOCOLS = ("rdma", "rpc_only", "shm", "tcp")  # what setup() takes
_UNITS = {"": 0, "b": 0, "k": 1, "kb": 1, "m": 2, "mb": 2, "g": 3, "gb": 3, "t": 4, "tb": 4}
_REQUIRED = ("local_hostname", "metadata_server", "master_server_address")
_FROM_ENV = {
    "local_hostname": "MOONCAKE_LOCAL_HOSTNAME",
    "metadata_server": "MOONCAKE_TE_META_DATA_SERVER",
    "global_segment_size": "MOONCAKE_GLOBAL_SEGMENT_SIZE",
    "local_buffer_size": "MOONCAKE_LOCAL_BUFFER_SIZE",
    "protocol": "MOONCAKE_PROTOCOL",
    "device_name": "MOONCAKE_DEVICE",
    "master_server_address": "MOONCAKE_MASTER",
    "enable_ssd_offload": "MOONCAKE_OFFLOAD_ENABLED",
    "ssd_offload_path": "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH",
    "tenant_id": "MOONCAKE_TENANT_ID",
    "enable_client_http_server": "MOONCAKE_ENABLE_CLIENT_HTTP_SERVER",
    "client_http_port": "MOONCAKE_CLIENT_HTTP_PORT",
}


def parse_size(value: int | float | str) -> int:
    """Bytes of 5, "5", "1.5 GB", "64mb", "2k"."""
    if not isinstance(value, str):
        return int(value)
    text = value.strip().lower()
    if not text:
        raise ValueError("Invalid segment size: empty string")
    number, unit = re.fullmatch(r"(.*?)\s*([kmgt]?b?)", text).groups()
    if not number:
        raise ValueError(f"Invalid segment size: missing number before '{unit}'")
    try:
        float(number)
    except ValueError:
        raise ValueError(f"Invalid segment size: '{value}' is no number with a unit, as 67108864 or '64MB'") from None
    return int(float(number) * 1024 ** _UNITS[unit]) if unit or not number.lstrip("-").isdigit() else int(number)


def parse_bool(value: object) -> bool:
    """True of True, 1, "1", "true", "yes", "on"."""
    return value.strip().lower() in ("1", "true", "yes", "on") if isinstance(value, str) else bool(value)


@dataclass
class MooncakeConfig:
    """Arguments of MooncakeDistributedStore.setup()."""

    local_hostname: str
    metadata_server: str
    global_segment_size: int
    local_buffer_size: int
    protocol: str
    device_name: str | None
    master_server_address: str
    enable_ssd_offload: bool = False
    ssd_offload_path: str = ""
    tenant_id: str = "default"
    enable_client_http_server: bool = False
    client_http_port: int = 9300

    @classmethod
    def _from(cls, given: Mapping[str, object]) -> MooncakeConfig:
        for name in _REQUIRED:
            if not given.get(name):
                raise ValueError(f"Missing required config field: {name}")
        values = {f.name: given[f.name] for f in fields(cls) if given.get(f.name) is not None}
        protocol = values.setdefault("protocol", "tcp")
        if not isinstance(protocol, str) or not protocol.strip():
            raise ValueError(f"Invalid protocol: {protocol!r}. Protocol must be a non-empty string, e.g. 'tcp' or 'rdma'.")
        values["protocol"] = protocol.strip().lower()
        if values["protocol"] not in _PROTOCOLS:
            _log.warning("protocol %r is not known; those that are: %s", protocol, ", ".join(_PROTOCOLS))
        values.setdefault("device_name", "")
        values["global_segment_size"] = parse_size(values.get("global_segment_size", DEFAULT_GLOBAL_SEGMENT_SIZE))
        values["local_buffer_size"] = parse_size(values.get("local_buffer_size", DEFAULT_LOCAL_BUFFER_SIZE))
        for name in ("enable_ssd_offload", "enable_client_http_server"):
            values[name] = parse_bool(values.get(name, False))
        values["client_http_port"] = int(values.get("client_http_port", 9300))
        return cls(**values)

    @staticmethod
    def from_file(file_path: str) -> MooncakeConfig:
        """Of a JSON file with members of these names; local_hostname, metadata_server and master_server_address must be there."""
        with open(file_path, encoding="utf-8") as file:
            try:
                given = json.load(file)
            except ValueError as why:
                raise ValueError(f"Config file {file_path} is not JSON: {why}") from why
        if not isinstance(given, dict):
            raise ValueError(f"Config file {file_path} holds no JSON object")
        return MooncakeConfig._from(given)

    @staticmethod
    def load_from_env() -> MooncakeConfig:
        """Of the file that MOONCAKE_CONFIG_PATH names, else of MOONCAKE_MASTER and the other variables."""
        path = os.getenv("MOONCAKE_CONFIG_PATH")
        if path:
            return MooncakeConfig.from_file(path)
        if not os.getenv("MOONCAKE_MASTER"):
            raise ValueError("Neither the environment variable 'MOONCAKE_CONFIG_PATH' nor 'MOONCAKE_MASTER' is set.")
        given = {name: os.environ[variable] for name, variable in _FROM_ENV.items() if variable in os.environ}
        return MooncakeConfig._from({"local_hostname": "localhost", "metadata_server": "P2PHANDSHAKE"} | given)
