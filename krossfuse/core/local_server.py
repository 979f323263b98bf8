"""What the pages that are served on a user's own machine share: who is answered, how much, and for how long."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from krossfuse.core.errors import ConfigError

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
"""The loopback: nobody but this machine."""
LOOPBACK = (HOST, "localhost", "::1")
MOST_CONNECTIONS = 16
"""Requests that are answered at a time; others are told to come again."""
PATIENCE = 10.0
"""Seconds that a connection may be silent."""
LONGEST = 60.0
"""Seconds that the body of a request may take, however it trickles in."""
BUSY = b"HTTP/1.0 503 Busy\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n"


def as_json(data: Any) -> bytes:
    """Return JSON without spaces."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        reason: a sentence for the user.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class LocalServer(ThreadingHTTPServer):
    """Serves a page, on the loopback unless told otherwise.

    Args:
        handler: answers the requests.
        port: 0: any free one.
        host: name or address of this machine to listen on.

    Raises:
        ConfigError: the port is no port, is in use, or needs rights that the user has not; or the host is not this one.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, handler: type[LocalHandler], port: int, host: str = HOST) -> None:
        if not 0 <= port <= 65535:
            raise ConfigError(f"port={port} must be a number from 1 to 65535, or 0 for any that is free")
        self.host = host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            super().__init__((host, port), handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = "is in use, perhaps by another such page"
            elif error.errno == errno.EACCES:
                reason = "needs rights that you do not have"
            elif isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(f"host={host!r} is no name or address of this machine; leave it out for {HOST}, "
                                  "which this machine alone reaches") from None  # fmt: skip
            else:
                raise
            raise ConfigError(
                f"port={port} {reason}; say --port with another, or --port 0 for any that is free"
            ) from None

    @property
    def address(self) -> str:
        """Where the page is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def is_ours(self, host: str) -> bool:
        """Return whether a request's Host means this machine.

        Another site's name may be made to lead here (DNS rebinding), and its page must not read this one. An address
        cannot, so where others are let in on purpose, any address will do.
        """
        name = host.removeprefix("[").partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.lower() in LOOPBACK:
            return True
        if self.host in LOOPBACK:
            return False
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name.lower() in (self.host.lower(), socket.gethostname().lower())

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        """Answer in a thread, if there is room for one."""
        if not self._room.acquire(blocking=False):
            assert isinstance(request, socket.socket)
            with contextlib.suppress(OSError):
                request.settimeout(0.2)
                request.recv(65536)  # a connection that is closed with its question unread takes the answer with it
                request.sendall(BUSY)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        """Answer, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone."""
        log.debug("a request was not answered", exc_info=True)

    def serve_until_interrupted(self, said: str) -> None:
        """Print a line, and serve until Ctrl-C."""
        print(said, flush=True)
        try:
            self.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("ended")


class LocalHandler(BaseHTTPRequestHandler):
    """Answers a request: a subclass says with what.

    Attributes:
        policy: the Content-Security-Policy that goes with every answer; empty = the page has its own.
    """

    server: LocalServer
    server_version = "krossfuse"
    sys_version = ""
    timeout = PATIENCE
    policy = ""

    def is_for_us(self) -> bool:
        """Return whether the browser asked for this machine; where it did not, it is told so."""
        if self.server.is_ours(self.headers.get("Host", "")):
            return True
        self.send(403, b"this page is for this machine alone", "text/plain")
        return False

    def send(
        self, status: int, body: bytes, kind: str, *, compressed: bool = False, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer.

        Args:
            status: of HTTP.
            body: of the answer.
            kind: its type.
            compressed: it is, by gzip.
            headers: further ones, or others than usual.
        """
        usual = {
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }
        if compressed:
            usual["Content-Encoding"] = "gzip"
        if self.policy:
            usual["Content-Security-Policy"] = self.policy
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in {**usual, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def body(self, most: int) -> bytes:
        """Return what was sent with the request.

        Raises:
            RefusedError: no length, more than ``most`` bytes, less than was said, or too slow.
        """
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise RefusedError(411, "The request does not say how long it is.")
        if len(length) > 12 or int(length) > most:
            raise RefusedError(413, f"That is too large: at most {most / 1_000_000:g} MB can be sent.")
        deadline, parts, missing = time.monotonic() + LONGEST, [], int(length)
        while missing:
            part = self.rfile.read1(min(missing, 65536))
            if not part:
                raise RefusedError(400, "The request ended before all of it had come.")
            if time.monotonic() > deadline:
                raise RefusedError(408, "The request came too slowly.")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def drain(self, seconds: float = 2.0) -> None:
        """Read on for a moment after an answer: a connection closed with its question unread takes the answer along."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(seconds / 4)
            while time.monotonic() < deadline and self.connection.recv(65536):
                pass

    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests out of the terminal."""
        log.debug(format, *args)
