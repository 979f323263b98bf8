"""The fused encoder as a module: raw images and texts in, one embedding out; how it is saved is in ``encoder``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self, overload

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.core.parts import CROSS_MODAL, MODALITIES, Modality
from krossfuse.core.unit import normalised
from krossfuse.encoders.base import EncoderModule
from krossfuse.encoders.io import fingerprints_of
from krossfuse.encoders.pair import Pair
from krossfuse.features.encoding import Streams
from krossfuse.features.plan import SHARD
from krossfuse.fusion.base import FusionMethod
from krossfuse.fusion.batches import Batch, RawRows, loader
from krossfuse.fusion.io import configuration
from krossfuse.fusion.rows import RowError
from krossfuse.fusion.stream import check_encoders, device_of, roles_of
from krossfuse.model.items import Pictures, cut_texts, image_items, say_cut, text_items

FORMS = ("torch", "numpy")
Average = Literal["embeddings", "similarities"]


class Fused(nn.Module):
    """Frozen encoders and a fitted fusion as one model.

    Images and texts are prepared, encoded and fused in the blocks in which a run extracts its features, so that on a
    CPU the embeddings of a list are the run's to the bit where the list is the run's. Nothing is trained and no
    gradient is kept. :meth:`to`, :meth:`half` and the like move and round encoders and fusion alike.

    Args:
        pair: the encoders by role, by description: what a saved model refers to.
        fusion: the fitted method.
        modules: by role, encoders that are loaded already; None = they are loaded here.

    Attributes:
        pair: the encoders' descriptions.
        fusion: the method.
        digest: of the encoders' fingerprints and the fusion, without versions of libraries: two models that share it
            give the same embeddings but for rounding.
        card: text of the model card that :meth:`save_pretrained` writes; None = one without measurements.

    Raises:
        ConfigError: the fusion has a parent that the pair lacks, or expects other dimensions.
    """

    def __init__(self, pair: Pair, fusion: FusionMethod, *, modules: Mapping[str, EncoderModule] | None = None) -> None:
        super().__init__()
        self.pair, self.fusion = pair, fusion.eval().requires_grad_(False)
        self.card: str | None = None
        self.copied = False
        described = pair.every()
        roles = list(
            dict.fromkeys(role for modality in fusion.modalities for role in roles_of(fusion.inputs, modality))
        )
        for role in roles:
            if role not in described:
                raise ConfigError(f"pair {pair.name!r} has no encoder {role!r}, a parent of the fusion; it has "
                                  f"{list(described)}")  # fmt: skip
        loaded: dict[int, EncoderModule] = {}  # two roles may be one encoder
        given = {
            role: modules[role] if modules and role in modules else loaded.setdefault(id(of), of.load())
            for role in roles
            for of in [described[role]]
        }
        check_encoders(fusion, {role: module.dim for role, module in given.items()})
        self._roles = list(given)
        # A list, because a role may hold characters that a ModuleDict refuses.
        self.encoders = nn.ModuleList(given.values()).requires_grad_(False).eval()
        self.digest = self._digest()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it encodes."""
        return self.fusion.modalities

    @property
    def dim(self) -> int:
        """Dimension of the embeddings."""
        return self.fusion.out_dim

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        tensor = next(self.encoders.parameters(), None)
        return device_of(self.fusion) if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """In which precision it computes: that of the encoders; of the fusion, where they have no parameters."""
        tensors = [*self.encoders.parameters(), *self.fusion.parameters(), *self.fusion.buffers()]
        return next((x.dtype for x in tensors if x.is_floating_point()), torch.float32)

    def loaded(self, modality: Modality) -> dict[str, EncoderModule]:
        """Return by role the loaded encoders that see a modality, the cross-modal one first."""
        self.check_modality(modality)
        every = dict(zip(self._roles, self.encoders, strict=True))
        return {role: every[role] for role in roles_of(self.fusion.inputs, modality)}  # type: ignore[misc]

    def check_modality(self, modality: Modality) -> None:
        """Check that the fusion encodes a modality.

        Raises:
            ConfigError: it does not; the message says what it does.
        """
        check_choice("modality", modality, MODALITIES)
        if modality not in self.modalities:
            raise ConfigError(
                f"this model has no {modality} side: its fusion ({type(self.fusion).__name__}) encodes "
                f"{' and '.join(self.modalities)} only"
            )

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: nothing here is trained."""
        return super().train(False)

    # Encoding

    @overload
    def encode_image(
        self,
        images: Any,
        *,
        batch_size: int = 64,
        normalize: bool = False,
        convert_to: Literal["torch"] = "torch",
        progress: bool = False,
        num_workers: int = 0,
    ) -> Tensor: ...
    @overload
    def encode_image(
        self,
        images: Any,
        *,
        batch_size: int = 64,
        normalize: bool = False,
        convert_to: Literal["numpy"],
        progress: bool = False,
        num_workers: int = 0,
    ) -> NDArray[Any]: ...
    def encode_image(
        self,
        images: Any,
        *,
        batch_size: int = 64,
        normalize: bool = False,
        convert_to: str = "torch",
        progress: bool = False,
        num_workers: int = 0,
    ) -> Tensor | NDArray[Any]:
        """Encode images.

        Args:
            images: a PIL image, a path, a tensor (channels, h, w) or (n, channels, h, w), a numpy array (h, w),
                (h, w, channels) or (n, h, w, channels), uint8 or floats from 0 to 1; or a sequence of these, read when
                its turn comes. What is not RGB is converted, which the log says.
            batch_size: images in memory at a time.
            normalize: scale the embeddings to norm 1. The fused kernel is their inner product as they are; scaled, it
                is the cosine.
            convert_to: ``torch`` (on the model's device) or ``numpy``.
            progress: show a progress bar.
            num_workers: processes that read and prepare images.

        Returns:
            (dim,) of a single image, (n, dim) of several.

        Raises:
            DataError: an empty list, an image that cannot be read or converted (the message says which), or features
                that cannot be fused.
            ConfigError: the fusion has no image side.
        """
        self.check_modality("image")
        items, single = image_items(images)
        fused = self._all("image", items, batch_size, progress, num_workers)
        return self._given_back(fused, single, normalize, convert_to)

    @overload
    def encode_text(
        self,
        texts: Any,
        *,
        batch_size: int = 64,
        normalize: bool = False,
        convert_to: Literal["torch"] = "torch",
        progress: bool = False,
    ) -> Tensor: ...
    @overload
    def encode_text(
        self,
        texts: Any,
        *,
        batch_size: int = 64,
        normalize: bool = False,
        convert_to: Literal["numpy"],
        progress: bool = False,
    ) -> NDArray[Any]: ...
    def encode_text(
        self,
        texts: Any,
        *,
        batch_size: int = 64,
        normalize: bool = False,
        convert_to: str = "torch",
        progress: bool = False,
    ) -> Tensor | NDArray[Any]:
        """Encode texts: one, or a list; see :meth:`encode_image`. Texts longer than an encoder reads are cut and said.

        Raises:
            DataError: an empty list, something that is no text, or features that cannot be fused.
            ConfigError: the fusion has no text side.
        """
        self.check_modality("text")
        items, single = text_items(texts)
        return self._given_back(self._all("text", items, batch_size, progress), single, normalize, convert_to)

    def forward(self, modality: Modality, inputs: Mapping[str, Any]) -> Tensor:
        """Fuse what the encoders' own preprocessing made, (n, dim).

        Args:
            modality: of the inputs.
            inputs: by role, images (n, channels, h, w), or tokens by name, each (n, length).

        Raises:
            DataError: the features cannot be fused.
        """
        return self.fuse(modality, self.features(modality, inputs))

    @torch.no_grad()
    def features(
        self, modality: Modality, inputs: Mapping[str, Any], streams: Streams | None = None
    ) -> dict[str, Tensor]:
        """Return by role the encoders' own outputs (n, d) for prepared inputs; see :meth:`forward`."""
        modules = self.loaded(modality)
        placed = {role: _placed(inputs[role], module, self.device) for role, module in modules.items()}
        # Each block of texts is a mapping; images are one tensor.
        whole = {role: x if isinstance(x, Tensor | list) else [x] for role, x in placed.items()}
        return (streams or Streams(None))(modality, modules, whole)

    @torch.no_grad()
    def fuse(self, modality: Modality, features: Mapping[str, Tensor]) -> Tensor:
        """Return the fused embeddings (n, dim) of the encoders' outputs by role.

        Raises:
            DataError: rows that cannot be fused, or embeddings that leave the range of the precision.
        """
        fused = self.fusion.encode(modality, features)
        if not bool(torch.isfinite(fused).all()):
            bad = (~torch.isfinite(fused).all(1)).nonzero().flatten()
            raise DataError(f"the embeddings of {len(bad)} of {len(fused)} rows leave the range of {fused.dtype}, the "
                            f"first at row {int(bad[0])}; use a wider precision")  # fmt: skip
        return fused

    def encode_parents(
        self, modality: Modality, items: Any, *, batch_size: int = 64, progress: bool = False
    ) -> dict[str, Tensor]:
        """Return by role each encoder's own features (n, d) of images or texts, on the CPU: what is fused."""
        given, _ = image_items(items) if modality == "image" else text_items(items)
        kept: dict[str, list[Tensor]] = {}
        for batch in self._batches(modality, given, batch_size, progress):
            for role, x in batch.items():
                kept.setdefault(role, []).append(x.cpu())
        return {role: torch.cat(x) for role, x in kept.items()}

    def stream(
        self, modality: Modality, items: Any, *, batch_size: int = 64, progress: bool = False, num_workers: int = 0
    ) -> Iterator[Tensor]:
        """Yield the embeddings (batch, dim) of many items, on the CPU, as they are made; see :meth:`encode_image`."""
        self.check_modality(modality)
        given, _ = image_items(items) if modality == "image" else text_items(items)
        first = 0
        for features in self._batches(modality, given, batch_size, progress, num_workers):
            try:
                fused = self.fuse(modality, features)
            except RowError as error:
                row = int(error.bad(features[error.role or CROSS_MODAL]).nonzero()[0])
                raise DataError(f"{modality} {first + row}: {error.reason}, features of {error.role!r}") from None
            first += len(fused)
            yield fused

    def _all(
        self, modality: Modality, items: Sequence[Any], batch_size: int, progress: bool, num_workers: int = 0
    ) -> Tensor:
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "num_workers": num_workers}
        return torch.cat(list(self.stream(modality, items, **options)))

    def _batches(
        self, modality: Modality, items: Sequence[Any], batch_size: int, progress: bool, num_workers: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Yield by role the encoders' outputs of each batch."""
        check_positive("batch_size", batch_size, integer=True)
        rows = RawRows(modality, items, self.loaded(modality), {}, num_workers)
        on_cpu = self.device.type == "cpu"
        streams, cut = Streams(SHARD if on_cpu else None), dict.fromkeys(self._roles, 0)
        if len(rows) > SHARD:
            streams.start(self.device)
        try:
            with _bar(progress, f"{modality}s", len(rows)) as advance:
                loading = loader(rows, batch_size)
                # Without processes a loader only adds its start to the time of a single query.
                for batch in loading if num_workers else (rows[at] for at in loading.sampler):
                    features = self.features(modality, batch.inputs, streams)
                    self._count_cut(batch, cut)
                    advance(len(next(iter(features.values()))))
                    yield features
        finally:
            streams.stop()
        for role, texts in cut.items():
            if texts:
                say_cut(texts, int(self.loaded(modality)[role].max_length or 0), role)
        if isinstance(items, Pictures):
            items.say_converted()

    def _count_cut(self, batch: Batch, cut: dict[str, int]) -> None:
        if batch.modality == "text":
            for role, module in self.loaded("text").items():
                if module.max_length is not None:
                    cut[role] += sum(cut_texts(tokens, module.max_length) for tokens in batch.inputs[role])

    def _given_back(self, fused: Tensor, single: bool, normalize: bool, convert_to: str) -> Tensor | NDArray[Any]:
        check_choice("convert_to", convert_to, FORMS)
        fused = normalised(fused) if normalize else fused
        fused = fused[0] if single else fused
        if convert_to == "torch":
            return fused
        # numpy has no bfloat16.
        array: NDArray[Any] = (fused.float() if fused.dtype == torch.bfloat16 else fused).cpu().numpy()
        return array

    # What embeddings are for

    def similarity(self, a: Any, b: Any, *, cosine: bool = False) -> Tensor:
        """Return the similarities (n, m) of embeddings (n, dim) and (m, dim).

        Args:
            a: tensor or array; one embedding (dim,) counts as one row.
            b: likewise.
            cosine: their cosines; False = inner products, which are the fused kernel.

        Raises:
            DataError: other dimensions.
        """
        x, y = _rows(a), _rows(b)
        if x.shape[1] != y.shape[1]:
            raise DataError(f"embeddings of {x.shape[1]} and of {y.shape[1]} dimensions have no similarity; are both "
                            "of the same model?")  # fmt: skip
        if cosine:
            x, y = normalised(x), normalised(y)
        similarities: Tensor = x @ y.to(x).T
        return similarities

    def classify(
        self,
        images: Any,
        classes: Sequence[str | Sequence[str]],
        templates: Sequence[str] = ("{}",),
        *,
        average: Average = "embeddings",
        return_scores: bool = False,
        **options: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Classify images by the nearest class text: the rule of the probe ``zero_shot``.

        Args:
            images: see :meth:`encode_image`.
            classes: by class, its name, or several names.
            templates: texts with ``{}`` where the name goes.
            average: see :class:`~krossfuse.probes.zero_shot.ZeroShotHead`.
            return_scores: return the (n, classes) scores too.
            **options: of :meth:`encode_image`.

        Returns:
            (n,) int64 numbers of classes on the CPU (of a single image, a scalar), and the scores if asked.

        Raises:
            ConfigError: a template without ``{}``, fewer than two classes, or no image or text side.
        """
        from krossfuse.data.common import make_prompts
        from krossfuse.probes.zero_shot import ZeroShotHead, decide

        self.check_modality("image")
        self.check_modality("text")
        if isinstance(classes, str) or len(classes) < 2:
            raise ConfigError(f"classes={classes!r}: give the names of two classes or more, as in ['cat', 'dog']")
        prompts = make_prompts(templates, classes)
        features = self.encode_parents("text", list(prompts.texts))
        head = ZeroShotHead(
            self.fuse("text", features).cpu(),
            prompts.owner,
            n_classes=len(classes),
            average=average,
            cross_modal=features.get(CROSS_MODAL),
        )
        items, single = image_items(images)
        embeddings = self.encode_image(items, **options)
        scores = head(_rows(embeddings).cpu())
        decisions = decide(scores)
        if single:
            scores, decisions = scores[0], decisions[0]
        return (decisions, scores) if return_scores else decisions

    def fingerprints(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return by role and modality what decides each encoder's features."""
        described = self.pair.every()
        return {role: fingerprints_of(described[role], self.modalities) for role in self._roles}

    def _digest(self) -> str:
        libraries = {role: self.pair.every()[role].libraries for role in self._roles}
        known = {
            role: {m: {k: v for k, v in of.items() if k not in libraries[role]} for m, of in by_modality.items()}
            for role, by_modality in self.fingerprints().items()
        }
        sha = hashlib.sha256(json.dumps([known, configuration(self.fusion)], sort_keys=True, default=str).encode())
        for name, tensor in self.fusion.state_dict().items():
            sha.update(f"{name} {tuple(tensor.shape)}".encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


def _rows(embeddings: Any) -> Tensor:
    """Return embeddings as (n, dim); one alone is one row."""
    x = torch.as_tensor(embeddings)
    return x if x.ndim > 1 else x[None]


def _placed(inputs: Any, module: EncoderModule, device: torch.device) -> Any:
    """Return prepared inputs on the device, floats in the precision of the encoder."""
    if isinstance(inputs, Tensor):
        dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), inputs.dtype)
        return inputs.to(device, dtype if inputs.is_floating_point() else inputs.dtype, non_blocking=True)
    if isinstance(inputs, Mapping):
        return {name: _placed(x, module, device) for name, x in inputs.items()}
    return [_placed(x, module, device) for x in inputs]


@contextmanager
def _bar(show: bool, what: str, total: int) -> Iterator[Any]:
    """Yield what advances a progress bar on stderr."""
    if not show:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda rows: progress.advance(task, rows)
