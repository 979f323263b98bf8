"""Probes: every option, and what a probe cannot measure on the data at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from faults.case import Case, measured, warned
from faults.files import EMBEDDINGS, Arrays, Files, embeddings

PROBES = "probes"


def of(
    name: str, probe: str, *options: str, words: tuple[str | tuple[str, ...], ...] = (), files: Files | None = None,
    **more: Any,
) -> Case:  # fmt: skip
    """Return a case of one probe's options on good embeddings."""
    run = [*EMBEDDINGS, f"probe=[{probe}]", *(o if o.startswith("fusion") else f"probe.{probe}.{o}" for o in options)]
    return Case(
        id=f"{probe}-{name}".replace("_", "-"), room=PROBES, run=run, files=files or embeddings(), words=words, **more
    )


def refused(probe: str, option: str, *words: str | tuple[str, ...], **more: Any) -> Case:
    """Return a case of one option of a probe that is refused, with its name, its value and what it must be."""
    name = option.translate(str.maketrans("", "", "[]{}'")).replace("=", "-").replace(",", "-").replace(" ", "")
    return of(name, probe, option, words=(f"probe.{probe}", option.split("=")[0], *words), **more)


def one_class_is_rare(contents: Arrays) -> None:
    """Leave the third class two training and one validation items."""
    for split, left in (("train", 2), ("val", 1)):
        labels = contents[f"{split}/labels"]
        rare = np.flatnonzero(labels == 2)
        labels[rare[left:]] = 0


def without(*parts: str) -> Callable[[Arrays], object]:
    def change(contents: Arrays) -> None:
        for key in list(contents):
            if key.startswith(parts):
                del contents[key]

    return change


def no_label_in_test(contents: Arrays) -> None:
    contents["test/labels"][:] = -1


def multilabel(contents: Arrays) -> None:
    for split in ("train", "val", "test"):
        contents[f"{split}/labels"] = np.eye(3, dtype=int)[contents[f"{split}/labels"]]


FEW_SHOT = "probe.few_shot"

