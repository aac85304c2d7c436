"""Where pip finds packages on this machine, as a container needs to be told."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

PLACES = ("index-url", "extra-index-url", "find-links", "trusted-host", "no-index", "proxy", "timeout")
"""The options of pip that say where packages are and how they are reached."""
CERTIFICATES = "/run/package-index.crt"
"""Where the container has them. Debian's own are made while the image is built."""


class PackageIndex(NamedTuple):
    """A pip.conf, and the files and folders that it names: where they are here, and in the container."""

    config: str
    mounts: dict[Path, str]


def package_index() -> PackageIndex:
    """What this machine's pip is configured to use, by its files or by variables."""
    found = _options()
    lines = ["[global]"]
    mounts: dict[Path, str] = {}
    for name in PLACES:
        if name in found:
            lines.append(f"{name} = {found[name]}")
            mounts |= {folder: str(folder) for value in found[name].split() if (folder := _folder(name, value))}
    if "cert" in found:
        lines.append(f"cert = {CERTIFICATES}")
        mounts[Path(found["cert"])] = CERTIFICATES
    return PackageIndex("\n".join(lines) + "\n", mounts)


def _options() -> dict[str, str]:
    """The options in force. pip lists the variables first, though they are what counts."""
    listed = subprocess.run(
        (sys.executable, "-m", "pip", "config", "list"), capture_output=True, text=True, check=True
    ).stdout
    options: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        options[key.rpartition(".")[2]] = " ".join(ast.literal_eval(value).split())
    return options


def _folder(option: str, value: str) -> Path | None:
    """The folder on this machine that an option's value is in, if it is. Files of an index lie beside it."""
    place = urlsplit(value)
    if place.scheme == "file":
        path = Path(unquote(place.path))
        return path.parent if option.endswith("index-url") else path
    return Path(value) if value.startswith("/") else None
