"""What datasets share: prompts, splits, image files, checks. Imports no Lightning."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.core.files import check_regular
from krossfuse.core.labels import DatasetInfo, LabelSet, Prompts
from krossfuse.core.parts import SPLITS, TRAIN, Part
from krossfuse.data.class_lists import class_list, is_list
from krossfuse.data.folds import check_fold_of


def make_prompts(templates: Sequence[str], names: Sequence[str | Sequence[str]]) -> Prompts:
    """Fill every template with every name of every class.

    Args:
        templates: texts with ``{}`` where the name goes.
        names: by class, its name, or several names (synonyms).

    Returns:
        The class texts, class by class.

    Raises:
        ConfigError: there is no template, or one has no ``{}``.

    Examples:
        >>> prompts = make_prompts(["a photo of a {}.", "{}"], ["cat", ["dog", "hound"]])
        >>> prompts.texts[2:5]
        ('a photo of a dog.', 'dog', 'a photo of a hound.')
        >>> prompts.owner.tolist()
        [0, 0, 1, 1, 1, 1]
    """
    if isinstance(templates, str) or not templates:
        raise ConfigError(f"prompt templates must be a non-empty list of texts, got {templates!r}")
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f"prompt template {template!r} has no '{{}}' for the class name")
    texts: list[str] = []
    owner: list[int] = []
    for index, of_class in enumerate(names):
        for name in [of_class] if isinstance(of_class, str) else of_class:
            texts += [template.replace("{}", name) for template in templates]
            owner += [index] * len(templates)
    return Prompts(tuple(texts), torch.tensor(owner, dtype=torch.int64), tuple(templates))


def make_prompt_sets(
    prompt_sets: Mapping[str, Sequence[str]], names: Sequence[str | Sequence[str]]
) -> dict[str, Prompts]:
    """Return ``make_prompts`` of each named list of templates.

    Raises:
        ConfigError: a list is unusable; the message names it.
    """
    made = {}
    for name, templates in prompt_sets.items():
        try:
            made[str(name)] = make_prompts(templates, names)
        except ConfigError as error:
            raise ConfigError(f"prompts.{name}: {error}") from None
    return made


def prompt_templates(prompts: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]]:
    """Return the lists of templates of a configuration, by prompt set.

    ``list:NAME`` is a published list; a set that is null is left out.

    Raises:
        ConfigError: one is no list of texts with ``{}``; the message names it.
    """
    given = {name: of for name, of in (prompts or {}).items() if of is not None}
    prompts = {name: class_list(str(of)).templates if is_list(of) else of for name, of in given.items()}
    for name, templates in prompts.items():
        if isinstance(templates, str) or not isinstance(templates, Sequence):
            raise ConfigError(f"prompts.{name}={templates!r} must be a list of texts, as in [{str(templates)!r}]")
        if strange := [template for template in templates if not isinstance(template, str)]:
            raise ConfigError(f"prompts.{name}: {strange[0]!r} is no text; put it in quotes")
    checked = {str(name): list(templates) for name, templates in prompts.items()}
    make_prompt_sets(checked, ["any"])
    return checked


def digest(lines: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of a sequence of texts; the borders between them count."""
    sha = hashlib.sha256()
    for line in lines:
        data = line.encode("utf-8", "surrogateescape")
        sha.update(f"{len(data)}:".encode())
        sha.update(data)
    return sha.hexdigest()


