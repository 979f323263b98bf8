"""What int8 and bits cost: ``python -m experiments.benchmarks.quantise --out FILE``.

The bundled model on the emoji that its cross-modal encoder was not trained on: a name finds its picture among all
(recall@1, 5, 10), and the group of each test picture is that of its nearest picture among train and validation
(1-NN accuracy). As float32, as int8, and as bits of one and of four a dimension; differences to float32 are paired,
with 95% intervals, in points.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.common import write_json
from krossfuse.app.emoji import SIZE, emoji_search
from krossfuse.core.unit import normalised
from krossfuse.data.openmoji import RenderedEmoji, split_emoji
from krossfuse.model.quantise import quantise
from krossfuse.results.significance import as_scores, compare

KS = (1, 5, 10)
FORMS: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "int8": {"precision": "int8"},
    "binary": {"precision": "binary"},
    "binary, 4 bits a dimension": {"precision": "binary", "bits": 4},
}


def similarity(form: dict[str, Any] | None, a: Tensor, b: Tensor, *, cosine: bool) -> tuple[Tensor, float]:
    """Return the similarities of embeddings in a form, and the bytes of an embedding of ``b`` in it."""
    if form is None:
        x, y = (normalised(a), normalised(b)) if cosine else (a, b)
        return x @ y.T, 4.0 * b.shape[1]
    options = {**form, **({"bits": form["bits"] * b.shape[1]} if "bits" in form else {})}
    x, y = (quantise(of, **options) for of in (a, b))
    return x.similarity(y, cosine=cosine), y.nbytes / len(y)


def measure() -> dict[str, Any]:
    """Return, by form, the bytes of an embedding, each figure, and its difference to float32 with the interval."""
    model, _ = emoji_search()
    splits = split_emoji(None)
    images = {split: model.encode_image(RenderedEmoji(of, SIZE)) for split, of in splits.items()}
    every = [e for of in splits.values() for e in of]
    names = model.encode_text([e.name for e in every])
    gallery = torch.cat([images["train"], images["val"]])
    known = [e.group for split in ("train", "val") for e in splits[split]]
    true = [e.group for e in splits["test"]]
    own = torch.arange(len(every))[:, None]
    result: dict[str, Any] = {"pictures": len(every), "tested by 1-NN": len(true)}
    exact: dict[str, Tensor] = {}
    for name, form in FORMS.items():
        found, size = similarity(form, names, torch.cat(list(images.values())), cosine=False)
        first = found.argsort(dim=1, descending=True, stable=True)
        hits = {f"recall@{k}": (first[:, :k] == own).any(1).double() for k in KS}
        near = similarity(form, images["test"], gallery, cosine=True)[0].argmax(1)
        hits["1-NN"] = torch.tensor([known[int(i)] == group for i, group in zip(near, true, strict=True)]).double()
        exact = exact or hits
        result[name] = {"bytes": round(size)}
        for figure, scores in hits.items():
            result[name][figure] = round(100 * float(scores.mean()), 2)
            if form is not None:
                mine, theirs = (as_scores(x.numpy(), deterministic=True) for x in (scores, exact[figure]))
                c = compare(mine, theirs)
                result[name][f"{figure} less float32"] = [round(100 * x, 2) for x in (c.difference, c.low, c.high)]
    return result


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(write_json({"threads": given.threads, **measure()}, given.out))


if __name__ == "__main__":
    main()
