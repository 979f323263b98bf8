from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_toys import SIZES, Decoded, ToyData, ToyEncoder, ToyModule

from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import CROSS_MODAL, Part
from krossfuse.core.stopping import listening
from krossfuse.encoders.pair import Pair
from krossfuse.features import npy
from krossfuse.features.extract import extract, feature_keys
from krossfuse.features.stores import LocalStore

CPU = {"accelerator": "cpu", "devices": 1}
TRAIN = Part("train", "image")


def make_pair(**expert: Any) -> Pair:
    return Pair(
        name="toys",
        cross_modal=ToyEncoder("clip", ("image", "text"), dim=8),
        image_experts={"dino.v2": ToyEncoder("dino", ("image",), dim=5, **{"weights": 1, **expert})},
        text_experts={"e5": ToyEncoder("e5", ("text",), dim=4, weights=2)},
    )


def run(data: ToyData, pair: Pair, store: LocalStore, **options: Any) -> FeatureBundle:
    return extract(data, pair, store, **{"trainer": CPU, "progress": False, **options})


def direct(data: ToyData, pair: Pair, part: Part, role: str) -> torch.Tensor:
    """The features by one plain forward pass, item by item."""
    module = pair.encoders(part.modality)[role].load().eval()
    items = list(data.items(part))
    with torch.inference_mode():
        if part.modality == "text":
            return torch.cat([module.encode_text(module.prepare_text([item])) for item in items])
        return torch.cat([module.encode_image(module.prepare_image(item)[None]) for item in items])


def loads(pair: Pair) -> list[int]:
    return [e.loads for e in {**pair.encoders("image"), **pair.encoders("text")}.values()]  # type: ignore[attr-defined]


def test_features_are_those_of_the_encoders(images: Path, store: LocalStore) -> None:
    data, pair = ToyData(images), make_pair()
    bundle = run(data, pair, store)
    assert set(bundle.features) == set(data.parts())
    assert bundle.dims("image") == {CROSS_MODAL: 8, "dino.v2": 5}
    assert bundle.dims("text") == {CROSS_MODAL: 8, "e5": 4}
    assert bundle.encoders["e5"] == {"name": "e5", "fingerprint": {"text": {"weights": 2, "dim": 4}}}
    for part, roles in bundle.features.items():
        for role, features in roles.items():
            torch.testing.assert_close(features, direct(data, pair, part, role), atol=1e-5, rtol=1e-5)


