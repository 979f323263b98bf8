"""Small data sets in the real forms of the published ones: folders, tars, .mat, JSON and text lists."""

from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from krossfuse.data.class_lists import class_list


def image_bytes(number: int = 0, form: str = "jpeg", size: int = 8) -> bytes:
    """An image file; another number is another image."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


class Files:
    """Writes images below a folder, each another one."""

    def __init__(self, root: Path) -> None:
        self.root, self.number = root, 0

    def image(self, path: str, form: str = "jpeg") -> None:
        self.number += 1
        self.write(path, image_bytes(self.number, form))

    def images(self, folder: str, names: Iterable[str]) -> None:
        for name in names:
            self.image(f"{folder}/{name}")

    def write(self, path: str, data: bytes | str) -> None:
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(data if isinstance(data, bytes) else data.encode())


def parquet(path: Path, rows: int, columns: dict[str, list[Any]], start: int = 0) -> None:
    """A parquet file as the library ``datasets`` writes it: images as bytes, other columns as given."""
    import datasets

    images = [{"bytes": image_bytes(start + i, "png"), "path": None} for i in range(rows)]
    features = {"image": datasets.Image()}
    if "label" in columns:
        features["label"] = datasets.ClassLabel(names=["cat", "dog"])
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict({"image": images, **columns})
    for name, feature in features.items():
        table = table.cast_column(name, feature)
    table.to_parquet(str(path))


def cifar(files: Files, folder: str, names: dict[str, list[str]], key: str, batches: dict[str, list[int]]) -> None:
    for name, labels in batches.items():
        pixels = np.random.default_rng(len(name)).integers(0, 255, (len(labels), 3072), dtype=np.uint8)
        files.write(f"{folder}/{name}", pickle.dumps({"data": pixels, key: labels}))
    meta = "meta" if folder.endswith("100-python") else "batches.meta"
    files.write(f"{folder}/{meta}", pickle.dumps(names))


def cifar10(files: Files) -> None:
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    labels = list(range(10)) * 2
    batches = {**{f"data_batch_{i}": labels for i in range(1, 6)}, "test_batch": labels[:10]}
    cifar(files, "cifar-10-batches-py", {"label_names": classes}, "labels", batches)


def cifar100(files: Files) -> None:
    classes = ["apple", "aquarium_fish", *(f"class_{i}" for i in range(2, 100))]
    labels = list(range(100))
    batches = {"train": labels * 2, "test": labels}
    cifar(files, "cifar-100-python", {"fine_label_names": classes}, "fine_labels", batches)


def svhn(files: Files) -> None:
    from scipy.io import savemat

    for split, n in (("train", 40), ("test", 20)):
        pixels = np.random.default_rng(n).integers(0, 255, (32, 32, 3, n), dtype=np.uint8)
        savemat(
            files.root / f"{split}_32x32.mat", {"X": pixels, "y": (np.arange(n)[:, None] % 10 + 1).astype(np.uint8)}
        )


def caltech101(files: Files) -> None:
    for folder in ("BACKGROUND_Google", *class_list("list:caltech101").labels):
        files.images(f"caltech101/101_ObjectCategories/{folder}", (f"image_{i:04}.jpg" for i in range(1, 4)))


def food101(files: Files, each: int = 3) -> None:
    for split, numbers in (("train", range(each)), ("test", range(each, each + 2))):
        lists = {c: [f"{c}/{i}" for i in numbers] for c in ("apple_pie", "baby_back_ribs")}
        files.write(f"food-101/meta/{split}.json", json.dumps(lists))
        for of_class in lists.values():
            files.images("food-101/images", (f"{path}.jpg" for path in of_class))


def flowers102(files: Files) -> None:
    from scipy.io import savemat

    folder = files.root / "flowers-102"
    files.images("flowers-102/jpg", (f"image_{i:05}.jpg" for i in range(1, 307)))
    savemat(folder / "imagelabels.mat", {"labels": np.arange(306)[None] % 102 + 1})
    ids = np.arange(1, 307)[None]
    savemat(folder / "setid.mat", {"trnid": ids[:, :102], "valid": ids[:, 102:204], "tstid": ids[:, 204:]})


def oxford_pets(files: Files) -> None:
    names = [name.replace(" ", "_") for name in class_list("list:oxford_pets").names]
    for split, numbers in (("trainval", range(1, 4)), ("test", range(4, 6))):
        lines = [f"{name}_{i} {label + 1} 1 1" for label, name in enumerate(names) for i in numbers]
        files.write(f"oxford-iiit-pet/annotations/{split}.txt", "\n".join(lines))
        files.images("oxford-iiit-pet/images", (f"{line.split()[0]}.jpg" for line in lines))


def dtd(files: Files) -> None:
    for i, split in enumerate(("train", "val", "test")):
        names = [f"{name}/{name}_{i}.jpg" for name in ("banded", "blotchy")]
        files.write(f"dtd/dtd/labels/{split}1.txt", "\n".join(names))
        files.images("dtd/dtd/images", names)


def fgvc_aircraft(files: Files) -> None:
    data = "fgvc-aircraft-2013b/data"
    files.write(f"{data}/variants.txt", "707-320\n737-200\n")
    for i, split in enumerate(("train", "val", "test")):
        rows = [(f"{i}{label}", name) for label, name in enumerate(("707-320", "737-200"))]
        files.write(f"{data}/images_variant_{split}.txt", "\n".join(f"{n} {name}" for n, name in rows))
        files.images(f"{data}/images", (f"{n}.jpg" for n, _ in rows))


def gtsrb(files: Files) -> None:
    for label in range(43):
        for i in range(2):
            files.image(f"gtsrb/GTSRB/Training/{label:05}/{i}.ppm", "ppm")
        files.image(f"gtsrb/GTSRB/Final_Test/Images/{label:05}.ppm", "ppm")
    with (files.root / "gtsrb" / "GT-final_test.csv").open("w", newline="") as stream:
        table = csv.writer(stream, delimiter=";")
        table.writerow(["Filename", "ClassId"])
        table.writerows([f"{label:05}.ppm", label] for label in range(43))


def eurosat(files: Files) -> None:
    for folder in class_list("list:eurosat").labels:
        files.images(f"eurosat/2750/{folder}", (f"{folder}_{i}.jpg" for i in range(3)))


def sun397(files: Files) -> None:
    names = ["/a/abbey", "/b/badminton_court/indoor"]
    files.write("SUN397/ClassName.txt", "\n".join(names) + "\n")
    for name in names:
        files.images(f"SUN397{name}", (f"sun_{i}.jpg" for i in range(4)))


def stanford_cars(files: Files) -> None:
    from scipy.io import savemat

    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    root = files.root / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.array([(f"{i:05}.jpg", i % 2 + 1) for i in range(4)], dtype=[("fname", object), ("class", object)])
        savemat(root / path, {"annotations": rows})
        files.images(f"stanford_cars/cars_{split}", (f"{i:05}.jpg" for i in range(4)))


def imagenet(files: Files, labels: str = "list:imagenet") -> None:
    for wnid in class_list(labels).labels:
        files.images(f"train/{wnid}", (f"{wnid}_{i}.JPEG" for i in range(2)))
        files.image(f"val/{wnid}/ILSVRC2012_val_{wnid}.JPEG")


def wnids(files: Files, labels: str) -> None:
    for wnid in class_list(labels).labels:
        files.image(f"{wnid}/{wnid}.jpg")


def imagenet_v2(files: Files) -> None:
    for number in range(1000):
        files.image(f"{number}/one.jpeg")


def cub200(files: Files) -> None:
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    paths = [f"{classes[i % 2]}/bird_{i}.jpg" for i in range(8)]
    files.write("classes.txt", "".join(f"{i} {name}\n" for i, name in enumerate(classes, 1)))
    files.write("images.txt", "".join(f"{i} {path}\n" for i, path in enumerate(paths, 1)))
    files.write("image_class_labels.txt", "".join(f"{i} {(i + 1) % 2 + 1}\n" for i in range(1, 9)))
    files.write("train_test_split.txt", "".join(f"{i} {int(i <= 6)}\n" for i in range(1, 9)))
    files.images("images", paths)


def ucf101(files: Files) -> None:
    split: dict[str, list[Any]] = {}
    for i, name in enumerate(("train", "val", "test")):
        split[name] = [[f"{c}/v_{c}_{i}.jpg", label, c] for label, c in enumerate(("Apply_Eye_Makeup", "Archery"))]
        files.images("UCF-101-midframes", (path for path, _, _ in split[name]))
    files.write("split_zhou_UCF101.json", json.dumps(split))


def karpathy(files: Files, file: str, folders: dict[str, str], each: int = 2) -> None:
    """``folders``: by split, the image's folder; captions as in the real files, one image with a sixth."""
    images = []
    for i, split in enumerate([*folders] * each):
        sentences = [{"raw": f"caption {j} of\n image {i} ", "tokens": []} for j in range(6 if i == 0 else 5)]
        place = {"filepath": folders[split]} if folders[split] else {}
        name = {"filename": f"{i:012}.jpg", "imgid": i, "cocoid": i}
        images.append({**place, **name, "split": split, "sentences": sentences})
        files.image("/".join(part for part in (folders[split], f"{i:012}.jpg") if part))
    files.write(file, json.dumps({"images": images, "dataset": "made"}))


