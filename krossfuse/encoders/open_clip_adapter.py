"""Cross-modal encoders of open_clip."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor, nn

from krossfuse.core.errors import ConfigError, check_choice, did_you_mean
from krossfuse.core.installed import version
from krossfuse.core.parts import Modality
from krossfuse.encoders.base import Encoder, EncoderModule, TextBatch
from krossfuse.encoders.sources import copy_model, copy_safetensors, output_dim, weights_digest


class OpenCLIP(Encoder):
    """A model of open_clip: image and text tower in one space.

    QuickGELU. Weights of the ``openai`` tag (and of MetaCLIP, DFN and others) were trained with QuickGELU and give
    silently different features without it, so they need the ``-quickgelu`` variant of the architecture
    (``ViT-B-32-quickgelu``); any mismatch of tag and architecture is refused. Of a local checkpoint nothing is known:
    name the architecture that it was trained with.

    Args:
        architecture: a name that open_clip lists, ``hf-hub:OWNER/NAME``, or ``local-dir:FOLDER``.
        pretrained: open_clip's tag, or a local checkpoint; None for ``hf-hub:`` and ``local-dir:``, which have theirs.
        preprocess: overrides of open_clip's preprocessing: ``size``, ``mean``, ``std``, ``interpolation``,
            ``resize_mode``, ``fill_color``; the defaults go with the architecture or the tag.
        name: for tables; None = the architecture.
        about: see :class:`~krossfuse.encoders.base.Encoder`.

    Raises:
        ConfigError: weights are missing or given twice, an unknown override, or ``openai`` without QuickGELU.
    """

    modalities: tuple[Modality, ...] = ("image", "text")

    def __init__(
        self,
        *,
        architecture: str,
        pretrained: str | None = None,
        preprocess: Mapping[str, Any] | None = None,
        name: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.declare(about)
        scheme = re.match("(hf-hub|local-dir):", architecture)
        if bool(scheme) == bool(pretrained):
            raise ConfigError(
                f"architecture={architecture!r} with pretrained={pretrained!r}: "
                + ("this source has its own weights" if scheme else "name the tag or the checkpoint file")
            )
        if pretrained == "openai" and not architecture.endswith("-quickgelu"):
            raise ConfigError(
                f"pretrained='openai' was trained with QuickGELU, which architecture={architecture!r} lacks; "
                f"use architecture={architecture + '-quickgelu'!r}"
            )
        for key in preprocess or {}:
            check_choice("preprocess", key, ("size", "mean", "std", "interpolation", "resize_mode", "fill_color"))
        self.architecture, self.pretrained, self.preprocess = architecture, pretrained, dict(preprocess or {})
        self.licence = str(self.about.get("licence", ""))
        self.name = name or re.sub(r"^(hf-hub|local-dir):(.*/)?", "", architecture)

    def fingerprint(self, modality: Modality) -> Mapping[str, Any]:
        """Return library, architecture, weights' digest and overrides.

        A tag or a hub name is looked up by open_clip, which has to be imported (and may download) for that; a local
        file or folder is not.
        """
        check_choice("modality", modality, self.modalities)
        local = self._local()
        return {
            "open_clip_torch": version("open_clip_torch"),
            "architecture": "local-dir" if self.architecture.startswith("local-dir:") else self.architecture,
            "pretrained": "file" if local else self.pretrained,
            "weights": weights_digest(local or _resolve(self.architecture, self.pretrained)),
            "preprocess": {key: _plain(value) for key, value in self.preprocess.items()},
        }

    def load(self) -> EncoderModule:
        """Build the model and load its weights, by open_clip, with ``weights_only=True``.

        Raises:
            ConfigError: open_clip has no such model or tag, its QuickGELU differs, or the weights cannot be had.
        """
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        weights = self.pretrained and str(self._local() or _resolve(self.architecture, self.pretrained))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # _resolve compares tag and config
                # Unpickles with weights_only=True, which is open_clip's default.
                network = open_clip.create_model(
                    self.architecture,
                    pretrained=weights,
                    require_pretrained=True,
                    force_preprocess_cfg=self._preprocessing(),
                )
            preprocess = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
            tokenizer = open_clip.get_tokenizer(self.architecture)
        except Exception as error:  # open_clip raises RuntimeError, FileNotFoundError, hub errors, ...
            raise ConfigError(f"open_clip cannot load {self._words()}: {type(error).__name__}: {error}") from error
        return self.verified(_OpenCLIP(network.requires_grad_(False).eval(), preprocess, tokenizer))

    def copy_weights(self, folder: Path) -> Mapping[str, Any]:
        """Copy the weights, or a model's whole folder; the preprocessing of a tag becomes explicit.

        Raises:
            ConfigError: see :meth:`Encoder.copy_weights`.
        """
        weights = self._local() or _resolve(self.architecture, self.pretrained)
        if self.pretrained is None:
            source = weights if weights.is_dir() else weights.parent
            return {"architecture": f"local-dir:{copy_model(source, folder)}", "name": self.name}
        copied = copy_safetensors(weights, folder)
        return {"pretrained": str(copied), "preprocess": self._preprocessing(), "name": self.name}

    def _preprocessing(self) -> dict[str, Any]:
        # The path of the tag's file is what open_clip gets to see; so the tag's preprocessing comes along.
        own = {} if self._local() or not self.pretrained else _tag(self.architecture, self.pretrained)
        keys = ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")
        return {**{key: own[key] for key in keys if key in own}, **self.preprocess}

    def _local(self) -> Path | None:
        if self.architecture.startswith("local-dir:"):
            folder = Path(self.architecture.removeprefix("local-dir:")).expanduser()
            if not (folder / "open_clip_config.json").is_file():
                raise ConfigError(f"architecture={self.architecture!r}: the folder has no open_clip_config.json")
            return folder
        path = Path(self.pretrained or "").expanduser()
        if self.pretrained and path.is_file():
            return path
        if self.pretrained and re.search(r"[/\\]|\.(pt|pth|bin|safetensors)$", self.pretrained):
            raise ConfigError(f"pretrained={self.pretrained!r}: no such file")
        return None

    def _words(self) -> str:
        return self.architecture + (f" with weights {self.pretrained!r}" if self.pretrained else "")


@cache
def _tag(architecture: str, tag: str) -> dict[str, Any]:
    """Return what open_clip knows of a tag, after a check against the architecture."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    model = open_clip.get_model_config(architecture)
    if model is None:
        raise ConfigError(
            f"open_clip has no architecture {architecture!r}{did_you_mean(architecture, open_clip.list_models())}"
        )
    found = get_pretrained_cfg(architecture, tag)
    if not found:
        tags = open_clip.pretrained.list_pretrained_tags_by_model(architecture)
        raise ConfigError(
            f"open_clip has no weights {tag!r} for {architecture!r}{did_you_mean(tag, tags)}; it has {tags}"
        )
    quick = bool(found.get("quick_gelu", False))
    if quick != bool(model.get("quick_gelu", False)):
        other = f"{architecture}-quickgelu" if quick else architecture.removesuffix("-quickgelu")
        raise ConfigError(
            f"weights {tag!r} were trained {'with' if quick else 'without'} QuickGELU, unlike "
            f"architecture={architecture!r}; use architecture={other!r}"
        )
    return dict(found)


