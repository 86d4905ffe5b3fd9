"""Metadata service over HTTP: GET, PUT and DELETE of /metadata?key=...

Processes that are not named by address find each other here. The answers are those of upstream's server of the same name, so
its clients work with this one. Values live in memory only: each process writes its own again when it starts.
"""

import argparse
import ipaddress
import logging
import signal
import socket
import sys
import threading
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

log = logging.getLogger("mooncake.http_metadata_server")

PATH = "/metadata"
VALUE_BYTES_MAX = 128 << 20
STORE_BYTES_MAX = 4 << 30
CONNECTIONS_MAX = 1024
IDLE_SECONDS = 60  # a connection that sends nothing for so long is closed


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


class Handler(BaseHTTPRequestHandler):
    """One connection, in its own thread."""

    protocol_version = "HTTP/1.1"
    server_version = "mooncake"
    sys_version = ""
    timeout = IDLE_SECONDS
    wbufsize = 1 << 16  # head and body leave in one segment
    disable_nagle_algorithm = True

    def log_message(self, format, *args):  # noqa: A002 - the base class's name
        log.debug("%s %s", self.address_string(), format % args)

    def _reply(self, status, body, content_type="application/json"):
        if isinstance(body, str):
            body = body.encode()
            content_type += "; charset=utf-8"
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status, text):
        """For requests whose body stays unread: the connection cannot go on."""
        self.close_connection = True
        self._reply(status, text)

    def _body(self):
        """The request's body, or None when it was refused."""
        if self.headers.get("Transfer-Encoding"):
            self._refuse(411, "Content-Length is required")
            return None
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdigit():
            self._refuse(400, "Content-Length is not a number")
            return None
        # Python refuses to convert absurdly long numbers; so do we, earlier.
        if len(length) > 12 or int(length) > VALUE_BYTES_MAX:
            self._refuse(413, f"metadata is larger than {VALUE_BYTES_MAX} bytes")
            return None
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return None
        return body

    def _serve(self):
        url = urlsplit(self.path)
        body = self._body()
        if body is None:
            return
        if url.path != PATH:
            self._reply(404, "404: Not Found", "text/plain")
            return
        key = parse_qs(url.query, keep_blank_values=True).get("key", [""])[0].strip()
        if not key:
            self._reply(400, "metadata key is required")
        elif self.command == "GET":
            value = self.server.store.get(key)
            if value is None:
                self._reply(404, "metadata not found")
            else:
                self._reply(200, value)
        elif self.command == "PUT":
            self._reply(*self.server.store.put(key, body))
        elif self.command == "DELETE":
            self._reply(*self.server.store.delete(key))
        else:
            self._reply(405, "Method not allowed")

    do_GET = do_PUT = do_DELETE = do_POST = do_HEAD = do_PATCH = do_OPTIONS = _serve


class Server(ThreadingHTTPServer):
    """One thread a connection, a bounded number of them."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, host, port, store):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.store = store
        self._seats = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__((host, port), Handler)

    def server_bind(self):
        # The base class looks the host's name up, which can take seconds and serves nobody.
        socket_bind(self)

    def process_request(self, request, client_address):
        if not self._seats.acquire(blocking=False):
            log.warning("%d connections are open: refusing %s", CONNECTIONS_MAX, client_address[0])
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._seats.release()
            raise

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._seats.release()

    def handle_error(self, request, client_address):
        log.info("connection of %s failed: %s", client_address[0], sys.exc_info()[1])


def socket_bind(server):
    """Bind as socketserver does, and nothing more."""
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.socket.bind(server.server_address)
    server.server_address = server.socket.getsockname()
    server.server_name, server.server_port = server.server_address[:2]


class KVBootstrapServer:
    """The server in a background thread. Raises OSError where it cannot listen."""

    def __init__(self, port, host="0.0.0.0"):
        self.port = port
        self.host = host
        self.thread = None
        self._server = None

    def run(self):
        """Listen and serve; returns the thread."""
        self._server = Server(self.host, self.port, Store())
        self.port = self._server.server_port
        self.thread = threading.Thread(target=self._server.serve_forever, name="metadata", daemon=True)
        self.thread.start()
        log.info("serving %s on %s:%d", PATH, self.host, self.port)
        return self.thread

    def close(self):
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        if self.thread is not None:
            self.thread.join(timeout=2)

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


def is_open_to_others(host):
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


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