def open_image(path: str | Path) -> Image.Image:
    """Decode an image file into RGB; what is transparent becomes white.

    Raises:
        DataError: the file is missing, truncated or no image; the message names it.
    """
    try:
        check_regular(path)  # to open a named pipe is to wait for ever
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(
            f"cannot read image {str(path)!r} ({type(error).__name__}: {error}); replace or remove the file"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB; what is transparent becomes white."""
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


class ImageFiles(Sequence[Image.Image]):
    """Image files as a lazy sequence of RGB images."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        return open_image(self.paths[index])


def stratified_split(labels: Tensor, fractions: Mapping[str, float], *, seed: int) -> dict[str, Tensor]:
    """Split rows by seed, class by class.

    Of a class of m items each split but ``train`` gets ``round(m · fraction)``, at least one as long as one item
    is left for ``train``, which gets the rest. Rows of a split keep their order; label -1 counts as a class.

    Args:
        labels: (n,) int64.
        fractions: share of each split other than ``train``, e.g. ``{"val": 0.1, "test": 0.2}``.
        seed: of the draw (CPU generator).

    Returns:
        By split, the sorted row indices (int64).

    Raises:
        ConfigError: fractions that are not positive or leave nothing for training.

    Examples:
        >>> rows = stratified_split(torch.tensor([0, 1] * 10), {"val": 0.1, "test": 0.2}, seed=0)
        >>> {split: len(of_split) for split, of_split in rows.items()}
        {'train': 14, 'val': 2, 'test': 4}
    """
    check_fractions(fractions)
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[Tensor]] = {TRAIN: [], **{split: [] for split in fractions}}
    for label in torch.unique(labels).tolist():
        of_class = torch.nonzero(labels == label).flatten()
        of_class = of_class[torch.randperm(len(of_class), generator=generator)]
        m = len(of_class)
        for split, fraction in fractions.items():
            count = min(max(1, round(m * fraction)), len(of_class) - 1)
            rows[split].append(of_class[:count])
            of_class = of_class[count:]
        rows[TRAIN].append(of_class)
    return {split: torch.cat(parts).sort().values for split, parts in rows.items()}


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Check the shares of the splits other than ``train``.

    Raises:
        ConfigError: one is not in (0, 1), or nothing is left for training.
    """
    for split, fraction in fractions.items():
        if not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise ConfigError(f"{split}_fraction={fraction!r} must be a number above 0 and below 1")
    if sum(fractions.values()) >= 1:
        raise ConfigError(f"the fractions {dict(fractions)} sum to 1 or more and leave nothing for train")


def check_split_seed(seed: int) -> int:
    """Return the seed of a drawn split.

    Raises:
        ConfigError: it is no whole number from 0 to 2^63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"split_seed={seed!r} must be a whole number from 0 to 2^63 - 1")
    return seed


def required_path(key: str, value: str | None, what: str) -> Path:
    """Return a path that the user must give.

    Raises:
        ConfigError: it was not given; the message says how to.
    """
    if not value:
        raise ConfigError(f"data.{key} is not set: give {what} as data.{key}=PATH")
    return Path(value).expanduser()


def check_expected(expected: Mapping[str, int] | None) -> dict[str, int]:
    """Return the published counts of a data set, as configured: by split, and of ``classes``.

    Raises:
        ConfigError: they are no counts.
    """
    if expected is not None and not isinstance(expected, Mapping):
        raise ConfigError(f"data.expected={expected!r} must be counts as in {{train: 50000, classes: 10}}, or null")
    for key, count in (expected or {}).items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"data.expected.{key}={count!r} must be a positive integer, or data.expected=null")
    return {str(key): count for key, count in (expected or {}).items()}


def check_counts(name: str, expected: Mapping[str, int], found: Mapping[str, int], where: object) -> None:
    """Check what was found against the published counts.

    Args:
        name: of the data set.
        expected: as :func:`check_expected` returns it; what it does not name is not compared.
        found: by official split, and for ``classes``, the number found.
        where: place of the files, for the message.

    Raises:
        DataError: they differ; the message has both sides.
    """
    wrong = [f"{count} {_counted(key)}, found {found.get(key, 0)}" for key, count in expected.items()
             if found.get(key, 0) != count]  # fmt: skip
    if wrong:
        raise DataError(
            f"dataset {name!r}: expected {'; '.join(wrong)} in {str(where)!r}: these are not the files of the "
            "published set; fetch them again, or say data.expected=null if they are meant"
        )


def _counted(key: str) -> str:
    return key if key == "classes" else f"items in {key}"


def check_info(info: DatasetInfo, sizes: Mapping[Part, int], *, splits: Sequence[str] = SPLITS) -> DatasetInfo:
    """Check that labels, prompts, captions and items fit each other.

    Args:
        info: the dataset.
        sizes: number of items of each part, without the prompt parts.
        splits: those that must be there.

    Returns:
        ``info`` itself.

    Raises:
        DataError: an empty or missing split; a label out of range; labels or captions of another length
            than the items; a class without training samples; class texts for fewer than two classes; a caption
            without an image; folds that are none.
    """
    where = f"dataset {info.name!r}"
    for part, size in sorted(sizes.items()):
        if size == 0:
            raise DataError(f"{where}: {part} is empty")
    present = sorted({part.split for part in sizes})
    if missing := [split for split in splits if split not in present]:
        raise DataError(f"{where}: no items in split {missing}; it has {present}")
    for split, rows in info.caption_of.items():
        _check_captions(f"{where}, {split}", rows, sizes.get(Part(split, "image")), sizes.get(Part(split, "text")))
    for split, rows in info.compared.items():
        _check_compared(f"{where}, {split}", rows, sizes.get(Part(split, "text"), 0))
    labelled = {split: len(rows) for split, rows in info.compared.items()}
    for part in sizes:
        if part.split not in info.compared:
            labelled[part.split] = sizes.get(Part(part.split, "image"), sizes[part])
    for name, label_set in info.label_sets.items():
        _check_labels(f"{where}, label set {name!r}", label_set, labelled)
    check_fold_of(info, sizes)
    return info


