"""The Store over HTTP, with upstream's paths, answers and options: a process that gives memory to the pool and is asked from
anywhere. The console script mc_store_rest_server; `python -m mooncake.mooncake_store_service` is the same.

Bodies and answers are JSON but for the bytes of a GET. A request that makes no sense is answered 4xx, what the store refuses 500.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields

from mooncake._codes import NOT_SUPPORTED
from mooncake._http import Handler, Server, Service, decoded, is_open_to_others
from mooncake.mooncake_config import MooncakeConfig
from mooncake.store import MooncakeDistributedStore

log = logging.getLogger("mooncake.store_service")

BODY_BYTES_MAX = 100 << 20
GRACE_SECONDS_MAX = 3600
RETRY_SECONDS = 1.0


class BadRequest(ValueError):
    """What the request says is wrong."""


class MooncakeStoreService:
    """A store, and what is asked of it."""

    def __init__(self, config_path: str | None = None, cli_config: dict[str, str] | None = None) -> None:
        self.config = MooncakeConfig.from_file(config_path) if config_path else MooncakeConfig.load_from_env()
        known = {field.name for field in fields(MooncakeConfig)}
        for name, value in (cli_config or {}).items():
            if name not in known:
                raise ValueError(f"{name!r} is no member of the configuration; those there are: {', '.join(sorted(known))}")
            setattr(self.config, name, value)
        self.store: MooncakeDistributedStore | None = None
        self.current_mode = "prefill"
        self.mounted_segment_ids: list[str] = []
        self.last_mount_info: dict[str, object] = {}
        self._lock = threading.Lock()  # of the mode and what is mounted for it
        self._http: Service | None = None

    # ---- life ----

    async def start_store_service(self, max_wait_time: float = 60, shutdown_event: asyncio.Event | None = None) -> bool:
        """Set the store up; again each second, until that works, `max_wait_time` has passed or the event is set."""
        end = time.monotonic() + max_wait_time
        config = self.config
        while shutdown_event is None or not shutdown_event.is_set():
            store = MooncakeDistributedStore()
            code = await asyncio.to_thread(store.setup, {
                "local_hostname": config.local_hostname, "metadata_server": config.metadata_server,
                "global_segment_size": config.global_segment_size, "local_buffer_size": config.local_buffer_size,
                "protocol": config.protocol, "rdma_devices": config.device_name, "master_server_addr": config.master_server_address,
                "enable_ssd_offload": config.enable_ssd_offload, "ssd_offload_path": config.ssd_offload_path,
                "tenant_id": config.tenant_id, "enable_client_http_server": config.enable_client_http_server,
                "client_http_port": config.client_http_port,
            })  # fmt: skip
            if code == 0:
                self.store = store
                log.info("the store is set up: segment %s", store.get_hostname())
                return True
            left = end - time.monotonic()
            if left <= 0 or code == NOT_SUPPORTED:
                log.error("the store is not set up: code %d", code)
                return False
            log.warning("the store is not set up: code %d; trying again for %.0f s", code, left)
            await _wait(shutdown_event, min(RETRY_SECONDS, left))
        return False

    async def start_http_service(self, port: int = 8080, host: str = "0.0.0.0") -> bool:
        """Listen; OSError where that is not possible."""
        server = Server(host, port, StoreHandler)
        server.service = self
        self._http = Service(server)
        return True

    @property
    def port(self) -> int:
        return self._http.port

    async def stop(self) -> None:
        if self._http:
            await asyncio.to_thread(self._http.close)
            self._http = None
        if self.store:
            await asyncio.to_thread(self.store.close)
            self.store = None

    # ---- objects ----

    def put(self, asked: dict) -> tuple[int, dict]:
        key, value = asked.get("key"), asked.get("value")
        if not key or value is None:
            raise BadRequest("Missing key or value")
        if not isinstance(key, str) or not isinstance(value, str):
            raise BadRequest("key and value are texts")
        code = self.store.put(key, value.encode())
        return _done(code, "PUT operation failed")

    def get(self, key: str) -> tuple[int, dict | memoryview]:
        for _ in range(2):  # again when it came in between
            found = self.store.get_buffer(key)
            if found is not None:
                return 200, memoryview(found)
            there = self.store.is_exist(key)
            if there == 0:
                return 404, {"error": "Key not found"}
            if there < 0:
                break
        return 500, {"error": "GET operation failed", "code": min(there, 0)}

    def exist(self, key: str) -> tuple[int, dict]:
        there = self.store.is_exist(key)
        return (200, {"exists": there > 0}) if there >= 0 else _done(there, "Exist check failed")

    def remove(self, key: str) -> tuple[int, dict]:
        return _done(self.store.remove(key), "Remove operation failed")

    def remove_all(self) -> tuple[int, dict]:
        removed = self.store.remove_all()
        return (200, {"status": f"success removed {removed} keys"}) if removed >= 0 else _done(removed, "RemoveAll operation failed")

    # ---- segments ----

    def mount(self, asked: dict) -> tuple[int, dict]:
        size = asked.get("size")
        if type(size) is not int or not 0 < size < 1 << 63:
            raise BadRequest("Invalid size, must be a positive integer")
        given = self.store.allocate_and_mount_segment(size, *self._transport(asked))
        if given["ret"] != 0:
            return 500, {"error": f"Allocate and mount failed, ret={given['ret']}"}
        return 200, {"status": "success", "segment_ids": given["segment_ids"], "allocated_size": given["allocated_size"]}

    def unmount(self, asked: dict) -> tuple[int, dict]:
        ret = self.store.unmount_and_free_segment(_ids(asked), _grace(asked))
        return (200, {"status": "success"}) if ret == 0 else (500, {"error": f"Unmount and free failed, ret={ret}"})

    def mount_shm(self, asked: dict) -> tuple[int, dict]:
        name, size, offset = asked.get("name"), asked.get("size"), asked.get("offset", 0)
        plain = name.removeprefix("/") if isinstance(name, str) else ""
        if not plain or "/" in plain or plain in (".", "..") or size is None:
            raise BadRequest("Missing or invalid name or size")
        given = self.store.mount_segment(f"/dev/shm/{plain}", _bytes("size", size), _bytes("offset", offset), *self._transport(asked))
        if given["ret"] != 0:
            return 500, {"error": f"Mount failed, ret={given['ret']}"}
        return 200, {"status": "success", "segment_ids": given["segment_ids"]}

    def unmount_shm(self, asked: dict) -> tuple[int, dict]:
        failed = []
        ids, grace = _ids(asked), _grace(asked)
        with self._lock:
            for one in ids:
                if self.store.unmount_segment([one], grace) != 0:
                    failed.append(one)
                elif one in self.mounted_segment_ids:
                    self.mounted_segment_ids.remove(one)
            if not self.mounted_segment_ids:
                self.current_mode = "prefill"
        if failed:
            return 500, {"error": "Unmount failed for one or more segments", "failed_segment_ids": failed}
        return 200, {"status": "success"}

    def unmount_local_disk(self, asked: dict) -> tuple[int, dict]:
        ret = self.store.unmount_local_disk_segment(_grace(asked))
        return (200, {"status": "success"}) if ret == 0 else (500, {"error": f"Unmount local disk failed, ret={ret}"})

    def reconfigure(self, asked: dict) -> tuple[int, dict]:
        """Decode: a segment of a file is mounted, and what was before it unmounted. Prefill: nothing is."""
        mode = str(asked.get("mode", "")).lower()
        if mode not in ("decode", "prefill"):
            raise BadRequest("Invalid mode. Use 'decode' or 'prefill'")
        with self._lock:
            return self._decode(asked) if mode == "decode" else self._prefill()

    def _decode(self, asked: dict) -> tuple[int, dict]:
        path, size, offset = asked.get("path"), asked.get("size"), asked.get("offset", 0)
        if not path or not isinstance(path, str) or size is None:
            raise BadRequest("Missing path or size for decode mode")
        protocol, location = self._transport(asked)
        # The new one first: when it fails, the old ones go on serving.
        given = self.store.mount_segment(path, _bytes("size", size), _bytes("offset", offset), protocol, location)
        if given["ret"] != 0:
            if not self.mounted_segment_ids:
                self.current_mode = "prefill"
                self.last_mount_info = {}
            kept = "keeping previous decode segments" if self.mounted_segment_ids else "rolled back to prefill"
            return 500, {"error": f"Mount failed, ret={given['ret']}; {kept}", "mode": self.current_mode}
        left = [one for one in self.mounted_segment_ids if self.store.unmount_segment([one]) != 0]
        if left:
            log.warning("segments that do not unmount are tried again with the next change: %s", left)
        self.mounted_segment_ids = given["segment_ids"] + left
        self.current_mode = "decode"
        self.last_mount_info = {"path": path, "offset": offset, "size": size, "protocol": protocol, "location": location}
        return 200, {"status": "success", "mode": "decode", "segment_ids": self.mounted_segment_ids}

    def _prefill(self) -> tuple[int, dict]:
        ret = self.store.unmount_segment(self.mounted_segment_ids) if self.mounted_segment_ids else 0
        if ret != 0:
            return 500, {"error": f"Unmount failed, ret={ret}"}
        self.mounted_segment_ids, self.last_mount_info, self.current_mode = [], {}, "prefill"
        return 200, {"status": "success", "mode": "prefill"}

    def _transport(self, asked: dict) -> tuple[str, str]:
        protocol, location = asked.get("protocol", self.config.protocol), asked.get("location", "")
        if not isinstance(protocol, str) or not isinstance(location, str):
            raise BadRequest("protocol and location are texts")
        return protocol, location


def _done(code: int, error: str) -> tuple[int, dict]:
    return (200, {"status": "success"}) if code == 0 else (500, {"error": error, "code": code})


def _bytes(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise BadRequest(f"Invalid {name}, must be a non-negative integer")
    return value


def _ids(asked: dict) -> list[str]:
    ids = asked.get("segment_ids", [])
    ids = [ids] if isinstance(ids, str) else ids
    if not ids:
        raise BadRequest("Missing segment_ids")
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise BadRequest("segment_ids is a text or a list of texts")
    return ids


def _grace(asked: dict) -> int:
    seconds = asked.get("grace_period_seconds", 0)
    if type(seconds) is not int or not 0 <= seconds <= GRACE_SECONDS_MAX:
        raise BadRequest(f"Invalid grace_period_seconds, must be a non-negative integer no greater than {GRACE_SECONDS_MAX}")
    return seconds


async def _wait(event: asyncio.Event | None, seconds: float) -> None:
    """So long, or until the event is set."""
    if event is None:
        await asyncio.sleep(seconds)
        return
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        pass


class StoreHandler(Handler):
    """Paths to the service's methods."""

    body_max = BODY_BYTES_MAX
    what = "the request"

    of_body = {
        ("PUT", "/api/put"): MooncakeStoreService.put, ("POST", "/api/mount"): MooncakeStoreService.mount,
        ("POST", "/api/unmount"): MooncakeStoreService.unmount, ("POST", "/api/mount_shm"): MooncakeStoreService.mount_shm,
        ("POST", "/api/unmount_shm"): MooncakeStoreService.unmount_shm,
        ("POST", "/api/unmount_local_disk"): MooncakeStoreService.unmount_local_disk,
        ("POST", "/api/reconfigure"): MooncakeStoreService.reconfigure,
    }  # fmt: skip
    of_key = {
        ("GET", "/api/get/"): MooncakeStoreService.get, ("GET", "/api/exist/"): MooncakeStoreService.exist,
        ("DELETE", "/api/remove/"): MooncakeStoreService.remove,
    }  # fmt: skip
    of_nothing = {("DELETE", "/api/remove_all"): MooncakeStoreService.remove_all}

    def serve(self, path: str, query: str, body: bytes) -> None:
        service: MooncakeStoreService = self.server.service
        method = "GET" if self.command == "HEAD" else self.command
        route, key = self._route(path)
        allowed = [verb for verb, known in (*self.of_body, *self.of_key, *self.of_nothing) if known == route]
        if not allowed or (route in (known for _, known in self.of_key) and not key):
            self.reply(404, "404: Not Found", "text/plain")
        elif method not in allowed:
            self.reply(405, "405: Method Not Allowed", "text/plain", Allow=", ".join(allowed))
        else:
            self._answer(lambda: self._ask(service, (method, route), key, body))

    def _route(self, path: str) -> tuple[str, str]:
        for _, prefix in self.of_key:
            if path.startswith(prefix):
                return prefix, path.removeprefix(prefix)
        return path, ""

    def _ask(self, service: MooncakeStoreService, route: tuple[str, str], key: str, body: bytes) -> tuple[int, dict | memoryview]:
        if route in self.of_nothing:
            return self.of_nothing[route](service)
        if route in self.of_key:
            return self.of_key[route](service, decoded(key))
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            raise BadRequest("Malformed JSON body") from None
        if not isinstance(asked, dict):
            raise BadRequest("Request body must be a JSON object")
        return self.of_body[route](service, asked)

    def _answer(self, ask: Callable[[], tuple[int, dict | memoryview]]) -> None:
        try:
            status, answer = ask()
        except (ValueError, TypeError) as why:  # BadRequest, and texts that are no UTF-8
            status, answer = 400, {"error": str(why)}
        except Exception as why:
            log.exception("%s %s", self.command, self.path)
            status, answer = 500, {"error": str(why)}
        if isinstance(answer, dict):
            self.reply(status, json.dumps(answer))
        else:
            self.reply(status, answer, "application/octet-stream")


