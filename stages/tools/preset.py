"""Make a preset the active params.yaml.

presets/demo.yaml is complete. Every other preset lists only its differences from the demo, or from the preset
named in its key `extends`; a comment explains each difference. presets/bases/ holds the values that make up a
base: how pixels are clustered and augmented, without any part of the paper. A preset names one in its key
`base`, and BASE=... (--base) lays one over the preset.
"""

import argparse
import difflib
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from stages.core.artefacts import atomic_path
from stages.dataset.raw_files import raw_files, write_listing
from stages.dataset.source import DataSet, hash_files, list_data
from stages.readers.folder.splitting import rule_for
from stages.runtime.script import run
from stages.settings.errors import UserError
from stages.settings.params import read
from stages.settings.schema import Params, Prepare
from stages.tools import answers
from stages.tools.fitting import at, fits
from stages.tools.params_text import is_as_written, remember_written
from stages.tools.surroundings import git, git_obstacle

OUTPUTS = ("data/images", "data/truth", "models", "metrics", ".dvc", ".state", ".git")
PRESETS, BASE = Path("presets"), "demo"


def main(argv: Sequence[str] | None = None) -> None:
    """Write params.yaml from a preset, keep its comments, and adapt it to the data set."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.preset", description=__doc__)
    parser.add_argument("name", help="name of a file in presets/, without .yaml")
    parser.add_argument(
        "--data", type=Path, help="folder of the data set (absolute, or relative to the repository)"
    )
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="output file (default: params.yaml)"
    )
    parser.add_argument("--base", help="name of a file in presets/bases/, whose values replace the preset's")
    parser.add_argument("--no-estimate", action="store_true", help="do not measure how long it will take")
    parser.add_argument("--force", action="store_true", help="overwrite uncommitted edits")
    args = parser.parse_args(argv)

    params, data = compose(args.name), None
    if args.base is not None:
        lay_base(params, args.base)
    if not args.force:
        _check_committed(args.params)
    if params["prepare"]["reader"] != "demo":
        if args.data is None:
            raise UserError(f"preset {args.name} reads images from a folder; set it with DATA=... (--data)")
        _check_apart(args.data)
        params["prepare"]["path"] = str(args.data)
        if params["prepare"]["reader"] == "folder":
            _set(params["prepare"]["split"], "by", *_split_rule(args.data))
        data = list_data(Prepare.model_validate(plain(params)["prepare"]))
        print("\n".join(answers.found(data)))
        _fit(params, data)
        files = raw_files(data)
        params["prepare"]["manifest_sha256"] = hash_files(files)
    elif args.data is not None:
        raise UserError(f"preset {args.name} generates its own data; remove DATA (--data)")
    with atomic_path(args.params) as written:
        written.write_text(as_text(params), encoding="utf-8")
        whole = read(written)
    remember_written(args.params)
    if data is not None and data.root is not None:
        write_listing(data.root, files)
        _answer(whole, data, with_estimate=not args.no_estimate and whole.prepare.reader == "folder")
    print(f"{args.params}: preset {args.name} is active; next: dvc repro")


def _answer(params: Params, data: DataSet, *, with_estimate: bool) -> None:
    """Print how the settings were chosen, how long the run will take, and what would make it better."""
    print("\n".join([*answers.split(params), *answers.classes(params, data), *answers.better(params, data)]))
    if with_estimate:
        from stages.tools.estimate import describe_estimate, estimate  # torch takes seconds to load

        print("\n".join(describe_estimate(estimate(params, data))))


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
        return rule_for(data)
    except OSError as error:
        raise UserError(f"{data}: cannot be read ({error.strerror}); allow this user to read it") from error


def compose(name: str, folder: Path = PRESETS) -> CommentedMap:
    """Merge a preset into demo.yaml, including comments, to a complete params.yaml.

    Raises:
        UserError: the preset does not exist, or has a key that is not in demo.yaml.
    """
    path = folder / f"{name}.yaml"
    preset = _load(path)
    if name == BASE:
        return preset
    params = compose(preset.pop("extends", BASE), folder)
    if base := preset.pop("base", None):
        lay_base(params, base, folder)
    _lay_over(params, preset, f"{path}: ")
    return params


def lay_base(params: CommentedMap, name: str, folder: Path = PRESETS) -> None:
    """Overwrite values and comments in `params` with those of a base.

    Raises:
        UserError: the base does not exist, or has a key that is not in `params`.
    """
    path = folder / "bases" / f"{name}.yaml"
    _lay_over(params, _load(path), f"{path}: ")


def _load(path: Path) -> CommentedMap:
    if not path.exists():
        known = ", ".join(sorted(path.stem for path in path.parent.glob("*.yaml")))
        raise UserError(f"{path}: not found; available: {known}")
    return _yaml().load(path.read_text(encoding="utf-8"))


def _lay_over(params: CommentedMap, changes: CommentedMap, where: str) -> None:
    """Overwrite values and comments in `params` with those of `changes`."""
    for key, value in changes.items():
        if key not in params:
            near = difflib.get_close_matches(key, list(params), n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(params)}"
            raise UserError(f"{where}{key}: unknown key; {meant}")
        if isinstance(value, CommentedMap):
            _lay_over(params[key], value, f"{where}{key}.")
        else:
            params[key] = value
        _take_comment(params, changes, key)


def _take_comment(params: CommentedMap, changes: CommentedMap, key: str) -> None:
    """Copy the comment after a key; keep the blank line at the end of a section in `params`."""
    if key not in changes.ca.items or changes.ca.items[key][2] is None:
        return
    before = params.ca.items.get(key)
    is_last = before is not None and before[2] is not None and before[2].value.endswith("\n\n")
    comment = changes.ca.items[key]
    comment[2].value = comment[2].value.rstrip("\n") + ("\n\n" if is_last else "\n")
    params.ca.items[key] = comment


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 1000  # disables line wrapping
    return yaml


def as_text(params: CommentedMap) -> str:
    """Format params.yaml with its comments."""
    text = StringIO()
    _yaml().dump(params, text)
    return text.getvalue()


def plain(params: CommentedMap) -> Any:
    """Convert to built-in Python types, without comments."""
    return YAML(typ="safe", pure=True).load(as_text(params))


def _fit(params: Any, data: DataSet) -> None:
    """Set the number of classes, and lower settings that exceed the data set; print every change."""
    if data.class_names:
        _set(params, "pixel_k", max(2, len(data.class_names)), "number of annotated classes (5.1)")
    for fit in tuple(fits(params, len(data.train))):
        if (before := at(params, fit.key)) != fit.value:
            print(f"  {fit.name}: {before} -> {fit.value}, {fit.why}")
            at(params, fit.key[:-1])[fit.key[-1]] = fit.value


def _set(section: Any, key: str, value: int | str, why: str) -> None:
    if section[key] != value:
        print(f"  {key}: {section[key]} -> {value}, {why}")
        section[key] = value


def _check_committed(params: Path) -> None:
    if not params.exists() or is_as_written(params):
        return
    if (obstacle := git_obstacle(Path())) is not None:
        raise UserError(
            f"{params}: exists, and whether it has edits cannot be seen: {obstacle.what}; pass FORCE=1 "
            f"(--force) to overwrite it, or first: {obstacle.remedy}"
        )
    status = git(Path(), "status", "--porcelain", "--", str(params))
    if status.returncode:
        raise UserError(
            f"{params}: exists, and git does not say whether it has edits ({status.stderr.strip()}); pass "
            "FORCE=1 (--force) to overwrite it"
        )
    if status.stdout.strip():
        raise UserError(
            f"{params}: has uncommitted edits, which a preset would overwrite; "
            "commit them (git commit params.yaml), or pass FORCE=1 (--force)"
        )


if __name__ == "__main__":
    run(main)
