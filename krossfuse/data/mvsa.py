"""MVSA: tweets of one image and one text, labelled by the sentiment of each (Niu et al., MMM 2016)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from krossfuse.core.errors import DataError
from krossfuse.data.common import ImageFiles, digest
from krossfuse.data.labelled_images import ALL, LabelledImages, Source, file_line
from krossfuse.data.text import read_text

CLASSES = ("negative", "neutral", "positive")
LABELS, ITEMS = "labelResultAll.txt", "data"


class MVSA(LabelledImages):
    """MVSA-Single or MVSA-Multiple: images, the text of each, and one sentiment for both together.

    ``labelResultAll.txt`` has a line of headings, then a line a tweet: its number, and by annotator ``text,image``,
    with tabs between; ``data`` has ``NUMBER.jpg`` and ``NUMBER.txt``. As in Xu and Mao (MultiSentiNet, CIKM 2017), from
    whom the published counts are: each modality's label is that of most annotators; where one is neutral the other
    counts; tweets without a majority, or positive in one and negative in the other, are left out.

    Args:
        **options: of :class:`~krossfuse.data.labelled_images.LabelledImages`.

    Raises:
        ConfigError: a bad value, or no root.
    """

    what = "the folder that has labelResultAll.txt and data"

    def check(self) -> None:
        """Check that the folder has the labels and the items.

        Raises:
            DataError: it has not.
        """
        super().check()
        for name in (LABELS, ITEMS):
            if not (self.root / name).exists():
                raise DataError(f"data.root: {str(self.root)!r} has no {name!r}{self.way_out()}")

    def read(self) -> Source:
        """Read labels and texts; no image is opened.

        Raises:
            DataError: a line that is of another form, or a tweet without its image or its text.
        """
        self.check()
        numbers, labels = [], []
        for number, annotated in _annotations(self.root / LABELS):
            sentiment = together(annotated)
            if sentiment is not None:
                numbers.append(number)
                labels.append(CLASSES.index(sentiment))
        paths = [self.root / ITEMS / f"{number}.jpg" for number in numbers]
        texts = [" ".join(read_text(path.with_suffix(".txt")).split()) for path in paths]
        lines = [
            f"{label} {file_line(self.root, path, self.digest)}" for label, path in zip(labels, paths, strict=True)
        ]
        return Source(
            CLASSES,
            {ALL: (ImageFiles(paths), torch.tensor(labels, dtype=torch.int64))},
            {"source": "mvsa", "digest": self.digest, "files": digest(lines), "texts": digest(texts)},
            texts={ALL: [[text] for text in texts]},
        )


def together(annotated: Sequence[tuple[str, str]]) -> str | None:
    """Return the sentiment of a tweet from those of its text and its image by annotator; None: they contradict.

    >>> together([("neutral", "positive")]), together([("negative", "positive")])
    ('positive', None)
    >>> together([("positive", "neutral"), ("positive", "negative"), ("neutral", "neutral")])
    'positive'
    """
    found: set[Any] = set()
    for of_modality in zip(*annotated, strict=True):
        label, count = Counter(of_modality).most_common(1)[0]
        if 2 * count <= len(of_modality):
            return None
        found.add(label)
    strong = found - {"neutral"}
    return None if len(strong) > 1 else next(iter(strong), "neutral")


def _annotations(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    found = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if number == 1 or not line.strip():
            continue
        tweet, *given = line.split()
        pairs = [tuple(one.split(",")) for one in given]
        if not tweet.isdigit() or not pairs or any(len(of) != 2 or not {*of} <= {*CLASSES} for of in pairs):
            raise DataError(
                f"{str(path)!r}, line {number}: expected the number of a tweet and, by annotator, text,image of "
                f"{list(CLASSES)}, got {line.strip()[:80]!r}"
            )
        found.append((tweet, [(of[0], of[1]) for of in pairs]))
    if not found:
        raise DataError(f"{str(path)!r} has no tweets after its line of headings")
    return found
