"""Outputs and DVC's cache against dvc.lock."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.repair.finding import Finding
from stages.runtime.errors import UserError
from stages.runtime.progress import track

CHUNK_BYTES = 1 << 24


def cache_objects(repo: Repo) -> Iterator[Finding]:
    """Objects of the current results whose content is no longer what their name says."""
    objects = [(name, oid) for name, md5 in _locked(repo).items() for oid in _with_children(repo, md5)]
    for name, oid in track(objects, "cache", unit="object"):
        path = Path(repo.cache.local.oid_to_path(oid))
        if path.exists() and _md5(path) != oid.removesuffix(".dir"):
            yield Finding(
                f"{_relative(path, repo)}: damaged, its content is not that of its name; {name} cannot be "
                "restored from it",
                f"rm {_relative(path, repo)}; `dvc pull` may bring it, and `dvc repro` makes it again",
                partial(_remove, path),
            )


def outputs(repo: Repo) -> Iterator[Finding]:
    """Outputs that are missing, or are not what their stage wrote."""
    kept, absent = _locked(repo), []
    for stage, changes in sorted(repo.status().items()):
        changed = {}
        for change in changes:
            if isinstance(change, dict):
                changed.update(change.get("changed outs", {}))
        for name, state in sorted(changed.items()):
            if not (Path(repo.root_dir) / name).exists():
                absent.append(name)
            elif state == "not in cache":
                yield Finding(
                    f"{name}: is what {stage} wrote, but the cache has no copy", f"dvc commit {stage}"
                )
            elif name in kept:
                yield Finding(
                    f"{name}: is not what {stage} wrote; it was changed by hand, or its stage was killed",
                    f"dvc checkout --force {name} brings back what it wrote, dvc repro {stage} runs it again",
                )
            else:
                yield Finding(
                    f"{name}: is not what {stage} wrote; it was changed by hand, or its stage was killed",
                    f"git checkout -- {name} brings back what was committed, dvc repro {stage} runs it again",
                )
    if absent:
        yield Finding(
            f"{', '.join(absent)}: not there",
            "`dvc repro` takes them from the cache or makes them; `dvc pull` brings them from a remote",
        )


def _locked(repo: Repo) -> dict[str, str]:
    """Cached outputs of dvc.lock and their hashes; metrics and plots are left to git."""
    path = Path(repo.root_dir) / "dvc.lock"
    if not path.exists():
        return {}
    try:
        lock = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise UserError(f"dvc.lock: is not YAML ({error}); git checkout -- dvc.lock") from error
    hashes = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", [])}
    cached = {_relative(Path(out.fs_path), repo) for out in repo.index.outs if out.use_cache}
    return {name: md5 for name, md5 in hashes.items() if name in cached}


def _with_children(repo: Repo, oid: str) -> Iterator[str]:
    yield oid
    listing = Path(repo.cache.local.oid_to_path(oid))
    if oid.endswith(".dir") and listing.exists() and _md5(listing) == oid.removesuffix(".dir"):
        yield from (entry["md5"] for entry in json.loads(listing.read_text(encoding="utf-8")))


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    path.chmod(0o644)  # DVC protects what it keeps
    path.unlink()


def _relative(path: Path, repo: Repo) -> str:
    root = Path(repo.root_dir)
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
