"""What the rows of a board are called: the method's name, and the options that tell it from its likes.

Nothing here knows the options of any method. A method's options are the leaves of its configuration, and what its
description says of them; an option is shown where two rows of the same kind of method differ in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from krossfuse.results.aggregate import Member
from krossfuse.results.naming import part_name
from krossfuse.results.records import LINE_FIELDS

OLD_TITLES = {
    "cross_modal": "Cross-modal alone",
    "image_expert": "Image expert alone",
    "text_expert": "Text expert alone",
    "concatenation": "Concatenation",
    "pca_concatenation": "PCA of concatenation",
    "rff_concatenation": "RFF of concatenation",
    "average_kernel": "Average of kernels",
    "cca": "CCA",
    "exact_krossfuse": "KrossFuse, no sketch",
    "rp_krossfuse": "RP-KrossFuse",
    "spectral_krossfuse": "RP-KrossFuse",
    "released_code": "RP-KrossFuse, released code",
    "unimodal_krossfuse": "KrossFuse of experts",
    "gate": "GATE",
    "attn": "ATTN",
    "comm": "COMM",
}
"""Names of methods in records from before methods brought their own (``title`` in their description)."""

ASIDE = frozenset({"seed", "dim", "method", "title"})
"""Keys of a description that are no option: they have a place of their own."""

Scalar = str | int | float | bool


@dataclass
class Described:
    """One method on a board.

    Attributes:
        fusion: its name in the configuration.
        dim: of its embedding.
        title: its name for readers.
        kind: what it calls itself; methods of one kind or title are told apart by their options.
        options: as they were set, by dotted key.
        inner: keys of the options that are parts (kernels, ...) or are of parts, but the :data:`LINE_FIELDS`; they are
            many and go together, so they are named only where nothing else tells two methods apart.
        shown: by key, the values that they had (several where the method chose one run by run).
        description: the whole of one run.
        digest: of its configuration.
        label: the title with the options that are words.
        numbers: the options that are numbers, as text.
    """

    fusion: str
    dim: int
    title: str
    kind: str
    options: dict[str, Any]
    shown: dict[str, list[Scalar]]
    description: Mapping[str, Any]
    digest: str
    inner: frozenset[str] = frozenset()
    label: str = ""
    numbers: dict[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells it from other rows."""
        return self.label, self.dim, tuple(self.numbers.items())


def describe_method(fusion: str, dim: int, members: Sequence[Member]) -> Described:
    """Return a method as its records and its configuration describe it, without a label yet."""
    run, record = members[0]
    descriptions = [one.fusion_config for _, one in members]
    shown: dict[str, list[Scalar]] = {}
    for description in descriptions:
        for key, value in description.items():
            # What a fit chose is a list where it was made once a fold.
            several = value if key in LINE_FIELDS and isinstance(value, list) else [value]
            for one in several:
                if key not in ASIDE and _is_scalar(one) and one not in shown.setdefault(key, []):
                    shown[key].append(one)
    node = run.config.get("fusion")
    options = dict(_leaves(node)) if isinstance(node, Mapping) and node.get("_target_") else {}
    if not options:
        options = {key: values[0] if len(values) == 1 else tuple(values) for key, values in shown.items()}
    title = str(record.fusion_config.get("title") or OLD_TITLES.get(fusion, fusion))
    kind = str(record.fusion_config.get("method") or title)
    digest = record.method_digest or record.config_digest
    inner = _inner(node) if isinstance(node, Mapping) else frozenset()
    return Described(fusion, dim, title, kind, options, shown, record.fusion_config, digest, inner)


def label_methods(methods: Sequence[Described]) -> list[str]:
    """Give every method its label and its numbers, and return what all of them share, for the board's title."""
    telling = list(_telling(methods))
    told = {key for keys in telling for key in keys}
    common = []
    for key in LINE_FIELDS:
        shown = {json.dumps(method.shown[key]): method.shown[key] for method in methods if method.shown.get(key)}
        if len(shown) == 1 and key not in told:
            value = next(iter(shown.values()))[0]
            common.append(f"{value} {key}" if isinstance(value, str) else f"{key} = {value:g}")
    for method, keys in zip(methods, telling, strict=True):
        words = [method.title]
        for key in keys:
            name = key.rpartition(".")[2]
            set_to = method.options.get(key)
            if isinstance(set_to, str) and key in method.inner and "." in set_to:
                set_to = part_name({"_target_": set_to})
            values = method.shown.get(name) or ([set_to] if isinstance(set_to, Scalar) else [])
            if values and all(map(_is_number, values)):
                method.numbers[name.replace("_", " ")] = _span(values)
            elif values:
                words.append(_word(name, values))
        method.label = ", ".join(words)
    return common


