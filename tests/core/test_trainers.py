"""One factory for every Trainer: the user's options reach all of them, and the tracker those that train."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pytorch_lightning.loggers import CSVLogger

from krossfuse.core.errors import ConfigError
from krossfuse.core.trainers import TrainerFactory


def test_options_reach_the_trainer_and_the_work_at_hand_wins() -> None:
    make = TrainerFactory({"accelerator": "cpu", "devices": 2, "precision": "bf16-mixed", "max_epochs": 3})
    trainer = make(max_epochs=7)
    assert (trainer.max_epochs, trainer.num_devices, trainer.precision) == (7, 1, "bf16-mixed")
    assert make(one_device=False, strategy="ddp_spawn").num_devices == 2


def test_the_tracker_is_asked_only_for_a_training(tmp_path: object) -> None:
    asked = []

    def logger() -> CSVLogger:
        asked.append(1)
        return CSVLogger(str(tmp_path))

    make = TrainerFactory(logger=logger)
    assert make().logger is None
    assert not asked
    assert isinstance(make(log=True).logger, CSVLogger)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"acelerator": "cpu"}, r"no option 'acelerator' \(did you mean 'accelerator'"),
        ({"accelerator": "abacus"}, "abacus"),
        ({"accelerator": "cpu", "precision": "7-bit"}, "7-bit"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainerFactory(options)()


def test_packages_are_asked_for_callbacks_once() -> None:
    code = """
import importlib.metadata as metadata
asked = []
entry_points = metadata.entry_points
metadata.entry_points = lambda **group: asked.append(group.get("group")) or entry_points(**group)
from krossfuse.core.trainers import TrainerFactory
for _ in range(3):
    TrainerFactory()()
print(asked.count("pytorch_lightning.callbacks_factory"))
"""
    # In a process of its own, since Lightning may have been imported here by itself.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout == "1\n", done.stderr
