"""`longtake download`: weights of a model, with the record of what they are."""

from __future__ import annotations

import argparse
from pathlib import Path

from serving.cli.terminal import say, show_progress
from serving.weights.catalog import CATALOG, Role, catalog_entry, models_folder
from serving.weights.downloader import Progress, download, read_revisions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `longtake download`."""
    parser.add_argument("model", help=", ".join(CATALOG))
    parser.add_argument("--models-dir", type=Path, help="where to put them, one subfolder for each model")
    parser.add_argument(
        "--revision", action="append", default=[], metavar="OWNER/NAME@REVISION", help="else what main is now"
    )
    parser.add_argument("--update", action="store_true", help="move on to other revisions than those here")
    parser.add_argument("--with-tiny-codec", action="store_true", help="the tiny decoder too")
    parser.add_argument("--endpoint", help="another hub")


def run(options: argparse.Namespace) -> int:
    """Download; what is there already is kept."""
    folder = models_folder(options.models_dir) / options.model
    manifest = download(
        catalog_entry(options.model),
        folder,
        revisions=read_revisions(options.revision),
        extras=[Role.TINY_CODEC] if options.with_tiny_codec else [],
        update=options.update,
        endpoint=options.endpoint,
        progress=_show,
    )
    for repo in manifest.repos:
        say(f"{repo.id}@{repo.revision}  licence: {repo.licence}")
    say(f"{folder}: complete; the manifest has the hashes and the terms")
    return 0


def _show(progress: Progress) -> None:
    share = progress.done / max(progress.size, 1)
    step = f"{progress.number}/{progress.files} {progress.path}"
    is_last = progress.stage == "check" and progress.done == progress.size
    show_progress(f"{step}  {progress.stage} {share:.0%} of {progress.size:,} bytes", is_last=is_last)