OPTIONS = [
    refused("linear_probe", "grid=[]", "not empty", short=True),
    refused("linear_probe", "grid=[1,-1]", "-1", "positive"),
    refused("linear_probe", "grid=[0]", "0", "positive"),
    refused("linear_probe", "grid=[1,x]", "'x'", "positive"),
    refused("linear_probe", "grid=1", "list"),
    refused("linear_probe", "grid=null", "list"),
    refused("linear_probe", "selection=kfold", "'kfold'", "did you mean 'k-fold'"),
    refused("linear_probe", "n_folds=1", "n_folds=1", "2 or more"),
    refused("linear_probe", "tol=0", "tol=0", "positive"),
    refused("linear_probe", "max_iter=0", "max_iter=0", "positive integer"),
    refused("linear_probe", "modalities=[images]", "'images'", "did you mean 'image'"),
    refused("linear_probe", "modalities=[]", "not empty"),
    refused("linear_probe", "label_sets=[]", "not empty"),
    refused("linear_probe", "label_sets=[clas]", "'clas'", "did you mean 'class'"),
    refused("linear_probe", "split=tst", "'tst'", "test"),
    refused("linear_probe", "extra_splits=[sketch]", "'sketch'"),
    refused("linear_probe", "block_rows=0", "block_rows=0", "positive integer"),
    refused("linear_probe", "device=cudaa", "'cudaa'"),
    refused("linear_probe", "refit=perhaps", "'perhaps'", "true or false"),
    of("folds-without-refit", "linear_probe", "selection=k-fold", "refit=false", words=("k-fold", "refit")),
    refused("ridge_probe", "grid=[-0.1]", "-0.1", "positive"),
    refused("sgd_probe", "learning_rates=[]", "not empty"),
    refused("sgd_probe", "weight_decays=[-1]", "-1"),
    refused("sgd_probe", "momentum=1", "momentum=1", "[0, 1)"),
    refused("sgd_probe", "epochs=0", "epochs=0", "positive integer"),
    refused("sgd_probe", "batch_size=half", "'half'", "positive integer"),
    refused("sgd_probe", "accelerator=tpuu", "'tpuu'"),
    refused("federated_probe", "epsilon=0", "epsilon=0", "positive", short=True),
    refused("federated_probe", "epsilon=-1", "epsilon=-1", "positive"),
    refused("federated_probe", "epsilon=eight", "'eight'", "positive"),
    refused("federated_probe", "epsilon=[8,2]", "2", "clients=30"),
    refused("federated_probe", "epsilon=null", "'cepam'", "sigma", "accountant"),
    refused("federated_probe", "sigma=1", "epsilon", "both"),
    refused("federated_probe", "delta=0", "delta=0", "positive"),
    refused("federated_probe", "delta=1", "delta=1", "below 1"),
    refused("federated_probe", "delta=null", "epsilon=8", "delta=..."),
    refused("federated_probe", "clip=0", "clip=0", "positive"),
    refused("federated_probe", "clip=-1", "clip=-1", "positive"),
    refused("federated_probe", "clip=null", "'cepam'", "clip=C"),
    refused("federated_probe", "clients=0", "clients=0", "positive integer"),
    refused("federated_probe", "rounds=0", "rounds=0", "positive integer"),
    refused("federated_probe", "dropout=1", "dropout rate 1", "below 1"),
    refused("federated_probe", "unit=item", "'item'", "record"),
    refused("federated_probe", "accounting=moments", "'moments'", "pld"),
    refused("federated_probe", "mechanism.name=cepan", "'cepan'", "did you mean 'cepam'"),
    refused("federated_probe", "mechanism.lattice=E9", "'E9'", "E8"),
    refused("federated_probe", "partition.kind=idd", "'idd'", "did you mean 'iid'"),
    refused("federated_probe", "partition.alpha=1", "partition.alpha=1", "'iid'"),
    refused("federated_probe", "sampling.rate=0.5", "0.5", "'all'"),
    refused("federated_probe", "local.lr=0", "lr=0", "positive"),
    refused("federated_probe", "server.lr=-1", "server lr=-1", "positive"),
    of("sigma-zero", "federated_probe", "epsilon=null", "sigma=0", words=("probe.federated_probe", "sigma=0", "positive")),
    of("sigma-negative", "federated_probe", "epsilon=null", "sigma=-1", words=("sigma=-1", "positive")),
    Case(id="federated-probe-budget-without-noise", room=PROBES, files=embeddings(),
         run=[*EMBEDDINGS, "probe=[federated_probe]", "federated/mechanism=none", "probe.federated_probe.epsilon=8"],
         words=("probe.federated_probe", "'none'", "protects", "epsilon=8", "epsilon=null")),
    refused("knn", "ks=[]", "not empty"),
    refused("knn", "ks=[0]", "0", "positive integer"),
    refused("knn", "ks=[1.5]", "1.5", "positive integer"),
    refused("knn", "ks=5", "list"),
    refused("knn", "temperature=-1", "temperature=-1", "positive"),
    refused("knn", "metric=cosin", "'cosin'", "did you mean 'cosine'"),
    refused("zero_shot", "average=mean", "'mean'", "similarities"),
    refused("zero_shot", "similarity=dott", "'dott'", "did you mean 'dot'"),
    refused("zero_shot", "prompt_sets=[defalt]", "'defalt'", "did you mean 'default'"),
    refused("zero_shot", "prompt_sets=[default+nme]", "'nme'", "default"),
    refused("zero_shot", "prompt_sets=default", "list"),
    refused("propagation", "kernel=products", "'products'", "did you mean 'product'"),
    refused("propagation", "mode=inductiv", "did you mean 'inductive'"),
    refused("propagation", "alpha=1", "alpha=1", "0.999"),
    refused("propagation", "centring=2", "centring=2", "from 0 to 1"),
    refused("propagation", "neighbours=0", "neighbours=0", "positive integer"),
    refused("propagation", "graph_splits=[trian]", "'trian'", "did you mean 'train'"),
    refused("propagation", "splits=test", "list"),
    refused("zlap", "gamma=0", "gamma=0", "positive"),
    refused("transclip", "iterations=0", "iterations=0", "positive integer"),
    refused("retrieval", "ks=[100]", "100", "18"),
    refused("retrieval", "split=val2", "'val2'", "test"),
    refused("few_shot", "shots=[0]", "0", "positive integer"),
    refused("few_shot", "shots=[]", "not empty"),
    refused("few_shot", "shots=[50]", "50", "'cat'", "12"),
    refused("few_shot", "forms=[I+I]", "'I+I'", "I+T"),
    refused("few_shot", "n_seeds=0", "n_seeds=0", "positive integer"),
    refused("few_shot", "classifier=logistics", "did you mean 'logistic'"),
    refused("few_shot", "text_weight=-1", "text_weight=-1", "positive"),
    refused("few_shot", "text_weight=ballanced", "did you mean 'balanced'"),
    refused("few_shot", "prompt_set=defalt", "'defalt'", "default"),
    refused("few_shot", "split=train", "'train'", "shots"),
    refused("clustering", "methods=[kmean]", "'kmean'", "did you mean 'kmeans'"),
    refused("clustering", "affinity=rbff", "did you mean 'rbf'"),
    refused("clustering", "max_items=0", "max_items=0", "positive integer"),
    refused("clustering", "max_items=2", "max_items", "3", ("class", "cluster")),
    refused("clustering", "splits=[tset]", "'tset'", "test"),
    refused("kernel_probe", "C=[]", "not empty"),
    refused("kernel_probe", "classifiers=[svm]", "'svm'", "logistic"),
    refused("kernel_probe", "max_items=10", "max_items", "10", "48"),
    refused("agreement", "max_items=-1", "max_items=-1", "positive integer"),
    refused("text_probe", "holdout=1", "holdout=1", "less than 1"),
    refused("text_probe", "protocol=folds", "'folds'", "k-fold"),
    refused("ood", "heads=[linea]", "'linea'", "did you mean 'linear'"),
    refused("ood", "splits=[test]", "'test'"),
    refused("ood", "splits=[test_sketch]", "'test_sketch'"),
]  # fmt: skip

