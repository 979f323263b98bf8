"""A file is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from krossfuse.core.files import replacing, write_whole


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"before")

    def half() -> None:
        with replacing(path) as partial:
            partial.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_is_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "b" / "c", b"1")
    assert (tmp_path / "b" / "c").read_bytes() == b"1"
