"""The package's docstrings as markdown: roles become links, and the colons before an indented block single."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc|obj):`(~?)([^`]+)`")


def as_markdown(text: str) -> str:
    """Return a docstring without what only reStructuredText knows.

    >>> as_markdown("See :class:`~krossfuse.core.parts.Part`::")
    'See <autoref identifier="krossfuse.core.parts.Part" optional>`Part`</autoref>:'
    """

    def link(match: re.Match[str]) -> str:
        short, name = match[1], match[2].lstrip(".")
        shown = name.rpartition(".")[2] if short else name
        return f'<autoref identifier="{name}" optional>`{shown}`</autoref>'

    return re.sub(r"(?<=\S)::$", ":", _ROLE.sub(link, text), flags=re.MULTILINE)


class Docstrings(Extension):
    """Rewrites every docstring that is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of one object, where it has one."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
