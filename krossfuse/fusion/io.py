"""Save a fusion method to one safetensors file with its configuration, and load it again: the same bits.

The configuration is JSON in the file's metadata: the class and its arguments, with kernels, sketches and wrapped
methods nested as in the YAML files. Only three kinds of classes are ever built from a file: those of this package's
``fusion`` room, registered ones (:func:`register`), and those of modules that the user names, in the environment
variable ``KROSSFUSE_PLUGINS`` or in ``plugins=``. A file cannot make anything else be imported, and nothing is
unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from errno import ENOTDIR
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import krossfuse.fusion as room
from krossfuse import __version__
from krossfuse.core.classes import REGISTERED, check_allowed, check_found_again, defined_class, path_of
from krossfuse.core.classes import register as register
from krossfuse.core.errors import ConfigError, StoreError, did_you_mean
from krossfuse.core.files import replacing
from krossfuse.core.plugins import plugin_modules
from krossfuse.fusion.base import FusionMethod, InputSpec
from krossfuse.fusion.methods.postprocess import DTYPES

FORMAT = "krossfuse-fusion-1"
TARGET, PARTIAL = "_target_", "_partial_"
_HOME = "krossfuse.fusion."
_MOVED = frozenset({"base", "baselines", "kernels", "methods", "postprocess", "sketches", "trained"})
"""Modules that classes were in when files of this format were first written: there by their names in the room."""


def check_saveable(method: FusionMethod) -> None:
    """Check that :func:`save_fusion` can write a method and :func:`load_fusion` read it; nothing is written.

    It looks at the classes and arguments, not at the tensors, so it can run before a fit and before any work.

    Raises:
        ConfigError: an argument cannot be written as JSON, or a class could not be found again.
    """
    json.dumps(configuration(method), sort_keys=True)


def save_fusion(method: FusionMethod, path: Path | str) -> Path:
    """Write a method, fitted or not, to one safetensors file, atomically.

    Args:
        method: in whatever precision and on whatever device it is; the precision is kept.
        path: of the file; its folder is made.

    Returns:
        ``path``.

    Raises:
        ConfigError: an argument of the method cannot be written as JSON, or its class could not be loaded again.
        OSError: the file cannot be written.

    Examples:
        >>> import tempfile
        >>> from krossfuse.fusion.methods import AverageKernel
        >>> method = AverageKernel(inputs=InputSpec(cross_modal=2, image_experts={"dino": 3}))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load_fusion(save_fusion(method, f"{folder}/fusion.safetensors"))
        >>> again.describe() == method.describe()
        True
    """
    from safetensors.torch import save_file

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(ENOTDIR, "a file stands where its folder is to be", str(path)) from None
    metadata = {"format": FORMAT, "version": __version__, "dtype": str(_dtype(method)).removeprefix("torch.")}
    metadata["config"] = json.dumps(configuration(method), sort_keys=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    with replacing(path) as partial_file:
        save_file(tensors, partial_file, metadata)
    return path


def load_fusion(path: Path | str, *, device: torch.device | str = "cpu", plugins: Iterable[str] = ()) -> FusionMethod:
    """Read a method that :func:`save_fusion` wrote: it encodes to the same bits, in the same precision.

    Args:
        path: of the file.
        device: where its tensors go.
        plugins: modules of your own whose classes may be built, beside those of ``KROSSFUSE_PLUGINS``.

    Raises:
        StoreError: the file is missing, damaged, or not a fusion method's.
        ConfigError: it names a class that is neither this package's, nor registered, nor of a named module.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise StoreError(f"there is no fusion file {str(path)!r}; save_fusion writes one")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except SafetensorError as error:
        raise StoreError(f"fusion file {str(path)!r} is damaged ({error}); save it again") from None
    if metadata.get("format") != FORMAT:
        raise StoreError(f"{str(path)!r} holds {metadata.get('format', 'no fusion method')!r}, expected {FORMAT!r}")
    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError) as error:
        what = "is missing" if isinstance(error, KeyError) else f"is no JSON ({error})"
        raise StoreError(f"fusion file {str(path)!r} is damaged: its configuration {what}; save it again") from None
    if metadata.get("dtype") not in DTYPES:
        raise StoreError(
            f"fusion file {str(path)!r} is of precision {metadata.get('dtype')!r}, expected one of {list(DTYPES)}"
        )
    method = build(config, plugins=plugins)
    if not isinstance(method, FusionMethod):
        raise StoreError(f"fusion file {str(path)!r} holds a {type(method).__name__}, not a fusion method")
    # Before the state, for what is not in it: buffers that only carry a precision.
    method.to(DTYPES[metadata["dtype"]])
    try:
        missing, unexpected = method.load_state_dict(tensors, strict=False, assign=True)
    except (RuntimeError, ValueError) as error:  # of tensors; of what a method keeps as JSON beside them
        raise StoreError(f"fusion file {str(path)!r} does not fit its configuration: {error}") from None
    if missing or unexpected:
        raise StoreError(f"fusion file {str(path)!r} does not fit its class: without {missing}, beside {unexpected}")
    return method.to(device).eval()


