"""Wins, draws and losses of one method against every other, over all data sets of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from krossfuse.report.board import Board, Column
from krossfuse.results.significance import Comparison


@dataclass
class Contest:
    """The baseline of some boards against another row.

    Attributes:
        rival: the other row's name.
        wins, draws, losses: of the baseline: measurements on which the paired test shows it better, no difference, or
            worse.
        lost: where it lost: data set, measurement, and the comparison (of the rival with the baseline).
    """

    rival: str
    wins: int = 0
    draws: int = 0
    losses: int = 0
    lost: list[tuple[str, Column, Comparison]] = field(default_factory=list)


def contests(boards: Sequence[Board]) -> list[Contest]:
    """Count the verdicts of the boards' comparisons with their baselines, rival by rival.

    Only measurements whose metric has a better side count. Verdicts hold for all rows of a column together (Holm); over
    many columns and data sets, one in twenty columns would show a difference by chance where there is none.

    Args:
        boards: each compared with the same method (:func:`krossfuse.report.boards.compare_with`).
    """
    found: dict[str, Contest] = {}
    for board in boards:
        for row in board.rows:
            for column in board.columns:
                comparison = row.against.get(column.key)
                if comparison is None or not column.declared.better:
                    continue
                contest = found.setdefault(row.name, Contest(row.name))
                if comparison.verdict == "worse":
                    contest.wins += 1
                elif comparison.verdict == "better":
                    contest.losses += 1
                    contest.lost.append((board.data, column, comparison))
                else:
                    contest.draws += 1
    return list(found.values())


def contest_table(boards: Sequence[Board]) -> pd.DataFrame:
    """Return the contests as a table, one row a rival; empty unless two data sets or more have the baseline."""
    if len([board for board in boards if board.baseline]) < 2:
        return pd.DataFrame()
    rows = [(c.rival, c.wins, c.draws, c.losses) for c in contests(boards)]
    return pd.DataFrame(rows, columns=["against", "wins", "no difference shown", "losses"])


def contest_title(boards: Sequence[Board]) -> str:
    """Return what the contests are of."""
    with_baseline = [board for board in boards if board.baseline]
    label = with_baseline[0].baseline.label if with_baseline and with_baseline[0].baseline else ""
    return f"{label} against the others on {len(with_baseline)} data sets (95 %, paired, Holm)"


def lost_table(boards: Sequence[Board]) -> pd.DataFrame:
    """Return what the baseline lost: one row a measurement, with the rival's lead and its interval, largest first."""
    lost = [(data, column, contest.rival, c) for contest in contests(boards) for data, column, c in contest.lost]
    lost.sort(key=lambda one: -abs(one[3].difference))
    rows = []
    for data, column, rival, comparison in lost:
        scale = 100 if column.declared.percent else 1
        lead, low, high = (scale * value for value in (comparison.difference, comparison.low, comparison.high))
        rows.append((data, column.name, rival, f"{lead:+.1f} ({low:+.1f} to {high:+.1f})"))
    return pd.DataFrame(rows, columns=["data", "measurement", "better", "by"])
