"""What only the components themselves can say of a sweep's points: whether they can be, and what their data are.

To say it their modules are imported, torch among them. Each function answers for many points at once, so that a process
which has imported all that can be asked by one that has not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from krossfuse.app.build import check, make_kind, making_each_once, packed, unpacked
from krossfuse.app.kind import Plain

Job = tuple[str, Mapping[str, str]]
"""The packed configuration of a job (:func:`krossfuse.app.build.packed`), and by group, the chosen option."""

T = TypeVar("T")


class Ask(Protocol):
    """Calls a function, wherever that may be: its arguments and what it returns can be pickled."""

    def __call__(self, function: Callable[..., T], /, *arguments: Any) -> T:
        """Return what the function returns, or raise what it raises."""


def here(function: Callable[..., T], /, *arguments: Any) -> T:
    """Call a function in this process."""
    return function(*arguments)


def job_of(plain: Plain, choices: Mapping[str, str]) -> Job:
    """Return a job as it is sent to who is asked."""
    return packed(plain), dict(choices)


def check_jobs(jobs: Sequence[Job], data: bool) -> None:
    """Build every component of each job, which validates it, and throw them away.

    Args:
        jobs: the jobs.
        data: see :func:`krossfuse.app.build.check`.

    Raises:
        ConfigError: a value is impossible.
        DataError: with ``data``: they are not there, or not as they should be.
    """
    with making_each_once():
        for config, choices in jobs:
            check(unpacked(config), choices, data=data)


def data_names(configs: Sequence[str]) -> list[str]:
    """Return of each packed configuration the digest of what names its data.

    Raises:
        ConfigError: an unknown key, an impossible seed or name, or no such kind of job.
    """
    with making_each_once():
        return [_data_name(config) for config in configs]


def _data_name(config: str) -> str:
    plain = unpacked(config)
    keys = make_kind(plain).data_keys
    named: dict[str, Any] = {"job": plain["job"]} | {key: plain.get(key) for key in keys or plain}
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def data_states(jobs: Sequence[Job]) -> list[tuple[str, list[str]]]:
    """Return of the data of each job their fingerprint, and what is to be encoded, one line a part.

    Raises:
        ConfigError: a name that the data do not have.
        DataError: they are not there.
    """
    states = []
    with making_each_once():
        for config, choices in jobs:
            kind = make_kind(plain := unpacked(config))
            built = kind.build(plain, choices)
            states.append((kind.fingerprint(built), kind.to_encode(built)))
    return states
