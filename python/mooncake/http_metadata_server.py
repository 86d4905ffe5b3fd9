"""Metadata service over HTTP: GET, PUT and DELETE of /metadata?key=...

Processes that are not named by address find each other here. The answers are those of upstream's server of the same name, so
its clients work with this one. Values live in memory only: each process writes its own again when it starts.
"""

import argparse
import logging
import signal
import sys
import threading
from enum import Enum
from urllib.parse import parse_qs

from mooncake._http import Handler, Server, Service, is_open_to_others

log = logging.getLogger("mooncake.http_metadata_server")

PATH = "/metadata"
VALUE_BYTES_MAX = 128 << 20
STORE_BYTES_MAX = 4 << 30


class KVPoll(Enum):
    """How the server stands."""

    Failed = 0
    Bootstrapping = 1
    WaitingForInput = 2
    Transferring = 3
    Success = 4


class Store:
    """Keys and values with a bound on their bytes. Any thread."""

    def __init__(self, bytes_max=STORE_BYTES_MAX):
        self._values = {}
        self._bytes = 0
        self._bytes_max = bytes_max
        self._lock = threading.Lock()

    def get(self, key):
        with self._lock:
            return self._values.get(key)

    def put(self, key, value):
        """Returns (status, text). A server name belongs to whoever took it first, until it is deleted."""
        with self._lock:
            if "rpc_meta" in key and key in self._values:
                return 400, "Duplicate rpc_meta key not allowed"
            old = self._values.get(key)
            grown = self._bytes + len(value) - (len(old) if old is not None else -len(key))
            if grown > self._bytes_max:
                return 507, f"metadata store is full ({self._bytes_max} bytes)"
            self._bytes = grown
            self._values[key] = value
            return 200, "metadata updated"

    def delete(self, key):
        with self._lock:
            if key not in self._values:
                return 404, "metadata not found"
            self._bytes -= len(key) + len(self._values.pop(key))
            return 200, "metadata deleted"


class MetadataHandler(Handler):
    """One connection, in its own thread."""

    body_max = VALUE_BYTES_MAX
    what = "metadata"

    def serve(self, path, query, body):
        store = self.server.store
        if path != PATH:
            self.reply(404, "404: Not Found", "text/plain")
            return
        key = parse_qs(query, keep_blank_values=True).get("key", [""])[0].strip()
        if not key:
            self.reply(400, "metadata key is required")
        elif self.command == "GET":
            value = store.get(key)
            if value is None:
                self.reply(404, "metadata not found")
            else:
                self.reply(200, value)
        elif self.command == "PUT":
            self.reply(*store.put(key, body))
        elif self.command == "DELETE":
            self.reply(*store.delete(key))
        else:
            self.reply(405, "Method not allowed")


class KVBootstrapServer:
    """The server in a background thread. Raises OSError where it cannot listen."""

    def __init__(self, port, host="0.0.0.0"):
        self.port = port
        self.host = host
        self.thread = None
        self._service = None

    def run(self):
        """Listen and serve; returns the thread."""
        server = Server(self.host, self.port, MetadataHandler)
        server.store = Store()
        self._service = Service(server)
        self.port = self._service.port
        self.thread = self._service.thread
        log.info("serving %s on %s:%d", PATH, self.host, self.port)
        return self.thread

    def close(self):
        if self._service is not None:
            self._service.close()
            self._service = None

    def poll(self):
        alive = self.thread is not None and self.thread.is_alive()
        return KVPoll.Success if alive else KVPoll.Failed


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="HTTP metadata server for Mooncake", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8080, help="port to listen on")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument(
        "--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], default="INFO", help="what is logged"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        parser.error(f"--port {args.port} is not 0 to 65535")
    return args


def main(argv=None):
    """The console script mooncake_http_metadata_server."""
    args = parse_args(argv)
    logging.basicConfig(level=args.log_level, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")
    server = KVBootstrapServer(args.port, args.host)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        server.run()
    except OSError as err:
        print(
            f"mooncake_http_metadata_server: cannot listen on {args.host} port {args.port}: {err.strerror or err}. "
            "Choose another with --host and --port.",
            file=sys.stderr,
        )
        return 1
    if is_open_to_others(args.host):
        log.warning(
            "anybody who reaches %s:%d may read and change metadata; --host 127.0.0.1 serves this machine alone",
            args.host,
            server.port,
        )
    stop.wait()
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