def tell_apart(methods: Sequence[Described]) -> None:
    """Add to the labels of methods that share one whatever else their descriptions differ in."""
    extras = _differing([method.description for method in methods])
    if len(set(extras)) < len(extras):
        extras = [f"config {method.digest[:6]}" for method in methods]
    for method, extra in zip(methods, extras, strict=True):
        method.label += f", {extra}" if extra else ""


class _Peers:
    """Methods of one title, or of one kind: which values their options have, all together or where others are equal."""

    def __init__(self) -> None:
        self.methods: list[Described] = []
        self._values: dict[str, set[Any]] | None = None
        self._buckets: dict[tuple[str, ...], dict[tuple[Any, ...], list[Described]]] = {}
        self._bucket_values: dict[tuple[Any, ...], set[Any]] = {}

    def differ(self, key: str, value: Any) -> bool:
        """Whether one of them has the option otherwise."""
        if self._values is None:
            self._values = {}
            for method in self.methods:
                for name, own in method.options.items():
                    self._values.setdefault(name, set()).add(own)
        return any(other != value for other in self._values.get(key, ()))

    def differ_among(self, alike: tuple[str, ...], method: Described, key: str) -> bool:
        """Whether one of those that have the options ``alike`` as ``method`` has them has option ``key`` otherwise."""
        if alike not in self._buckets:
            buckets: dict[tuple[Any, ...], list[Described]] = {}
            for other in self.methods:
                buckets.setdefault(tuple(other.options.get(name) for name in alike), []).append(other)
            self._buckets[alike] = buckets
        place = tuple(method.options.get(name) for name in alike)
        found = (alike, place, key)
        if found not in self._bucket_values:
            bucket = self._buckets[alike].get(place, [])
            self._bucket_values[found] = {other.options.get(key) for other in bucket}
        return any(other != method.options[key] for other in self._bucket_values[found])


def _telling(methods: Sequence[Described]) -> Iterator[list[str]]:
    """Yield, method by method, the keys of options that set it apart.

    Another method of its title has them otherwise; or, if they are numbers, another of its kind. Options of its parts
    only where the others leave something open.
    """
    titles: dict[str, _Peers] = {}
    kinds: dict[str, _Peers] = {}
    for method in methods:
        titles.setdefault(method.title, _Peers()).methods.append(method)
        kinds.setdefault(method.kind, _Peers()).methods.append(method)
    order = {name: place for place, name in enumerate(LINE_FIELDS)}
    for method in methods:
        title, kind = titles[method.title], kinds[method.kind]
        keys = [
            key
            for key, value in method.options.items()
            if key.rpartition(".")[2] not in ASIDE
            and (title.differ(key, value) or (_is_number(value) and kind.differ(key, value)))
        ]
        outer = tuple(key for key in keys if key not in method.inner)
        inner = [key for key in keys if key in method.inner]
        inner = [k for k in inner if title.differ_among(outer, method, k) or kind.differ_among(outer, method, k)]
        keys = [*outer, *inner]
        yield sorted(keys, key=lambda key: order.get(key.rpartition(".")[2], len(order)))


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if key.startswith("_") or key in ASIDE:
            continue
        if isinstance(value, Mapping) and "_target_" in value:
            yield name, value["_target_"]
            yield from _leaves(value, f"{name}.")
        elif value is None or _is_scalar(value):
            yield name, value
        else:
            yield name, json.dumps(value, sort_keys=True, default=str)


def _inner(node: Mapping[str, Any]) -> frozenset[str]:
    """Return the keys of a fusion's parts and of the options of parts, but of those that have a field of their own."""
    keys = {name for name, _ in _leaves(node)}
    parts = {key for key, value in node.items() if isinstance(value, Mapping) and "_target_" in value}
    return frozenset(key for key in keys if key.partition(".")[0] in parts - set(LINE_FIELDS))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _word(name: str, values: Sequence[Scalar]) -> str:
    text = "/".join(str(value) for value in values)
    if name in LINE_FIELDS:
        return text
    if values[0] is True or values[0] is False:
        return name.replace("_", " ") if values[0] else f"no {name.replace('_', ' ')}"
    return f"{name.replace('_', ' ')} {text}"


def _span(values: Sequence[Any]) -> str:
    low, high = min(values), max(values)
    if low == high:
        return f"{low:g}"
    ends = dict.fromkeys((f"{low:.3g}", f"{high:.3g}"))  # what a fit chose has more digits than mean something
    return "–".join(ends)


def _differing(descriptions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name, for each of some descriptions, what sets it apart from the others."""
    keys = sorted(set().union(*descriptions) - ASIDE)
    texts = [{k: json.dumps(d.get(k), sort_keys=True, default=str) for k in keys} for d in descriptions]
    differing = [k for k in keys if len({t[k] for t in texts}) > 1]
    return [", ".join(f"{k}={d[k]}" for k in differing if _is_scalar(d.get(k))) for d in descriptions]
