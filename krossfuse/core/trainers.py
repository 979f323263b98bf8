"""The one place where Lightning Trainers are made: extraction, fusing, trained baselines, heads, pre-training."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from krossfuse.core.errors import ConfigError, check_choice, did_you_mean
from krossfuse.core.logs import quieter

if TYPE_CHECKING:
    import torch
    from pytorch_lightning import Callback, Trainer
    from pytorch_lightning.loggers import Logger

FIXED: dict[str, Any] = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
"""What every Trainer has in common, unless the caller says otherwise."""

MATMUL = "float32_matmul_precision"
"""An option of ours among the Trainer's: ``torch.set_float32_matmul_precision``, and convolutions on a GPU with it."""


class TrainerFactory:
    """Makes every Trainer of a run from the user's options (``trainer=``) and the run's tracker (``logger=``).

    Lightning is imported by the first Trainer, not before.

    Args:
        options: keyword arguments of ``pytorch_lightning.Trainer``: accelerator, devices, precision, ...; and
            ``float32_matmul_precision``: ``highest`` (float32), ``high`` (TF32) or ``medium`` (bfloat16) inside the
            matrix products and, on a GPU, the convolutions of float32 tensors. Without it PyTorch's settings stay.
        logger: gives the Lightning logger of the open tracker run, or False; asked when something is trained.
    """

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        *,
        logger: Callable[[], Logger | Literal[False]] | None = None,
    ) -> None:
        self.options = dict(options or {"accelerator": "cpu", "devices": 1})
        self._logger = logger

    @classmethod
    def on(cls, device: torch.device) -> TrainerFactory:
        """Return a factory of Trainers on one device, without options and without a tracker."""
        if device.type == "cpu":
            return cls()
        return cls({"accelerator": "gpu" if device.type == "cuda" else device.type, "devices": [device.index or 0]})

    def __call__(
        self, *, callbacks: Sequence[Callback] = (), log: bool = False, one_device: bool = True, **fixed: Any
    ) -> Trainer:
        """Return a Trainer.

        Args:
            callbacks: in addition to the user's own.
            log: whether its metrics go to the run's tracker (a training); a prediction has none.
            one_device: on one device, whatever ``devices`` says, so that batches stay in order and results do not
                depend on the number of devices.
            fixed: what the work at hand needs (``max_epochs``, ...); it wins over the user's options.

        Raises:
            ConfigError: Lightning refuses the options, or does not know one; the message names them.
        """
        from krossfuse.core.lightning import pl

        known = inspect.signature(pl.Trainer.__init__).parameters
        options = {name: value for name, value in self.options.items() if name != MATMUL}
        for name in options:
            if name not in known:
                raise ConfigError(f"trainer has no option {name!r}{did_you_mean(name, [*known, MATMUL])}")
        self._set_matmul()
        every = {**FIXED, **options, "logger": self._logger() if log and self._logger else False, **fixed}
        every["callbacks"] = [*(self.options.get("callbacks") or []), *callbacks]
        if one_device:
            chosen = self.options.get("devices", 1)
            every["devices"] = chosen if isinstance(chosen, list) and len(chosen) == 1 else 1
            every["strategy"], every["num_nodes"] = "auto", 1
        try:
            with quiet():
                return pl.Trainer(**every)
        except Exception as error:  # Lightning's own MisconfigurationException is a plain Exception
            raise ConfigError(f"trainer={self.options}: {error}") from error

    def having(self, **options: Any) -> TrainerFactory:
        """Return a factory with some options changed."""
        return TrainerFactory({**self.options, **options}, logger=self._logger)

    def _set_matmul(self) -> None:
        chosen = self.options.get(MATMUL)
        if chosen is None:
            return
        import torch

        check_choice(f"trainer.{MATMUL}", chosen, ("highest", "high", "medium"))
        torch.set_float32_matmul_precision(chosen)
        if torch.cuda.is_available():
            torch.backends.cudnn.allow_tf32 = chosen != "highest"

    def log_curve(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log (step, values by name) of a training without a Trainer to the run's tracker, if there is one."""
        logger = self._logger() if self._logger else False
        if not logger:
            return
        for step, values in points:
            logger.log_metrics(dict(values), step=step)
        logger.save()

    @property
    def device(self) -> torch.device:
        """The device that work on one device runs on; PyTorch's settings are those of the options from then on.

        Raises:
            ConfigError: there is no such accelerator here.
        """
        self._set_matmul()
        return self._device

    @cached_property
    def _device(self) -> torch.device:  # a Trainer takes 20 ms
        device: torch.device = self().strategy.root_device
        return device


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's remarks on hardware and loaders, which a user of features can do nothing about."""
    with quieter("pytorch_lightning", "lightning_fabric", level=logging.ERROR), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield
