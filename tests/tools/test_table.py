"""`table`: commands of the rows, what is read back, and what is printed beside the paper's numbers."""

import copy
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dvc.utils.hydra import to_hydra_overrides

from stages.settings.params import read
from stages.settings.schema import Params
from stages.tools import experiments as room
from stages.tools import table
from stages.tools.composing import compose, plain
from stages.tools.finished_experiments import revisions
from stages.tools.fitting import at
from stages.tools.overrides import override, value_of
from stages.tools.table_changes import parse_change
from stages.tools.table_file import read_base, read_table
from stages.tools.table_text import PRETRAINING, as_markdown, compare, describe_run
from tests.datasets import REPOSITORY, read_preset, write_params
from tests.pipeline.pipeline_file import read_stages

TABLES = sorted((REPOSITORY / "presets/tables").glob("*.yaml"))
SMALL = """
title: A table
stage: evaluate@raw
measures:
  mIoU: {file: metrics/raw.json, key: raw.miou, baseline: rgb.miou}
notes: [A note.]
rows:
  - {name: the baseline, paper: {mIoU: 7.57}, changes: {train.image_loss.weight: 0.0}}
  - {name: two changes, paper: {}, changes: {train.crop_first: false, global_k: 7}, needs: a large disk}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/1.yaml").write_text(SMALL, encoding="utf-8")
    write_params(tmp_path / "params.yaml")
    return tmp_path


class FakeDvc:
    """Stands for `dvc`: keeps what is run, shows it in the form of `dvc exp show --json`."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.fails = "none"  # part of the name of the experiments that fail
        self.is_shallow = self.forgets = False
        self.edits = ""  # of code that is not committed
        self.asked = 0  # how often it was asked for the experiments
        self.committed: dict[str, dict[str, Any]] = {}

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if command[:2] in (["git", "diff"], ["git", "ls-files"]):
            return subprocess.CompletedProcess(command, 0, self.edits if command[1] == "diff" else "", "")
        if command[-2:] == ["var", "GIT_COMMITTER_IDENT"]:
            return subprocess.CompletedProcess(command, 0, "t <t@localhost>", "")
        if command[:2] == ["git", "rev-parse"]:
            answer = "true" if "work-tree" in command[2] or self.is_shallow else "false"
            return subprocess.CompletedProcess(command, 0, answer, "")
        if command[:2] == ["git", "show"]:
            revision, _, file = command[2].partition(":./")
            found = self.committed.get(revision, {}) if file == "metrics/raw.json" else {}
            return subprocess.CompletedProcess(command, 0 if found else 128, json.dumps(found))
        assert command[:4] == [sys.executable, "-m", "dvc", "exp"]
        if command[4] == "show":
            self.asked += 1
            return subprocess.CompletedProcess(command, 0, json.dumps(self.shown()), "")
        fails = self.fails in command[command.index("--name") + 1]
        if not fails:
            self.ran.append(command[5:])
        return subprocess.CompletedProcess(command, int(fails))

    def shown(self) -> list[dict[str, Any]]:
        done = [
            self._one(command[command.index("--name") + 1], 0.1 + 0.02 * place)
            for place, command in enumerate(self.ran)
            if command[0] == "--temp" and not self.forgets
        ]
        queued = [
            {"name": name, "revs": [{"data": None}], "executor": {"state": "queued"}}
            for name in (
                command[command.index("--name") + 1] for command in self.ran if command[0] == "--queue"
            )
        ]
        return [
            {"rev": "workspace", "experiments": None},
            {"rev": "abc", "name": "main", "experiments": [*done, *queued]},
        ]

    def _one(self, name: str, miou: float) -> dict[str, Any]:
        baseline = {"details": [{"miou": 0.05 if "-s0-" in name else 0.07}]}
        self.committed[f"rev of {name}"] = {"raw": {"miou": miou, "details": [{}]}, "rgb": baseline}
        last = {"rev": f"rev of {name}", "data": {"metrics": {"metrics/raw.json": {"data": {"raw": {}}}}}}
        return {"name": name, "revs": [last], "executor": {"state": "success"}}


