"""Declared metrics: what tables and pictures ask instead of guessing."""

from __future__ import annotations

import pytest

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.metrics import Metric, declare, find_metric, metric


@pytest.mark.parametrize("name", ["accuracy", "recall@1", "recall@100", "5nn_accuracy", "median_rank", "modality_gap"])
def test_declared(name: str) -> None:
    assert metric(name) is find_metric(name)


def test_an_undeclared_metric_names_the_nearest_and_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"'acuracy' is not declared \(did you mean 'accuracy'.*declare\(Metric"):
        metric("acuracy")
    assert find_metric("recall@x") is None


def test_declaring_again_in_other_words_is_refused() -> None:
    declare(Metric(name="accuracy", low=0.0, high=1.0))
    with pytest.raises(ConfigError, match="already declared otherwise"):
        declare(Metric(name="accuracy", better="lower"))


def test_bounds_are_checked() -> None:
    assert metric("accuracy").check(1.0) == 1.0
    for value in (1.1, -0.1, float("nan"), float("inf")):
        with pytest.raises(DataError, match="'accuracy' cannot be"):
            metric("accuracy").check(value)


@pytest.mark.parametrize(
    "options", [{"unit": "percent"}, {"better": "up"}, {"low": 1.0, "high": 0.0}], ids=["unit", "direction", "bounds"]
)
def test_bad_declarations(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Metric(name="x", **options)  # type: ignore[arg-type]


def test_a_description_goes_there_and_back() -> None:
    for name in ("accuracy", "recall@{k}", "modality_gap"):
        declared = metric(name.replace("{k}", "5"))
        assert Metric.from_description(declared.described()) == declared