DATA = [
    of("without-labels", "linear_probe", words=("linear_probe", "label"),
       files=embeddings(without("train/labels", "val/labels", "test/labels", "classes", "prompts"))),
    of("nothing-labelled-in-test", "linear_probe", words=("linear_probe", "test", "label"),
       files=embeddings(no_label_in_test)),
    of("folds-with-a-rare-class", "linear_probe", "selection=k-fold", words=("'owl'", "3", "n_folds=5", "fewer folds"),
       files=embeddings(one_class_is_rare)),
    of("with-a-rare-class", "few_shot", "shots=[4]", words=("few_shot", "'owl'", "2", "4", "fewer shots"),
       files=embeddings(one_class_is_rare), short=True),
    of("more-folds-than-items", "text_probe", "protocol=k-fold", "n_folds=40", words=("text_probe", "22", "40"),
       files=embeddings()),
    of("more-clients-than-records", "federated_probe", "clients=40", short=True,
       words=("federated_probe", "'class'", "clients=40", "36", "fewer clients", "resampled")),
    of("more-records-than-there-are", "federated_probe", "partition.records_per_client=2",
       words=("federated_probe", "30 clients with 2", "60", "36")),
    of("an-empty-client", "federated_probe", "partition.kind=dirichlet", "partition.alpha=0.001",
       words=("alpha=0.001", "without records", "larger alpha", "fewer clients")),
    of("an-update-that-is-not-finite", "federated_probe", "local.lr=1e38", "normalise=false", "clip=1e30",
       words=("client", "round 1", "finite", "learning rate")),
    of("delta-that-says-nothing", "federated_probe", "delta=0.1", status=0, after=warned("delta=0.1", "1/30")),
    of("without-class-texts", "zero_shot", words=("zero_shot", "class texts"),
       files=embeddings(without("prompts"))),
    of("without-class-texts", "propagation", words=("propagation", "class texts"),
       files=embeddings(without("prompts"))),
    of("without-texts", "retrieval", words=("retrieval", "text"),
       files=embeddings(without("train/text", "val/text", "test/text"))),
    of("of-several-labels", "zero_shot", words=("zero_shot", "one label an item"), files=embeddings(multilabel)),
    of("without-a-shifted-split", "ood", words=("ood", "test_")),
    of("without-a-kernel", "kernel_probe", "fusion=gate", "fusion.dim=8", "fusion.epochs=1",
       words=("kernel_probe", "exact kernel")),
    Case(
        id="one-that-does-not-apply-is-named-with-the-reason", room=PROBES, status=0, after=warned("few_shot", "16 shots", "fewer shots"),
        run=[*EMBEDDINGS, "probe=[zero_shot,few_shot]"], files=embeddings(one_class_is_rare),
    ),
    of("constant-features-of-the-paper-s-size", "linear_probe", status=0, after=measured, timeout=60, files=embeddings(
        lambda a: [a[f"{s}/image/{e}"].__setitem__(slice(None), 0.5) for s in ("train", "val", "test") for e in ("clip", "dinov2")],
        n={"train": 54, "val": 12, "test": 18})),
    of("nothing-ends-the-solver-early", "linear_probe", "max_iter=1", status=0, after=warned("linear_probe", ("converge", "max_iter"))),
]  # fmt: skip

CASES = [*OPTIONS, *DATA]
