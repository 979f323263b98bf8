"""``krossfuse export``, ``encode``, ``index`` and ``search`` on a real run; and the model in another process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from krossfuse.app import encode, search
from krossfuse.app import export as export_command
from krossfuse.app import index as index_command
from krossfuse.core.bundle import FeatureBundle
from krossfuse.core.errors import ConfigError, DataError, StoreError
from krossfuse.core.parts import Part
from krossfuse.features.embeddings import EmbeddingsFile
from krossfuse.fusion.plain import fuse_bundle
from krossfuse.model.encoder import FusedEncoder
from krossfuse.model.search import Index, load_index, save_index
from krossfuse.model.side_by_side import parents_of

TEST = Part("test", "image")


@pytest.mark.slow
def test_a_run_without_its_fusion_becomes_the_same_model(run: Path, saved: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    (other / "fusion.safetensors").unlink()
    assert export_command.main([str(other), str(tmp_path / "model")]) == 0
    assert load_file(tmp_path / "model" / "fusion.safetensors").keys() == load_file(saved / "fusion.safetensors").keys()
    for name, x in load_file(saved / "fusion.safetensors").items():
        assert torch.equal(load_file(tmp_path / "model" / "fusion.safetensors")[name], x), name
    card = (tmp_path / "model" / "README.md").read_text()
    records = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    of_group = next(
        r for r in records if r["metric"] == "accuracy" and r["probe"] == "zero_shot" and r["label_set"] == "group"
    )
    assert f"{100 * of_group['value']:.1f} %" in card
    assert "95% interval" in card
    assert "CC BY-SA 4.0" in card

    lines = (other / "results.jsonl").read_text().replace('"dim": 300', '"dim": 299')
    (other / "results.jsonl").write_text(lines)
    with pytest.raises(StoreError, match="is not the run's .dim: 299 then, 300 now"):
        export_command.export(other)


CODE = """
import sys, numpy as np, krossfuse
model = krossfuse.FusedEncoder.from_pretrained(sys.argv[1])
np.save(sys.argv[2], model.encode_image(sys.argv[3:], convert_to="numpy"))
"""


def test_another_process_gives_the_runs_embeddings(
    model: FusedEncoder, saved: Path, bundle: FeatureBundle, emoji_files: Path, tmp_path: Path
) -> None:
    """Must-show 1: from raw files, in another process, equal to what the run stored and fused."""
    paths = sorted(map(str, emoji_files.iterdir()))
    subprocess.run([sys.executable, "-c", CODE, str(saved), str(tmp_path / "x.npy"), *paths], check=True, timeout=600)
    fused = fuse_bundle(model.fusion, bundle, parts=[TEST])[TEST]
    assert np.abs(np.load(tmp_path / "x.npy") - fused[: len(paths)].numpy()).max() <= 1e-6


def test_runs_that_cannot_be_exported_are_named(run: Path, tmp_path: Path) -> None:
    two = tmp_path / "sweep"
    for name in ("0", "1"):
        shutil.copytree(run, two / name)
    with pytest.raises(ConfigError, match="holds 2 runs; choose the folder of one: 0, 1"):
        export_command.export(two)
    bare = Path(shutil.copytree(run, tmp_path / "bare"))
    (bare / "config.yaml").unlink()
    with pytest.raises(StoreError, match=r"has no config\.yaml"):
        export_command.export(bare)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (bare / "config.yaml").write_text(yaml.safe_dump({**config, "pair": None}))
    with pytest.raises(ConfigError, match="used features of a file"):
        export_command.export(bare)
    with pytest.raises(ConfigError, match="has no folds"):
        export_command.export(run, fold=1)


def test_encode_writes_rows_with_names(model: FusedEncoder, saved: Path, emoji_files: Path, tmp_path: Path) -> None:
    out = tmp_path / "images.safetensors"
    assert encode.main([str(saved), str(emoji_files), "-o", str(out), "--quiet"]) == 0
    from safetensors import safe_open

    with safe_open(out, "pt") as file:
        words = file.metadata()
    names = json.loads(words["names"])
    assert names == sorted(path.name for path in emoji_files.iterdir())
    assert words["model"] == model.digest
    expected = model.encode_image([emoji_files / name for name in names])
    assert torch.equal(load_file(out)["features"], expected)

    (tmp_path / "lines.txt").write_text("a cat\na dog\n")
    encode.main([str(saved), str(tmp_path / "lines.txt"), "-o", str(tmp_path / "t.npz"), "--normalize", "--quiet"])
    made = np.load(tmp_path / "t.npz")
    assert list(made["names"]) == ["a cat", "a dog"]
    assert np.allclose(np.linalg.norm(made["features"], axis=1), 1, atol=1e-6)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "one.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot read image"):
        encode.main([str(saved), str(tmp_path / "bad"), "-o", str(tmp_path / "b.npz"), "--quiet"])
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_precision_is_that_of_encoders_file_and_index(
    precision: str,
    model: FusedEncoder,
    saved: Path,
    emoji_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Half the bytes, by encoders that compute in half precision: other bits than a float32 result rounded."""
    from safetensors import safe_open

    from krossfuse.model.golden import TOLERANCE

    out, dtype = tmp_path / "images.safetensors", getattr(torch, precision)
    encode.main([str(saved), str(emoji_files), "-o", str(out), "--precision", precision, "--quiet"])
    with safe_open(out, "pt") as file:
        assert file.metadata()["precision"] == precision
    made, full = load_file(out)["features"], model.encode_image(sorted(emoji_files.iterdir()))
    assert made.dtype == dtype
    assert not torch.equal(made, full.to(dtype))
    off = (made.float() - full).norm(dim=1) / full.norm(dim=1)
    assert 0 < float(off.max()) <= 3 * TOLERANCE[dtype]
    assert torch.equal(FusedEncoder.from_pretrained(saved, dtype=precision).encode_image(
        sorted(emoji_files.iterdir())), made)  # fmt: skip

    path = tmp_path / "index.safetensors"
    index_command.main([str(saved), str(emoji_files), "-o", str(path), "--precision", precision, "--quiet"])
    index = load_index(path)
    assert torch.equal(index.features, made)
    assert index.about["precision"] == precision
    pictures = [Image.open(file) for file in sorted(emoji_files.iterdir())]
    assert set(parents_of(model, index, pictures, tmp_path / "parents.safetensors")) == set(model.loaded("image"))
    capsys.readouterr()
    search.main(["--image", str(emoji_files / "03.png"), "--index", str(path), "--json", "--cosine"])
    hit = json.loads(capsys.readouterr().out)["hits"][0]
    assert hit["name"] == "03.png"
    assert hit["score"] == pytest.approx(1, abs=1e-2)