@cache
def _resolve(architecture: str, tag: str | None) -> Path:
    """Return the local file of a tag or a hub model, downloaded if need be."""
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

    try:
        if tag is None:
            return Path(download_pretrained_from_hf(architecture.removeprefix("hf-hub:")))
        return Path(download_pretrained(_tag(architecture, tag)))
    except ConfigError:
        raise
    except Exception as error:  # the hub's errors, no network, ...
        raise ConfigError(
            f"cannot get the weights {tag!r} of open_clip's {architecture!r}: {type(error).__name__}: {error}. "
            "Without a network, put the checkpoint on this machine and give its path as pretrained=..., or set "
            "HF_HOME to a cache that has it"
        ) from error


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


class _OpenCLIP(EncoderModule):
    def __init__(self, network: nn.Module, preprocess: Any, tokenizer: Any) -> None:
        super().__init__()
        self.network, self.preprocess, self.tokenizer = network, preprocess, tokenizer
        self.max_length = getattr(tokenizer, "context_length", None)
        self.dim = output_dim(self, "text")

    def prepare_image(self, image: Image) -> Tensor:
        pixels: Tensor = self.preprocess(image)
        return pixels

    def prepare_text(self, texts: Sequence[str]) -> TextBatch:
        return {"input_ids": self.tokenizer(list(texts))}

    def encode_image(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.encode_image(images)  # type: ignore[operator]
        return features

    def encode_text(self, batch: TextBatch) -> Tensor:
        features: Tensor = self.network.encode_text(batch["input_ids"])  # type: ignore[operator]
        return features
