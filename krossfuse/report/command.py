"""``krossfuse report FOLDER``: tables, pictures and one HTML page again from any run or sweep, nothing recomputed."""

from __future__ import annotations

import argparse

from krossfuse.core.errors import ConfigError
from krossfuse.report.page import DEFAULT_FORMATS, DEFAULT_PICTURES, FORMATS, report
from krossfuse.report.pictures import KINDS, OPTIONAL
from krossfuse.report.programs import as_text
from krossfuse.report.terminal import make_console


def main(argv: list[str] | None = None) -> int:
    """Run ``krossfuse report FOLDER ...`` with ``--out``, ``--format``, ``--figures``, ``--baseline`` and ``--json``.

    Raises:
        ConfigError: a folder's name is empty.
    """
    parser = argparse.ArgumentParser(
        prog="krossfuse report",
        description="Tables, pictures and one HTML page again from a run or sweep folder; nothing is recomputed.",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of a run or of a sweep; several are one report")
    parser.add_argument("--out", help="where the files go (default: FOLDER/report; of several folders: ./report)")
    parser.add_argument(
        "--format",
        nargs="+",
        default=None,
        metavar="FORMAT",
        help=f"of {', '.join(FORMATS)} (default: {' '.join(DEFAULT_FORMATS)})",
    )
    parser.add_argument(
        "--figures",
        "--pictures",
        dest="pictures",
        nargs="+",
        default=list(DEFAULT_PICTURES),
        metavar="KIND",
        help=f"of {', '.join(KINDS)} (default: all but {' and '.join(OPTIONAL)}, which take longer)",
    )
    parser.add_argument(
        "--baseline",
        nargs="+",
        metavar="ROW",
        help="name or number (from 1, in the order printed) of the row that the others are compared with, or several: "
        'the others each in a table of differences, e.g. "Concatenation" 2 (default: report.baselines of the runs\' '
        "configuration, or the cross-modal encoder alone)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print every measurement and comparison as JSON, and nothing else; files only with --format",
    )
    arguments = parser.parse_args(argv)
    if not all(folder.strip() for folder in arguments.folders):
        raise ConfigError("krossfuse report: the name of a folder is empty; was a variable not set?")
    if arguments.json:
        print(as_text(arguments.folders, arguments.baseline))
        if arguments.format is None:
            return 0
    formats = list(DEFAULT_FORMATS) if arguments.format is None else arguments.format
    console = make_console()
    written = report(
        arguments.folders,
        arguments.out,
        formats=[name for name in formats if not (arguments.json and name == "terminal")],
        pictures=arguments.pictures,
        baseline=arguments.baseline,
        console=console,
    )
    if written and not arguments.json:
        console.print(f"{len(written)} files in {written[0].parent}", style="dim")
    return 0
