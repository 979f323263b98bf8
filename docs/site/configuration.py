"""The reference of every configuration group, as markdown, made from the files in ``conf`` and their comments."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

GROUPS = {
    "pair": "The frozen encoders that are fused: a cross-modal one and its experts.",
    "encoder": "Encoders by name; `pair=clip_b32+dinov2_b14` composes them.",
    "data": "What is encoded and measured: a data set, a file of embeddings, or features that are drawn.",
    "data/form": "What the data sets of one form have in common; those by name are made of these.",
    "fusion": "How the encoders' features become one embedding.",
    "fusion/kernel": "The kernel of each parent that `fusion=rp_krossfuse` multiplies (`expert_kernel` and "
    "`product_kernel` take the same options).",
    "fusion/sketch": "How the Kronecker product of the parents' maps becomes a vector of `fusion.dim` numbers.",
    "probe": "What is measured of an embedding; a list takes several: `'probe=[linear_probe,knn]'`.",
    "federated/mechanism": "Noise and compression of the clients' messages, with `probe=[federated_probe]`.",
    "federated/server": "What the server makes of the clients' mean update, with `probe=[federated_probe]`.",
    "job": "What a run does.",
    "store": "Where extracted features are kept.",
    "trainer": "The Lightning Trainer that encodes, fuses and trains.",
    "logger": "The tracker that a run is written to.",
    "experiment": "Studies: a choice of options and a grid, started with `krossfuse -m experiment=NAME`.",
    "hydra/sweeper": "What `krossfuse -m` does with the values that it is given.",
    "hydra/launcher": "Where a sweep's tasks run.",
}
"""Every group that a user chooses from, in the order of the site, with what it is for."""

MANY = 12
"""A mapping of more names than this is one row: its file has them all."""


@dataclass(frozen=True)
class Key:
    """One key of a configuration file.

    Attributes:
        name: as on the command line, below the file's own package.
        value: as it stands in the file; of a long mapping, how many entries it has.
        comment: what stands beside it.
    """

    name: str
    value: str
    comment: str


def page_name(group: str) -> str:
    """Return the file name of a group's page."""
    return group.replace("/", "-") + ".md"


def options(conf: Path, group: str) -> list[Path]:
    """Return the files of a group, by name."""
    return sorted((conf / group).glob("*.yaml"))


def heading(text: str) -> tuple[str, str]:
    """Return what the comment at a file's head says, and the package that it names ("" where it names none).

    >>> heading("# @package _global_" + chr(10) + "# Hello:  krossfuse x=1" + chr(10) + "a: 1")
    ('Hello:  krossfuse x=1', '_global_')
    """
    lines, package = [], ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        said = line[1:].removeprefix(" ")
        if said.startswith("@package"):
            package = said.split()[1]
        else:
            lines.append(said)
    return "\n".join(lines), package


