from __future__ import annotations

import json
from pathlib import Path

import pytest
from store_toys import DIM, ROWS, FeatureKey, values

from krossfuse.app.store import main
from krossfuse.core.errors import ConfigError
from krossfuse.features.stores import LocalStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "features")


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


def answers(monkeypatch: pytest.MonkeyPatch, answer: str | None) -> None:
    """Sit at a terminal and answer, or (None) be nobody."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("Yes", 0), ("", 4), ("no", 4)])
def test_delete_lists_and_asks(
    filled: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, left: int
) -> None:
    answers(monkeypatch, answer)
    assert main(["delete", "--all", "--store", str(filled.root)]) == (1 if left else 0)
    assert len(filled.entries()) == left
    out = capsys.readouterr().out
    assert "To delete" in out
    assert key("cub", "clip").digest[:12] in out


def test_delete_without_a_terminal_wants_a_yes(filled: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, None)
    with pytest.raises(ConfigError, match="say --yes"):
        main(["delete", "--all", "--store", str(filled.root)])
    assert len(filled.entries()) == 4


@pytest.mark.parametrize("arguments", [[""], [" "], ["--dataset", ""], ["--encoder", ""]])
@pytest.mark.parametrize("command", ["delete", "list", "verify"])
def test_an_unset_variable_is_no_condition(filled: LocalStore, command: str, arguments: list[str]) -> None:
    more = ["--yes"] if command == "delete" else []
    with pytest.raises(ConfigError, match="is empty .*would fit everything"):
        main([command, *arguments, *more, "--store", str(filled.root)])
    assert len(filled.entries()) == 4


def test_an_ambiguous_key_deletes_nothing(store: LocalStore) -> None:
    digests: dict[str, list[FeatureKey]] = {}
    for i in range(40):
        digests.setdefault(key("cub", str(i)).digest[0], []).append(key("cub", str(i)))
    first = next(letter for letter, keys in digests.items() if len(keys) > 1)
    for k in digests[first][:2]:
        with store.lock([k]), store.writer(k, rows=ROWS, dim=DIM) as writer:
            writer.write(range(ROWS), values())
            writer.finish()
    with pytest.raises(ConfigError, match=f"key '{first}' fits 2 entries: .*give more of it"):
        main(["delete", first, "--yes", "--store", str(store.root)])
    assert len(store.entries()) == 2
    assert main(["verify", first, "--store", str(store.root)]) == 0


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    for where in (str(tmp_path / "nope"), ""):
        with pytest.raises(ConfigError, match="there is no such folder"):
            main(["list", "--store", where])


def test_a_store_at_a_url(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KROSSFUSE_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/remote"
    store, k = open_store(url), key("cub", "clip")
    with store.lock([k]):
        writer = store.writer(k, rows=ROWS, dim=DIM)
        writer.write(range(ROWS), values())
        writer.finish()
    assert main(["list", "--store", url]) == 0
    assert "1 entries" in (out := capsys.readouterr().out)
    assert url in out
    assert main(["verify", "--store", url]) == 0
    assert main(["delete", k.digest[:8], "--yes", "--store", url]) == 0
    assert main(["list", "--store", url]) == 0
    assert "0 entries" in capsys.readouterr().out


def test_names_are_shown_as_they_are(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    k = key("[red]cub[/red]", "clip\x1b[31m\n")
    with store.lock([k]), store.writer(k, rows=ROWS, dim=DIM) as writer:
        writer.write(range(ROWS), values())
        writer.finish()
    main(["list", "--store", str(store.root)])
    out = capsys.readouterr().out
    assert "[red]cub[/red]" in out
    assert r"clip\x1b[31m\n" in out
    assert "\x1b" not in out
