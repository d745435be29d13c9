"""Queued experiments that run for ever, because the machine or the worker that ran them died."""

from collections.abc import Iterator
from functools import partial

from dvc.repo import Repo

from stages.repair.finding import Finding


def queue(repo: Repo) -> Iterator[Finding]:
    """Tasks that count as running while no worker is alive; to be asked only when no DVC is at work."""
    if not repo.tmp_dir or not (repo.scm and hasattr(repo.scm, "resolve_rev")):
        return
    tasks = repo.experiments.celery_queue
    for entry in list(tasks.iter_active()):
        name = entry.name or entry.stash_rev[:7]
        yield Finding(
            f"queued experiment {name}: counts as running, but its worker is gone",
            f"dvc queue kill {name} (it is 'Failed' then); dvc queue remove {name}, and queue it again",
            partial(tasks.kill, [name]),
        )
