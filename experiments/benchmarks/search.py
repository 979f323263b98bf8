"""Search over the emoji: ``python -m experiments.benchmarks.search --out FILE``.

Time of a text query after loading, over all emoji; and recall@10 of image-to-image search by subgroup, of the fused
embedding and of both parents alone, with 95% intervals and paired comparisons.

Queries are the test emoji, the gallery all emoji that the cross-modal encoder was not trained on. Relevant is what is
of the query's subgroup; variants of one drawing (its family) are left out of the query's gallery, for every method
would find them. recall@10 is the share of the relevant among the first ten, out of ten or of as many as there are.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.benchmarks.common import write_json
from krossfuse.app.emoji import SIZE, emoji_search
from krossfuse.core.unit import normalised
from krossfuse.data.openmoji import PRETRAIN, Emoji, RenderedEmoji, assign_parts, list_emoji
from krossfuse.model.fused import Fused
from krossfuse.model.search import Index
from krossfuse.results.inference import interval_of_mean
from krossfuse.results.significance import as_scores, compare

K = 10
QUERIES = ("a red mushroom", "a smiling face", "a flag with a cross", "a musical instrument", "a wild animal")


def milliseconds(model: Fused, index: Index, repeats: int) -> dict[str, float]:
    """Return the median and the largest time of a text query, encoding included; the first of each text is not kept."""
    times = []
    for repeat in range(repeats + 1):
        for query in QUERIES:
            start = time.perf_counter()
            index.nearest(model.encode_text(query), K)
            if repeat:
                times.append(1000 * (time.perf_counter() - start))
    return {"median": round(statistics.median(times), 1), "largest": round(max(times), 1)}


def recalls(similarity: Tensor, emoji: list[Emoji], queries: list[int]) -> NDArray[np.float64]:
    """Return the recall@10 of each query that has something to find.

    Args:
        similarity: (queries, emoji).
        emoji: the gallery.
        queries: rows of the gallery that are queries.
    """
    found = []
    for row, query in enumerate(queries):
        others = [i for i, e in enumerate(emoji) if e.family != emoji[query].family]
        relevant = torch.tensor([emoji[i].subgroup == emoji[query].subgroup for i in others])
        if relevant.any():
            best = similarity[row, others].sort(descending=True, stable=True).indices[:K]
            found.append(float(relevant[best].sum()) / min(K, int(relevant.sum())))
    return np.array(found)


def measure(model: Fused, index: Index, repeats: int) -> dict[str, Any]:
    """Return times and recalls."""
    parts = assign_parts()
    held_out = [e for e in list_emoji() if parts[e.id] != PRETRAIN]
    queries = [row for row, e in enumerate(held_out) if parts[e.id] == "test"]
    features = model.encode_parents("image", RenderedEmoji(held_out, SIZE))
    spaces: Mapping[str, Tensor] = {
        "fused": model.fuse("image", features),
        **{role: normalised(x) for role, x in features.items()},
    }
    scores = {name: recalls(x[queries] @ x.T, held_out, queries) for name, x in spaces.items()}
    result: dict[str, Any] = {
        "items": len(index.names),
        "text_query_ms": milliseconds(model, index, repeats),
        "gallery": len(held_out),
        "queries": len(scores["fused"]),
    }
    for name, own in scores.items():
        low, high, _ = interval_of_mean(as_scores(own, deterministic=True), 0.95)
        result[f"recall@10 {name}"] = [round(float(x), 4) for x in (own.mean(), low, high)]
        if name != "fused":
            c = compare(as_scores(scores["fused"], deterministic=True), as_scores(own, deterministic=True))
            result[f"fused less {name}"] = [*(round(x, 4) for x in (c.difference, c.low, c.high)), c.verdict]
    return result


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, index = emoji_search()
    print(write_json({"threads": given.threads, **measure(model, index, given.repeats)}, given.out))


if __name__ == "__main__":
    main()
