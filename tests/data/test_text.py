from __future__ import annotations

import os

import pytest

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.parts import SPLITS, Part
from krossfuse.data.text import TASKS, SentEval, TextFiles, read_labelled_lines

SIZES = {"MR": 10662, "CR": 3775, "SUBJ": 10000, "MPQA": 10606, "SST2": 9613, "TREC": 5952}


def texts(dm):
    return {split: list(dm.items(Part(split, "text"))) for split in SPLITS}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8", "utf-8-sig"])
def test_encoding_is_found(tmp_path, encoding):
    lines = "0 so much cliché\n1 a soufflé, isn't it\r\n\n1  amélie \n0 \n"
    (tmp_path / "a.txt").write_bytes(lines.encode(encoding))
    assert read_labelled_lines(tmp_path / "a.txt") == [
        ("0", "so much cliché"),
        ("1", "a soufflé, isn't it"),
        ("1", "amélie"),
        ("0", ""),
    ]


def test_bytes_of_windows_1252_split_no_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0 wait\x85 what \x96 now\n1 yes\n")  # 0x85 is a line end (NEL) in Latin-1
    assert read_labelled_lines(tmp_path / "a.txt") == [("0", "wait… what – now"), ("1", "yes")]
    assert len(read_labelled_lines(tmp_path / "a.txt", "latin-1")) == 2
    (tmp_path / "b.txt").write_bytes(b"0 \x81 is nothing in Windows-1252\n")
    assert read_labelled_lines(tmp_path / "b.txt")[0][1].startswith("\x81")


def test_one_file_is_split_by_seed(tmp_path):
    (tmp_path / "all.txt").write_text("".join(f"{'yes' if i % 4 else 'no'} text {i}\n" for i in range(40)))
    options = {"root": str(tmp_path), "files": {"all": "all.txt"}}
    dm = TextFiles(**options)
    classes = dm.info.label_sets["class"]
    assert classes.classes == ("no", "yes")
    assert not classes.prompts
    by_split = texts(dm)
    assert {split: len(rows) for split, rows in by_split.items()} == {"train": 28, "val": 4, "test": 8}
    assert sorted(row for rows in by_split.values() for row in rows) == sorted(f"text {i}" for i in range(40))
    for split, rows in by_split.items():
        assert classes.labels[split].tolist() == [int(row.split()[1]) % 4 > 0 for row in rows]
    assert dm.info.fingerprint["protocol"] == "k-fold"
    assert "seed 0" in dm.info.fingerprint["splits"]["val"]
    assert texts(TextFiles(**options)) == by_split != texts(TextFiles(**options, split_seed=1))


def test_official_splits(tmp_path):
    for split, n in {"train": 20, "test": 6}.items():
        (tmp_path / split).write_text("".join(f"{i % 2} {split} {i}\n" for i in range(n)))
    dm = TextFiles(root=str(tmp_path), files={"train": "train", "test": "test"}, classes={0: "bad", 1: "good"})
    assert dm.info.label_sets["class"].classes == ("bad", "good")
    assert texts(dm)["test"] == [f"test {i}" for i in range(6)]
    assert [len(rows) for rows in texts(dm).values()] == [18, 2, 6]
    assert dm.info.fingerprint["protocol"] == "splits"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0 fine\n1\n", r"all\.txt', line 2: expected 'label text', got '1'"),
        (b"\n", "has no lines"),
        (b"0 fine\n7 who\n", r"labels \['7'\] have no class name"),
        (b"0 fine\n0 fine\n0 fine\n0 fine\n", r"no training samples: \['good'\]"),
    ],
)
def test_bad_content(tmp_path, content, message):
    (tmp_path / "all.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        TextFiles(root=str(tmp_path), files={"all": "all.txt"}, classes={0: "bad", 1: "good"}).setup()


def test_bad_bytes_and_missing_file(tmp_path):
    (tmp_path / "all.txt").write_bytes(b"0 clich\xe9\n")
    with pytest.raises(DataError, match=r"is not utf-8: .*; try data\.encoding=auto"):
        TextFiles(root=str(tmp_path), files={"all": "all.txt"}, encoding="utf-8").setup()
    with pytest.raises(DataError, match=r"cannot read .*rt-polarity\.all.*No such file"):
        SentEval(task="MR", root=str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "MRR"}, r"data\.task='MRR' is not one of .*did you mean 'MR'"),
        ({"root": None}, r"data\.root is not set"),
        ({"encoding": "utf-88"}, "neither 'auto' nor an encoding"),
        ({"val_fraction": 2}, "val_fraction=2"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        SentEval(**{"task": "MR", "root": "x", **options})


@pytest.mark.parametrize("files", [None, {"train": "a"}, {"all": "a", "test": "b"}, {"train": "a", "tset": "b"}])
def test_bad_files(files):
    with pytest.raises(ConfigError, match=r"give 'all' alone, or train, test"):
        TextFiles(root="x", files=files)


@pytest.mark.parametrize("task", TASKS)
def test_real_sets(shared, task):
    if not (shared / "data" / "text").is_dir():
        pytest.skip("needs data/text/ of the development data")
    dm = SentEval(task=task, root=str(shared / "data" / "text"))
    by_split = texts(dm)
    assert sum(map(len, by_split.values())) == SIZES[task]
    assert "\ufffd" not in "".join(row for rows in by_split.values() for row in rows)
    labels = dm.info.label_sets["class"]
    assert all(labels.labels[split].bincount().min() > 0 for split in SPLITS)
    if task == "TREC":
        assert len(by_split["test"]) == 500
        assert by_split["test"][0] == "How far is it from Denver to Aspen ?"
        assert labels.classes[int(labels.labels["test"][0])] == "number"


def test_identical_texts_in_two_splits(tmp_path, caplog):
    for split, n in {"train": 20, "val": 5, "test": 6}.items():
        (tmp_path / split).write_text("".join(f"{i % 2} {split} {i}\n" for i in range(n)) + "0 so bad\n")
    files = {split: split for split in SPLITS}
    TextFiles(root=str(tmp_path), files=files).setup()
    assert "1 of 21 items of 'train' are in 'val' too (the first: row 20 'so bad' is row 5 'so bad')" in caplog.text
    assert "1 of 6 items of 'val' are in 'test' too" in caplog.text
    with pytest.raises(DataError, match="identical items in two splits"):
        TextFiles(root=str(tmp_path), files=files, duplicates="error").setup()
    with pytest.raises(ConfigError, match=r"data\.duplicates='eror' is not one of .*did you mean 'error'"):
        TextFiles(root=str(tmp_path), files=files, duplicates="eror")


def test_check_and_a_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "all.txt")
    dm = TextFiles(root=str(tmp_path), files={"all": "all.txt"})
    dm.check()
    with pytest.raises(DataError, match="it is a named pipe, not a file"):
        dm.setup()
    with pytest.raises(DataError, match=r"cannot read .*gone\.txt"):
        TextFiles(root=str(tmp_path), files={"all": "gone.txt"}).check()
