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
@pytest.mark.parametrize("skip", [0, 1, 4, 6])
def test_loader_serves_rows_in_order_from_skip(toy, num_workers, skip):
    dm = toy(batch_size=2, num_workers=num_workers)
    part = Part("test", "image")
    dm.select(part, brightness, torch.tensor, skip)
    served = [value for batch in dm.predict_dataloader() for value in batch.tolist()]
    assert served == pytest.approx([brightness(item) for item in dm.items(part)][skip:])


def test_text_parts_are_read_in_the_main_process(toy):
    dm = toy(batch_size=4, num_workers=2)
    dm.select(Part("val", "text"), str.upper, list)
    loader = dm.predict_dataloader()
    assert loader.num_workers == 0
    assert [len(batch) for batch in loader] == [4, 2]
    assert next(iter(loader))[0] == "VAL 0"


def test_error_of_a_worker_keeps_its_type_and_name(toy):
    dm = toy(num_workers=1)
    dm.select(Part("val", "image"), raises, list)
    with pytest.raises(DataError, match=r"cannot read image 'x\.png'"):
        list(dm.predict_dataloader())


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


def test_wrong_use(toy):
    dm = toy()
    with pytest.raises(RuntimeError, match="select"):
        dm.predict_dataloader()
    with pytest.raises(ValueError, match="skip=7 is outside 0 to 6"):
        dm.select(Part("val", "image"), brightness, list, 7)


def test_default_workers_leave_a_core(toy):
    assert 1 <= toy().num_workers <= 8
