from __future__ import annotations

import numpy as np
import pytest
import torch

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import Part


def brightness(item):
    return float(np.asarray(item).mean())


def raises(item):
    raise DataError("cannot read image 'x.png'")


def test_parts_and_items(toy):
    dm = toy()
    dm.setup("predict")
    dm.setup()
    assert dm.loads == 1
    prompts = Part.prompts("parity", "plain")
    assert [str(part) for part in dm.parts()] == [
        *(f"{split}:{modality}" for split in ("train", "val", "test") for modality in ("image", "text")),
        str(prompts),
    ]
    assert dm.items(prompts) == ("a even", "even", "a odd", "odd")
    with pytest.raises(KeyError, match=r"no trial:text; .*did you mean 'train:text'"):
        dm.items(Part("trial", "text"))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batches", [[(0, 1), (2, 3), (4, 5)], [(4,), (0, 3)], []])
def test_loader_serves_the_rows_that_are_asked_for(toy, num_workers, batches):
    dm = toy(num_workers=num_workers)
    part = Part("test", "image")
    loader = dm.loader(part, brightness, torch.tensor, batches)
    assert len(loader) == len(batches)
    served = list(loader)
    assert [rows for rows, _ in served] == batches
    for rows, values in served:
        assert values.tolist() == pytest.approx([brightness(dm.items(part)[row]) for row in rows])


def test_text_parts_are_read_in_the_main_process(toy):
    loader = toy(num_workers=2).loader(Part("val", "text"), str.upper, list, [range(4), range(4, 6)])
    assert loader.num_workers == 0
    assert [len(items) for _, items in loader] == [4, 2]
    assert next(iter(loader))[1][0] == "VAL 0"


def test_error_of_a_worker_keeps_its_type_and_name(toy):
    loader = toy(num_workers=1).loader(Part("val", "image"), raises, list, [(0,)])
    with pytest.raises(DataError, match=r"cannot read image 'x\.png'"):
        list(loader)


def test_part_fingerprint(toy):
    dm = toy()
    image, prompts = Part("train", "image"), Part.prompts("parity", "plain")
    assert dm.part_fingerprint(image) == {"part": "train:image", "n": 6, "dataset": "toy", "rev": 1}
    assert "rev" not in dm.part_fingerprint(prompts)
    one, two = dm.part_fingerprint(Part("train", "text")), dm.part_fingerprint(Part("val", "text"))
    assert one["sha256"] != two["sha256"]


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"batch_size": 1.5}, {"batch_size": True}, {"num_workers": -1}])
def test_bad_options(toy, bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        toy(**bad)


def test_default_workers_leave_a_core(toy):
    assert 1 <= toy().num_workers <= 8
