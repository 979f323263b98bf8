"""Bring your own embeddings: features, labels and class texts from one safetensors or npz file, and no encoder.

The keys (all but the features are optional; ``docs/embeddings.md`` explains them)::

    {train,val,test}/image/ENCODER    (n, d) float        features of the images
    {train,val,test}/text/ENCODER     (m, d) float        features of the texts
    {train,val,test}/labels           (n,) integer        -1 = no label; or (n, classes) 0/1 = multilabel
    {train,val,test}/caption_of       (m,) integer        image row of each text; not needed when m = n and in order
    prompts/text/ENCODER              (t, d) float        class text features
    prompts/owner                     (t,) integer        class of each class text; not needed when t = classes
    classes                           class names: array of texts (npz) or JSON list in the metadata (safetensors)

More label sets and prompt sets: ``train/labels/SET``, ``prompts/SET/PROMPTS/text/ENCODER``,
``prompts/SET/PROMPTS/owner``, and ``classes`` as a JSON mapping. The plain forms mean ``SET = "class"`` and
``PROMPTS = "default"``.

Examples:
    >>> import numpy as np, pathlib, tempfile
    >>> rng = np.random.default_rng(0)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.npz"
    >>> arrays = {"classes": np.array(["cat", "dog"]), "prompts/text/clip": rng.normal(size=(2, 8))}
    >>> for split, n in {"train": 40, "test": 20}.items():
    ...     arrays[f"{split}/image/clip"] = rng.normal(size=(n, 8))
    ...     arrays[f"{split}/image/dinov2"] = rng.normal(size=(n, 12))
    ...     arrays[f"{split}/labels"] = np.arange(n) % 2
    >>> np.savez(path, **arrays)
    >>> from krossfuse.core.parts import Part
    >>> bundle = EmbeddingsFile(path=str(path)).bundle()
    >>> bundle.pair, bundle.dims("image"), len(bundle[Part("val", "image")]["dinov2"])
    ('clip+dinov2', {'cross_modal': 8, 'dinov2': 12}, 4)
"""

from __future__ import annotations

from krossfuse.features.embeddings.file import EmbeddingsFile
from krossfuse.features.embeddings.format import SUFFIXES
from krossfuse.features.embeddings.save import save_embeddings

__all__ = ["SUFFIXES", "EmbeddingsFile", "save_embeddings"]
