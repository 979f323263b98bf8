"""``krossfuse --help``: what Hydra prints from ``hydra.help``, without the second in which it lists the groups."""

from __future__ import annotations

from collections import defaultdict

from omegaconf import DictConfig, OmegaConf

from krossfuse.app.paths import CONFIG_DIR, user_config_dirs


def help_text() -> str:
    """Return the text of ``hydra.help`` in the package's configuration, with the groups of all its folders.

    Raises:
        ConfigError: a folder of configuration does not exist, or hides one of the package's files.
    """
    config = OmegaConf.load(CONFIG_DIR / "config.yaml")
    assert isinstance(config, DictConfig)
    words = {"hydra": {"help": {key: config.hydra.help[key] for key in ("header", "footer")}}}
    template = OmegaConf.create({**words, "text": OmegaConf.to_container(config.hydra.help, resolve=False)["template"]})  # type: ignore[call-overload,index]
    return str(template.text).replace("$APP_CONFIG_GROUPS", groups())


def groups() -> str:
    """Return the groups with their options, one line each."""
    options: dict[str, set[str]] = defaultdict(set)
    for folder in (CONFIG_DIR, *user_config_dirs()):
        for file in folder.rglob("*.yaml"):
            group = file.relative_to(folder).parent.as_posix()
            if group != "." and group.partition("/")[0] != "hydra":
                options[group].add(file.stem)
    return "".join(f"{group}: {', '.join(sorted(options[group]))}\n" for group in sorted(options))
