"""Make a preset the active params.yaml.

The one program in this room, and the one file of it that knows another room: it pins the data set that
the preset is to read.
"""

import argparse
import subprocess
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core.artefacts import write_text
from stages.dataset.source import DataSet, list_data
from stages.dataset.summary import manifest_sha256
from stages.readers.folder.splitting import rule_for
from stages.settings.errors import UserError, run
from stages.settings.params import read
from stages.settings.schema import Prepare

PRESETS = Path("presets")


def main(argv: Sequence[str] | None = None) -> None:
    """Write params.yaml from a preset, comments kept, fitted to the data set that is there."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.preset", description=__doc__)
    parser.add_argument("name", help="a file of presets/, without .yaml")
    parser.add_argument(
        "--data", type=Path, help="folder of the data set: absolute, or relative to the repository"
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file to write")
    parser.add_argument("--force", action="store_true", help="overwrite edits that are not committed")
    args = parser.parse_args(argv)

    preset = PRESETS / f"{args.name}.yaml"
    if not preset.exists():
        known = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
        raise UserError(f"{preset}: no such preset; there are: {known}")
    if not args.force:
        _check_committed(args.params)
    yaml = YAML()
    yaml.width = 1000  # no line is wrapped
    params = yaml.load(preset.read_text(encoding="utf-8"))
    if params["prepare"]["reader"] != "demo":
        if args.data is None:
            raise UserError(f"preset {args.name} reads images from a folder; name it with DATA=... (--data)")
        params["prepare"]["path"] = str(args.data)
        if params["prepare"]["reader"] == "folder":
            _set(params["prepare"]["split"], "by", *rule_for(args.data))
        _fit(params, list_data(Prepare.model_validate(_plain(yaml, params)["prepare"])))
    elif args.data is not None:
        raise UserError(f"preset {args.name} makes its own data; leave DATA (--data) away")
    with args.params.with_suffix(".yaml.new").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    written = Path(file.name)
    try:
        read(written)
        write_text(args.params, written.read_text(encoding="utf-8"))
    finally:
        written.unlink()
    print(f"{args.params}: now preset {args.name}; next: dvc repro")


def _fit(params: Any, data: DataSet) -> None:
    """Pin the data set, and lower what it is too small for; every change is printed."""
    for note in data.notes:
        print(f"  {note}")
    params["prepare"]["manifest_sha256"] = manifest_sha256(data)
    num_images, pretrain, train = len(data.train), params["pretrain"], params["train"]
    print(
        f"{data.root}: {num_images} training images, {len(data.val)} for validation, "
        f"{len(data.class_names)} named classes"
    )
    if data.class_names:
        _set(params, "pixel_k", max(2, len(data.class_names)), "the number of true classes (5.1)")
    largest = max(2, 2 ** (num_images.bit_length() - 2))
    if pretrain["batch_size"] > largest:
        _set(pretrain, "batch_size", largest, "at most half of the images")
        _set(pretrain, "bn_splits", 1, "so that each group has two images or more")
    queue = max(1, num_images // 2 // pretrain["batch_size"]) * pretrain["batch_size"]
    if pretrain["queue_size"] > queue:
        _set(pretrain, "queue_size", queue, "at most half of the images, in whole batches")
    if pretrain["swav"]["queue_size"] > queue:
        _set(pretrain["swav"], "queue_size", queue, "at most half of the images, in whole batches")
    if train["batch_size"] > largest:
        _set(train, "batch_size", largest, "at most half of the images")
    if params["global_k"] > num_images // 8:
        _set(params, "global_k", max(2, num_images // 8), "eight images for a cluster of views, or more")


def _plain(yaml: YAML, params: Any) -> Any:
    """Without comments, in Python's own types."""
    text = StringIO()
    yaml.dump(params, text)
    return YAML(typ="safe", pure=True).load(text.getvalue())


def _set(section: Any, key: str, value: int | str, why: str) -> None:
    if section[key] != value:
        print(f"  {key}: {section[key]} -> {value}, {why}")
        section[key] = value


def _check_committed(params: Path) -> None:
    if not params.exists():
        return
    status = subprocess.run(
        ["git", "status", "--porcelain", "--", params], capture_output=True, text=True, check=False
    )
    if status.returncode or status.stdout.strip():
        raise UserError(
            f"{params}: has edits that are not committed, and a preset would overwrite them; "
            "commit them (git commit params.yaml), or say FORCE=1 (--force)"
        )


if __name__ == "__main__":
    run(main)
