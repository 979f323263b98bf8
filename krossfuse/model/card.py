"""The model card: what a model is, what was measured of it and how, whose weights it stands on, how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from krossfuse.core.errors import KrossFuseError
from krossfuse.encoders.io import describe_encoder
from krossfuse.model.fused import Fused
from krossfuse.report.files import escape
from krossfuse.report.values import digits, scale
from krossfuse.results.aggregate import CONDITIONS, aggregate
from krossfuse.results.runs import Run

_FRONT = """---
library_name: krossfuse
license: other
license_name: see-the-parents-below
pipeline_tag: feature-extraction
tags: [krossfuse, feature-extraction, zero-shot-image-classification]
---
"""

_USE = {
    "image": 'images = model.encode_image(["one.png", "two.png"], normalize=True)   # (2, {dim})',
    "text": 'texts = model.encode_text(["a red mushroom", "a smiling face"], normalize=True)   # (2, {dim})',
}


def model_card(model: Fused, runs: Sequence[Run] = ()) -> str:
    """Return the card of a model as markdown.

    Args:
        model: the model; a card that it has already is returned as it is, unless there are runs.
        runs: in which it was measured.
    """
    if model.card is not None and not runs:
        return model.card
    described = model.fusion.describe()
    title = described.get("title") or described.get("method") or type(model.fusion).__name__
    parts = [
        _FRONT,
        f"# {escape(str(title))} of {escape(model.pair.name)}",
        "",
        f"Encodes {' and '.join(f'{m}s' for m in model.modalities)} into one space of {model.dim} dimensions, by "
        "frozen encoders whose embeddings are fused "
        "([When Kernels Multiply, Clusters Unify](https://arxiv.org/abs/2506.08645)). "
        f"Saved by krossfuse {metadata.version('krossfuse')}.",
        "",
        "## Use",
        "",
        "```python",
        "import krossfuse",
        "",
        'model = krossfuse.FusedEncoder.from_pretrained("path/to/this/folder")',
        *(_USE[modality].format(dim=model.dim) for modality in model.modalities),
        *(["scores = model.similarity(texts, images)"] if len(model.modalities) == 2 else []),
        "```",
        "",
        "Nothing in this folder is executed or unpickled. Loading holds the encoders' weights and preprocessing, the "
        "libraries' versions and the golden embeddings against what was saved, and says what differs.",
        "",
        "## Encoders",
        "",
        *_encoders(model),
        "",
        "## Fusion",
        "",
        "| option | value |",
        "| --- | --- |",
        *(f"| {escape(str(k))} | {escape(_text(v))} |" for k, v in described.items() if k != "title"),
        "",
        "## Measurements",
        "",
        *_measurements(runs),
        "",
    ]
    return "\n".join(parts)


def _encoders(model: Fused) -> list[str]:
    lines = ["| role | encoder | dimensions | weights (SHA-256) | licence |", "| --- | --- | ---: | --- | --- |"]
    modules = {role: module for m in model.modalities for role, module in model.loaded(m).items()}
    for role, encoder in model.pair.every().items():
        if role not in modules:
            continue
        reference = {k: v for k, v in describe_encoder(encoder).items() if v is not None}
        name = reference.pop("_target_").rpartition(".")[2]
        options = ", ".join(f"{k}={_text(v)}" for k, v in reference.items())
        digests = {str(of.get("weights", "")) for of in model.fingerprints()[role].values()}
        weights = ", ".join(sorted(digest[:12] for digest in digests if digest)) or "not known"
        cells = [role, f"{name}({options})", str(modules[role].dim), weights, _licence(encoder)]
        lines.append(f"| {' | '.join(map(escape, cells))} |")
    return lines


def _licence(encoder: Any) -> str:
    try:
        return encoder.licence or "not known here; see where its weights come from"
    except KrossFuseError:
        return "not known here; see where its weights come from"


def _measurements(runs: Sequence[Run]) -> list[str]:
    """Return the table of what was measured, with intervals, and the protocol of each probe."""
    if not any(run.records for run in runs):
        return ["None was made where this model was saved (`krossfuse export RUN FOLDER` writes those of a run)."]
    table, notes = aggregate(runs)
    lines = [
        "95% intervals, over what the last column but one says. The method was fitted on training data, and measured "
        "on what the column *of* says.",
        "",
        "| probe | metric | of | value | 95% interval | over | items |",
        "| --- | --- | --- | ---: | ---: | --- | ---: |",
    ]
    protocols: dict[str, Mapping[str, Any]] = {}
    for _, cell in table.iterrows():
        record = cell["members"][0][1]
        of = [
            cell["data"],
            cell["modality"],
            cell["label_set"],
            *(_condition(n, cell[n]) for n in CONDITIONS),
            cell["other"],
        ]
        metric = record.declaration()
        value, low, high = (
            f"{x * scale(metric):.{digits(metric, x)}f}" for x in (cell["mean"], cell["low"], cell["high"])
        )
        known = cell["interval"] != "none"
        unit = " %" if metric.percent else f" {metric.unit}".rstrip()
        cells = [cell["probe"], cell["metric"], ", ".join(str(x) for x in of if x), f"{value}{unit}"]
        cells += [f"{low} to {high}" if known else "", cell["interval"] if known else "one value"]
        cells += [str(cell["n_items"] or record.protocol.get("n_test", ""))]
        lines.append(f"| {' | '.join(escape(str(x)) for x in cells)} |")
        protocols.setdefault(str(cell["probe"]), record.protocol)
    lines += ["", "Protocol of each probe's first measurement:", ""]
    for probe, protocol in protocols.items():
        said = ", ".join(f"{k}={_text(v)}" for k, v in protocol.items() if len(_text(v)) <= 120)
        lines.append(f"* {escape(probe)}: {escape(said)}")
    versions = next(run.records[0].versions for run in runs if run.records)
    lines += ["", "Measured with " + escape(", ".join(f"{k} {v}" for k, v in versions.items())) + "."]
    return [*lines, *(f"\n{escape(note)}" for note in notes)]


def _condition(name: str, value: Any) -> str:
    return "" if value == "" else (str(value) if name == "split" else f"{name}={value}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
