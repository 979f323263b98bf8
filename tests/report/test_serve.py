"""The served page follows a running sweep, answers nobody else, and stays within its limits."""

from __future__ import annotations

import contextlib
import gzip
import html
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser

from krossfuse.core.errors import ConfigError
from krossfuse.core.local_server import HOST, MOST_CONNECTIONS
from krossfuse.report import serve
from krossfuse.report.serve import Follower, Server, main
from krossfuse.results.errors import ResultsError


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    follower = Follower([folder])
    with Server(follower, 0) as server:
        follower.start()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            follower.stop()


def get(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, server.server_address[1], timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, gzip.decompress(body) if answer.headers["Content-Encoding"] == "gzip" else body


def test_new_points_of_a_running_sweep_appear_by_themselves(browser: Browser, sweep: Any) -> None:
    sweep.folder.mkdir()
    with serving(sweep.folder) as server:
        browser.size(1280, 900)
        browser.open(server.address)
        browser.wait("document.getElementById('live').textContent.includes('no results in')")
        sweep.run("cross_modal", {"group": 0.6}, dim=256, deterministic=True)
        browser.wait("document.querySelectorAll('#rows tr').length === 1")
        browser.run(
            "const e = document.getElementById('search'); e.value = 'openmoji'; e.dispatchEvent(new Event('input'))"
        )
        sweep.run("cca", {"group": 0.7}, dim=64)
        sweep.run("<b>gate</b>", {"group": 0.4}, dim=64)
        browser.wait("document.querySelectorAll('#rows tr').length === 3")
        assert browser.run("document.getElementById('search').value") == "openmoji", "what was typed stays"
        assert browser.run("document.querySelectorAll('main b').length") == 0
        browser.run("document.querySelectorAll('#rows .base')[1].click()")
        chosen = browser.run("document.querySelector('#rows tr.baseline .open').textContent")
        (sweep.folder / "2" / "status.json").unlink()
        browser.wait("document.getElementById('live').textContent.includes('1 runs going on')")
        assert browser.run("document.querySelector('#rows tr.baseline .open').textContent") == chosen
    browser.wait("document.getElementById('live').textContent.includes('is krossfuse dashboard still running')")
    outside = [url for url in browser.requests if not url.startswith((server.address, "data:", "blob:"))]
    assert outside == []


def test_a_run_that_cannot_be_read_is_said_and_the_others_stand(quickstart: Path) -> None:
    follower = Follower([quickstart])
    assert follower.look()
    before = follower.content
    assert not follower.look(), "nothing is new"
    path = quickstart / "0" / "results.jsonl"
    kept = path.read_text()
    path.write_text("{\n")
    assert not follower.look()
    assert "0/results.jsonl, line 1" in follower.waiting
    assert follower.content is before
    path.write_text(kept)
    assert follower.look()
    assert follower.waiting == ""


def test_it_answers_this_machine_and_only_what_it_has(quickstart: Path) -> None:
    with serving(quickstart) as server:
        status, page = get(server, "/")
        assert status == 200
        assert "connect-src 'self'" in html.unescape(page.decode())
        while (answer := json.loads(get(server, "/data")[1])).get("waiting"):
            pass
        assert answer["title"] == "KrossFuse: sweep"
        assert get(server, f"/data?since={answer['version']}") == (204, b"")
        assert get(server, "/data?since=older")[0] == 200
        assert len(get(server, f"/scores?version={answer['version']}")[1]) > 100
        for path in ("/scores?version=older", "/../../etc/passwd", "/0/config.yaml", "/%2e%2e/x", "/data/"):
            assert get(server, path)[0] == 404, path
        assert get(server, "/data", Host="evil.example")[0] == 403
        assert get(server, "/data", Host=f"localhost:{server.server_address[1]}")[0] == 200
        assert get(server, "/data", "POST")[0] == 501
        assert server.server_address[0] == "127.0.0.1"


def test_connections_are_limited_and_silent_ones_end(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.Handler, "timeout", 4.0)
    with serving(quickstart) as server, contextlib.ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS):
            stack.enter_context(socket.create_connection(server.server_address[:2], timeout=10))
        statuses = [get(server, "/")[0]]
        deadline = time.monotonic() + 40
        while statuses[-1] != 200 and time.monotonic() < deadline:
            statuses.append(get(server, "/")[0])
        assert (statuses[0], statuses[-1]) == (503, 200), "busy at first; those that say nothing are let go"


def test_a_port_in_use_and_a_folder_that_is_not_there_are_said(quickstart: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port={port} is in use.*--port 0"):
            main([str(quickstart), "--port", str(port)])
    with pytest.raises(ConfigError, match="port=70000 must be a number from 1 to 65535"):
        main([str(quickstart), "--port", "70000"])
    with pytest.raises(ResultsError, match="no such folder"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match="was a variable not set"):
        main([""])
