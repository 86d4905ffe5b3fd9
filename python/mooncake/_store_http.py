"""/health, /metrics and /metrics/summary of a process's store: setup(enable_client_http_server=True, client_http_port=…)."""

from __future__ import annotations

import json
import logging
import weakref

from mooncake import prom_text
from mooncake._http import Handler, Server, Service

_log = logging.getLogger("mooncake")

HEALTH = {
    0: (200, {"status": "healthy", "code": 0}),
    1: (503, {"status": "not_initialized", "code": 1}),
    2: (503, {"status": "master_unreachable", "code": 2}),
}
SUMS = {
    "bytes read": "mooncake_transfer_read_bytes", "bytes written": "mooncake_transfer_write_bytes",
    "gets": "mooncake_transfer_get_latency_count", "batch gets": "mooncake_transfer_batch_get_latency_count",
    "puts": "mooncake_transfer_put_latency_count", "batch puts": "mooncake_transfer_batch_put_latency_count",
    "objects that failed": "mooncake_transfer_failed_objects_total",
}  # fmt: skip


class ClientHandler(Handler):
    def serve(self, path: str, query: str, body: bytes) -> None:
        store = self.server.store()
        if self.command not in ("GET", "HEAD"):
            self.reply(405, "405 Method Not Allowed", "text/plain", Allow="GET")
        elif path == "/health":
            status, answer = HEALTH[store.health_check() if store else 1]
            self.reply(status, json.dumps(answer, separators=(",", ":")))
        elif path == "/metrics":
            self.reply(200, store.metrics() if store else "", "text/plain; version=0.0.4")
        elif path == "/metrics/summary":
            self.reply(200, _summary(store.metrics() if store else ""), "text/plain")
        else:
            self.reply(404, "there are /health, /metrics and /metrics/summary here\n", "text/plain")


def _summary(text: str) -> str:
    samples = prom_text.parse(text)
    return ", ".join(f"{what} {prom_text.value(samples, name):.0f}" for what, name in SUMS.items()) + "\n"


def start(store, port: int, host: str = "0.0.0.0") -> Service | None:
    """Serve until it is closed, or the store is gone. A port that is taken is a warning, as upstream's: the store itself works."""
    try:
        server = Server(host, port, ClientHandler)
    except OSError as why:
        _log.warning("setup(): no HTTP on port %d: %s; choose another client_http_port", port, why.strerror or why)
        return None
    server.store = weakref.ref(store)
    service = Service(server)
    weakref.finalize(store, service.close)
    return service
