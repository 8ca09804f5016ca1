"""Prometheus metrics and health over HTTP, served from a thread beside the program.

Metric names follow `forebay_<edge|ingest>_<noun>_<unit>[_total]`.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from common.errors import ServiceError

REQUEST_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Health:
    """What /health answers: 200 when `ok`, else 503; `parts` says in plain words how each part is doing."""

    ok: bool
    parts: Mapping[str, Any] = field(default_factory=dict)


class _Server(ThreadingTCPServer):
    """An HTTP server that, unlike http.server's, asks no name server for its own name."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16


class MetricsServer:
    """Serves GET /metrics (Prometheus text) and GET /health (JSON) until closed."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Callable[[], Health]) -> None:
        """Bind at once; port 0 picks a free one. Raises ServiceError when the address is taken."""

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_TIMEOUT_S

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif self.path == "/health":
                    state = health()
                    body = json.dumps({"ok": state.ok, **state.parts}, default=str).encode()
                    self._answer(200 if state.ok else 503, "application/json", body)
                else:
                    self._answer(404, "text/plain", b"GET /metrics or /health\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the inherited name
                """Scrapes are not worth a log line."""

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise ServiceError(f"http: cannot listen on {host}:{port}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens, `host:port`."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2)
