from __future__ import annotations

import json

import pytest
from store_toys import DIM, ROWS, FeatureKey, values

from krossfuse.core.errors import ConfigError
from krossfuse.features.cli import main
from krossfuse.features.stores import LocalStore


def key(dataset: str, encoder: str) -> FeatureKey:
    about = {"dataset": dataset, "part": "train:image", "encoder": encoder}
    return FeatureKey({"dataset": dataset, "encoder": encoder}, about)


@pytest.fixture
def filled(store: LocalStore) -> LocalStore:
    """Three entries and a partial one."""
    for dataset, encoder in (("cub", "clip"), ("cub", "dino"), ("dtd", "clip"), ("dtd", "dino")):
        k = key(dataset, encoder)
        with store.lock([k]), store.writer(k, rows=ROWS, dim=DIM) as writer:
            if (dataset, encoder) == ("dtd", "dino"):
                writer.write([0, 1], values()[:2])
            else:
                writer.write(range(ROWS), values())
                writer.finish()
    return store


def names(store: LocalStore) -> set[tuple[str, str]]:
    return {(entry.key.about["dataset"], entry.key.about["encoder"]) for entry in store.entries()}


def test_list(filled: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--store", str(filled.root)]) == 0
    out = capsys.readouterr().out
    for entry in filled.entries():
        line = next(line for line in out.splitlines() if entry.key.digest[:12] in line)
        assert entry.key.about["encoder"] in line
        assert ("2/10, partial" in line) == entry.partial
    assert "4 entries" in out
    main(["list", "--encoder", "dino", "--store", str(filled.root)])
    assert "2 entries" in capsys.readouterr().out


def test_empty_store_from_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "0 entries, 0 B" in capsys.readouterr().out


def test_show(filled: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", key("cub", "clip").digest[:8], "--store", str(filled.root)])
    assert json.loads(capsys.readouterr().out)["key"] == {"dataset": "cub", "encoder": "clip"}


def test_verify(filled: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--store", str(filled.root)]) == 0
    path = filled.root / key("cub", "dino").digest / "features.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert main(["verify", "--store", str(filled.root)]) == 1
    said = capsys.readouterr()
    assert key("cub", "dino").digest in said.err
    assert "2 of 3 entries" in said.out


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--dataset", "cub"], {("dtd", "clip"), ("dtd", "dino")}),
        (["--encoder", "clip"], {("cub", "dino"), ("dtd", "dino")}),
        (["--dataset", "cub", "--encoder", "clip"], {("cub", "dino"), ("dtd", "clip"), ("dtd", "dino")}),
        (["--partial"], {("cub", "clip"), ("cub", "dino"), ("dtd", "clip")}),
        (["--all"], set()),
        ([key("cub", "clip").digest[:10]], {("cub", "dino"), ("dtd", "clip"), ("dtd", "dino")}),
    ],
)
def test_delete(filled: LocalStore, arguments: list[str], left: set[tuple[str, str]]) -> None:
    before = names(filled)
    assert main(["delete", *arguments, "--dry-run", "--store", str(filled.root)]) == 0
    assert names(filled) == before
    assert main(["delete", *arguments, "--yes", "--store", str(filled.root)]) == 0
    assert names(filled) == left


def test_delete_leaves_what_is_being_written(filled: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    with filled.lock([key("cub", "clip")]):
        assert main(["delete", "--all", "--yes", "--store", str(filled.root)]) == 1
    assert names(filled) == {("cub", "clip")}
    assert "being written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["delete"], "say what"),
        (["delete", "zzz"], "no key 'zzz'"),
        (["list", "--dataset", "cup"], "did you mean 'cub'"),
        (["show", "--encoder", "resnet"], r"it has \['clip', 'dino'\]"),
    ],
)
def test_bad_choice(filled: LocalStore, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main([*arguments, "--store", str(filled.root)])
