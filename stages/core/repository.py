"""Where files of the repository are: DVC runs some experiments in a copy of it."""

import os
from pathlib import Path

EXPERIMENT = "DVC_EXP_NAME"  # set in the environment while an experiment of DVC runs


def in_repository(path: str | Path) -> Path:
    """A path as params.yaml gives it, absolute or relative to the repository.

    `dvc exp run --temp` and `--queue` run stages in a copy, which lacks what git does not track, such as
    photographs, checkpoints and saved states. DVC_ROOT is the repository itself; without DVC it is the
    current folder.
    """
    return Path(os.environ.get("DVC_ROOT", ".")) / path


def start_path(init: str) -> Path | None:
    """The file of a setting `init`, if it names one."""
    return in_repository(init) if init else None
