"""The search page finds what brute force on the model's encodings finds, shows what it must, and keeps its limits."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser
from PIL import Image

from krossfuse.app import search as search_command
from krossfuse.core import local_server
from krossfuse.core.errors import ConfigError, DataError, StoreError
from krossfuse.core.local_server import HOST
from krossfuse.core.parts import CROSS_MODAL
from krossfuse.model import search_page
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.search import Index, load_index, make_index, save_index
from krossfuse.model.search_page import MOST_BYTES, MOST_CHARACTERS, SearchServer
from krossfuse.model.side_by_side import SideBySide, parents_of
from krossfuse.model.sources import read_items

EXPERT = "efficientnet_lite0"
MARKUP = "<img src=x onerror=console.error(1)>&.png"


@pytest.fixture(scope="module")
def pictures(emoji_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of emoji; the name of one is markup."""
    folder = Path(shutil.copytree(emoji_files, tmp_path_factory.mktemp("page") / "pictures"))
    (folder / "03.png").rename(folder / MARKUP)
    return folder


@pytest.fixture(scope="module")
def index_file(_made: FusedEncoder, pictures: Path) -> Path:
    """Their index, as ``krossfuse index`` makes it."""
    path, items = pictures.parent / "index.safetensors", read_items(pictures)
    about = {"kind": "files", "root": str(items.root)}
    save_index(make_index(_made, items.items, items.names, about=about), path)
    return path