# ---- the program ----


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mc_store_rest_server", description="The Store over HTTP.")
    parser.add_argument("--config", help="JSON file of the configuration; without it MOONCAKE_CONFIG_PATH, or the MOONCAKE_ variables")
    parser.add_argument("-D", "--define", action="append", default=[], metavar="KEY=VALUE", help="instead of what the configuration says")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (8080)")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (0.0.0.0)")
    parser.add_argument("--max-wait-time", type=float, default=60, help="seconds to wait for the master (60)")
    args = parser.parse_args(argv)
    for item in args.define:
        if "=" not in item:
            parser.error(f"-D {item}: write KEY=VALUE")
    if not 0 <= args.port <= 65535:
        parser.error(f"--port {args.port} is not 0 to 65535")
    return args


async def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")
    try:
        service = MooncakeStoreService(args.config, dict(item.split("=", 1) for item in args.define))
    except (OSError, ValueError) as why:
        _complain(str(why))
        return 1
    return await serve(service, args)


async def serve(service: MooncakeStoreService, args: argparse.Namespace) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        if not await service.start_store_service(args.max_wait_time, stop):
            return 0 if stop.is_set() else 1
        try:
            await service.start_http_service(args.port, args.host)
        except OSError as why:
            _complain(f"cannot listen on {args.host} port {args.port}: {why.strerror or why}. Choose another with --host and --port.")
            return 1
        if is_open_to_others(args.host):
            log.warning("anybody who reaches %s:%d may read and change objects; --host 127.0.0.1 serves this machine alone",
                        args.host, service.port)  # fmt: skip
        print(f"mc_store_rest_server serves on {args.host}:{service.port}", flush=True)
        await stop.wait()
        return 0
    finally:
        await service.stop()


def _complain(text: str) -> None:
    print(f"mc_store_rest_server: {text}", file=sys.stderr)


def sync_main(argv: list[str] | None = None) -> int:
    """The console script."""
    return asyncio.run(main(argv))


if __name__ == "__main__":
    sys.exit(sync_main())
