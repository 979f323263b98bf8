"""Which class and function stands on which page of the reference, read from the packages' own ``__init__`` files."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """A page of the Python reference.

    Attributes:
        file: its name, without the ending.
        title: its heading.
        said: a sentence about it.
        packages: whose public names are on it.
        names: further ones.
    """

    file: str
    title: str
    said: str
    packages: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


PAGES = (
    Page(
        "model",
        "Model",
        "The fused encoder that people use: raw images and texts in, one embedding out.",
        names=(
            "krossfuse.model.encoder.FusedEncoder",
            "krossfuse.model.fused.Fused",
            "krossfuse.model.search.Index",
            "krossfuse.model.search.Hit",
            "krossfuse.model.search.load_index",
            "krossfuse.model.open_clip.OpenCLIPForm",
            "krossfuse.model.sentence_transformers.FusedModule",
            "krossfuse.model.quantise.quantise",
            "krossfuse.model.quantise.Quantised",
            "krossfuse.model.mteb.MTEBForm",
            "krossfuse.model.clip_benchmark.load",
            "krossfuse.fusion.export.export_program",
            "krossfuse.fusion.export.export_onnx",
            "krossfuse.fusion.export.compiled",
        ),
    ),
    Page(
        "methods",
        "Fusion methods",
        "A method takes the features of each encoder and gives one embedding of each modality.",
        ("krossfuse.fusion.methods",),
        (
            "krossfuse.fusion.base.FusionMethod",
            "krossfuse.fusion.base.InputSpec",
            "krossfuse.fusion.transformer.KrossFuseTransformer",
            "krossfuse.fusion.module.FusionModule",
            "krossfuse.fusion.fit.fit_method",
            "krossfuse.fusion.plain.fuse_bundle",
            "krossfuse.fusion.plain.fuse_rows",
            "krossfuse.fusion.plain.fuse_to_file",
            "krossfuse.fusion.stream.inputs_of",
            "krossfuse.fusion.io.save_fusion",
            "krossfuse.fusion.io.load_fusion",
            "krossfuse.fusion.diagnose.diagnose",
            "krossfuse.fusion.diagnose.Diagnosis",
        ),
    ),
    Page("kernels", "Kernels", "The similarity of one parent, and its feature map.", ("krossfuse.fusion.kernels",)),
    Page(
        "sketches",
        "Sketches",
        "A short vector in place of the Kronecker product of the parents' maps.",
        ("krossfuse.fusion.sketches",),
    ),
    Page(
        "alignments",
        "Alignments",
        "How the embeddings of a modality without an expert stay comparable.",
        ("krossfuse.fusion.alignments",),
    ),
    Page(
        "probes",
        "Probes",
        "What is measured of an embedding.",
        ("krossfuse.probes",),
    ),
    Page(
        "encoders",
        "Encoders",
        "Frozen adapters, one a library, and the pair that is fused.",
        names=(
            "krossfuse.encoders.base.Encoder",
            "krossfuse.encoders.base.EncoderModule",
            "krossfuse.encoders.pair.Pair",
            "krossfuse.encoders.open_clip_adapter.OpenCLIP",
            "krossfuse.encoders.transformers_adapter.HFImage",
            "krossfuse.encoders.transformers_adapter.HFText",
            "krossfuse.encoders.transformers_cross_modal.HFCrossModal",
            "krossfuse.encoders.timm_adapter.Timm",
            "krossfuse.encoders.sentence_transformers_adapter.SentenceTransformerText",
            "krossfuse.encoders.bundled.OpenMojiCLIP",
            "krossfuse.encoders.bundled.EfficientNetLite0",
            "krossfuse.encoders.bundled.MiniLM",
        ),
    ),
    Page(
        "data",
        "Data",
        "Data sets, their splits, labels and class texts.",
        names=(
            "krossfuse.data.module.BaseDataModule",
            "krossfuse.data.openmoji.OpenMoji",
            "krossfuse.data.typographic.TypographicAttack",
            "krossfuse.data.image_folder.ImageFolder",
            "krossfuse.data.torchvision_set.TorchvisionDataset",
            "krossfuse.data.image_list.ImageList",
            "krossfuse.data.captions.KarpathyCaptions",
            "krossfuse.data.webdataset.WebDataset",
            "krossfuse.data.webdataset.WebDatasetCaptions",
            "krossfuse.data.huggingface.HuggingFaceImages",
            "krossfuse.data.huggingface.HuggingFaceCaptions",
            "krossfuse.data.tfds.TFDSImages",
            "krossfuse.data.tfds.TFDSCaptions",
            "krossfuse.data.coco_objects.CocoObjects",
            "krossfuse.data.mvsa.MVSA",
            "krossfuse.data.shards.module.TarShards",
            "krossfuse.data.text.TextFiles",
            "krossfuse.data.text.SentEval",
            "krossfuse.data.sentence_pairs.SentencePairs",
            "krossfuse.data.pixels.MNISTPixels",
            "krossfuse.core.labels.DatasetInfo",
            "krossfuse.core.labels.LabelSet",
            "krossfuse.core.labels.Prompts",
            "krossfuse.core.parts.Part",
        ),
    ),
    Page(
        "features",
        "Features",
        "Where features come from, and where they are kept.",
        ("krossfuse.features.stores",),
        (
            "krossfuse.core.bundle.FeatureBundle",
            "krossfuse.features.source.FeatureSource",
            "krossfuse.features.embeddings.file.EmbeddingsFile",
            "krossfuse.features.embeddings.save.save_embeddings",
            "krossfuse.features.synthetic.SyntheticFeatures",
        ),
    ),
    Page(
        "federated",
        "Federated training",
        "Clients, server and the simulation of both.",
        ("krossfuse.federated",),
    ),
    Page("privacy", "Privacy", "Mechanisms, messages and accountants.", ("krossfuse.privacy",)),
    Page(
        "flower",
        "Flower",
        "Federations on more than one machine (`krossfuse[flower]`).",
        ("krossfuse.flower",),
    ),
    Page(
        "results",
        "Results",
        "Records of measurements, run folders, trackers.",
        ("krossfuse.results.trackers",),
        (
            "krossfuse.core.metrics.Metric",
            "krossfuse.core.metrics.declare",
            "krossfuse.results.records.Record",
            "krossfuse.results.runs.Run",
            "krossfuse.results.runs.read_run",
            "krossfuse.results.runs.read_runs",
            "krossfuse.results.aggregate.aggregate",
        ),
    ),
    Page(
        "application",
        "Application",
        "Kinds of job, and the sweepers of the command.",
        names=(
            "krossfuse.app.kind.Kind",
            "krossfuse.app.fuse_and_probe.FuseAndProbe",
            "krossfuse.app.federated_mnist.FederatedMNIST",
            "krossfuse.app.encode_job.Encode",
            "krossfuse.app.fuse_job.FuseShards",
        ),
    ),
    Page(
        "errors",
        "Errors",
        "What is raised, and caught by the command.",
        names=(
            "krossfuse.core.errors.KrossFuseError",
            "krossfuse.core.errors.ConfigError",
            "krossfuse.core.errors.DataError",
            "krossfuse.core.errors.StoreError",
        ),
    ),
)


def exports(root: Path, package: str) -> list[str]:
    """Return the public names of a package as ``module.Name`` of where each is defined, by name.

    Read from what its ``__init__`` imports, or from its table of what is imported when it is first used.
    """
    found, listed = _imports(root, package)
    return [found[name] for name in sorted(listed if listed is not None else found) if name in found]


def _imports(root: Path, package: str) -> tuple[dict[str, str], list[str] | None]:
    file = root.joinpath(*package.split("."), "__init__.py")
    found: dict[str, str] = {}
    listed: list[str] | None = None
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found.update({name.asname or name.name: f"{node.module}.{name.name}" for name in node.names})
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target, value = node.targets[0].id, node.value
            if (
                target == "__all__"
                and isinstance(value, ast.List)
                and all(isinstance(e, ast.Constant) for e in value.elts)
            ):
                listed = ast.literal_eval(value)
            elif target == "_HOME" and isinstance(value, ast.Dict):
                found.update({name: f"{home}.{name}" for name, home in ast.literal_eval(value).items()})
            elif target == "_HOMES" and isinstance(value, ast.Dict):
                homes = ast.literal_eval(value)
                found.update({name: f"{home}.{name}" for home, names in homes.items() for name in names})
    within = {name: at if at.startswith("krossfuse.") else f"{package}.{at}" for name, at in found.items()}
    return {name: at for name, at in within.items() if _module(root, at.rpartition(".")[0])}, listed


def _module(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def home(root: Path, name: str) -> str | None:
    """Return ``module.Name`` of where a class or function is defined, through re-exports; None: it is neither."""
    module, _, last = name.rpartition(".")
    file = _module(root, module)
    if file is None:
        return None
    kinds = (ast.ClassDef, ast.FunctionDef)
    if any(isinstance(n, kinds) and n.name == last for n in ast.parse(file.read_text(encoding="utf-8")).body):
        return name
    further = _imports(root, module)[0].get(last) if file.name == "__init__.py" else None
    return home(root, further) if further is not None and further != name else None


def documented(root: Path, page: Page) -> list[str]:
    """Return the full names of the classes and functions on a page: those named first, then its packages'."""
    names = [*page.names, *(n for p in page.packages for n in exports(root, p))]
    return list(dict.fromkeys(found for name in names if (found := home(root, name)) is not None))


def page_text(root: Path, page: Page) -> str:
    """Return a page's markdown: a directive of mkdocstrings for each name."""
    parts = [f"# {page.title}", "", page.said, ""]
    for name in documented(root, page):
        parts += [f"::: {name}", ""]
    return "\n".join(parts)


def index_text(root: Path) -> str:
    """Return the page of what ``krossfuse`` itself has, with links to where it is described, and of all pages."""
    parts = ["# Python", "", "`import krossfuse` has these names; each is imported when it is first used.", ""]
    parts += ["| name | module |", "|---|---|"]
    for name in exports(root, "krossfuse"):
        where = home(root, name) or name
        module, _, last = where.rpartition(".")
        parts.append(f'| <autoref identifier="{where}" optional>`{last}`</autoref> | `{module}` |')
    parts += ["", "| page | |", "|---|---|"]
    parts += [f"| [{page.title}]({page.file}.md) | {page.said} |" for page in PAGES]
    return "\n".join([*parts, ""])