@pytest.fixture(scope="module")
def server(_made: FusedEncoder, index_file: Path) -> Iterator[SearchServer]:
    """The page of the index, served."""
    index = load_index(index_file)
    shown = search_command._pictures(index)
    parents = parents_of(_made, index, shown, index_file.with_name("index.parents.safetensors"))
    with SearchServer(SideBySide(_made, index, parents), shown, k=5, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: SearchServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Return status, body (of JSON, what it says) and headers of an answer."""
    connection = http.client.HTTPConnection(HOST, server.server_address[1], timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers["Content-Type"] == "application/json"
    return answer.status, json.loads(content) if is_json else content, answer.headers


def query(server: SearchServer, body: bytes, kind: str, k: int | str = 12) -> tuple[int, Any]:
    return ask(server, "POST", f"/query?k={k}", body, Content_Type=kind)[:2]


def says(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


def unit(x: torch.Tensor) -> np.ndarray:
    array = x.double().numpy()
    return np.asarray(array / np.linalg.norm(array, axis=-1, keepdims=True))


def ranked(columns: list[dict[str, Any]], key: str) -> tuple[list[int], np.ndarray]:
    (column,) = [column for column in columns if column["key"] == key]
    assert [hit["rank"] for hit in column["hits"]] == list(range(1, len(column["hits"]) + 1))
    return [hit["row"] for hit in column["hits"]], np.array([hit["score"] for hit in column["hits"]])


def test_ranks_are_brute_force_in_every_space(server: SearchServer, model: FusedEncoder, pictures: Path) -> None:
    names = list(server.search.index.names)
    paths = [pictures / name for name in names]
    parents, fused = model.encode_parents("image", paths), model.encode_image(paths).double().numpy()

    status, found = query(server, says("a red mushroom"), "application/json")
    text = model.encode_parents("text", "a red mushroom")
    expected = {
        CROSS_MODAL: unit(parents[CROSS_MODAL]) @ unit(text[CROSS_MODAL][0]),
        "fused": fused @ model.encode_text("a red mushroom").double().numpy(),
    }
    assert status == 200
    assert [column["key"] for column in found["columns"]] == [CROSS_MODAL, EXPERT, "fused"]
    for key, scores in expected.items():
        rows, given = ranked(found["columns"], key)
        assert rows == np.argsort(-scores, kind="stable").tolist(), key
        assert np.allclose(given, scores[rows], atol=1e-5), key
    assert found["columns"][1]["hits"] is None
    assert "reads no text" in found["columns"][1]["reason"]

    status, found = query(server, paths[5].read_bytes(), "image/png")
    own = model.encode_parents("image", paths[5])
    expected = {role: unit(x) @ unit(own[role][0]) for role, x in parents.items()}
    expected["fused"] = fused @ fused[5]
    assert status == 200
    for key, scores in expected.items():
        rows, given = ranked(found["columns"], key)
        assert rows == np.argsort(-scores, kind="stable").tolist(), key
        assert np.allclose(given, scores[rows], atol=1e-5), key
    assert ranked(found["columns"], EXPERT)[0][0] == 5
    assert len(ranked(query(server, says("a dog"), "application/json", 3)[1]["columns"], "fused")[0]) == 3


def test_pictures_are_those_of_the_index_and_nothing_else(server: SearchServer) -> None:
    status, content, headers = ask(server, "GET", "/item/0")
    assert (status, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, "image/png", "nosniff")
    assert max(Image.open(io.BytesIO(content)).size) == search_page.SIDE
    for path in ("/item/12", "/item/-1", "/item/0/", "/item/00.png", "/item/../index.safetensors", "/item/%2e%2e/x",
                 "/../../etc/passwd", "/index.safetensors", "/item/9999999999"):  # fmt: skip
        status, said, _ = ask(server, "GET", path)
        assert (status, list(said)) == (404, ["error"]), path
    assert ask(server, "POST", "/item/0", b"{}")[0] == 404


def test_requests_beyond_a_limit_are_refused_in_a_sentence(
    server: SearchServer, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(status: int, words: str, body: bytes, kind: str = "application/json", k: int | str = 5) -> None:
        answer = query(server, body, kind, k)
        assert answer[0] == status, (words, answer)
        assert words in answer[1]["error"]

    whole = (pictures / "05.png").read_bytes()
    refused(413, "at most 10 MB", b"\0" * (MOST_BYTES + 1), "image/png")
    refused(400, "damaged", b"no image", "image/png")
    refused(400, "damaged", whole[: len(whole) // 2], "image/png")
    refused(400, "known format", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")
    refused(415, "as application/json", says("a dog"), "text/plain")
    refused(400, "is no JSON", b"{")
    refused(400, "is no JSON", b"[" * 100_000)
    refused(400, "empty", b"[]")
    refused(400, "empty", says(" "))
    refused(400, "UTF-8", b'{"text": "\\ud800"}')
    refused(400, "at most 1000", says("a" * (MOST_CHARACTERS + 1)))
    for k in ("0", "101", "-1", "x", "1" * 5000):
        refused(400, "whole number from 1 to 100", says("a dog"), k=k)
    # 60,000 × 60,000 pixels by its head, and none in it: were they decoded, it would be said to be damaged.
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    bomb = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    refused(400, "million", b"\x89PNG\r\n\x1a\n" + b"".join(bomb), "image/png")
    monkeypatch.setattr(search_page, "MOST_PIXELS", 224 * 224 - 1)
    refused(400, "224 × 224 pixels", whole, "image/png")

    with socket.create_connection(server.server_address[:2], timeout=20) as short:  # type: ignore[arg-type]
        short.sendall(b"POST /query HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n\r\n")
        assert b" 411 " in short.recv(100)


@pytest.mark.parametrize("limit", ["silence", "length"])
def test_a_body_that_does_not_come_is_not_waited_for(
    server: SearchServer, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    if limit == "silence":
        monkeypatch.setattr(search_page.SearchHandler, "timeout", 0.3)
    else:
        monkeypatch.setattr(local_server, "LONGEST", 0.0)
    with socket.create_connection(server.server_address[:2], timeout=20) as slow:  # type: ignore[arg-type]
        slow.sendall(b"POST /query HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n")
        slow.sendall(b"Content-Length: 100\r\n\r\nsome")
        assert b" 408 " in slow.recv(100)


def test_it_answers_this_machine_alone(server: SearchServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    for method, path in (("GET", "/"), ("GET", "/item/0"), ("POST", "/query")):
        assert ask(server, method, path, Host="evil.example:80")[0] == 403
    assert ask(server, "GET", "/about", Host=f"localhost:{server.server_address[1]}")[0] == 200
    policy = ask(server, "GET", "/")[2]["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_where_others_are_let_in_names_from_elsewhere_are_still_refused(server: SearchServer) -> None:
    with SearchServer(server.search, server._pictures, port=0, host="0.0.0.0") as opened:
        assert opened.is_ours("192.0.2.7:80")
        assert not opened.is_ours("evil.example:80")
    assert server.is_ours("[::1]:80")
    assert not server.is_ours("192.0.2.7:80")
    with pytest.raises(ConfigError, match="no name or address of this machine"):
        SearchServer(server.search, server._pictures, port=0, host="192.0.2.7")


def test_the_parents_rows_are_kept_and_pictures_that_changed_are_named(
    server: SearchServer, model: FusedEncoder, index_file: Path, pictures: Path, tmp_path: Path
) -> None:
    index, path = load_index(index_file), index_file.with_name("index.parents.safetensors")
    shown = search_command._pictures(index)
    kept = parents_of(model, index, [], path)  # of no pictures: they come from the file
    assert all(torch.equal(kept[role], x.features) for role, x in server.search.parents.items())
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"nothing")
    made = parents_of(model, index, shown, damaged)
    assert all(torch.allclose(made[role], x, atol=1e-6) for role, x in kept.items())
    swapped = [shown[row] for row in (1, 0, *range(2, 12))]
    with pytest.raises(StoreError, match="2 of 12 pictures are not those that the index was made of"):
        parents_of(model, index, swapped, tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()

    outside = Index(index.features, ["../secret.png", *index.names[1:]], index.model, index.about)
    with pytest.raises(DataError, match="not below its folder"):
        search_command._pictures(outside)


def test_the_command_serves_this_machine_unless_told_otherwise(
    model: FusedEncoder, index_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[Any, ...]] = []

    def note(self: SearchServer, said: str) -> None:
        started.append((self.server_address[0], self.k, self.search.cosine, said))

    monkeypatch.setattr(search_command, "_open", lambda path, folder: (model, load_index(path)))
    monkeypatch.setattr(SearchServer, "serve_until_interrupted", note)
    common = ["--serve", "--index", str(index_file), "--port", "0"]
    search_command.main(common)
    assert started[0][:3] == ("127.0.0.1", 10, False)
    assert "searches 12 images" in started[0][3]
    assert capsys.readouterr().err == ""
    assert index_file.with_name("index.parents.safetensors").is_file()
    search_command.main([*common, "--host", "0.0.0.0", "-k", "3", "--cosine"])
    assert started[1][:3] == ("0.0.0.0", 3, True)
    assert "no password" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a dog", "--port", "1"], "say --serve too"),
        (["a dog", "--host", "localhost"], "say --serve too"),
        (["a dog", "--serve"], "leave text out"),
        (["--serve", "--json"], "leave json out"),
        (["--serve", "-k", "101"], "from 1 to 100"),
    ],
)
def test_options_that_do_not_go_together_are_said(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search_command.main(arguments)


def test_a_person_types_a_text_and_gives_an_image(
    browser: Browser, server: SearchServer, pictures: Path, tmp_path: Path
) -> None:
    count = "document.querySelectorAll('#results section[data-key=\"%s\"] li').length === 12"
    loaded = (
        "[...document.querySelectorAll('#results img')].every(i => (i.loading = 'eager', i.complete && i.naturalWidth))"
    )
    for width, dark in ((1280, False), (400, True)):
        browser.size(width, 900, dark=dark)
        browser.open(server.address)
        browser.run("document.getElementById('k').value = 12; document.getElementById('text').focus()")
        browser.send("Input.insertText", text="a red mushroom")
        browser.press("Enter", 13, "\r")
        browser.wait(count % "fused")
        assert browser.run(count % CROSS_MODAL)
        assert "reads no text" in browser.run("document.querySelector('#results section:nth-child(2)').textContent")
        said = browser.run("document.querySelector('[aria-live]').textContent")
        assert said.startswith("“a red mushroom”: the best 12 of 12 items in 2 spaces")
        assert MARKUP in browser.run("document.getElementById('results').textContent")
        assert browser.run("document.querySelectorAll('#results .name *').length") == 0
        browser.wait(loaded)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), width
        browser.picture(tmp_path / f"text-{width}.png")

        root = browser.send("DOM.getDocument")["root"]["nodeId"]
        chosen = browser.send("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        browser.send("DOM.setFileInputFiles", files=[str(pictures / "05.png")], nodeId=chosen)
        browser.wait(count % EXPERT)
        browser.wait(loaded)
        first = browser.run(f"document.querySelector('[data-key={EXPERT}] .name').textContent")
        assert first == "1. 05.png"
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), width
        browser.picture(tmp_path / f"image-{width}.png")
        assert browser.said == []
        assert [url for url in browser.requests if not url.startswith((server.address, "data:", "blob:"))] == []
