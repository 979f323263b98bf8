"""The search page: type a text or drop an image, and see CLIP, expert and fused results side by side.

Served by the standard library, and one file of HTML without anything from elsewhere: it works offline, adds no
dependency, and its limits are these.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from PIL import Image, ImageOps

from krossfuse.core.errors import KrossFuseError
from krossfuse.core.local_server import HOST, LocalHandler, LocalServer, RefusedError, as_json
from krossfuse.data.common import to_rgb
from krossfuse.model.side_by_side import Column, SideBySide

log = logging.getLogger(__name__)

PORT = 8266
MOST_BYTES = 10_000_000
"""Of a request: an image of a query."""
MOST_PIXELS = 40_000_000
"""Of an image of a query: a small file may hold more than memory does."""
MOST_CHARACTERS = 1_000
"""Of a text."""
MOST_RESULTS = 100
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SIDE = 160
"""Pixels of a shown picture's side."""
MOST_PICTURES = 4_096
"""Shown pictures that are kept in memory, compressed."""

PAGE = (Path(__file__).parent / "assets" / "search.html").read_text(encoding="utf-8")


def policy(page: str) -> str:
    """Return the Content-Security-Policy of a page: its own style and script, its own server, nothing else.

    >>> policy("<style>a</style><script>b</script>").split("; ")[0]
    "default-src 'none'"
    """
    allowed = {}
    for tag in ("style", "script"):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        allowed[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class SearchServer(LocalServer):
    """Serves the search page.

    Args:
        search: answers the queries.
        pictures: the items of its index.
        k: results of a query that does not say how many.
        port: 0 = any free one.
        host: see :class:`~krossfuse.core.local_server.LocalServer`.

    Raises:
        ConfigError: see there.
    """

    def __init__(
        self, search: SideBySide, pictures: Sequence[Image.Image], *, k: int = 10, port: int = PORT, host: str = HOST
    ) -> None:
        self.search, self.k = search, k
        self._pictures = pictures
        self._one = threading.Lock()
        # A method's own cache would keep the server alive.
        self.picture = lru_cache(MOST_PICTURES)(self._drawn)
        super().__init__(SearchHandler, port, host)

    def about(self) -> dict[str, object]:
        """Return what the page has to know."""
        return {
            "items": len(self.search.index.names),
            "columns": [{"key": key, "title": title} for key, title in self.search.titles.items()],
            "k": self.k,
            "text": "text" in self.search.model.modalities,
            "limits": {"bytes": MOST_BYTES, "characters": MOST_CHARACTERS, "results": MOST_RESULTS},
        }

    def answer(self, query: str | Image.Image, k: int) -> dict[str, object]:
        """Return what a query finds; one query is computed at a time.

        Raises:
            KrossFuseError: the query cannot be encoded.
        """
        with self._one:
            start = time.perf_counter()
            found = self.search.text(query, k) if isinstance(query, str) else self.search.image(query, k)
            seconds = time.perf_counter() - start
        return {"milliseconds": round(1000 * seconds, 1), "columns": [_plain(column) for column in found]}

    def _drawn(self, row: int) -> bytes:
        stream = io.BytesIO()
        picture = ImageOps.contain(self._pictures[row].convert("RGB"), (SIDE, SIDE))
        picture.save(stream, "PNG")
        return stream.getvalue()


def _plain(column: Column) -> dict[str, object]:
    hits = None if column.hits is None else [asdict(hit) for hit in column.hits]
    return {"key": column.key, "title": column.title, "hits": hits, "reason": column.reason or None}


class SearchHandler(LocalHandler):
    """Answers ``GET /``, ``/about`` and ``/item/ROW``, and ``POST /query?k=K``; nothing can be changed.

    The body of a query is ``{"text": "..."}`` as application/json, or an image's file as image/*. No other site's page
    can send these: its browser would ask here first, and is not answered.
    """

    server: SearchServer
    policy = policy(PAGE)

    def do_GET(self) -> None:
        """Answer with the page, what it has to know, or a picture of the index."""
        if not self.is_for_us():
            return
        path = urlsplit(self.path).path
        if path == "/":
            self.send(200, PAGE.encode(), "text/html; charset=utf-8")
        elif path == "/about":
            self.send(200, as_json(self.server.about()), "application/json")
        elif (found := re.fullmatch(r"/item/([0-9]{1,9})", path)) and int(found[1]) < len(
            self.server.search.index.names
        ):
            try:
                picture = self.server.picture(int(found[1]))
            except (KrossFuseError, OSError) as error:  # moved or deleted since
                log.info("%s", error)
                self._refuse(404, "The picture of this item cannot be read any more.")
                return
            self.send(200, picture, "image/png", headers={"Cache-Control": "private, max-age=3600"})
        else:
            self._refuse(404, "There is nothing here.")

    def do_POST(self) -> None:
        """Answer a query."""
        if not self.is_for_us():
            return
        parts = urlsplit(self.path)
        if parts.path != "/query":
            self._refuse(404, "There is nothing here.")
            return
        try:
            k = self._number(parse_qs(parts.query))
            found = self.server.answer(self._query(), k)
        except RefusedError as error:
            self._refuse(error.status, str(error))
        except TimeoutError:
            self._refuse(408, "The request came too slowly.")
        except KrossFuseError as error:
            self._refuse(400, str(error))
        except Exception:  # of a library: its words are for the log
            log.exception("a query was not answered")
            self._refuse(500, "The query could not be answered; the terminal says why.")
        else:
            self.send(200, as_json(found), "application/json")

    def _number(self, query: dict[str, list[str]]) -> int:
        given = query.get("k", [str(self.server.k)])[0]
        if not (given.isascii() and given.isdecimal() and len(given) < 6 and 1 <= int(given) <= MOST_RESULTS):
            raise RefusedError(400, f"k must be a whole number from 1 to {MOST_RESULTS}.")
        return int(given)

    def _query(self) -> str | Image.Image:
        kind = self.headers.get_content_type()
        if kind == "application/json":
            return read_text(self.body(MOST_BYTES))
        if kind.startswith("image/"):
            return read_image(self.body(MOST_BYTES))
        raise RefusedError(415, 'Send {"text": "..."} as application/json, or an image as image/png or the like.')

    def _refuse(self, status: int, reason: str) -> None:
        self.send(status, as_json({"error": reason}), "application/json")
        self.drain()


def read_text(body: bytes) -> str:
    """Return the text of a query.

    Raises:
        RefusedError: there is none, or it is too long.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "The request is no JSON.") from None
    text = given.get("text") if isinstance(given, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise RefusedError(400, "The text is empty.")
    if len(text) > MOST_CHARACTERS:
        raise RefusedError(400, f"The text has {len(text)} characters; at most {MOST_CHARACTERS} are read.")
    return text


def read_image(body: bytes) -> Image.Image:
    """Decode the image of a query into RGB.

    Raises:
        RefusedError: it is no image of the usual formats, damaged, or of too many pixels.
    """
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:  # reads its head alone
            if image.width * image.height > MOST_PIXELS:
                size = f"{image.width} × {image.height}"
                raise RefusedError(
                    400, f"The image has {size} pixels; at most {MOST_PIXELS // 10**6} million are read."
                )
            return to_rgb(image)
    except RefusedError:
        raise
    except Image.DecompressionBombError:
        raise RefusedError(400, f"The image has more than {MOST_PIXELS // 10**6} million pixels.") from None
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        log.info("an image cannot be read: %s: %s", type(error).__name__, error)
        known = ", ".join(FORMATS)
        raise RefusedError(400, f"This is no image of a known format ({known}), or it is damaged.") from None
