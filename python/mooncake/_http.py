"""A small HTTP server for the package's services: one thread a connection; connections, bodies and idle time are bounded."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

log = logging.getLogger("mooncake.http")

CONNECTIONS_MAX = 1024
BODIES_BYTES_MAX = 1 << 30  # of all requests under way
IDLE_SECONDS = 60  # a connection that sends nothing for so long is closed


class Handler(BaseHTTPRequestHandler):
    """One connection, in its own thread. Subclasses define serve() and set `body_max`."""

    body_max = 0
    what = "a body"  # for messages
    protocol_version = "HTTP/1.1"
    server_version = "mooncake"
    sys_version = ""
    timeout = IDLE_SECONDS
    wbufsize = 1 << 16  # head and body leave in one segment
    disable_nagle_algorithm = True

    def serve(self, path: str, query: str, body: bytes) -> None:
        """Answer with reply(). The path is as it came: percent signs and all."""
        raise NotImplementedError

    def log_message(self, format, *args):  # noqa: A002 - the base class's name
        log.debug("%s %s", self.address_string(), format % args)

    def reply(self, status: int, body: str | bytes | memoryview, content_type: str = "application/json", **headers: str) -> None:
        if isinstance(body, str):
            body = body.encode()
            content_type += "; charset=utf-8"
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, text: str) -> None:
        """For requests whose body stays unread: the connection cannot go on."""
        self.close_connection = True
        self.reply(status, text, "text/plain")

    def _length(self) -> int | None:
        """Of the request's body; None when it was refused."""
        if self.headers.get("Transfer-Encoding"):
            self._refuse(411, "Content-Length is required")
            return None
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdigit():
            self._refuse(400, "Content-Length is not a number")
            return None
        # Python refuses to convert absurdly long numbers; so do we, earlier.
        if len(length) > 12 or int(length) > self.body_max:
            self._refuse(413, f"{self.what} is larger than {self.body_max} bytes")
            return None
        return int(length)

    def _handle(self) -> None:
        length = self._length()
        if length is None:
            return
        if not self.server.hold(length):
            self._refuse(503, "too many requests at once")
            return
        try:
            body = self.rfile.read(length)
            if len(body) < length:
                self.close_connection = True
                return
            path, _, query = self.path.partition("?")
            self.serve(path, query, body)
        finally:
            self.server.hold(-length)

    do_GET = do_PUT = do_DELETE = do_POST = do_HEAD = do_PATCH = do_OPTIONS = _handle


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, host: str, port: int, handler: type[Handler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._seats = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._lock = threading.Lock()
        self._held = 0
        super().__init__((host, port), handler)

    def hold(self, size: int) -> bool:
        """Room for a body of so many bytes; a negative number gives it back."""
        with self._lock:
            if size > 0 and self._held + size > BODIES_BYTES_MAX:
                return False
            self._held += size
            return True

    def server_bind(self) -> None:
        """As socketserver does. The base class looks the host's name up, which can take seconds and serves nobody."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address) -> None:
        if not self._seats.acquire(blocking=False):
            log.warning("%d connections are open: refusing %s", CONNECTIONS_MAX, client_address[0])
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._seats.release()
            raise

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._seats.release()

    def handle_error(self, request, client_address) -> None:
        log.info("connection of %s failed: %s", client_address[0], sys.exc_info()[1])


class Service:
    """A server in a background thread. Raises OSError where it cannot listen."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = server.server_port
        self._pid = os.getpid()
        self.thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
        self.thread.start()

    def close(self) -> None:
        if os.getpid() != self._pid:
            return  # a child has no such thread to wait for, and the port is the parent's
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(timeout=2)


def decoded(text: str) -> str:
    """Percent signs undone. ValueError: it is no UTF-8."""
    return unquote(text, errors="strict")


def is_open_to_others(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
