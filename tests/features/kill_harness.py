"""Kills extractions by SIGKILL at random moments and takes them up.

``python tests/features/kill_harness.py --count 100`` takes its time, ``--count 3`` a minute or two.

Each trial starts an extraction into an empty store, kills it at a random moment after its first rows are stored, takes
it up at once (on one device or two, by lot), checks that no process of the killed job is left, and compares all bits
with an unbroken run. Then several jobs start at once on one empty store, and every item is to be decoded by one of them
only. The last line is a JSON object with the counts; the exit status is 0 if all went well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parent))

import torch
from feature_toys import Decoded, ToyData, ToyEncoder

from krossfuse.encoders.pair import Pair
from krossfuse.features.extract import extract
from krossfuse.features.stores import LocalStore
from krossfuse.features.writer import PROGRESS

DIE_WITHIN = 10.0
"""Seconds that the processes of a killed job have to end in."""


class Slow(Decoded):
    """Takes its time, so that there are moments to be killed at."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.01)
        return super().__getitem__(index)


class Data(ToyData):
    sizes: ClassVar = {"train": 72, "val": 20, "test": 37}

    def load(self) -> Any:
        info, items = super().load()
        slow = {part: Slow(of.paths, self.log) if isinstance(of, Decoded) else of for part, of in items.items()}
        return info, slow


def job(images: Path, store: Path, devices: int) -> None:
    """The extraction that is killed; loader processes and all."""
    torch.set_num_threads(1)
    pair = Pair(
        name="toys",
        cross_modal=ToyEncoder("clip", ("image", "text"), dim=8),
        image_experts={"dino": ToyEncoder("dino", ("image",), dim=5, weights=1)},
    )
    data = Data(images, batch_size=16, num_workers=1)
    extract(data, pair, LocalStore(store), trainer={"accelerator": "cpu", "devices": devices}, progress=False)


def start(work: Callable[[], None], log: Path) -> int:
    """Fork a process, the first of a session of its own; nothing of PyTorch has run here that a fork could break."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def processes(session: int) -> list[int]:
    """Return the live processes of a session (Linux)."""
    alive = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                alive.append(int(folder.name))
    return alive


def has_rows(store: Path) -> bool:
    """Whether a partial or finished entry has a row."""
    for folder in store.iterdir() if store.is_dir() else []:
        progress = folder / PROGRESS
        if len(folder.name) == 32 or (progress.is_file() and any(progress.read_bytes())):
            return True
    return False


def bits(store: Path) -> dict[str, str]:
    """Return the SHA-256 of the features of each finished entry."""
    entries = LocalStore(store).entries()
    assert not any(entry.partial for entry in entries), "a partial entry was left"
    for entry in entries:
        LocalStore(store).verify(entry, again=True)
    return {entry.name: entry.sha256 for entry in entries}


class Trials:
    """The trials of one run, and what came of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.images = folder / "images"
        self.images.mkdir()
        Data(self.images).setup()
        self.log = folder / "log.txt"
        self.counts: Counter[str] = Counter()
        self.slowest_end = 0.0
        started = time.monotonic()
        self.run(folder / "unbroken", 1)
        self.seconds = {1: time.monotonic() - started, 2: 0.0}
        self.unbroken = bits(folder / "unbroken")
        assert len(self.unbroken) == 3 * 2 + 4, self.unbroken

    def start(self, store: Path, devices: int) -> int:
        return start(lambda: job(self.images, store, devices), self.log)

    def run(self, store: Path, devices: int) -> None:
        process = self.start(store, devices)
        assert os.waitpid(process, 0)[1] == 0, self.log.read_text()[-5000:]

    def kill(self, number: int, devices: int) -> None:
        """One trial: kill, wait for the end of all its processes, take up, compare."""
        store = self.folder / f"store {number}"
        while True:
            process = self.start(store, devices)
            while not has_rows(store):
                assert os.waitpid(process, os.WNOHANG)[0] == 0, self.log.read_text()[-5000:]
                time.sleep(0.002)
            time.sleep(self.random.uniform(0, 0.8 * self.seconds[1]))
            if os.waitpid(process, os.WNOHANG)[0] == 0:
                break
            self.counts["ended before it was killed"] += 1  # begin anew
            for entry in LocalStore(store).entries():
                LocalStore(store).delete(entry.name)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        killed = time.monotonic()
        take_up = self.random.choice((1, devices))
        # Taken up at once, while processes of the killed job may still be there.
        self.run(store, take_up)
        while alive := processes(process):
            assert time.monotonic() - killed < DIE_WITHIN, f"processes {alive} outlived the killed job"
            time.sleep(0.01)
        self.slowest_end = max(self.slowest_end, time.monotonic() - killed)
        assert bits(store) == self.unbroken, f"other bits after kill {number} on {devices} device(s)"
        self.counts[f"killed on {devices}, taken up on {take_up}"] += 1

    def ends(self, devices: int) -> float:
        """Kill a job and only watch: return the seconds until all its processes had ended."""
        store = self.folder / f"watched {devices}"
        process = self.start(store, devices)
        while not has_rows(store):
            assert os.waitpid(process, os.WNOHANG)[0] == 0, self.log.read_text()[-5000:]
            time.sleep(0.002)
        before = len(processes(process))
        assert before >= 1 + devices, before
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        killed = time.monotonic()
        while alive := processes(process):
            assert time.monotonic() - killed < DIE_WITHIN, f"processes {alive} of {before} outlived the killed job"
            time.sleep(0.005)
        return time.monotonic() - killed

    def together(self, jobs: int) -> None:
        """Several jobs at once on one empty store: each item is decoded once."""
        log = self.images / "decoded.log"
        log.unlink(missing_ok=True)
        running = [self.start(self.folder / "shared", 1) for _ in range(jobs)]
        for process in running:
            assert os.waitpid(process, 0)[1] == 0, self.log.read_text()[-5000:]
        decoded = Counter(log.read_text().split())
        assert len(decoded) == sum(Data.sizes.values())
        assert set(decoded.values()) == {1}, decoded.most_common(3)
        assert bits(self.folder / "shared") == self.unbroken
        self.counts[f"jobs at once on one empty store, {len(decoded)} images decoded once each"] = jobs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3, help="kills")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="by turns (default: 1 2)")
    parser.add_argument("--jobs", type=int, default=8, help="jobs at once on one store; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="krossfuse-kills-") as folder:
        trials = Trials(Path(folder), options.seed)
        ends = {devices: round(trials.ends(devices), 2) for devices in options.devices}
        for number in range(options.count):
            trials.kill(number, options.devices[number % len(options.devices)])
        if options.jobs:
            trials.together(options.jobs)
        result = {"kills": options.count, **trials.counts, "seconds until all processes had ended": ends}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
