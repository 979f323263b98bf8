"""Nearest neighbours under any similarity that can be evaluated tile by tile: memory grows with n·k, never with n²."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive, require

INDICES = ("exact", "faiss")


class Neighbours(NamedTuple):
    """The k nearest of each query, nearest first.

    Attributes:
        scores: (n, k) similarities.
        places: (n, k) int64, which gallery items they are.
    """

    scores: Tensor
    places: Tensor


Read = Callable[[slice], Any]
"""Reads a block of items, in whatever form the similarity takes them."""


@torch.no_grad()
def nearest_in_tiles(
    queries: Read,
    gallery: Read,
    similarity: Callable[[Any, Any], Tensor],
    sizes: tuple[int, int],
    k: int,
    *,
    first: int | None = None,
    block_rows: int = 2048,
) -> Neighbours:
    """Return the k nearest gallery items of each query; equal scores keep the order of the gallery.

    Args:
        queries: reads queries.
        gallery: reads gallery items.
        similarity: of a block of queries and one of the gallery, (a, b).
        sizes: numbers of queries and of gallery items.
        k: at most as many as there are gallery items, without the query itself.
        first: where the queries are gallery items themselves, the place of the first; no item is then its own
            neighbour. None: they are others.
        block_rows: rows of each in one tile.

    Raises:
        DataError: k is larger than the gallery.
    """
    n, m = sizes
    available = m if first is None else m - 1
    if k > available:
        what = "gallery items" if first is None else "other items"
        raise DataError(f"k={k} nearest neighbours of {available} {what}; choose a smaller k")
    scores, places = [], []
    for q in blocks(n, block_rows):
        x = queries(q)
        best, at = None, torch.empty(q.stop - q.start, 0, dtype=torch.int64)
        for g in blocks(m, block_rows):
            s = similarity(x, gallery(g))
            at = at.to(s.device)
            if first is not None:
                own = torch.arange(q.start, q.stop, device=s.device) + first - g.start
                inside = ((own >= 0) & (own < s.shape[1])).nonzero().flatten()
                s[inside, own[inside]] = -torch.inf
            top, index = _first_of_the_best(s, min(k, s.shape[1]))
            index, order = index.sort(dim=1)
            best = top.gather(1, order) if best is None else torch.cat([best, top.gather(1, order)], 1)
            at = torch.cat([at, index + g.start], 1)
            best, order = best.sort(dim=1, descending=True, stable=True)
            best, at = best[:, :k], at.gather(1, order)[:, :k]
        if best is not None:
            scores.append(best.cpu())
            places.append(at.cpu())
    if not scores:
        return Neighbours(torch.empty(0, k), torch.empty(0, k, dtype=torch.int64))
    return Neighbours(torch.cat(scores), torch.cat(places))


def _first_of_the_best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest of each row and their columns; of equal ones the first (``topk`` may take any)."""
    top, index = scores.topk(k, dim=1)
    tied = ((scores >= top[:, -1:]).sum(1) > k).nonzero().flatten()
    if len(tied):
        ordered, order = scores[tied].sort(dim=1, descending=True, stable=True)
        top[tied], index[tied] = ordered[:, :k], order[:, :k]
    return top, index


def check_index(index: object, factory: object, nprobe: object) -> str:
    """Return ``index`` if it is one of :data:`INDICES` and can be used here, with its options.

    Raises:
        ConfigError: it is not, or the package is not installed.
    """
    chosen = check_choice("index", index, INDICES)
    check_positive("faiss_nprobe", nprobe, integer=True)
    if not isinstance(factory, str) or not factory:
        raise ConfigError(f"faiss_factory={factory!r} must be a text for faiss.index_factory, such as 'IVF1024,Flat'")
    if chosen == "faiss":
        _require_faiss()
    return chosen


def _require_faiss() -> None:
    require("faiss", "index=faiss", extra="faiss", instead="index=exact")


def nearest_by_faiss(
    queries: Read,
    gallery: Read,
    sizes: tuple[int, int],
    k: int,
    *,
    first: int | None = None,
    factory: str = "IVF1024,Flat",
    nprobe: int = 16,
    block_rows: int = 4096,
    train_rows: int = 65536,
) -> Neighbours:
    """Return what :func:`nearest_in_tiles` does for inner products, from a faiss index, which may be approximate.

    Where the index finds fewer than k, the rest has score −inf at the first item.

    Args:
        queries: reads (a, dim) queries.
        gallery: reads (b, dim) gallery items.
        sizes: numbers of queries and of gallery items.
        k: number of neighbours.
        first: as in :func:`nearest_in_tiles`.
        factory: the index, as ``faiss.index_factory`` reads it. ``"Flat"`` is exact.
        nprobe: cells that an inverted file looks into.
        block_rows: rows added or asked at once.
        train_rows: rows, evenly spaced, that an index which learns cells is trained on at most.

    Raises:
        ConfigError: faiss is not installed or does not know the factory.
        DataError: k is larger than the gallery, or it is too small for the factory's cells.
    """
    _require_faiss()
    faiss: Any = importlib.import_module("faiss")
    n, m = sizes
    more = k if first is None else k + 1
    if more > m:
        raise DataError(f"k={k} nearest neighbours of {m - more + k} items; choose a smaller k")

    def rows(read: Read, block: slice) -> Any:
        return read(block).float().contiguous().cpu().numpy()

    dim = gallery(slice(0, 1)).shape[1]
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(f"faiss_factory={factory!r} is no index of {dim} dimensions: {reason}") from None
    if not index.is_trained:
        step = -(-m // train_rows)
        sample = torch.cat([gallery(b)[(-b.start) % step :: step] for b in blocks(m, block_rows)])
        try:
            index.train(sample.float().contiguous().cpu().numpy())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(f"faiss_factory={factory!r} cannot be trained on {len(sample)} items: {reason}") from None
    if hasattr(index, "nprobe"):
        index.nprobe = nprobe
    for block in blocks(m, block_rows):
        index.add(rows(gallery, block))
    scores, places = torch.empty(n, k), torch.empty(n, k, dtype=torch.int64)
    for block in blocks(n, block_rows):
        found, at = (torch.from_numpy(part) for part in index.search(rows(queries, block), more))
        if first is not None:  # the item itself, or else the last one found, goes
            own = at == (torch.arange(block.start, block.stop) + first)[:, None]
            own[~own.any(1), -1] = True
            found, at = (part[~own].reshape(len(part), k) for part in (found, at))
        found = found.masked_fill(at < 0, -torch.inf)
        scores[block], places[block] = found, at.clamp_min(0)
    return Neighbours(scores, places)