def configuration(value: Any) -> Any:
    """Return the JSON-able form of a method, or of one of its arguments: ``_target_`` and arguments, nested.

    Raises:
        ConfigError: it has no such form.
    """
    if isinstance(value, FusionMethod):
        return {TARGET: _known(type(value)), **{k: configuration(v) for k, v in value.arguments.items()}}
    if isinstance(value, InputSpec):
        plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in vars(value).items()}
        return {TARGET: _known(InputSpec), **plain}
    if isinstance(value, partial):
        if value.args:
            raise ConfigError(f"{value} has positional arguments; fusion arguments are given by name")
        return {**configuration(value.func), **{k: configuration(v) for k, v in value.keywords.items()}}
    if isinstance(value, type):
        return {TARGET: _known(value), PARTIAL: True}
    if isinstance(value, Mapping):
        return {str(k): configuration(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [configuration(v) for v in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ConfigError(f"cannot save {value!r} ({type(value).__name__}) in a fusion file; give a class or its partial")


def build(config: Any, *, plugins: Iterable[str] = ()) -> Any:
    """Build what :func:`configuration` described.

    Args:
        config: the description.
        plugins: modules whose classes may be built, beside those of ``KROSSFUSE_PLUGINS``.

    Raises:
        ConfigError: a class that is neither this package's, nor registered, nor of a named module; or impossible
            arguments.
    """
    trusted = plugin_modules(plugins)
    if isinstance(config, list):
        return [build(v, plugins=trusted) for v in config]
    if not isinstance(config, Mapping):
        return config
    arguments = {k: build(v, plugins=trusted) for k, v in config.items() if k not in (TARGET, PARTIAL)}
    if TARGET not in config:
        return arguments
    cls = _load_class(str(config[TARGET]), trusted)
    if config.get(PARTIAL):
        return partial(cls, **arguments)
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ConfigError(f"{config[TARGET]}: {error}") from None


def _dtype(method: FusionMethod) -> torch.dtype:
    """Return the precision that the method was moved to."""
    for tensor in (*method.buffers(), *method.parameters()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


def _known(cls: type) -> str:
    """Return the path that the class will be found under again.

    A class of the room goes by its name there, whichever file it lies in.
    """
    path = path_of(cls)
    if path.startswith(_HOME) and "<locals>" not in path:
        return f"{_HOME}{cls.__name__}" if getattr(room, cls.__name__, None) is cls else path
    check_found_again(cls, "krossfuse.fusion.io.register")
    return path


def _load_class(path: str, plugins: Iterable[str]) -> type:
    if path in REGISTERED:
        return REGISTERED[path]
    plugin = check_allowed(path, _HOME, plugins, "load_fusion(..., plugins=[{}])")
    module_name, _, name = path.rpartition(".")
    if module_name == _HOME.rstrip(".") or (not plugin and module_name.removeprefix(_HOME) in _MOVED):
        cls = getattr(room, name, None)
        if cls is None and module_name == _HOME.rstrip("."):
            raise ConfigError(f"krossfuse.fusion has no class {name!r}{did_you_mean(name, room.__all__)}")
        if isinstance(cls, type) and issubclass(cls, nn.Module | InputSpec):
            return cls
    # Modules, or the dimensions, only.
    return defined_class(path, (nn.Module, InputSpec), "fusion method, kernel, sketch or alignment")
