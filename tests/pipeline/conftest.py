"""One repository in which the whole pipeline has run, for all tests that need one."""

from pathlib import Path
from typing import Any

import pytest

from tests.datasets import write_params
from tests.pipeline.commands import make_clone, run


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]) -> Path:
    """All that git tracks or would, tiny params, after one `dvc repro`; settings and results committed."""
    folder = tmp_path_factory.mktemp("pipeline") / "clone"
    make_clone(folder)
    write_params(folder / "params.yaml", tiny)
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "tiny")
    run(folder, "dvc", "repro")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "results")
    return folder
