"""Make a preset the active params.yaml.

presets/demo.yaml is complete. Every other preset lists only its differences from the demo, or from the preset
named in its key `extends`; a comment explains each difference. presets/bases/ holds the values that make up a
base: how pixels are clustered and augmented, without any part of the paper. A preset names one in its key
`base`, and BASE=... (--base) lays one over the preset.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.atomic import atomic_path
from stages.dataset.raw_files import raw_files, write_listing
from stages.dataset.source import DataSet, hash_files, list_data
from stages.readers.folder.splitting import rule_for
from stages.runtime.script import run
from stages.settings.errors import UserError, no_folder
from stages.settings.params import flat, read, validated
from stages.settings.schema import Params
from stages.settings.schema_prepare import Prepare
from stages.tools import answers
from stages.tools.composing import as_text, compose, lay_base, plain
from stages.tools.fitting import LEAST_IMAGES, Fit, at, fits
from stages.tools.params_text import is_active, is_as_written, remember_written
from stages.tools.surroundings import git, git_obstacle

BETTER = {"folder": "folder_slotcon"}  # a preset, and one with a better start that takes longer
OUTPUTS = ("data/images", "data/truth", "models", "metrics", ".dvc", ".state", ".git")


def main(argv: Sequence[str] | None = None) -> None:
    """Write params.yaml from a preset, keep its comments, and adapt it to the data set and the time."""
    args = _arguments(argv)
    params = compose(args.name)
    if args.base is not None:
        lay_base(params, args.base)
    _check_valid(params, args.name)
    reader = params["prepare"]["reader"]
    if args.minutes is not None and reader != "folder":
        raise UserError(f"preset {args.name} has sizes and epochs of its own; remove MINUTES (--minutes)")
    if not args.force:
        _check_committed(args.params)
    if reader == "demo":
        if args.data is not None:
            raise UserError(f"preset {args.name} generates its own data; remove DATA (--data)")
        whole = _write(params, args.params)
    else:
        if args.data is None:
            raise UserError(f"preset {args.name} reads images from a folder; set it with DATA=... (--data)")
        data = _take_data(params, args.data)
        times = (
            None if args.minutes is None else _take_time(params, args.minutes, data, better_start(args.name))
        )
        files = raw_files(data)
        params["prepare"]["manifest_sha256"] = hash_files(files)
        whole = _write(params, args.params)
        if data.root is not None and is_active(args.params):
            write_listing(data.root, files)
        print("\n".join([*answers.split(whole), *answers.classes(whole, data), *answers.better(whole, data)]))
        if times is None and reader == "folder" and not args.no_estimate:
            from stages.tools.estimate import estimate  # torch takes seconds to load

            times = estimate(whole, data)
        if times is not None:
            from stages.tools.estimate import describe_estimate

            print("\n".join(describe_estimate(times)))
    done = (
        "is active; next: dvc repro"
        if is_active(args.params)
        else "is written; `dvc repro` reads params.yaml"
    )
    print("\n".join([*answers.start(whole), f"{args.params}: preset {args.name} {done}"]))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.tools.preset", description=__doc__)
    parser.add_argument("name", help="name of a file in presets/, without .yaml")
    parser.add_argument(
        "--data",
        type=lambda text: Path(text).expanduser(),  # within quotes, as in the Makefile, no shell does it
        help="folder of the data set (absolute, or relative to the repository)",
    )
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="output file (default: params.yaml)"
    )
    parser.add_argument("--base", help="name of a file in presets/bases/, whose values replace the preset's")
    measured = parser.add_mutually_exclusive_group()
    measured.add_argument(
        "--minutes",
        type=_minutes,
        help="choose image sizes, epochs and, with time for it, the pretraining of folder_slotcon, so that "
        "`dvc repro` takes at most so many minutes here (preset folder)",
    )
    measured.add_argument("--no-estimate", action="store_true", help="do not measure how long it will take")
    parser.add_argument("--force", action="store_true", help="overwrite uncommitted edits")
    return parser.parse_args(argv)


def _check_valid(params: Any, name: str) -> None:
    """Refuse a preset whose settings are not valid, as one that a user has written may be.

    Raises:
        UserError: there are faults; the error lists all of them.
    """
    try:
        validated(plain(params))
    except UserError as error:
        raise UserError(f"presets/{name}.yaml:", *(f"  {fault}" for fault in error.faults)) from error


def _take_data(params: Any, path: Path) -> DataSet:
    """Read the data set and fit the settings to it."""
    _check_apart(path)
    params["prepare"]["path"] = str(path)
    if params["prepare"]["reader"] == "folder":
        _apply(params, (Fit(("prepare", "split", "by"), *_split_rule(path)),))
    data = list_data(Prepare.model_validate(plain(params)["prepare"]))
    print("\n".join(answers.found(data)))
    _check_enough(path, data, params["prepare"])
    _fit(params, data)
    return data


def _check_enough(path: Path, data: DataSet, settings: Mapping[str, Any]) -> None:
    """Refuse fewer images than any settings allow, as `prepare` would.

    Raises:
        UserError: there are too few.
    """
    if (count := len(data.train)) >= LEAST_IMAGES:
        return
    split = settings["split"]
    is_drawn = settings["reader"] == "folder" and split["by"] == "fraction"
    share = f", of which about {split['val_fraction']:.0%} are for validation" if is_drawn else ""
    raise UserError(
        f"{path}: has {count} training image{'' if count == 1 else 's'}, but a batch of training has at "
        f"least {LEAST_IMAGES}; add images{share}"
    )


def better_start(name: str) -> tuple[Fit, ...]:
    """What a preset with a better start, that takes longer, has otherwise; nothing if there is none."""
    if name not in BETTER:
        return ()
    usual, other = dict(flat(plain(compose(name)))), dict(flat(plain(compose(BETTER[name]))))
    return tuple(
        Fit(tuple(key.split(".")), value, f"as in preset {BETTER[name]}, for which the time is enough")
        for key, value in other.items()
        if value != usual[key] and key != "preset"
    )


def _take_time(params: Any, minutes: float, data: DataSet, better: tuple[Fit, ...]) -> dict[str, Any]:
    """Fit the settings to the time, and return the estimate of each stage."""
    from stages.tools.budget import fit_into  # torch takes seconds to load

    changes, times = fit_into(minutes, plain(params), data, better)
    _apply(params, changes)
    return times


def _write(params: Any, path: Path) -> Params:
    with atomic_path(path) as written:
        written.write_text(as_text(params), encoding="utf-8")
        whole = read(written)
    remember_written(path)
    return whole


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if 0 < minutes < float("inf"):
        return minutes
    raise argparse.ArgumentTypeError(f"must be a number of minutes above 0, got {text!r}")


def _check_apart(data: Path) -> None:
    """Refuse data in the folders that the pipeline writes: DVC deletes these before a stage runs.

    Raises:
        UserError: the folder is one of them, lies in one, or contains one.
    """
    given = data.resolve()
    for top in OUTPUTS:
        folder = Path(top).resolve()
        if given in (folder, folder.parent / "data") or folder in given.parents:
            raise UserError(
                f"{data}: is where the pipeline writes its results ({top}), which DVC deletes before a stage "
                "runs; move the images to a folder of their own"
            )
    if given in (inside := Path(OUTPUTS[0]).resolve()).parents:
        raise UserError(
            f"{data}: contains the folder {inside}, where the pipeline writes its results, whose pictures "
            "would become photographs; move the images to a folder of their own"
        )


def _split_rule(data: Path) -> tuple[str, str]:
    try:
        if data.is_dir():
            return rule_for(data)
    except OSError as error:
        raise UserError(f"{data}: cannot be read ({error.strerror}); allow this user to read it") from error
    raise UserError(f"{data}: {no_folder(data)}; set DATA=... (--data) to the folder of your images")


def _fit(params: Any, data: DataSet) -> None:
    """Set the number of classes, and lower settings that exceed the data set; print every change."""
    if data.class_names:
        count = max(2, len(data.class_names))
        _apply(params, (Fit(("pixel_k",), count, "number of annotated classes (5.1)"),))
    _apply(params, tuple(fits(params, len(data.train))))


def _apply(params: Any, changes: Iterable[Fit]) -> None:
    for fit in changes:
        if (before := at(params, fit.key)) != fit.value:
            print(f"  {fit.name}: {before} -> {fit.value}, {fit.why}")
            at(params, fit.key[:-1])[fit.key[-1]] = fit.value


def _check_committed(params: Path) -> None:
    if not params.exists() or is_as_written(params):
        return
    if (obstacle := git_obstacle(Path())) is not None:
        raise UserError(
            f"{params}: exists, and whether it has edits cannot be seen: {obstacle.what}; pass FORCE=1 "
            f"(--force) to overwrite it, or first: {obstacle.remedy}"
        )
    status = git(Path(), "status", "--porcelain", "--ignored", "--", str(params))
    if status.returncode:
        raise UserError(
            f"{params}: exists, and git does not say whether it has edits ({status.stderr.strip()}); pass "
            "FORCE=1 (--force) to overwrite it"
        )
    if status.stdout.strip():
        raise UserError(
            f"{params}: has uncommitted edits, which a preset would overwrite; "
            f"commit them (git commit {params}), or pass FORCE=1 (--force)"
        )


if __name__ == "__main__":
    run(main)
