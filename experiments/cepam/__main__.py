"""CEPAM on MNIST in the published protocol: ``python -m experiments.cepam --data ROOT --out FOLDER``.

Every mechanism by model and seed, one JSON file a run in FOLDER/runs (a run that is there is not repeated, so that a
study goes on where it was stopped), then FOLDER/table.md and FOLDER/claims.json. ``--data`` is the folder that
``torchvision.datasets.MNIST`` reads. Runs are shared out over ``--jobs`` processes of one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from experiments.benchmarks.common import write_json
from experiments.cepam.protocol import MODELS, ROUNDS, VARIANTS, load, run_one
from experiments.cepam.table import claims, table
from krossfuse.core.files import write_whole
from krossfuse.core.processes import end_with_parent


def study(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Play the runs that are missing, and return the records of all."""
    folder = args.out / "runs"
    wanted = [(m, v, s) for s in args.seeds for m in args.models for v in args.variants]
    missing = [run for run in wanted if not (folder / "{}-{}-{}.json".format(*run)).exists()]
    if missing:
        load(args.data, 0, download=args.download)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context, initializer=end_with_parent) as pool:
        futures = [pool.submit(run_one, str(args.data), folder, *run, args.rounds) for run in missing]
        for done in as_completed(futures):
            print(done.result(), flush=True)
    return [json.loads((folder / "{}-{}-{}.json".format(*run)).read_text()) for run in wanted]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST as torchvision lays it out")
    parser.add_argument("--out", type=Path, default=Path("runs/cepam_mnist"))
    parser.add_argument("--download", action="store_true", help="fetch MNIST if it is not there")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    records = study(args)
    text = "\n\n".join(table(records, model) for model in args.models)
    write_whole(args.out / "table.md", (text + "\n").encode())
    print(text)
    print(write_json(claims(records), args.out / "claims.json"))


if __name__ == "__main__":
    main()
