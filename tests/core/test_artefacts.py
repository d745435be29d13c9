"""Metrics files: what DVC shows of them, and what comes back. Names of temporary files."""

import json
import os
from pathlib import Path

import pytest
from dvc.repo.metrics.show import _extract_metrics

from stages.core.artefacts import read_metrics, write_metrics
from stages.core.atomic import atomic_folder, atomic_path
from stages.settings.errors import UserError
from stages.tools.doctor import TEMPORARY

METRICS = {
    "raw": {"accuracy": 0.5, "miou": None, "classes": {"sky": 0.25}, "used": 3},
    "baseline": {"accuracy": 0.1234567, "lr": 4.615031234e-10},
}


def test_all_figures_come_back_and_dvc_shows_the_headline_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write_metrics(path, METRICS, {"raw": ["accuracy", "miou"]})
    rounded = {**METRICS, "baseline": {"accuracy": 0.123457, "lr": 4.61503e-10}}
    assert read_metrics(path) == rounded
    assert _extract_metrics(json.loads(path.read_text()), "m.json") == {"raw": {"accuracy": 0.5}}
    write_metrics(path, METRICS)
    assert read_metrics(path) == rounded
    assert _extract_metrics(json.loads(path.read_text()), "m.json") == {}


@pytest.mark.parametrize(
    "text", ["[]", '{"raw": 1}', '{"raw": {"accuracy": 1}}', '{"raw": {"details": []}}', "x"]
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match=r"m\.json: not .*; delete it and run `dvc repro`"):
        read_metrics(tmp_path / "m.json")


@pytest.mark.parametrize(
    "name",
    ["a" * 255, "ö" * 127, "x" + "日" * 84, b"\xe9".decode(errors="surrogateescape")],
    ids=["ASCII", "two bytes", "three bytes", "not UTF-8"],
)
def test_names_of_any_length_are_written_and_doctor_knows_their_temporary_files(
    tmp_path: Path, name: str
) -> None:
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("x")
        assert TEMPORARY.fullmatch(temporary.name)
    with atomic_folder(tmp_path / "below" / name) as temporary:
        (temporary / "a").write_text("x")
        assert TEMPORARY.fullmatch(temporary.name)
    assert (tmp_path / name).read_text() == (tmp_path / "below" / name / "a").read_text() == "x"


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_a_folder_that_cannot_be_replaced_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    """Nothing is deleted before the new folder is in its place."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("x")
    replace = os.replace

    def stop(source: Path, target: Path) -> None:
        if (Path(source) / "new").exists():
            raise fault
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(fault), atomic_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "out",
        "out/old",
    ]
    monkeypatch.undo()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "out",
        "out/new",
    ]


def test_a_folder_that_cannot_even_be_put_back_is_kept_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("x")
    replace, calls = os.replace, []

    def fail(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) > 1:
            raise OSError(5, "lost")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="lost"), atomic_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("x")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["old"]


def test_the_folder_that_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/old").write_text("x")
    (tmp_path / "out").symlink_to("real")
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("x")
    assert (tmp_path / "out").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["new"]