def test_precisions_that_are_not(saved: Path, emoji_files: Path, tmp_path: Path) -> None:
    given = [str(saved), str(emoji_files), "-o", str(tmp_path / "x.npz")]
    with pytest.raises(ConfigError, match=r"--precision='float61'.*did you mean 'float16'"):
        encode.main([*given, "--precision", "float61"])
    with pytest.raises(ConfigError, match="NumPy has none"):
        encode.main([*given, "--precision", "bfloat16"])
    with pytest.raises(ConfigError, match="--precision='int8'"):
        index_command.main([*given[:3], str(tmp_path / "x.safetensors"), "--precision", "int8"])
    with pytest.raises(ConfigError, match=r"dtype=torch\.int8"):
        FusedEncoder.from_pretrained(saved, dtype=torch.int8)
    assert not list(tmp_path.iterdir())


def test_encode_writes_a_dataset_that_data_embeddings_reads(
    model: FusedEncoder, saved: Path, bundle: FeatureBundle, tmp_path: Path
) -> None:
    out = tmp_path / "emoji.safetensors"
    encode.main([str(saved), "data=openmoji", "data.limit=40", "data.num_workers=0", "-o", str(out), "--quiet"])
    made = EmbeddingsFile(path=str(out)).bundle()
    assert set(made.info.label_sets) == set(bundle.info.label_sets)
    fused = fuse_bundle(model.fusion, bundle)
    assert all(torch.equal(made[part]["cross_modal"], x) for part, x in fused.items())


def test_encode_reads_parquet(saved: Path, emoji_files: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    files = sorted(emoji_files.iterdir())[:2]
    table = {"text": ["a cat", "a dog"], "image": [path.read_bytes() for path in files]}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    for column in table:
        out = tmp_path / f"{column}.npz"
        encode.main([str(saved), str(tmp_path / "t.parquet"), "--column", column, "-o", str(out), "--quiet"])
        assert np.load(out)["features"].shape == (2, 300)
    with pytest.raises(ConfigError, match=r"say --column with one of \['text', 'image'\]"):
        encode.main([str(saved), str(tmp_path / "t.parquet"), "-o", str(tmp_path / "x.npz"), "--quiet"])


def test_search_finds_the_image_itself_and_what_a_text_names(
    saved: Path, emoji_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "index.safetensors"
    assert index_command.main([str(saved), str(emoji_files), "-o", str(path), "--quiet"]) == 0
    capsys.readouterr()
    grid = tmp_path / "grid.html"
    query = str(emoji_files / "03.png")
    search.main(["--image", query, "--index", str(path), "-k", "3", "--json", "--cosine", "--grid", str(grid)])
    found = json.loads(capsys.readouterr().out)
    assert found["hits"][0]["name"] == "03.png"
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert found["items"] == 12
    assert grid.read_text().count("<img") == 3
    search.main(["a <b>cat</b>", "--index", str(path), "--grid", str(grid), "-k", "99"])
    assert "a <b>cat</b>" in capsys.readouterr().out
    assert "<b>" not in grid.read_text()
    assert grid.read_text().count("<img") == 12
    search.main(["a cat", "--index", str(path), "--grid", str(tmp_path / "grid.png")])
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_an_index_ranks_by_the_fused_kernel_and_ties_by_row() -> None:
    index = Index(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), ["a", "b", "c"], "digest")
    assert [hit.name for hit in index.nearest(torch.tensor([1.0, 0.4]), 3)] == ["a", "c", "b"]
    assert [hit.name for hit in index.nearest(torch.tensor([1.0, 0.9]), 3)] == ["b", "a", "c"]
    assert [hit.name for hit in index.nearest(torch.tensor([1.0, 0.9]), 2, cosine=True)] == ["a", "c"]


def test_bad_indexes_are_named(saved: Path, model: FusedEncoder, tmp_path: Path) -> None:
    path = tmp_path / "index.safetensors"
    with pytest.raises(StoreError, match="there is no index"):
        load_index(path)
    save_index(Index(torch.ones(1, 300), ["a"], "another"), path)
    with pytest.raises(ConfigError, match="does not say where its model is"):
        search.main(["a", "--index", str(path)])
    with pytest.raises(ConfigError, match="made with another model: with another"):
        search.main(["a", "--index", str(path), "--model", str(saved)])
    save_index(Index(torch.ones(1, 300), ["a", "b"], model.digest), path)
    with pytest.raises(StoreError, match="2 names for features of shape"):
        load_index(path)
    save_file({"features": torch.ones(1, 2)}, path)
    with pytest.raises(StoreError, match="is no index"):
        load_index(path)
    path.write_bytes(b"\x10\0")
    with pytest.raises(StoreError, match="is damaged"):
        load_index(path)
