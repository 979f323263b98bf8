"""The fused encoder that is saved, loaded and shared: :class:`FusedEncoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelHubMixin

from krossfuse.model.folder import fetch_model, read_model, write_model
from krossfuse.model.fused import Fused
from krossfuse.model.open_clip import OpenCLIPForm, Preprocess, Tokenizer

_HUB = ("force_download", "token", "cache_dir", "local_files_only", "revision")


class FusedEncoder(
    Fused,
    ModelHubMixin,
    library_name="krossfuse",
    tags=["krossfuse", "feature-extraction", "zero-shot-image-classification"],
):
    """Frozen encoders and a fitted fusion as one model; :class:`~krossfuse.model.fused.Fused` says how it encodes.

    Examples:
        >>> model = FusedEncoder.from_pretrained("fused")                                    # doctest: +SKIP
        >>> model.similarity(model.encode_text("a cat"), model.encode_image(["cat.png"]))    # doctest: +SKIP
    """

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        weights: bool | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub: Any,
    ) -> str | None:
        """Write the model to a folder: ``config.json``, ``fusion.safetensors``, ``golden.safetensors``, ``README.md``.

        Args:
            save_directory: the folder; it is made. A model in it is replaced, once the new one is complete.
            weights: copy the encoders' weights too, so that the folder needs nothing else; False = refer to them;
                None = as this model was loaded, or saved before.
            push_to_hub: upload it, too.
            repo_id: where to; None = the folder's name.
            **hub: of ``push_to_hub`` of huggingface_hub's mixin.

        Raises:
            ConfigError: an encoder or the fusion cannot be written, or weights cannot be copied; nothing is written.
        """
        before, self.copied = self.copied, self.copied if weights is None else weights
        try:
            self._save_pretrained(Path(save_directory))
        except BaseException:
            self.copied = before
            raise
        if not push_to_hub:
            return None
        pushed: str = self.push_to_hub(repo_id or Path(save_directory).resolve().name, **hub)
        return pushed

    def _save_pretrained(self, save_directory: Path) -> None:
        write_model(self, save_directory, weights=self.copied)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a model from a folder, or from the Hugging Face hub.

        What was saved is held against what is here: digests of the files, the encoders' fingerprints (weights,
        preprocessing, versions of libraries), and the golden embeddings.

        Args:
            pretrained_model_name_or_path: a folder, or ``owner/name`` on the hub.
            **options: ``device`` and ``dtype`` of the model (``torch.float16`` or ``"float16"``: encoders and fusion
                compute in it, and embeddings have it; golden embeddings are checked before); ``plugins``: modules of
                your own whose classes may be built; ``encoders``: by role, encoders in place of those that the folder
                refers to (they must have the same fingerprints); ``check=False`` takes what differs, with a warning;
                and those of huggingface_hub's mixin (``revision``, ``cache_dir``, ``token``, ...).

        Raises:
            StoreError: no such folder, a damaged or altered file, a newer format, or something that differs; the
                message names it.
            ConfigError: an encoder that is not there or may not be built.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            own = {k: v for k, v in options.items() if k not in _HUB}
            return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **own)
        hub = {k: options.pop(k) for k in list(options) if k in _HUB}
        return cls._from_pretrained(model_id=str(fetch_model(str(pretrained_model_name_or_path), **hub)), **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        return read_model(cls, Path(model_id), **options)

    def open_clip(self) -> tuple[OpenCLIPForm, Preprocess | None, Tokenizer | None]:
        """Return ``(model, preprocess, tokenizer)`` as open_clip has them (:mod:`krossfuse.model.open_clip`).

        None stands for the preprocessing of a side that the fusion does not have.
        """
        form = OpenCLIPForm(self)
        return form, form.preprocess, form.tokenizer