def test_one_decoding_for_all_encoders_and_none_the_second_time(
    images: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pair = ToyData(images), make_pair()
    first = run(data, pair, store)
    assert sorted(data.decoded()) == sorted(f"{split}_{i}" for split, n in SIZES.items() for i in range(n))
    assert loads(pair) == [1, 1, 1]  # the cross-modal encoder once for both modalities
    data.log.unlink()
    monkeypatch.setattr("pytorch_lightning.Trainer.predict", None)
    again = make_pair()
    second = run(ToyData(images), again, LocalStore(store.root))
    assert data.decoded() == []
    assert loads(again) == [0, 0, 0]
    assert all(torch.equal(second[part][role], f) for part, of in first.features.items() for role, f in of.items())


def test_only_what_is_missing_is_encoded(images: Path, store: LocalStore) -> None:
    run(ToyData(images), make_pair(), store)
    other = make_pair(weights=7)  # the same name, other weights
    bundle = run(ToyData(images), other, store)
    assert loads(other) == [0, 1, 0]
    torch.testing.assert_close(bundle[TRAIN]["dino.v2"], direct(ToyData(images), other, TRAIN, "dino.v2"))
    # Another prompt set encodes texts only.
    data = ToyData(images)
    data.setup()
    prompts = data.info.label_sets["animal"].prompts["simple"]
    data._loaded[1][Part.prompts("animal", "simple")] = [text + "!" for text in prompts.texts]  # type: ignore[index]
    data.log.unlink()
    run(data, make_pair(), store)
    assert data.decoded() == []


def test_keys_change_with_all_that_changes_a_feature(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ToyData(images)

    def digest(pair: Pair | None = None, **options: Any) -> str:
        return feature_keys(data, pair or make_pair(), **options)[TRAIN]["dino.v2"].digest

    base = digest()
    assert digest() == base
    assert digest(precision="32") == base
    assert base not in (digest(make_pair(weights=9)), digest(dtype="float16"), digest(precision="bf16-mixed"))
    monkeypatch.setattr("krossfuse.features.extract.version", lambda name: "0.0")
    assert digest() != base
    monkeypatch.undo()
    data.info.fingerprint["seed"] = 1  # type: ignore[index]
    assert digest() != base
    keys = [key.digest for roles in feature_keys(data, make_pair()).values() for key in roles.values()]
    assert len(set(keys)) == len(keys) == 3 * 2 + 4 * 2


def test_unreadable_image_in_the_middle_costs_its_batch_only(images: Path, store: LocalStore) -> None:
    data = ToyData(images)
    data.setup()
    whole = (images / "train_13.png").read_bytes()
    (images / "train_13.png").write_bytes(whole[:50])
    with pytest.raises(DataError, match=r"train_13\.png"):
        run(data, make_pair(), store)
    assert {(e.about_part, e.done) for e in map(_Seen, store.entries()) if e.done} == {("train:image", 8)}
    (images / "train_13.png").write_bytes(whole)
    data.log.unlink()
    bundle = run(ToyData(images), make_pair(), store)
    train = [name for name in data.decoded() if name.startswith("train")]
    assert train == [f"train_{i}" for i in range(8, 20)]
    fresh = run(ToyData(images), make_pair(), LocalStore(store.root / "other"))
    # Bit by bit: the batches are the same as without the interruption.
    assert all(torch.equal(fresh[part][role], f) for part, of in bundle.features.items() for role, f in of.items())
    assert not any(entry.partial for entry in store.entries())


class _Seen:
    def __init__(self, entry: Any) -> None:
        self.about_part, self.done = entry.key.about["part"], entry.done


def test_parts_that_are_whole_are_kept_when_a_later_one_fails(images: Path, store: LocalStore) -> None:
    data = ToyData(images)
    data.setup()
    (images / "test_0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"test_0\.png"):
        run(data, make_pair(), store)
    keys = feature_keys(data, make_pair())
    assert all(key in store for key in [*keys[TRAIN].values(), *keys[Part("val", "image")].values()])


def test_interrupt_keeps_what_is_done(images: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    handler = signal.getsignal(signal.SIGINT)
    encode = ToyModule.encode_image

    def interrupted(self: ToyModule, images: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:  # in the third batch
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(ToyModule, "encode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(ToyData(images), make_pair(), store)
    signal.signal(signal.SIGINT, handler)  # Lightning ignores further interrupts
    assert {entry.done for entry in store.entries() if entry.key.about["part"] == "train:image"} == {16}
    monkeypatch.undo()
    run(ToyData(images), make_pair(), store)
    assert not any(entry.partial for entry in store.entries())


def test_an_interrupt_that_a_library_swallows_is_raised_at_the_next_batch(
    images: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, seen = ToyModule.prepare_image, []

    def swallowing(self: ToyModule, image: Any) -> torch.Tensor:
        seen.append(image)
        if len(seen) == 2:
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
        return prepare(self, image)

    monkeypatch.setattr(ToyModule, "prepare_image", swallowing)
    pair = Pair(name="one", image_experts={"a": ToyEncoder("a", ("image",))})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), listening():
            extract(ToyData(images, batch_size=8), pair, store, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(seen) < sum(SIZES.values())


def test_unreadable_image_in_a_loader_process(images: Path, store: LocalStore) -> None:
    data = ToyData(images, num_workers=1)
    data.setup()
    (images / "train_0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train_0\.png"):
        run(data, make_pair(), store)


def test_nan_feature_names_encoder_part_and_row(images: Path, store: LocalStore) -> None:
    with pytest.raises(DataError, match=r"dino on toy, train:image.*row 2 is NaN"):
        run(ToyData(images), make_pair(poison=2), store)


def test_damaged_entry_is_computed_anew(images: Path, store: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    first = run(ToyData(images), make_pair(), store)
    expected = first[TRAIN]["dino.v2"].clone()
    key = feature_keys(ToyData(images), make_pair())[TRAIN]["dino.v2"]
    path = store.root / key.digest / "features.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    npy.verified.clear()
    pair = make_pair()
    with caplog.at_level(logging.WARNING):
        bundle = run(ToyData(images), pair, store)
    assert "is damaged: the SHA-256" in caplog.text
    assert loads(pair) == [0, 1, 0]
    assert torch.equal(bundle[TRAIN]["dino.v2"], expected)


def same_bits(one: FeatureBundle, other: FeatureBundle) -> None:
    assert set(one.features) == set(other.features)
    for part, roles in one.features.items():
        for role, features in roles.items():
            assert torch.equal(other[part][role], features), (part, role)


def test_batches_and_streams_do_not_change_a_bit(images: Path, store: LocalStore) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(ToyData(images), make_pair(), store)
        torch.set_num_threads(2)
        two = run(ToyData(images), make_pair(), LocalStore(store.root / "two"))
        for size in (1, 7, 20, 64):
            other = run(ToyData(images), make_pair(), LocalStore(store.root / str(size)), batch_size=size)
            same_bits(one, other)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    same_bits(one, two)


def test_mixed_precision_holds_in_every_stream(images: Path, store: LocalStore) -> None:
    threads = torch.get_num_threads()
    mixed = {**CPU, "precision": "bf16-mixed"}
    try:
        torch.set_num_threads(1)
        one = run(ToyData(images), make_pair(), store, trainer=mixed)
        torch.set_num_threads(2)
        two = run(ToyData(images), make_pair(), LocalStore(store.root / "two"), trainer=mixed)
    finally:
        torch.set_num_threads(threads)
    same_bits(one, two)
    assert not torch.equal(one[TRAIN]["dino.v2"], direct(ToyData(images), make_pair(), TRAIN, "dino.v2"))


def test_half_precision_store(images: Path, store: LocalStore) -> None:
    bundle = run(ToyData(images), make_pair(), store, dtype="float16")
    assert bundle[TRAIN]["dino.v2"].dtype == torch.float16


def test_mixed_precision(images: Path, store: LocalStore) -> None:
    data, pair = ToyData(images), make_pair()
    bundle = run(data, pair, store, trainer={**CPU, "precision": "bf16-mixed"})
    full = direct(data, pair, TRAIN, "dino.v2")
    assert not torch.equal(bundle[TRAIN]["dino.v2"], full)
    torch.testing.assert_close(bundle[TRAIN]["dino.v2"], full, atol=0.05, rtol=0.05)


def test_image_experts_alone_skip_the_texts(images: Path, store: LocalStore) -> None:
    # Two roles for one encoder are one entry.
    pair = Pair(name="experts", image_experts={"a": ToyEncoder("a", ("image",)), "b": ToyEncoder("b", ("image",))})
    bundle = run(ToyData(images), pair, store)
    assert {part.modality for part in bundle.features} == {"image"}
    assert loads(pair) == [1, 0]
    assert torch.equal(bundle[TRAIN]["a"], bundle[TRAIN]["b"])


def test_progress_bar_names_part_and_roles(images: Path, store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    run(ToyData(images), make_pair(), store, progress=True)
    shown = "".join(capsys.readouterr())
    assert "train:image -> cross_modal, dino.v2" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"trainer": {"accelerator": "quantum"}}, "trainer=.*quantum"),
        ({"trainer": {"acelerator": "cpu"}}, "acelerator"),
        ({"trainer": {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}}, "strategy='ddp'.*ddp_spawn"),
    ],
)
def test_bad_options(images: Path, store: LocalStore, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(ToyData(images), make_pair(), store, **options)


@pytest.mark.slow
def test_two_devices_give_the_same_rows(images: Path, store: LocalStore) -> None:
    """Two CPU processes; in a process of its own, since the test process has threads and patched modules."""
    code = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_extract import *
if __name__ == "__main__":
    trainer = {"accelerator": "cpu", "devices": 2}
    run(ToyData(Path(sys.argv[2])), make_pair(), LocalStore(sys.argv[3]), trainer=trainer)
"""
    script = store.root.with_name("two.py")
    script.write_text(code)
    subprocess.run([sys.executable, script, Path(__file__).parent, images, store.root], check=True, timeout=300)
    pair = make_pair()
    two = run(ToyData(images), pair, store)
    assert loads(pair) == [0, 0, 0]
    same_bits(run(ToyData(images), make_pair(), LocalStore(store.root / "one")), two)


def two_devices(code: str, images: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that extracts on two CPU devices, with the helpers of this file."""
    script = root.with_name("program.py")
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\nfrom test_extract import *\n"
        "data, store = ToyData(Path(sys.argv[2])), LocalStore(sys.argv[3])\n"
        'trainer = {"accelerator": "cpu", "devices": 2}\nif __name__ == "__main__":\n' + code
    )
    command = [sys.executable, script, Path(__file__).parent, images, root]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_an_error_on_two_devices_is_told_plainly(images: Path, store: LocalStore) -> None:
    ToyData(images).setup()
    (images / "train_0.png").write_bytes(b"no image")
    done = two_devices(
        "    try:\n        run(data, make_pair(), store, trainer=trainer)\n"
        "    except DataError as error:\n        print('told:', error)\n",
        images,
        store.root,
    )
    assert "told: cannot read image" in done.stdout, done.stdout + done.stderr
    assert "train_0.png" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_loader_process_that_is_killed_is_told_plainly(
    images: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Decoded, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    data = ToyData(images, num_workers=1)
    data.setup()
    monkeypatch.setattr(Decoded, "__getitem__", die)
    with pytest.raises(DataError, match=r"a process that decodes items ended .*What was encoded is kept: run again"):
        run(data, make_pair(), store)
