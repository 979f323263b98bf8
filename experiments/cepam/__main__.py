"""CEPAM on MNIST in the published protocol: ``python -m experiments.cepam --data ROOT --out FOLDER``.

The same study as ``krossfuse -m experiment=cepam_mnist data.root=ROOT``, whose runs it shares (``job.played``), with
the table and the claims as files: FOLDER/runs has one JSON file a run (a run that is there is not repeated, so that a
study goes on where it was stopped), then FOLDER/table.md and FOLDER/claims.json are written. ``--data`` is the folder
that ``torchvision.datasets.MNIST`` reads. Runs are shared out over ``--jobs`` processes of one thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.benchmarks.common import write_json
from experiments.cepam.table import claims, table
from krossfuse.core.files import write_whole
from krossfuse.core.processes import cores
from krossfuse.data.pixels import MNISTPixels
from krossfuse.federated.mnist import MODELS, ROUNDS, VARIANTS, Study, line_about, play_all


def study(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Play the runs that are missing, and return the records of all."""
    chosen = Study(args.models, args.variants, args.seeds, args.rounds)
    data = MNISTPixels(root=str(args.data), download=args.download)
    records = []
    for record in play_all(data, args.out / "runs", chosen, processes=args.jobs):
        records.append(record)
        print(line_about(record), flush=True)
    return records


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST as torchvision lays it out")
    parser.add_argument("--out", type=Path, default=Path("runs/cepam_mnist"))
    parser.add_argument("--download", action="store_true", help="fetch MNIST if it is not there")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--jobs", type=int, default=cores())
    args = parser.parse_args(argv)
    records = study(args)
    text = "\n\n".join(table(records, model) for model in args.models)
    write_whole(args.out / "table.md", (text + "\n").encode())
    print(text)
    print(write_json(claims(records), args.out / "claims.json"))


if __name__ == "__main__":
    main()
