"""The paper's studies at toy size: made data in the real forms, made checkpoints, the paper's column."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import published
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from published import Files

from krossfuse.__main__ import main
from krossfuse.report.boards import boards
from krossfuse.report.reference import paper_beside_measured
from krossfuse.results.aggregate import aggregate
from krossfuse.results.runs import read_runs

CONF = Path(__file__).resolve().parents[1] / "conf"
STUDIES = {file.stem for file in (CONF / "experiment").glob("paper_*.yaml")}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PIXELS = {"image_size": 28, "patch_size": 7}
IMAGES, TEXTS = "pair=tiny_clip+tiny_image", "pair=tiny_clip+tiny_text"
LINEAR = "probe.linear_probe.grid=[1,100]"
CLUSTERS = ["probe.clustering.n_seeds=2", "probe.clustering.n_init=1"]
TOY: dict[str, list[str]] = {
    "paper_table1": ["data=food101,svhn", IMAGES, LINEAR],
    "paper_table2": ["data=mr,trec", TEXTS, "probe.text_probe.n_folds=2"],
    "paper_table2_mrpc": [TEXTS],
    "paper_table3": ["data=food101", IMAGES, "probe.few_shot.shots=[1]", "probe.few_shot.n_seeds=2"],
    "paper_table3_mscoco": [IMAGES, "probe.few_shot.shots=[1]", "probe.few_shot.n_seeds=2"],
    "paper_table4": ["data=food101", IMAGES, *CLUSTERS],
    "paper_table6": ["data=flickr30k", IMAGES],
    "paper_table7": ["data=food101", IMAGES, LINEAR],
    "paper_table8": ["data=mr", TEXTS, "probe.text_probe.n_folds=2"],
    "paper_table9": ["data=food101", IMAGES, LINEAR],
    "paper_table11": ["data=food101", IMAGES, LINEAR, *CLUSTERS],
    "paper_similarities": ["data=flickr30k", IMAGES],
    "paper_kernels": ["data=food101", IMAGES, *CLUSTERS],
    "paper_dimension": ["data=food101", IMAGES, LINEAR],
    "paper_constant": ["data=food101", IMAGES, LINEAR, "fusion.C=0.1,1"],
}
QUICK = {"paper_table6"}
"""Run by ``make test`` too; the others are slow."""


def save_models(folder: Path) -> None:
    """A CLIP, a DINOv2 and an E5, of one layer, with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertModel,
        CLIPConfig,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"{i}" for i in range(60)), "apple", "pie", "ribs", "a", "photo", "of"]
    tokens = {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {**SMALL, **tokens, "max_position_embeddings": 16}
    clip = CLIPConfig(text_config=text, vision_config={**SMALL, **PIXELS}, projection_dim=12)
    CLIPModel(clip).save_pretrained(folder / "clip")
    Dinov2Model(Dinov2Config(**SMALL, **PIXELS)).save_pretrained(folder / "image")
    BertModel(BertConfig(**SMALL, **tokens)).save_pretrained(folder / "text")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"height": 28, "width": 28}, "resample": 3}
    for name in ("clip", "image", "text"):
        (folder / name / "preprocessor_config.json").write_text(json.dumps({**processor, "do_center_crop": False}))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names).save_pretrained(folder / name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, a folder of configuration that names them, and data sets."""
    root = tmp_path_factory.mktemp("studies")
    save_models(root / "models")
    kinds = {
        "clip": ("transformers_cross_modal.HFCrossModal", "image, text"),
        "image": ("transformers_adapter.HFImage", "image"),
        "text": ("transformers_adapter.HFText", "text"),
    }
    (root / "conf" / "encoder").mkdir(parents=True)
    for name, (target, encodes) in kinds.items():
        node = f"_target_: krossfuse.encoders.{target}\nmodel: {root / 'models' / name}\nname: tiny_{name}\n"
        (root / "conf" / "encoder" / f"tiny_{name}.yaml").write_text(f"{node}about: {{encodes: [{encodes}]}}\n")
    published.food101(Files(root / "vision"), each=8)
    published.svhn(Files(root / "vision"))
    published.karpathy(
        Files(root / "data" / "flickr30k"), "dataset_flickr30k.json", dict.fromkeys(("train", "val", "test"), ""), 12
    )
    published.coco_objects(Files(root / "data" / "coco"), each=12)
    published.mrpc(Files(root / "texts"))
    for file, labels in {"rt-polarity.all": 2, "TREC.train.all": 6, "TREC.test.all": 6}.items():
        published.sentences(Files(root / "texts"), file, labels, 60)
    return root


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    import torchvision.datasets

    # The made files have other checksums than the published ones, which torchvision knows.
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    monkeypatch.setenv("KROSSFUSE_CONF", str(made / "conf"))
    monkeypatch.setenv("KROSSFUSE_TORCHVISION", str(made / "vision"))
    monkeypatch.setenv("KROSSFUSE_DATA", str(made / "data"))
    monkeypatch.setenv("KROSSFUSE_SENTEVAL", str(made / "texts"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Path:
        toy = ["data.expected=null", "logger=none", "extraction.progress=false", f"paths.store={made / 'store'}"]
        monkeypatch.setattr(sys, "argv", ["krossfuse", "-m", *arguments, *toy])
        GlobalHydra.instance().clear()
        main()
        return max((tmp_path / "runs").glob("*/*"), key=lambda folder: folder.stat().st_mtime)

    return run


def test_every_study_has_a_case() -> None:
    assert set(TOY) == STUDIES


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in sorted(TOY)]
)
def test_studies_of_the_paper(name: str, study: Callable[..., Path]) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    small = ["fusion.dim=24"] * ("fusion.dim" in text) + ["seed=0,1"] * ("seed:" in text)
    folder = study(f"experiment={name}", *TOY[name], *small)
    runs = read_runs(folder)
    assert {run.state for run in runs} == {"finished"}, [(run.name, run.error) for run in runs]
    assert all(run.records for run in runs)
    page = (folder / "report" / "report.html").read_text()
    names = {record.data for run in runs for record in run.records}
    table = paper_beside_measured(boards(aggregate(runs)[0]))
    of_paper = {
        "paper_table3",
        "paper_table3_mscoco",
        "paper_table6",
        "paper_table7",
        "paper_table2",
        "paper_table2_mrpc",
        "paper_table8",
        "paper_similarities",
    }
    if name in of_paper:  # the other studies' measurements of this data set are not in the paper
        assert set(table["data"]) == names
        assert "beside measured" in page
        measured = table[(table["measured"] != "–") & (table["paper"] != "–")]
        assert len(measured)
        assert measured["difference"].str.contains(r"(?:larger than|within) the interval|no interval").all()


def test_the_papers_methods_stand_beside_the_same_encoders() -> None:
    from krossfuse.report.reference import _of_pair, paper_values

    values = paper_values()

    def methods(table: str, pair: str) -> set[str]:
        return set(_of_pair(values[values["table"] == table], pair)["method"])

    assert methods("6", "clip_l14_336+dinov2_b14") == {"CLIP ViT-L/14@336", "RP-KrossFuse ViT-L/14@336"}
    assert methods("6", "clip_l14_dinov2") == {"CLIP ViT-L/14", "RP-KrossFuse ViT-L/14"}
    assert methods("6", "openclip_h14+dinov2_b14") == {"OpenCLIP ViT-H/14", "RP-KrossFuse OpenCLIP ViT-H/14"}
    assert methods("8", "clip_b32+e5_large") == {"CLIP", "E5", "RP-KrossFuse CLIP+E5"}
    assert methods("8", "clip_sroberta") == {"CLIP", "SRoBERTa", "RP-KrossFuse CLIP+SRoBERTa"}
    assert methods("9", "siglip_b16+dinov2_b14") == {"baseline (SigLIP)", "RP-KrossFuse (SigLIP)"}
    assert methods("1", "clip_b32+dinov2_b14") == set(values[values["table"] == "1"]["method"])
    assert methods("1", "clip_l14+dinov2_l14") == {"DINOv2"}
    assert len(methods("6", "openmoji_image")) == 10
