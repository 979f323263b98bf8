"""Kills workers that share the shards of a made data set, and compares what is left with one unsharded, unbroken run.

``python tests/features/shard_kills.py --shards 100 --workers 8 --kills 10`` with the bundled encoders, two of images
and one of captions; ``--toy`` with small networks instead. Workers encode whatever shards no other encodes; one that is
killed by SIGKILL, when a random number of rows is written, is started again, until all is there. Then

* every feature has the bits of a run of one process in which each part is one entry;
* every row was written once: those that were written again were in the batch of a killed worker;
* a shard that is lost or altered is named.

The last line is a JSON object with the counts; the exit status is 0 if all went well.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from feature_toys import ToyEncoder
from kill_harness import start
from PIL import Image

from krossfuse.core.errors import DataError
from krossfuse.core.parts import Part
from krossfuse.core.trainers import TrainerFactory
from krossfuse.data.shards import TarShards, make_manifest
from krossfuse.encoders.bundled import EfficientNetLite0, MiniLM, OpenMojiCLIP
from krossfuse.encoders.pair import Pair
from krossfuse.features.extract import extract
from krossfuse.features.source import Extraction
from krossfuse.features.stores import LocalStore
from krossfuse.features.units import OneUnit, Unit
from krossfuse.features.writer import FeatureWriter

BATCH = 8
PAIR = {"toy": False}
"""Of all processes: they are forked."""

SPLITS = ("train", "val", "test")


def make(folder: Path, shards: int, per_shard: int) -> None:
    """Write the tars, most of them of the training split, and their manifest."""
    rng = np.random.default_rng(0)
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number in range(shards):
        split = SPLITS[0] if number < shards - 2 else SPLITS[number - shards + 3]
        name = f"{split}-{number:05d}.tar"
        with tarfile.open(folder / name, "w") as tar:
            for i in range(per_shard):
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(buffer, "png")
                for ending, data in (
                    ("png", buffer.getvalue()),
                    ("cls", str(i % 2).encode()),
                    ("txt", f"thing {rng.integers(1000)} of shard {number}".encode()),
                ):
                    info = tarfile.TarInfo(f"{i:06d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        names[split].append(name)
    make_manifest(folder / "manifest.json", names)


class InOne(TarShards):
    """The same items without shards, in blocks that begin where the shards do."""

    def shards(self, part: Part) -> list[Any]:
        return []


def pair() -> Pair:
    if PAIR["toy"]:
        return Pair(
            name="toys",
            cross_modal=ToyEncoder("clip", ("image", "text"), dim=8),
            image_experts={"images": ToyEncoder("images", ("image",), dim=5, weights=1)},
            text_experts={"texts": ToyEncoder("texts", ("text",), dim=6, weights=2)},
        )
    return Pair(
        name="bundled",
        cross_modal=OpenMojiCLIP(),
        image_experts={"efficientnet": EfficientNetLite0()},
        text_experts={"minilm": MiniLM()},
    )


def source(folder: Path, store: Path, kind: type[TarShards] = TarShards) -> Extraction:
    return Extraction(
        data=kind(manifest=str(folder / "manifest.json"), num_workers=0),
        pair=pair(),
        store=LocalStore(store),
        trainers=TrainerFactory(),
        batch_size=BATCH,
        progress=False,
    )


def work(folder: Path, store: Path, log: Path) -> None:
    """One worker; each row that it stores leaves a line in the log."""
    torch.set_num_threads(1)
    written = FeatureWriter.write

    def counted(self: FeatureWriter, rows: Any, features: torch.Tensor) -> None:
        written(self, rows, features)
        with log.open("a") as file:
            file.write("".join(f"{self.key.digest} {row}\n" for row in rows))
        if PAIR["toy"]:  # they are fast: so that there are moments to be killed at
            time.sleep(0.02)

    FeatureWriter.write = counted  # type: ignore[method-assign]
    source(folder, store).encode()


def failure(extraction: Extraction) -> str:
    """Return the message of the error that an extraction ends with."""
    try:
        extraction.encode()
    except DataError as error:
        return str(error)
    return ""


def unsharded(folder: Path, store: Path, per_shard: int) -> dict[tuple[Part, str], torch.Tensor]:
    """Return the features of one process; images as whole parts, captions in the blocks that shards are padded in."""
    torch.set_num_threads(1)
    plain = source(folder, store, InOne)
    found: dict[tuple[Part, str], list[torch.Tensor]] = {}
    loaded: dict[int, Any] = {}
    for part in plain.data.parts():
        n = len(plain.data.items(part))
        size = n if part.modality == "image" else per_shard  # a text's last bits depend on the longest beside it
        for row in range(0, n, size):
            unit = Unit(part, row, row + size, "" if size == n else f"block {row}", {"block": [str(part), row]})
            view = OneUnit(plain.data, unit if size < n else Unit(part, 0, n))
            bundle = extract(view, plain.pair, LocalStore(store), batch_size=BATCH, progress=False, loaded=loaded)
            for role, x in bundle[part].items():
                found.setdefault((part, role), []).append(x)
    return {at: torch.cat(pieces) for at, pieces in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--per-shard", type=int, default=8, help="images in each, a multiple of 8")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="small networks instead of the bundled encoders")
    options = parser.parse_args()
    PAIR["toy"] = options.toy
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="krossfuse-shards-") as temporary:
        folder = Path(temporary)
        tars, store, log, rows = folder / "tars", folder / "store", folder / "log.txt", folder / "rows.txt"
        tars.mkdir()
        make(tars, options.shards, options.per_shard)

        def one() -> int:
            return start(lambda: work(tars, store, rows), log)

        every = 4 * options.shards * options.per_shard  # images and captions, by two encoders each
        moments = sorted(chance.sample(range(1, every * 3 // 4), options.kills))
        running = [one() for _ in range(options.workers)]
        kills, began = 0, time.monotonic()
        while running:
            done, status = os.waitpid(-1, os.WNOHANG)
            if done:
                running.remove(done)
                if os.WIFSIGNALED(status):
                    running.append(one())
                else:
                    assert status == 0, log.read_text()[-5000:]
                continue
            written = rows.read_text().count("\n") if rows.exists() else 0
            if kills < options.kills and written >= moments[kills]:
                os.kill(chance.choice(running), signal.SIGKILL)
                kills += 1
            time.sleep(0.02)
        assert kills == options.kills, f"all was encoded before {options.kills} workers were killed"
        seconds = time.monotonic() - began

        sharded = source(tars, store)
        assert sharded.encode() == 0, "a unit was left"
        bundle = sharded.bundle()
        alone = unsharded(tars, folder / "alone", options.per_shard)
        for (part, role), x in alone.items():
            assert torch.equal(bundle[part][role][:], x), f"other bits of {part}, {role}"
        lines = rows.read_text().split("\n")[:-1]
        again = len(lines) - len(set(lines))
        total = sum(len(x) for x in alone.values())
        assert len(set(lines)) >= total - kills * BATCH * 2, (len(set(lines)), total)
        assert again <= kills * BATCH * 2, f"{again} rows were written again after {kills} kills"

        victims = sorted(tars.glob("train-*.tar"))[:2]
        named = 0
        for victim, change in zip(victims, ("lost", "altered"), strict=True):
            good = victim.read_bytes()
            if change == "lost":
                victim.unlink()
            else:
                victim.write_bytes(bytes([good[0] ^ 1]) + good[1:])
            error = failure(source(tars, folder / change))
            named += victim.name in error
            victim.write_bytes(good)
        assert named == 2, "a lost or altered shard was not named"
    result = {"shards": options.shards, "workers": options.workers, "kills": kills, "rows": total,
              "rows written again": again, "seconds": round(seconds, 1)}  # fmt: skip
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
