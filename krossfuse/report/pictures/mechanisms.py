"""Privacy mechanisms themselves: bits against s/σ beside the information-theoretic floor, and the law of the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import ArrayLike

from krossfuse.report.pictures.style import COLOURS, GREY, MARKERS, grid_of, new_picture, titled

_QUANTILES = 400


def rate_against_ratio(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw bits a coordinate against s/σ, and what they are above the floor I(X; X + Z).

    Args:
        rows: of ``make bench-cepam``'s ``bits``: ``lattice``, ``s_over_sigma``, ``bits``, ``floor``.
    """
    by_lattice: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: float(r["s_over_sigma"])):
        by_lattice.setdefault(str(row["lattice"]), []).append(row)
    figure = new_picture(10.4, 4.4)
    left, right = figure.subplots(1, 2)
    titled(
        figure,
        "Bits a coordinate against the update's size over the noise",
        "whole messages of a normal update of standard deviation s, header included, noise σ · dashed: the floor "
        "I(X; X + Z), which no scheme with this output can go below",
    )
    gaussian = next((own for name, own in by_lattice.items() if "laplace" not in name), [])
    x = [r["s_over_sigma"] for r in gaussian]
    left.plot(x, [r["floor"] for r in gaussian], color="black", lw=1.6, ls=(0, (4, 2)), label="floor, Gaussian noise")
    for number, (name, own) in enumerate(by_lattice.items()):
        x = [r["s_over_sigma"] for r in own]
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "ms": 4, "lw": 1.3}
        left.plot(x, [r["bits"] for r in own], label=name, **look)
        right.plot(x, [r["bits"] - r["floor"] for r in own], label=name, **look)
    left.set_yscale("log")
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.set_ylabel("bits a coordinate (float32: 32)")
    right.set_ylabel("bits a coordinate above the floor")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("s/σ")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def error_laws(errors: Mapping[str, ArrayLike], law: str = "gaussian") -> Figure:
    """Draw the quantiles of errors over σ against those of the law that they ought to have (Q-Q).

    Args:
        errors: by name, (n,) errors in units of σ.
        law: ``gaussian``, or ``laplace`` of the same variance.
    """
    from scipy import stats  # half a second, which no other picture needs

    ideal = stats.norm() if law == "gaussian" else stats.laplace(scale=np.sqrt(0.5))
    n_rows, n_columns = grid_of(len(errors), 3)
    figure = new_picture(3.5 * n_columns + 0.4, 3.4 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    titled(
        figure,
        "The law of the error",
        f"quantiles of (decoded − update)/σ against those of the {'normal' if law == 'gaussian' else 'Laplace'} law · "
        "KS: greatest distance of the distributions, and the chance of one as great under the law",
    )
    for axes, (name, values) in zip(grid.flat, errors.items(), strict=False):
        own = np.sort(np.asarray(values, dtype=float))
        at = np.unique(np.linspace(0, len(own) - 1, _QUANTILES).astype(int))
        expected = ideal.ppf((at + 0.5) / len(own))
        axes.plot(expected, expected, color=GREY, lw=1, ls=(0, (4, 2)))
        test = stats.kstest(own, ideal.cdf)
        sound = test.pvalue > 1e-3
        axes.plot(expected, own[at], color=COLOURS[0 if sound else 1], marker=".", ms=3, lw=0)
        axes.set_title(name)
        axes.set_xlabel("quantile of the law")
        axes.text(
            0.04,
            0.95,
            f"KS {test.statistic:.4f}, p = {test.pvalue:.2g}",
            transform=axes.transAxes,
            va="top",
            fontsize=8,
        )
    for axes in grid[:, 0]:
        axes.set_ylabel("quantile of the error")
    for axes in list(grid.flat)[len(errors) :]:
        axes.set_axis_off()
    return figure