def _check_captions(where: str, rows: Tensor, n_images: int | None, n_texts: int | None) -> None:
    if rows.ndim != 1 or rows.dtype != torch.int64:
        raise DataError(f"{where}: caption_of must be one int64 a caption, got {tuple(rows.shape)} {rows.dtype}")
    if n_texts is not None and len(rows) != n_texts:
        raise DataError(f"{where}: caption_of has {len(rows)} rows but there are {n_texts} texts")
    if n_images is not None:
        bad = torch.nonzero((rows < 0) | (rows >= n_images)).flatten()
        if len(bad):
            first = int(bad[0])
            raise DataError(
                f"{where}: caption without an image: text {first} names image {int(rows[first])}, "
                f"but there are {n_images} images ({len(bad)} such captions)"
            )


def _check_compared(where: str, rows: Tensor, n_texts: int) -> None:
    if rows.ndim != 2 or rows.shape[1:] != (2,) or rows.dtype != torch.int64:
        raise DataError(f"{where}: compared must be two int64 a pair of texts, got {tuple(rows.shape)} {rows.dtype}")
    if torch.unique(rows).tolist() != list(range(n_texts)):
        raise DataError(f"{where}: compared must name each of the {n_texts} texts, by its row, and no other")


def _check_labels(where: str, label_set: LabelSet, labelled: Mapping[str, int]) -> None:
    n_classes = len(label_set.classes)
    if twice := sorted(name for name, count in Counter(label_set.classes).items() if count > 1):
        raise DataError(
            f"{where}: {len(twice)} class name(s) given to several classes: {twice[:10]}; each needs its own"
        )
    for split, labels in label_set.labels.items():
        rows = labelled.get(split, 0)
        if len(labels) != rows:
            raise DataError(f"{where}, {split}: {len(labels)} labels but {rows} items")
        if label_set.multilabel:
            if labels.ndim != 2 or labels.shape[1] != n_classes or labels.dtype != torch.bool:
                raise DataError(
                    f"{where}, {split}: multilabel labels must be (n, {n_classes}) bool, "
                    f"got {tuple(labels.shape)} {labels.dtype}"
                )
            continue
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise DataError(f"{where}, {split}: labels must be (n,) int64, got {tuple(labels.shape)} {labels.dtype}")
        bad = torch.nonzero((labels < -1) | (labels >= n_classes)).flatten()
        if len(bad):
            first = int(bad[0])
            raise DataError(
                f"{where}, {split}: label {int(labels[first])} of row {first} is out of range: "
                f"there are {n_classes} class names (0 to {n_classes - 1}; -1 = no label)"
            )
    if TRAIN in label_set.labels:
        train = label_set.labels[TRAIN]
        counts = train.sum(0) if label_set.multilabel else torch.bincount(train[train >= 0], minlength=n_classes)
        empty = [label_set.classes[i] for i in torch.nonzero(counts == 0).flatten().tolist()]
        if empty:
            raise DataError(
                f"{where}: {len(empty)} of {n_classes} classes have no training samples: {empty[:10]}"
                f"{_more(empty)}; add some, or leave the classes out of every split"
            )
    for name, prompts in label_set.prompts.items():
        owner = prompts.owner
        if len(prompts.texts) != len(owner):
            raise DataError(f"{where}, prompts {name!r}: {len(prompts.texts)} texts but {len(owner)} owners")
        if len(owner) and (int(owner.min()) < 0 or int(owner.max()) >= n_classes):
            raise DataError(f"{where}, prompts {name!r}: an owner is outside the {n_classes} classes")
        named = sorted(set(owner.tolist()))
        if len(named) < min(2, n_classes):
            raise DataError(
                f"{where}, prompts {name!r}: texts for {len(named)} of {n_classes} classes "
                f"({[label_set.classes[i] for i in named]}), and zero-shot needs two classes to tell apart: give more "
                "classes a text (an owner is the class's number, from 0), or remove this prompt set"
            )


def _more(shown: Sequence[object]) -> str:
    return f" and {len(shown) - 10} more" if len(shown) > 10 else ""
