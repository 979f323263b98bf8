"""MNIST as pixels, in the split of arXiv 2501.12046: for models that are trained on them, without an encoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, randperm
from torchvision.datasets import MNIST

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.seeds import derived_generator
from krossfuse.data.common import required_path

TRAIN_RECORDS, TEST_RECORDS = 50_000, 10_000


@dataclass(frozen=True)
class Digits:
    """MNIST with pixels on [−1, 1]: 50,000 to train on, 10,000 to validate, 10,000 to test.

    Attributes:
        train: (n, 784) float32 and (n,) int64.
        val: the same.
        test: the same.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class MNISTPixels:
    """Where MNIST lies; nothing is read before :meth:`load`.

    Args:
        root: folder as ``torchvision.datasets.MNIST`` lays it out.
        download: whether to download what is absent.

    Raises:
        ConfigError: no root, or ``download`` is neither true nor false.
    """

    def __init__(self, *, root: str | None, download: bool = False) -> None:
        self.root = required_path("root", root, "torchvision's root of MNIST")
        if not isinstance(download, bool):
            raise ConfigError(f"download={download!r} must be true or false")
        self.download = download

    def load(self, seed: int) -> Digits:
        """Return the digits; which of the training images validate is drawn by ``seed``.

        Raises:
            DataError: they are not there.
        """
        (x, y), test = [_pixels(data) for data in self._sets(self.download)]
        order = randperm(len(y), generator=derived_generator(seed, "split"))
        train, val = order[:TRAIN_RECORDS], order[TRAIN_RECORDS:]
        return Digits((x[train], y[train]), (x[val], y[val]), test)

    def check(self) -> None:
        """Check that the files are there, unless they are to be downloaded.

        Raises:
            DataError: they are not.
        """
        if not self.download:
            self._sets(download=False)

    def fetch(self) -> None:
        """Download what is absent, if that was asked for, so that processes that read it at once find it there.

        Raises:
            DataError: it is not there, or cannot be fetched.
        """
        self._sets(self.download)

    def _sets(self, download: bool) -> list[MNIST]:
        try:
            return [MNIST(str(self.root), train=train, download=download) for train in (True, False)]
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            raise DataError(
                f"data.root: no MNIST in {str(self.root)!r} as torchvision lays it out ({error}); set data.root to the "
                "folder that holds MNIST/raw, or data.download=true"
            ) from error


def _pixels(data: MNIST) -> tuple[Tensor, Tensor]:
    return (data.data.float() / 127.5 - 1).flatten(1), data.targets
