"""Accept the images of the data set as they are now: pin them in params.yaml (`make pin`).

It rewrites `prepare.manifest_sha256` and nothing else. With --warm it also keeps the models of the last run
in a folder of models/previous, and sets params.yaml to start from them; where `pretrain` trains nothing, its
start stays as it is. With --check it changes nothing: it compares the files with those that are pinned, by
name, size and time; the stage `check_data` of dvc.yaml does that.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from stages.core.artefacts import read_metrics
from stages.core.atomic import atomic_path
from stages.core.hashes import file_sha256, fingerprint
from stages.core.images import read_index
from stages.dataset.raw_files import (
    Difference,
    check_manifest,
    pinned_files,
    raw_files,
    write_listing,
)
from stages.dataset.source import DataSet, RawFile, data_root, hash_files, list_data
from stages.runtime.progress import warn
from stages.runtime.script import run
from stages.settings.errors import UserError
from stages.settings.params import read
from stages.settings.schema import Params
from stages.settings.schema_pretrain import Pretrain
from stages.tools.composing import PRESETS, compose, plain
from stages.tools.fitting import advice
from stages.tools.model_files import BACKBONE, CENTROIDS, SEGMENTER
from stages.tools.params_text import set_texts

MODELS, PREVIOUS = Path("models"), Path("models/previous")
PRETRAINED = Path("metrics/pretrain.json")
# Files of the last run, and the settings of path and hash that take each.
WARM = {
    BACKBONE: ("pretrain.init", "pretrain.init_sha256"),
    SEGMENTER: ("train.init", "train.init_sha256"),
    CENTROIDS: ("cluster.previous", "cluster.previous_sha256"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Pin the data set, or check it."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.pin", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    parser.add_argument("--warm", action="store_true", help="start from the models of the last run")
    parser.add_argument("--check", action="store_true", help="only compare; exit code 2 if files differ")
    args = parser.parse_args(argv)

    params = read(args.params)
    if args.check:
        check(params)
        return
    has_files = params.prepare.reader != "demo"
    if not has_files and not args.warm:
        raise UserError(
            "prepare.reader: demo draws its own images, so there is nothing to pin; for your own images run "
            "`make preset NAME=folder DATA=...`"
        )
    copies, changes = _models_to_keep(params.pretrain) if args.warm else ({}, {})
    if has_files:
        data = list_data(params.prepare)
        files = raw_files(data)
        manifest = hash_files(files)
        _say_difference(params, data, files, manifest)
        changes["prepare.manifest_sha256"] = manifest
    with set_texts(args.params, changes):  # whatever can fail is done: copy last
        for source, target in copies.items():
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
    if has_files:
        write_listing(_root(data), files)
        _advise(args.params, len(data.train))
    if args.warm and "pretrain.init" not in changes:
        start = params.pretrain
        print(f"  pretrain.init: stays {start.init!r}, which pretrain.method: {start.method} uses as it is")
    for key, value in changes.items():
        print(f"  {key}: {value}")
    print(f"{args.params}: next: dvc repro")


def check(params: Params) -> None:
    """Compare the files of the data set with those that are pinned.

    Raises:
        UserError: files were added, removed or changed.
    """
    settings = params.prepare
    if settings.reader == "demo" or not settings.manifest_sha256:
        print("check_data: no files are pinned (prepare.manifest_sha256)")
        return
    try:
        data = list_data(settings)
    except UserError:
        if _is_there(data_root(settings)):
            raise
        warn(
            "check_data",
            f"{settings.path}: is not there, or empty, so nothing says whether images were added",
        )
        return
    files = raw_files(data)
    check_manifest(settings.manifest_sha256, files)
    if set(pinned_files(settings.manifest_sha256)) != set(files):  # other times, or no listing yet
        write_listing(_root(data), files)
    print(f"check_data: {len(files):,} files are as they were pinned")


def _is_there(folder: Path) -> bool:
    """Whether there is such a folder; where a disk is not mounted, an empty one may stand for it."""
    try:
        return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError:  # it is, but may not be read
        return True


def _root(data: DataSet) -> Path:
    assert data.root is not None, "generated data has no files"
    return data.root


def _say_difference(params: Params, data: DataSet, files: Sequence[RawFile], manifest: str) -> None:
    """Print what was added, gone, changed and renamed since the last pin, or else since the last run."""
    print(f"{data.root}: {len(data.train):,} training images, {len(data.val):,} validation images")
    pinned = params.prepare.manifest_sha256
    if manifest == pinned:
        print("  the files are those that are pinned")
    elif before := pinned_files(pinned) if pinned else ():
        print(f"  since the last pin: {Difference.between(before, files)}")
    elif before := _images_of_last_run():
        images = {item.source for item in (*data.train, *data.val)}
        now = [file for file in files if file.name in images]
        print(f"  images, since the last run: {Difference.between(before, now)}")
    else:
        print("  what is new cannot be told: there is no listing of the files as they were")


def _images_of_last_run() -> tuple[RawFile, ...]:
    """The images that `prepare` packed, if its outputs are there."""
    folders = [Path("data/images") / split for split in ("train", "val")]
    if not all((folder / "index.csv").exists() for folder in folders):
        return ()
    rows = [row for folder in folders for row in read_index(folder).itertuples()]
    return tuple(RawFile(str(row.source), 0, str(row.sha256)) for row in rows)


def _advise(path: Path, num_images: int) -> None:
    """Print which settings could be raised or must be lowered; change none."""
    params = read(path)
    preset = PRESETS / f"{params.preset}.yaml"
    now = params.model_dump()
    for line in advice(now, plain(compose(params.preset)) if preset.exists() else now, num_images):
        print(f"  {line}")


def _models_to_keep(pretrain: Pretrain) -> tuple[dict[Path, Path], dict[str, str]]:
    """The copies that keep the models of the last run, and the settings that use them.

    DVC deletes the outputs of a stage one by one, so a folder beside them stays. Its name follows from the
    clusters, so no other run is ever replaced.

    Args:
        pretrain: settings; if they give the last backbone as it is, they and it stay as they are.

    Raises:
        UserError: a model is missing, they are not of one run, or the folder has another file.
    """
    is_given = _gives_last_backbone(pretrain)
    warm = {name: keys for name, keys in WARM.items() if not (is_given and name == BACKBONE)}
    if missing := [name for name in warm if not (MODELS / name).is_file()]:
        raise UserError(
            f"{MODELS / missing[0]}: not found, so there is no model to start from; run `dvc repro` or "
            "`dvc checkout` first, or leave out WARM=1 (--warm)"
        )
    from stages.core.tensors import read_tensors  # torch takes seconds to load, and --check runs often
    from stages.segmenter.segmenter_file import check_made_for

    hashes = {name: file_sha256(MODELS / name) for name in warm}
    _, about = read_tensors(MODELS / CENTROIDS)
    check_made_for(MODELS / CENTROIDS, about, hashes[SEGMENTER])
    folder = PREVIOUS / fingerprint(MODELS / CENTROIDS)
    there = [name for name in warm if (folder / name).exists()]
    for name in there:
        if file_sha256(folder / name) != hashes[name]:
            raise UserError(
                f"{folder / name}: differs from {MODELS / name}, though its folder is named after the same "
                "clusters; rename that folder to keep it, or delete it"
            )
    copies = {MODELS / name: folder / name for name in warm if name not in there}
    changes = {"pretrain.init_key": ""} if BACKBONE in warm else {}  # our own file has one network
    for name, (place, pinned) in warm.items():
        changes[place] = str(folder if place == "cluster.previous" else folder / name)
        changes[pinned] = hashes[name]
    return copies, changes


def _gives_last_backbone(pretrain: Pretrain) -> bool:
    """Whether `pretrain` gives the backbone of the last run again: it trains none, and did not then.

    Raises:
        UserError: the metrics of that run are missing.
    """
    return not pretrain.trains and "epoch" not in read_metrics(PRETRAINED)["pretrain"]


if __name__ == "__main__":
    run(main)