def keys(text: str) -> list[Key]:
    """Return the keys of a file, each with its value and comment.

    >>> keys("dim: 3  # total" + chr(10) + "deep:" + chr(10) + "  a: [1, 2]")
    [Key(name='dim', value='3', comment='total'), Key(name='deep.a', value='[1, 2]', comment='')]
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return []
    return list(_walk(root, (), text))


def _walk(node: yaml.MappingNode, above: tuple[str, ...], text: str) -> Iterator[Key]:
    for name, value in node.value:
        path = (*above, str(name.value))
        if isinstance(value, yaml.MappingNode) and value.value:
            if len(value.value) > MANY and all(isinstance(v, yaml.ScalarNode) for _, v in value.value):
                yield Key(".".join(path), f"{len(value.value)} entries", _comment(text, name.end_mark.index))
            else:
                comment = _comment(text, name.end_mark.index)
                if comment and not value.flow_style:
                    yield Key(".".join(path), "", comment)
                yield from _walk(value, path, text)
        elif path == ("defaults",):
            yield from _defaults(value, text)
        else:
            source = text[value.start_mark.index : value.end_mark.index].strip()
            end = name.end_mark.index if "\n" in source else value.end_mark.index
            yield Key(".".join(path), " ".join(_bare(line) for line in source.splitlines()), _comment(text, end))


def _defaults(node: yaml.Node, text: str) -> Iterator[Key]:
    for item in node.value:
        if not isinstance(item, yaml.MappingNode):
            continue
        ((name, value),) = item.value
        group = str(name.value).removeprefix("override ").removeprefix("/")
        chosen = text[value.start_mark.index : value.end_mark.index]
        yield Key(group, chosen, _comment(text, value.end_mark.index))


def _bare(line: str) -> str:
    return re.sub(r"\s+#.*$", "", line).strip()


def _comment(text: str, index: int) -> str:
    line = text[index:].partition("\n")[0]
    found = re.search(r"(?:^|\s)#\s?(.*)$", line)
    return found.group(1).strip() if found else ""


def group_page(conf: Path, group: str) -> str:
    """Return the page of a group: each of its options with what it is for, its keys and its file."""
    parts = [f"# {group}", "", f"{GROUPS[group]} Choose with `{group}=NAME`.", ""]
    for file in options(conf, group):
        text = file.read_text(encoding="utf-8")
        said, package = heading(text)
        parts += [f"## {file.stem}", "", *_prose(said), ""]
        target = re.search(r"^\s*_target_: (\S+)", text, flags=re.MULTILINE)
        if target:
            parts += [f'Class: <autoref identifier="{target[1]}" optional>`{target[1]}`</autoref>', ""]
        rows = [key for key in keys(text) if not key.name.rpartition(".")[2].startswith("_")]
        if rows and group != "experiment":
            parts += ["| key | default | |", "|---|---|---|"]
            prefix = _prefix(group, package)
            in_group = "" if group.startswith("hydra/") else f"{group}/"
            for key in rows:
                inside = {"kernel": in_group, "sketch": in_group}.get(key.name.partition("@")[0], prefix)
                parts.append(f"| {_name(inside + key.name)} | {_code(key.value)} | {_cell(key.comment)} |")
            parts.append("")
        parts += [f'??? note "conf/{group}/{file.name}"', "", "    ```yaml"]
        parts += [f"    {line}".rstrip() for line in text.splitlines()]
        parts += ["    ```", ""]
    return "\n".join(parts)


def index_page(conf: Path) -> str:
    """Return the page of all groups, and of the keys that belong to none."""
    text = (conf / "config.yaml").read_text(encoding="utf-8")
    groups = {group for group in GROUPS if not group.startswith("hydra/")}
    parts = [
        "# Configuration",
        "",
        "Every option below is set on the command line: `GROUP=NAME` chooses a file of a group, `key=value` sets a key "
        "(in a sweep, `krossfuse -m`, several values with commas). `krossfuse --cfg job` prints the configuration that "
        "a command line makes. These pages are made from the files in `conf/` and their comments.",
        "",
        "| group | for | options |",
        "|---|---|---|",
    ]
    for group, said in GROUPS.items():
        names = ", ".join(f"[{f.stem}]({page_name(group)}#{f.stem})" for f in options(conf, group))
        parts.append(f"| [`{group}`]({page_name(group)}) | {said} | {names} |")
    parts += ["", "## Keys of every run", "", "| key | default | |", "|---|---|---|"]
    for key in keys(text):
        if key.name.partition(".")[0] != "hydra" and not key.name.startswith("hydra/"):
            comment = key.comment or ("a group" if key.name in groups else "")
            parts.append(f"| {_name(key.name)} | {_code(key.value)} | {_cell(comment)} |")
    return "\n".join([*parts, ""])


def _prefix(group: str, package: str) -> str:
    if package == "_global_":
        return ""
    return (package or group.replace("/", ".")) + "."


def _prose(said: str) -> list[str]:
    """Return a comment as markdown: sentences as a paragraph, lines of commands as a block."""
    lines: list[str] = []
    commands: list[str] = []
    for line in said.splitlines():
        if line.startswith(("  ", "krossfuse ")):
            commands.append(line.strip())
            continue
        said_here, found, command = line.partition(" krossfuse ")
        if found and said_here.rstrip().endswith((":", ".")):
            lines.append(said_here.rstrip().rstrip(":") + ("." if said_here.rstrip().endswith(":") else ""))
            commands.append("krossfuse " + command)
        else:
            lines.append(line)
    made = [_escape(" ".join(lines))] if lines else []
    if commands:
        made += ["", "```sh", *commands, "```"]
    return made


def _escape(text: str) -> str:
    return re.sub(r"([<>*_|\[\]])", r"\\\1", text) if "`" not in text else text.replace("<", "&lt;")


def _code(value: str) -> str:
    return f"`{value.replace('|', chr(92) + '|')}`" if value else ""


def _name(key: str) -> str:
    """Return a key as code that a narrow column breaks after its dots and underscores, and nowhere else."""
    return "<code>" + re.sub(r"(?<=[._/@])", "<wbr>", html.escape(key)) + "</code>"


def _cell(comment: str) -> str:
    return _escape(comment)
