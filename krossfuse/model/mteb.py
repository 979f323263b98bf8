"""A fused encoder in mteb: text tasks, and MIEB's image and image-text tasks.

    import mteb
    from krossfuse.model.mteb import MTEBForm

    results = mteb.evaluate(MTEBForm(model), mteb.get_tasks(tasks=["CIFAR10ZeroShot"]))

What mteb asks of an encoder is a protocol, so that nothing of mteb is imported until it asks for the model's
metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krossfuse.core.errors import ConfigError, DataError, check_choice, require
from krossfuse.core.unit import normalised
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.items import image_items

Similarity = Literal["dot", "cosine"]


class MTEBForm:
    """The encoder that mteb evaluates.

    Embeddings are as :meth:`~krossfuse.model.fused.Fused.encode_image` and ``encode_text`` make them, float32. Of an
    item that has both an image and a text, as some of MIEB's documents have, the embedding is the sum of both, each
    scaled to norm 1, which is how MIEB treats CLIP.

    Args:
        model: the fused encoder.
        name: ``owner/name`` under which mteb keeps the results.
        similarity: of embeddings, where a task compares them: ``"dot"``, which is the fused kernel, or ``"cosine"``.
            A few of mteb's evaluators compare by cosine whatever the model says.

    Raises:
        ConfigError: a bad value.
    """

    def __init__(self, model: FusedEncoder, *, name: str = "krossfuse/fused", similarity: Similarity = "dot") -> None:
        check_choice("similarity", similarity, ["dot", "cosine"])
        if name.count("/") != 1 or not all(name.split("/")):
            raise ConfigError(f"name={name!r}: mteb keeps results by owner and name; write owner/name")
        self.model, self.name, self.compared = model, name, similarity

    @cached_property
    def mteb_model_meta(self) -> Any:
        """Metadata of the model, whose revision is its digest."""
        require("mteb", "krossfuse.model.mteb", extra="mteb")
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        modules = [m for modality in self.model.modalities for m in self.model.loaded(modality).values()]
        parameters = {id(p): p for module in modules for p in module.parameters()}
        lengths = [
            m.max_length
            for m in (self.model.loaded("text").values() if "text" in self.model.modalities else ())
            if m.max_length is not None
        ]
        return ModelMeta(
            loader=None,
            name=self.name,
            revision=self.model.digest,
            release_date=None,
            languages=None,
            n_parameters=sum(p.numel() for p in parameters.values()),
            memory_usage_mb=round(sum(p.numel() * p.element_size() for p in parameters.values()) / 2**20, 1),
            max_tokens=min(lengths, default=None),
            embed_dim=self.model.dim,
            license=None,
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.DOT_PRODUCT if self.compared == "dot" else ScoringFunction.COSINE,
            use_instructions=False,
            training_datasets=None,
            modalities=list(self.model.modalities),
        )

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, show_progress_bar: bool = False, **_: Any
    ) -> NDArray[np.float32]:
        """Encode mteb's batches, each with ``text``, ``image`` or both.

        Args:
            inputs: the batches; of a batch, lists of texts and of images.
            show_progress_bar: show progress within batches.
            **_: what mteb says of the task (metadata, split, subset, kind of prompt): nothing here depends on it.

        Returns:
            (n, dim) float32.

        Raises:
            ConfigError: the fusion has no such side, or an item has neither.
            DataError: there is no item, or one cannot be encoded.
        """
        made = [self._batch(batch, show_progress_bar).float().cpu() for batch in inputs]
        if not made:
            raise DataError("mteb gave no batch to encode")
        return torch.cat(made).numpy()

    def _batch(self, batch: Mapping[str, Any], progress: bool) -> Tensor:
        parts = []
        if "image" in batch:
            parts.append(self.model.encode_image(image_items(list(batch["image"]))[0], progress=progress))
        if "text" in batch:
            parts.append(self.model.encode_text(list(batch["text"]), progress=progress))
        if not parts:
            raise ConfigError(
                f"mteb gives {sorted(batch)}, and this model encodes {' and '.join(self.model.modalities)}"
            )
        return parts[0] if len(parts) == 1 else normalised(parts[0]) + normalised(parts[1])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the (n, m) similarities of embeddings (n, dim) and (m, dim)."""
        return self.model.similarity(embeddings1, embeddings2, cosine=self.compared == "cosine")

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the (n,) similarities of the rows of embeddings (n, dim) and (n, dim).

        Raises:
            DataError: they differ in shape.
        """
        a, b = torch.as_tensor(embeddings1), torch.as_tensor(embeddings2)
        if a.shape != b.shape:
            raise DataError(f"embeddings of shapes {tuple(a.shape)} and {tuple(b.shape)} are no pairs")
        if self.compared == "cosine":
            a, b = normalised(a), normalised(b)
        return (a * b).sum(-1)