@pytest.fixture
def dvc(monkeypatch: pytest.MonkeyPatch) -> FakeDvc:
    fake = FakeDvc()
    monkeypatch.setattr(room.subprocess, "run", fake)
    return fake


def commands(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a shell would run of what was printed."""
    return warned_commands(capsys)[1]


def warned_commands(capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    """What was warned of, and what a shell would run of what was printed."""
    printed = capsys.readouterr()
    return printed.err, [line for line in printed.out.splitlines() if not line.startswith("# ")]


def test_dry_run_numbers_the_rows_as_rows_takes_them(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    table.main(["1", "--tables", "tables", "--seeds", "3", "--rows", "2", "--dry-run"])
    many, needs, title, command = capsys.readouterr().out.splitlines()
    assert many == "# table 1: 1 experiment, at most 1 pretraining (DVC's cache may have some)"
    assert needs == "# row 2, two changes: needs a large disk"
    assert title == "# row 2: two changes, seed 3"
    assert command.startswith("dvc exp run --temp --name table1-two-changes-s3-")


def test_the_head_says_what_all_rows_share() -> None:
    demo = read(REPOSITORY / "presets/demo.yaml")
    photos = demo.model_copy(
        update={"prepare": demo.prepare.model_copy(update={"path": "/data/photos", "reader": "folder"})}
    )
    rows = read_table(REPOSITORY / "presets/tables/4.yaml")

    def head(params: Params, *changes: str) -> str:
        return describe_run(params, rows, [parse_change(text, rows) for text in changes])

    assert head(photos, "train.lr=0.1", "base=ours", "2,3:select_ratio=1.0") == (
        f"Data: photos (preset demo). resnet18 of width 16, {demo.size_px} px, float32, pretraining mocov2, "
        f"{demo.pretrain.epochs} epochs, training {demo.train.epochs} epochs, learning rate 0.1, feature "
        f"stride {demo.train.feature_stride}, guidance weight {demo.train.image_loss.weight}, select_ratio "
        f"{demo.select_ratio}; changed: train.lr=0.1, base=ours, 2,3:select_ratio=1.0."
    )
    assert head(demo).startswith("Data: demo (preset demo). ")
    slotcon = ["pretrain.method=slotcon", "pretrain.epochs=9"]
    assert "slotcon, 9 epochs after 5 of mocov2, " in head(demo, *slotcon, "pretrain.dense.mocov2_epochs=5")
    assert "slotcon, 9 epochs, training" in head(demo, *slotcon, "pretrain.dense.mocov2_epochs=0")
    changes = ["pretrain.method=none", "pretrain.init=/tmp/dino.pth", "train.epochs=3", "size_px=96"]
    assert "width 16, 96 px, float32, pretraining none from dino.pth, training 3 epochs, " in head(
        demo, *changes
    )


def test_the_head_has_what_all_rows_set() -> None:
    rows = read_table(REPOSITORY / "presets/tables/6.yaml")
    init = parse_change("pretrain.init=/tmp/resnet18.pth", rows)
    head = describe_run(read_preset("cocostuff27"), rows, [init])
    assert (
        "resnet18 of width 64, 320 px, bfloat16, pretraining supervised from resnet18.pth, training " in head
    )


def test_rows_of_other_code_are_run_again(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["1", "--tables", "tables", "--seeds", "3", "--rows", "2", "--dry-run"]
    names = []
    for edits in ("", "", "- a\n+ b\n", "- a\n+ c\n"):
        dvc.edits = edits
        table.main(argv)
        names.append(commands(capsys)[0].split()[5])
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_dry_run_prints_each_command_and_runs_none(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    table.main(["1", "--tables", "tables", "--seeds", "3,5", "--set", "train.lr=0.1", "--dry-run"])
    lines = commands(capsys)
    assert dvc.ran == []
    assert len(lines) == 4
    assert lines[0].startswith("dvc exp run --temp --name table1-the-baseline-s3-")
    assert lines[0].endswith(
        " --set-param train.lr=0.1 --set-param train.image_loss.weight=0.0 --set-param seed=3 evaluate@raw"
    )
    changed = "--set-param train.lr=0.1 --set-param train.crop_first=false --set-param global_k=7"
    assert lines[3].endswith(f" {changed} --set-param seed=5 evaluate@raw")
    names = [line.split("--name ")[1].split()[0] for line in lines]
    assert len(set(names)) == 4


def test_runs_what_is_missing_and_prints_it_beside_the_paper(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["1", "--tables", "tables", "--out", "out", "--seeds", "0,1"]
    table.main(argv)
    assert len(dvc.ran) == 4
    text = (folder / "out/1.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert text in printed
    assert re.search(r"^table 1: 4/4  two changes  seed 1  took \d+ s$", printed, re.MULTILINE)
    # 10 and 12, 14 and 16 per cent; the standard deviation of a sample of two is their distance / sqrt 2.
    assert "| | mIoU here | mIoU paper | seeds |\n| --- | ---: | ---: | ---: |\n" in text
    assert "| the baseline | 11.0 ± 1.4 | 7.57 | 2 |" in text
    assert (
        "| two changes | 15.0 ± 1.4 | – | 2 |\n| k-means on color and position | 6.0 ± 1.4 | – | 2 |" in text
    )
    assert "- A note.\n- two changes: needs a large disk" in text
    found = pd.read_csv(folder / "out/1.csv")
    assert list(found.columns) == ["row", "measure", "paper", "mean", "std", "num_seeds"]
    assert found["mean"].tolist() == pytest.approx([11, 15, 6])
    assert found["std"].tolist() == pytest.approx([2**0.5] * 3, rel=1e-4)
    table.main(argv)
    assert len(dvc.ran) == 4, "what is finished ran again"
    table.main([*argv[:-1], "0,1,2"])
    assert len(dvc.ran) == 6


def test_other_changes_are_other_experiments(folder: Path, dvc: FakeDvc) -> None:
    argv = ["1", "--tables", "tables", "--out", "out", "--seeds", "0"]
    table.main(argv)
    table.main([*argv, "--set", "train.lr=0.1"])
    assert len({command[command.index("--name") + 1] for command in dvc.ran}) == 4


def test_results_of_an_edited_params_yaml_are_other_experiments(folder: Path, dvc: FakeDvc) -> None:
    argv = ["1", "--tables", "tables", "--out", "out", "--seeds", "0"]
    table.main(argv)
    write_params(folder / "params.yaml", {"device": "cpu", "runtime.num_workers": 3})  # changes no result
    table.main(argv)
    assert len(dvc.ran) == 2
    write_params(folder / "params.yaml", {"train.epochs": 77})
    table.main(argv)
    assert len(dvc.ran) == 4
    # A change that all rows share is the same as an edit.
    write_params(folder / "params.yaml")
    table.main([*argv, "--set", "train.epochs=77"])
    assert len(dvc.ran) == 4


def test_a_seed_that_is_given_twice_runs_once(folder: Path, dvc: FakeDvc) -> None:
    table.main(["1", "--tables", "tables", "--out", "out", "--seeds", "0,0", "--rows", "1"])
    assert len(dvc.ran) == 1
    assert pd.read_csv(folder / "out/1.csv")["num_seeds"].tolist() == [1, 0, 1]


def test_what_a_row_sets_itself_stays_and_is_said(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    table.main(["1", "--tables", "tables", "--seeds", "0", "--set", "global_k=9", "--dry-run"])
    said, (first, second) = warned_commands(capsys)
    assert said.startswith("make table: warning: --set global_k: not applied to 'two changes', which set")
    assert "--set-param global_k=9" in first
    assert "--set-param global_k=7" in second


BASES = {"a": "train: {lr: 0.5, photometric: {hue: 0.2}}\n", "b": "train: {lr: 0.25}\n"}


@pytest.fixture
def based(folder: Path) -> Path:
    (folder / "bases").mkdir()
    for name, text in BASES.items():
        (folder / f"bases/{name}.yaml").write_text(text, encoding="utf-8")
    text = SMALL.replace("stage:", "base: a\nstage:").replace("needs:", "base: b, needs:")
    (folder / "tables/1.yaml").write_text(text, encoding="utf-8")
    return folder


def test_the_values_of_the_base_are_in_the_command(
    based: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["1", "--tables", "tables", "--seeds", "0", "--dry-run"]
    table.main(argv)
    first, second = commands(capsys)
    assert "--set-param train.lr=0.5 --set-param train.photometric.hue=0.2" in first
    assert "--set-param train.lr=0.25 " in second
    assert "hue" not in second
    table.main([*argv, "--set", "train.lr=0.125"])
    first, second = commands(capsys)
    assert "train.lr=0.125" in first
    assert "train.lr=0.125" in second
    table.main([*argv, "--set", "base=b"])
    said, (first, second) = warned_commands(capsys)
    assert said.startswith("make table: warning: --set base: not applied to 'two changes', which set")
    assert "train.lr=0.25" in first
    assert "train.lr=0.25" in second


@pytest.mark.parametrize("text", ["", "- train.lr\n", "ours\n"], ids=["empty", "list", "text"])
def test_a_base_that_is_no_mapping_is_named(based: Path, bench_fault: Any, text: str) -> None:
    (based / "bases/c.yaml").write_text(text, encoding="utf-8")
    assert bench_fault(["1", "--tables", "tables", "--set", "base=c", "--dry-run"]) == (
        "bases/c.yaml: must list keys and values, such as size_px: 128"
    )


def test_a_base_is_read_once_for_all_of_its_rows(
    based: Path, dvc: FakeDvc, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(room, "read_base", lambda path: (read.append(path.stem), read_base(path))[1])
    third = "  - {name: a third, paper: {}, changes: {global_k: 6}}\n"
    path = based / "tables/1.yaml"
    path.write_text(path.read_text(encoding="utf-8") + third, encoding="utf-8")
    table.main(["1", "--tables", "tables", "--seeds", "0,1", "--dry-run"])
    assert sorted(read) == ["a", "b"]


def test_the_table_says_its_base_and_quotes_what_is_published(
    based: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    path = based / "tables/1.yaml"
    path.write_text(path.read_text() + "published: {IIC: {mIoU: 6.7}}\n", encoding="utf-8")
    table.main(["1", "--tables", "tables", "--out", "out", "--seeds", "0"])
    text = (based / "out/1.md").read_text(encoding="utf-8")
    assert "Base of the rows: a (presets/bases/a.yaml). two changes: b." in text
    assert "| IIC (published) | – | 6.70 | – |" in text
    assert len(dvc.ran) == 2
    table.main(["1", "--tables", "tables", "--out", "out", "--seeds", "0", "--set", "base=b"])
    assert "Base of the rows: b (presets/bases/b.yaml). two changes: b." in (based / "out/1.md").read_text()


def test_some_rows_are_run_and_all_are_printed(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    table.main(["1", "--tables", "tables", "--out", "out", "--seeds", "0", "--rows", "2"])
    assert [command[2].split("-s0")[0] for command in dvc.ran] == ["table1-two-changes"]
    table.main(["1", "--tables", "tables", "--out", "out", "--seeds", "0", "--rows", "1"])
    assert [command[2].split("-s0")[0] for command in dvc.ran] == [
        "table1-two-changes",
        "table1-the-baseline",
    ]
    assert "| two changes | 10.0 | – | 1 |" in capsys.readouterr().out.split("# A table")[-1]


def test_collect_and_queue_run_nothing(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    table.main(["1", "--tables", "tables", "--out", "out", "--seeds", "0", "--collect"])
    assert dvc.ran == []
    assert "| the baseline | – | 7.57 | 0 |" in capsys.readouterr().out
    table.main(["1", "--tables", "tables", "--out", "out", "--seeds", "0", "--queue"])
    assert {command[0] for command in dvc.ran} == {"--queue"}
    assert "next: dvc queue start" in capsys.readouterr().out
    before = list(dvc.ran)
    table.main(["1", "--tables", "tables", "--out", "out", "--seeds", "0", "--queue"])
    assert dvc.ran == before, "what is queued was queued again"
    assert dvc.asked == 3, "DVC takes seconds, so each command asks it once"


def test_after_a_failed_experiment_the_others_run(
    folder: Path, dvc: FakeDvc, bench_fault: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    dvc.fails = "the-baseline-s1"
    argv = ["1", "--tables", "tables", "--out", "out", "--seeds", "0,1"]
    assert bench_fault(argv) == (
        "table 1: 1 of 4 experiments failed: the baseline, seed 1; the output above says why; the others are "
        "kept: run the same `make table` again to run these"
    )
    assert len(dvc.ran) == 3
    printed = capsys.readouterr().out
    assert "table 1: 2/4  the baseline  seed 1  failed\n" in printed
    assert "| the baseline | 10.0 | 7.57 | 1 |" in printed
    assert "| two changes | 13.0 ± 1.4 | – | 2 |" in (folder / "out/1.md").read_text(encoding="utf-8")
    dvc.fails = "none"
    table.main(argv)
    assert len(dvc.ran) == 4


def test_what_cannot_be_queued_is_named(
    folder: Path, dvc: FakeDvc, bench_fault: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    dvc.fails = "table1"
    message = bench_fault(["1", "--tables", "tables", "--out", "out", "--seeds", "0", "--queue"])
    assert message.startswith(
        "table 1: 2 of 2 experiments failed: the baseline, seed 0; two changes, seed 0; "
    )
    assert "dvc queue start" not in capsys.readouterr().out


def test_a_run_that_dvc_loses_is_noticed(folder: Path, dvc: FakeDvc, bench_fault: Any) -> None:
    dvc.forgets = True
    message = bench_fault(["1", "--tables", "tables", "--out", "out", "--seeds", "0"])
    assert message.startswith("table1-the-baseline-s0-")
    assert message.endswith(
        ": DVC ended with success, but the experiment is not among those of this commit; `make doctor` "
        "looks for the cause"
    )
    assert len(dvc.ran) == 1, "went on after the first loss"


def test_a_shallow_clone_is_refused_before_the_first_run(
    folder: Path, dvc: FakeDvc, bench_fault: Any
) -> None:
    dvc.is_shallow = True
    assert bench_fault(["1", "--tables", "tables", "--out", "out", "--seeds", "0"]) == (
        "make table: this clone is shallow (git clone --depth), and DVC loses temporary and queued "
        "experiments in it; git fetch --unshallow"
    )
    assert dvc.ran == []


@pytest.fixture
def bench_fault() -> Any:
    def fault(argv: list[str]) -> str:
        with pytest.raises(table.UserError) as raised:
            table.main(argv)
        return str(raised.value)

    return fault


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["9"], "tables/9.yaml: not found; available: 1"),
        (["1", "--seeds", "one"], "--seeds: must be comma-separated integers, got 'one'"),
        (["1", "--rows", "1,3"], "--rows: must be between 1 and 2, got 1,3"),
        (
            ["1", "--rows", "2", "--set", "global_k=9"],
            "--set global_k: has no effect because every row that it is for sets this key itself; select "
            "other rows with --rows",
        ),
        (["1", "--set", "seed=9"], "--set seed: has no effect, because each row runs with each of --seeds"),
        (
            ["1", "--set", "2:global_k=9"],
            "--set 2:global_k: has no effect because every row that it is for sets this key itself; select "
            "other rows with --rows",
        ),
        (["1", "--set", "1:seed=9"], "--set seed: has no effect, because each row runs with each of --seeds"),
        (["1", "--set", "train.lr"], "--set: must be KEY=VALUE or ROWS:KEY=VALUE, got 'train.lr'"),
        (["1", "--set", "2,3:train.lr=1"], "rows of --set train.lr: must be between 1 and 2, got 2,3"),
        (
            ["1", "--set", "all:train.lr=1"],
            "rows of --set train.lr: must be comma-separated integers, got 'all'",
        ),
        (["1", "--set", "base=x"], "bases/x.yaml: not found; available: "),
    ],
)
def test_mistakes(folder: Path, bench_fault: Any, argv: list[str], expected: str) -> None:
    assert bench_fault([*argv, "--tables", "tables"]) == expected


@pytest.mark.parametrize("programs", [None, "no such folder"], ids=["no history", "no git"])
def test_without_git_the_remedy_is_said_before_dvc_is_asked(
    folder: Path, bench_fault: Any, monkeypatch: pytest.MonkeyPatch, programs: str | None
) -> None:
    if programs is not None:
        monkeypatch.setenv("PATH", programs)
    said = bench_fault(["1", "--tables", "tables"])
    assert said.startswith(
        "make table: git is not installed; "
        if programs
        else "make table: this folder has no git history, as after the download of a ZIP file; git init"
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("two changes", "the baseline", "the baseline occurs more than once"),
        ("paper: {}", "paper: {IoU: 1.0}", "rows use IoU, which the table does not list under measures"),
        ("notes: [A note.]", "", "notes Field required"),
        ("title: A table", "title: [", "invalid YAML"),
        ("stage: evaluate@raw", "", "stage Field required"),
    ],
)
def test_a_file_that_is_no_table(folder: Path, bench_fault: Any, old: str, new: str, said: str) -> None:
    path = folder / "tables/1.yaml"
    path.write_text(SMALL.replace(old, new), encoding="utf-8")
    assert said in bench_fault(["1", "--tables", "tables"])


def test_a_change_for_some_rows_is_of_these_alone(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["1", "--tables", "tables", "--seeds", "0", "--dry-run"]
    table.main(argv)
    plain_first, plain_second = commands(capsys)
    table.main([*argv, "--set", "2:pretrain.init=a:b=c.pth", "--set", "pretrain.init=all.pth"])
    first, second = commands(capsys)
    assert "--set-param pretrain.init=all.pth" in first
    assert "pretrain.init='a:b=c.pth'" in shlex.split(second)
    assert "all.pth" not in second
    table.main([*argv, "--set", "2:train.lr=0.5"])
    first, second = commands(capsys)
    assert first == plain_first, "another name or setting of a row that the change is not for"
    assert second.replace("--set-param train.lr=0.5 ", "") != plain_second, "the name is the same"
    table.main([*argv, "--rows", "1", "--set", "2:train.lr=0.5"])
    assert commands(capsys) == [plain_first]
    table.main([*argv, "--set", "1,2:global_k=9"])
    said, (first, second) = warned_commands(capsys)
    assert said.startswith("make table: warning: --set 1,2:global_k: not applied to 'two changes', which set")
    assert "global_k=9" in first
    assert "global_k=7" in second


def test_a_base_for_some_rows(based: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]) -> None:
    table.main(["1", "--tables", "tables", "--seeds", "0", "--set", "1:base=b", "--dry-run"])
    first, second = commands(capsys)
    assert "train.lr=0.25 " in first
    assert "train.lr=0.25 " in second


def test_where_a_row_runs_is_no_other_experiment(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["1", "--tables", "tables", "--seeds", "0", "--rows", "1", "--dry-run"]
    table.main(argv)
    (plain,) = commands(capsys)
    table.main([*argv, "--set", "runtime.nproc=1", "--set", "device=cuda:1"])
    (elsewhere,) = commands(capsys)
    assert elsewhere.split()[5] == plain.split()[5], "the name is another"
    assert "--set-param runtime.nproc=1 --set-param device=cuda:1 " in elsewhere
    table.main([*argv, "--set", "deterministic=false"])
    assert commands(capsys)[0].split()[5] != plain.split()[5]


def test_settings_that_params_cannot_have_are_refused_before_anything_runs(
    folder: Path, dvc: FakeDvc, bench_fault: Any
) -> None:
    argv = ["1", "--tables", "tables", "--out", "out", "--seeds", "0,1"]
    for how in ([], ["--dry-run"], ["--queue"]):
        said = bench_fault(
            [*argv, *how, "--set", "train.epoch=3", "--set", "2:train.lr=-1", "--set", "seeds.a=2"]
        )
        assert said.splitlines() == [
            "seeds.a: unknown key; did you mean 'seed'?",
            "train.epoch: unknown key; did you mean 'epochs'?",
            "train.lr: must be > 0.0, got -1",
        ]
        assert bench_fault([*argv, *how, "--set", "train.lr=[1"]).startswith("--set train.lr: invalid YAML: ")
    assert dvc.ran == []
    table.main([*argv, "--dry-run", "--set", "prepare.manifest_sha256="])  # nothing after = is an empty text


@pytest.mark.parametrize(
    "value",
    [
        "",
        "auto",
        "-1.5e-4",
        "/d/x.pth",
        "my models/a (1).pth",
        "~/ä,b=c#1.pth",
        "it's [x",
        "[0.5, 1.0]",
        "true",
        '"true"',
        "'a b'",
        "a b\\",
        "c:\\d e\\'f",
    ],
)
def test_dvc_reads_every_value_as_it_was_given(value: str) -> None:
    (parsed,) = to_hydra_overrides([override("pretrain.init", value)])
    assert parsed.value() == value_of("pretrain.init", value)


GUIDED = "  - {name: guided, paper: {}, changes: {train.image_loss.head: classical}}\n"


def test_rows_with_guidance_need_a_weight(
    folder: Path, dvc: FakeDvc, bench_fault: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tables/1.yaml").write_text(SMALL + GUIDED, encoding="utf-8")
    write_params(folder / "params.yaml", {"train.image_loss.weight": 0.0})
    argv = ["1", "--tables", "tables", "--out", "out", "--seeds", "0"]
    for how in ([], ["--dry-run"], ["--set", "train.image_loss.weight=0"]):
        assert bench_fault([*argv, *how]) == (
            "train.image_loss.weight: is 0, so 'guided' would run without guidance; add --set "
            "train.image_loss.weight=1.0, as presets of COCO-Stuff have it (Cityscapes: 0.1), or select "
            "other rows with --rows"
        )
    assert dvc.ran == []
    capsys.readouterr()
    table.main([*argv, "--rows", "1,2", "--set", "train.image_loss.head=mlp", "--dry-run"])
    assert len(commands(capsys)) == 2, "rows that set no head of their own were refused"
    for weight in ("1.0", "auto"):
        table.main([*argv, "--rows", "3", "--set", f"train.image_loss.weight={weight}", "--dry-run"])
        assert len(commands(capsys)) == 1


def test_what_rows_need_and_how_much_runs_is_said_first(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["1", "--tables", "tables", "--out", "out", "--seeds", "0,1"]
    table.main(argv)
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert first == "table 1: 4 experiments, at most 2 pretrainings (DVC's cache may have some)"
    assert second == "row 2, two changes: needs a large disk"
    assert third.startswith("table 1: 1/4 ")
    table.main(argv)
    assert "row 2, two changes" not in capsys.readouterr().out, "nothing ran, so nothing is needed"
    table.main([*argv, "--seeds", "2", "--rows", "1"])
    said = capsys.readouterr().out
    assert said.startswith("table 1: 1 experiment, at most 1 pretraining (DVC's cache may have some)\n")
    assert "row 2, two changes" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.lr=0.5", "at most 2 pretrainings (DVC's cache may have some)"),
        ("2:pretrain.lr=0.5", "at most 4 pretrainings (DVC's cache may have some)"),
        ("1:pretrain.epochs=0", "at most 2 pretrainings (DVC's cache may have some)"),
        ("pretrain.method=none", "no pretraining"),
    ],
)
def test_rows_that_pretrain_alike_are_counted_once(
    folder: Path, dvc: FakeDvc, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    table.main(["1", "--tables", "tables", "--seeds", "0,1", "--set", change, "--dry-run"])
    assert capsys.readouterr().out.splitlines()[0] == f"# table 1: 4 experiments, {said}"


def test_a_pretraining_is_decided_by_what_dvc_yaml_says() -> None:
    keys = {*read_stages()["pretrain"].params, "prepare"}
    assert {key.rstrip(".") for key in PRETRAINING} == keys


def test_experiments_without_results_are_not_finished() -> None:
    def one(name: str, state: str | None, metrics: Any) -> dict[str, Any]:
        return {
            "name": name,
            "revs": [{"rev": "1234", "data": {"metrics": metrics}}],
            "executor": state and {"state": state},
        }

    metrics = {"m.json": {"data": {"a": 1}}}
    shown = [one("a", None, metrics), one("b", "failed", metrics), one("c", "success", None)]
    assert revisions([{"experiments": shown}]) == {"a": "1234"}


# The preset that each table is for; base and guidance run with any.
PRESETS = {"1": "cocostuff15", "2": "cocostuff27_imagenet", "3": "cityscapes27", "6": "cocostuff27"}


@pytest.mark.parametrize("path", TABLES, ids=[path.stem for path in TABLES])
def test_rows_of_the_paper_are_valid_on_the_preset_that_they_are_for(path: Path) -> None:
    found = read_table(path)
    preset = plain(compose(PRESETS.get(path.stem, "cocostuff27_imagenet"), REPOSITORY / "presets"))
    bases = REPOSITORY / "presets/bases"
    for row in found.rows:
        base = row.base or found.base
        values = read_base(bases / f"{base}.yaml") if base else {}
        params = copy.deepcopy(preset)
        for key, value in {**values, **row.changes, "pretrain.init": "model.pth"}.items():
            *sections, last = key.split(".")
            section = at(params, tuple(sections))
            assert last in section, f"{row.name}: {key}"
            section[last] = value
        Params.model_validate(params)


@pytest.mark.parametrize(("name", "row"), [("2", 0), ("4", 0)])
def test_picie_of_28_98_has_no_pretraining_on_the_target_images(name: str, row: int) -> None:
    found = read_table(REPOSITORY / f"presets/tables/{name}.yaml").rows[row]
    assert found.paper["mIoU"] == 7.57
    assert found.changes["pretrain.epochs"] == 0


@pytest.mark.parametrize("path", TABLES, ids=[path.stem for path in TABLES])
def test_measures_are_metrics_of_the_stage_that_a_table_runs_up_to(path: Path) -> None:
    found = read_table(path)
    measured = {measure.file for measure in found.measures.values()}
    assert measured <= set(read_stages()[found.stage].uncached)


def test_a_measure_without_a_number_of_the_paper_has_no_column_for_one() -> None:
    guidance = read_table(REPOSITORY / "presets/tables/guidance.yaml")
    header = as_markdown(guidance, compare(guidance, [], {}), "").splitlines()[6]
    assert header == "| | accuracy here | mIoU here | image share here | seeds |"


def test_the_rows_of_the_papers_tables_stand_on_one_base() -> None:
    for name in "123456":
        found = read_table(REPOSITORY / f"presets/tables/{name}.yaml")
        assert found.base == "picie"
        assert not [row.name for row in found.rows if row.base]


def test_every_table_of_experiments_is_there() -> None:
    assert [path.stem for path in TABLES] == ["1", "2", "3", "4", "5", "6", "base", "guidance"]
