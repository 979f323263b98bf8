"""Reads ``config.yaml`` of thousands of runs: each distinct section is parsed once, by libyaml where it is there."""

from __future__ import annotations

import functools
import re
from typing import Any

import yaml

_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.X,
)
"""What OmegaConf, which writes these files, reads as a float: YAML 1.1 takes ``1e-3`` for a word."""

_SECTION = re.compile(r"^(?=[A-Za-z_])", re.M)
_SPECIAL = re.compile(r"(?m)(?:^|[\s:,\[{-])[&*!]\w|^(?:---|\.\.\.|%)|[|>][-+0-9]*\s*$")
"""Anchors, aliases, tags, several documents and blocks of text: such a file is parsed whole."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as OmegaConf reads it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """Build a mapping, in which no key may stand twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(
                "while constructing a mapping", node.start_mark, f"found duplicate key {twice}", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_config(text: str) -> dict[str, Any]:
    r"""Return a configuration from its YAML text; empty for an empty text.

    Raises:
        ValueError: it is no YAML, or no mapping.

    >>> parse_config("seed: 1\nfusion:\n  C: 1e-3\n")
    {'seed': 1, 'fusion': {'C': 0.001}}
    """
    if _SPECIAL.search(text):
        return _parse(text)
    merged: dict[str, Any] = {}
    for section in _SECTION.split(text):
        part = _parse_once(section) if section.strip() else {}
        if twice := merged.keys() & part.keys():
            raise ValueError(f"found duplicate key {min(twice)}")
        merged |= part
    return merged


def sections(text: str) -> list[str]:
    r"""Return the top sections of a configuration's text, which joined give the text again.

    >>> sections("seed: 1\nfusion:\n  C: 1\n")
    ['seed: 1\n', 'fusion:\n  C: 1\n']
    """
    return [part for part in _SECTION.split(text) if part]


def _parse(text: str) -> dict[str, Any]:
    try:
        config = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ValueError("it is no mapping")
    return config


_parse_once = functools.lru_cache(maxsize=4096)(_parse)