def coco_objects(files: Files, each: int = 2) -> None:
    """Karpathy's list, and objects: a large one (class i // 4 % 2), smaller ones, a crowd; the last image has none."""
    folders = {"train": "train2014", "restval": "val2014", "val": "val2014", "test": "val2014"}
    karpathy(files, "dataset_coco.json", folders, each)
    categories = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}]
    of: dict[str, list[dict[str, Any]]] = {"train2014": [], "val2014": []}
    for i, split in enumerate(([*folders] * each)[:-1]):
        large, small = (1, 3) if i // 4 % 2 == 0 else (3, 1)
        for category, area, crowd in ((small, 4.5, 0), (large, 9.5, 0), (small, 9.5, 0), (small, 99.0, 1)):
            of[folders[split]].append({"image_id": i, "category_id": category, "area": area, "iscrowd": crowd})
    for folder, objects in of.items():
        text = json.dumps({"categories": categories, "annotations": objects})
        files.write(f"annotations/instances_{folder}.json", text)


def tar(path: Path, members: dict[str, bytes | str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def webdataset(files: Files, *, captions: bool = False) -> None:
    number = 0
    for split, shards in (("train", 2), ("test", 1)):
        for shard in range(shards):
            members: dict[str, bytes | str] = {}
            for _ in range(4):
                key = f"s{number:07}"
                members[f"{key}.txt" if captions else f"{key}.cls"] = (
                    "\n".join(f"caption {j} of {number}" for j in range(5)) if captions else str(number % 2)
                )
                members[f"{key}.webp"] = image_bytes(number, "webp")
                number += 1
            tar(files.root / split / f"{shard}.tar", members)
        files.write(f"{split}/nshards.txt", f"{shards}\n")
    if captions:
        files.write("dataset_type.txt", "retrieval\n")
    else:
        files.write("classnames.txt", "cat\ndog\n")
        files.write("zeroshot_classification_templates.txt", "a photo of a {c}.\na {c}\n")


def stanford_dogs(files: Files) -> None:
    from scipy.io import savemat

    folders = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")
    for split, numbers in (("train", range(6)), ("test", range(6, 10))):
        paths = [f"{folders[i % 2]}/{folders[i % 2].partition('-')[0]}_{i}.jpg" for i in numbers]
        cells = np.empty((len(paths), 1), dtype=object)
        cells[:, 0] = paths
        labels = np.array([[i % 2 + 1] for i in numbers], dtype=np.uint8)
        savemat(files.root / f"{split}_list.mat", {"file_list": cells, "annotation_list": cells, "labels": labels})
        files.images("Images", paths)


def mvsa(files: Files, annotators: int) -> None:
    """Twelve tweets that count, two whose text and image contradict each other, and with three annotators one without
    a majority.
    """
    agreed = ("negative,neutral", "neutral,neutral", "neutral,positive")
    lines = [[agreed[i % 3]] * annotators for i in range(12)] + [["positive,negative"] * annotators] * 2
    if annotators > 1:
        lines[0][0] = "positive,positive"  # outvoted
        lines.append(["positive,neutral", "negative,neutral", "neutral,neutral"])
    head = "\t".join(["ID", *["text,image"] * annotators])
    rows = ["\t".join([str(i), *line]) for i, line in enumerate(lines, 1)]
    files.write("labelResultAll.txt", "\r\n".join([head, *rows]) + "\r\n")
    for i in range(1, len(lines) + 1):
        files.image(f"data/{i}.jpg")
        files.write(f"data/{i}.txt", f"a  caf\xe9 tweet {i}\n".encode("cp1252"))


def mrpc(files: Files) -> None:
    for split, n in (("train", 40), ("test", 10)):
        rows = [f'{i % 2}\t{i}\t{i + 100}\tsaid "one {split} {i}\tsaid two {split} {i}' for i in range(n)]
        text = "\r\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows]) + "\r\n"
        files.write(f"msr_paraphrase_{split}.txt", text.encode("utf-8-sig"))


def varint(n: int) -> bytes:
    n &= (1 << 64) - 1
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def proto(field: int, content: bytes) -> bytes:
    """A field of a protocol buffer that holds bytes."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def example(features: dict[str, list[bytes] | list[int]]) -> bytes:
    """A ``tf.train.Example``, as TensorFlow writes it."""
    entries = b""
    for name, values in features.items():
        if values and isinstance(values[0], bytes):
            feature = proto(1, b"".join(proto(1, value) for value in values))  # type: ignore[arg-type]
        else:
            feature = proto(3, proto(1, b"".join(varint(value) for value in values)))  # type: ignore[arg-type]
        entries += proto(1, proto(1, name.encode()) + proto(2, feature))
    return proto(1, entries)


def castagnoli(data: bytes) -> int:
    """CRC-32C, bit by bit from its polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def tfrecord(records: Iterable[bytes]) -> bytes:
    """A file of records, as TensorFlow writes it."""

    def crc(data: bytes) -> bytes:
        plain = castagnoli(data)
        return ((plain >> 15 | plain << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")

    out = b""
    for data in records:
        length = len(data).to_bytes(8, "little")
        out += length + crc(length) + data + crc(data)
    return out


def tfds(files: Files, *, captions: bool = False) -> None:
    """A folder as ``tensorflow_datasets`` 4 prepares it: two files of training records, one of test records."""
    place = "tensorflow_datasets.core.features"
    features: dict[str, Any] = {
        "image": {"pythonClassName": f"{place}.image_feature.Image", "image": {"encodingFormat": "png"}},
        "id": {"pythonClassName": f"{place}.scalar.Scalar", "tensor": {"shape": {}, "dtype": "int64"}},
    }
    text = {"pythonClassName": f"{place}.text_feature.Text", "text": {}}
    if captions:
        inner = {"pythonClassName": f"{place}.features_dict.FeaturesDict", "featuresDict": {"features": {"text": text}}}
        sequence = f"{place}.sequence_feature.Sequence"
        features["captions"] = {"pythonClassName": sequence, "sequence": {"feature": inner, "length": "-1"}}
    else:
        label = f"{place}.class_label_feature.ClassLabel"
        features["label"] = {"pythonClassName": label, "classLabel": {"numClasses": "2"}}
        files.write("label.labels.txt", "cat\ndog\n")
    top = {"pythonClassName": f"{place}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    files.write("features.json", json.dumps(top))
    number, splits = 0, []
    for split, counts in (("train", [5, 3]), ("test", [4])):
        for shard, count in enumerate(counts):
            records = []
            for _ in range(count):
                told: list[Any] = [f"caption {j} of {number}".encode() for j in range(5)]
                other = {"captions/text": told} if captions else {"label": [number % 2]}
                records.append(example({"image": [image_bytes(number, "png")], "id": [-number], **other}))
                number += 1
            name = f"made-{split}.tfrecord-{shard:05d}-of-{len(counts):05d}"
            files.write(name, tfrecord(records))
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"filepathTemplate": template, "name": split, "shardLengths": [str(count) for count in counts]})
    info = {"fileFormat": "tfrecord", "name": "made", "version": "1.0.0", "splits": splits}
    files.write("dataset_info.json", json.dumps(info))


def sentences(files: Files, name: str, labels: int, n: int) -> None:
    files.write(name, "".join(f"{i % labels} the text {name} {i}\n" for i in range(n)))
