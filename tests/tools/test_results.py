"""The summary after `make repro`: what it says, within the width of a terminal."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.core.artefacts import write_json, write_metrics
from stages.runtime import script
from stages.settings.errors import UserError
from stages.tools import results

DATA = {"train_images": 118287, "val_images": 5000}
SCORES = {
    "raw": {"accuracy": 0.43605, "miou": 0.2338},
    "colour_position": {"accuracy": 0.174, "miou": 0.0775},
}
SECONDS = {"prepare": 8.2, "pretrain": 7380.0, "train": 59.6, "evaluate@refined": 3.0, "select_views": 1.0}


@pytest.fixture
def show(
    tmp_path: Path,
    tiny_params: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    def call(raw: dict[str, dict[str, float]], refined: dict[str, float]) -> str:
        monkeypatch.chdir(tmp_path)
        write_metrics(tmp_path / "metrics/prepare.json", {"prepare": DATA})
        write_metrics(tmp_path / "metrics/evaluate/raw.json", raw)
        write_metrics(tmp_path / "metrics/evaluate/refined.json", {"refined": refined})
        results.main(["--params", str(tiny_params())])
        return capsys.readouterr().out

    return call


def test_scores_beside_the_baseline_and_where_the_time_went(show: Callable[..., str], tmp_path: Path) -> None:
    write_json(tmp_path / ".state/seconds.json", SECONDS)
    lines = show(SCORES, {"accuracy": 0.4512, "miou": 0.2431}).splitlines()
    assert max(map(len, lines)) <= results.WIDTH
    assert "118,287 training images, 5,000 validation images" in " ".join(lines)
    cells = {line[:31].strip(): line[31:].split() for line in lines if line.endswith("%")}
    assert cells == {
        "k-means on color and position": ["17.4", "%", "7.8", "%"],
        "prediction": ["43.6", "%", "23.4", "%"],
        "prediction + dense CRF": ["45.1", "%", "24.3", "%"],
    }
    text = "\n".join(lines)
    assert "Last run time of each stage, perhaps with other settings: 2 h 4 min in total" in text
    assert "  pretrain 2 h 3 min, train 1 min 0 s, prepare 8 s, evaluate@refined 3 s," in text
    assert lines[-1] == "Report: metrics/report/index.html"


def test_results_of_other_settings_are_not_shown_as_those_of_params_yaml(
    show: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `make preset`, before the first run: the scores are those that lie there."""
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: 'true', deps: [params.yaml]}}\n")
    text = show(SCORES, {"accuracy": 0.4512, "miou": 0.2431})
    assert text.startswith("\nResults of an earlier run: train would run again (see `dvc status`); run `dvc")
    assert "Preset" not in text
    assert "\n`prepare` has last read 118,287 training images, 5,000 validation images.\n" in text, (
        "after `dvc repro prepare` the scores are of fewer"
    )
    assert "43.6 %" in text
    assert max(map(len, text.splitlines())) <= results.WIDTH


def test_a_run_at_work_is_named_and_no_lock_of_it_is_offered_for_removal(
    show: Callable[..., str], tmp_path: Path
) -> None:
    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: 'true', deps: [params.yaml]}}\n")
    holder = {"pid": os.getpid(), "cmd": "dvc repro"}
    lock = json.dumps({"write": {str(tmp_path / "params.yaml"): holder}, "read": {}})
    (tmp_path / ".dvc/tmp/rwlock").write_text(lock)
    with pytest.raises(UserError) as fault:
        show(SCORES, {"accuracy": 0.4512, "miou": 0.2431})
    assert str(fault.value) == (f"a run is going on (PID {os.getpid()}); wait for it, or see `make doctor`")


def test_without_labels_it_says_what_can_be_said(show: Callable[..., str]) -> None:
    free = {"effective_clusters": 10.234, "image_share": 0.5}
    text = show({"raw": free, "colour_position": free}, free)
    assert "effective clusters" in text
    assert "mIoU" not in text
    assert text.count("10.2") == 3
    assert "Time" not in text, "no stage has run here"


def test_before_the_first_run_it_says_what_to_run() -> None:
    with pytest.raises(UserError, match=r"raw\.json: not found; run `dvc repro` to make it"):
        results.main(["--metrics", "nowhere"])


def test_stages_of_a_repro_note_their_time_and_experiments_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_STAGE", "DVC_EXP_NAME", "RANK"):
        monkeypatch.delenv(name, raising=False)
    script.run(lambda: None)
    assert script.read_times() == {}
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:train")
    script.run(lambda: None)
    assert script.read_times() == {"train": 0.0}
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:label")
    monkeypatch.setenv("DVC_EXP_NAME", "mine")
    script.run(lambda: None)
    assert set(script.read_times()) == {"train"}


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a: wrong", "b: too"), 2, "error: a: wrong\nb: too\n"),
        (KeyboardInterrupt(), 130, "interrupted; "),
    ],
)
def test_a_fault_of_the_user_ends_without_a_traceback(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        script.run(fails)
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith(said)
