"""``krossfuse dashboard FOLDER``: the report's page on this machine alone, which follows a sweep while it runs."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from krossfuse.core.errors import ConfigError, KrossFuseError
from krossfuse.core.local_server import LocalHandler, LocalServer, as_json
from krossfuse.report.dashboard.page import following_page
from krossfuse.report.dashboard.payload import payload
from krossfuse.report.page import find, report_title
from krossfuse.results.errors import ResultsError
from krossfuse.results.index import folder_digest, open_runs

log = logging.getLogger(__name__)

PORT = 8265
LEAST_PAUSE, SHARE = 1.0, 4.0
"""Seconds between two looks at the folders, at least; and how many times as long as the last look took."""


@dataclass(frozen=True)
class Content:
    """What is served: compressed JSON and items' scores, and a digest of them."""

    version: str
    data: bytes
    scores: bytes


class Follower:
    """Looks at run folders again and again, in a thread of its own, and keeps what the page shows of them.

    Args:
        folders: of runs or sweeps.
        baseline: name or number of the row that the others are compared with, see :func:`krossfuse.report.page.report`.

    Raises:
        ResultsError: a folder does not exist.
    """

    def __init__(self, folders: Sequence[str | Path], baseline: Sequence[str | int] | None = None) -> None:
        self.folders = [Path(folder) for folder in folders]
        for folder in self.folders:
            if not folder.is_dir():
                raise ResultsError(f"no such folder: {folder}")
        self.baseline = baseline
        self.content: Content | None = None
        self.waiting = "reading the runs …"
        self._seen = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="krossfuse-dashboard", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End looking, and wait for it."""
        self._stop.set()
        self._thread.join()

    def look(self) -> bool:
        """Look once: read what has changed, and return whether anything has."""
        digest = "".join(map(folder_digest, self.folders))
        if digest == self._seen:
            return False
        try:
            with open_runs(self.folders) as (runs, index):
                title = report_title(self.folders)
                found = find(runs, index, title=title, baseline=self.baseline)
                made = payload(found.title, found.runs, found.made, found.notes, found.further)
        except KrossFuseError as error:
            # A run may be half written; what was read before stands until it can be read again.
            self.waiting = f"{error} (looking again)"
            log.info("%s", self.waiting)
            self._seen = digest
            return False
        text = as_json(made.data)
        version = hashlib.blake2b(text + made.scores, digest_size=8).hexdigest()
        text = as_json({**made.data, "version": version})
        self.content = Content(version, gzip.compress(text, 5), gzip.compress(made.scores, 1))
        self.waiting = ""
        self._seen = digest
        return True

    def _follow(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self.look()
            except Exception as error:  # the page must go on, and say so
                log.exception("the folders cannot be read")
                self.waiting = f"{type(error).__name__}: {error}"
            self._stop.wait(max(LEAST_PAUSE, SHARE * (time.monotonic() - began)))


class Server(LocalServer):
    """Serves the page and its data on the loopback.

    Args:
        follower: that has the data.
        port: 0: any free one.

    Raises:
        ConfigError: see :class:`~krossfuse.core.local_server.LocalServer`.
    """

    def __init__(self, follower: Follower, port: int = PORT) -> None:
        self.follower = follower
        self.page = gzip.compress(following_page(f"KrossFuse: {report_title(follower.folders)}").encode(), 5)
        super().__init__(Handler, port)


class Handler(LocalHandler):
    """Answers ``/``, ``/data?since=VERSION`` and ``/scores?version=VERSION``; nothing can be changed."""

    server: Server

    def do_GET(self) -> None:
        """Answer."""
        if not self.is_for_us():
            return
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        follower = self.server.follower
        waiting, content = follower.waiting, follower.content
        if parts.path == "/":
            self.send(200, self.server.page, "text/html; charset=utf-8", compressed=True)
        elif parts.path == "/data":
            has = content is not None and query.get("since") == [content.version]
            if content is None or (has and waiting):
                self.send(200, as_json({"waiting": waiting}), "application/json")
            elif has:
                self.send(204, b"", "application/json")
            else:
                self.send(200, content.data, "application/json", compressed=True)
        elif parts.path == "/scores" and content is not None and query.get("version") == [content.version]:
            self.send(200, content.scores, "application/octet-stream", compressed=True)
        else:
            self.send(404, b"there is nothing here", "text/plain")


def main(argv: list[str] | None = None) -> int:
    """Run ``krossfuse dashboard FOLDER [FOLDER ...] [--port PORT] [--baseline ROW]`` until Ctrl-C.

    Raises:
        ConfigError: a folder's name is empty, or the port cannot be had.
        ResultsError: a folder does not exist.
    """
    parser = argparse.ArgumentParser(
        prog="krossfuse dashboard",
        description="The report's page, for this machine alone; new points of a running sweep appear by themselves.",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of a run or of a sweep; several are one page")
    parser.add_argument("--port", type=int, default=PORT, help=f"(default: {PORT}; 0: any that is free)")
    parser.add_argument("--baseline", nargs="+", metavar="ROW", help="name or number of the row to compare with")
    arguments = parser.parse_args(argv)
    if not all(folder.strip() for folder in arguments.folders):
        raise ConfigError("krossfuse dashboard: the name of a folder is empty; was a variable not set?")
    follower = Follower(arguments.folders, arguments.baseline)
    with Server(follower, arguments.port) as server:
        follower.start()
        try:
            server.serve_until_interrupted(f"{server.address} shows {report_title(arguments.folders)}; Ctrl-C ends it")
        finally:
            follower.stop()
    return 0
