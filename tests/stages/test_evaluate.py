"""`evaluate` through its command line, on two images whose scores can be counted by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stages import evaluate
from stages.core.artefacts import read_metrics
from stages.dataset.truth import write_classes
from stages.settings.errors import UserError
from tests.tensors import enlarging

SIZE = 8
PARAMS = Path(__file__).parents[2] / "params.yaml"
NAMES = ("sky", "grass")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sky above grass; cluster 2 is sky, cluster 0 grass, and cluster 1 takes two columns of the sky."""
    truth = np.zeros((2, SIZE, SIZE), np.uint8)
    truth[:, SIZE // 2 :] = 1
    truth[1, -1] = 255
    clusters = np.where(truth[:1] == 0, 2, 0).repeat(2, 0)
    clusters[:, : SIZE // 2, :2] = 1
    scores = np.eye(3, dtype=np.float16)[clusters].transpose(0, 3, 1, 2)
    (tmp_path / "truth").mkdir()
    np.save(tmp_path / "truth/val.npy", truth)
    write_classes(tmp_path / "truth", NAMES)
    np.save(tmp_path / "predictions.npy", scores)
    np.save(tmp_path / "refined.npy", np.where(truth == 0, 2, 0).astype(np.uint8))
    _write_images(tmp_path / "images")
    return tmp_path


def _write_images(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
        np.save(folder / split / "images.npy", images)
        index = {"id": [0, 1], "source": "a.png", "width": SIZE, "height": SIZE, "sha256": "0" * 64}
        pd.DataFrame(index).to_csv(folder / split / "index.csv", index=False)


def _run(folder: Path, name: str = "raw", *more: str) -> dict[str, dict[str, float]]:
    argv = [
        "--name",
        name,
        "--predictions",
        str(folder / "predictions.npy"),
        "--truth",
        str(folder / "truth"),
    ]
    outputs = {
        "metrics": "scores.json",
        "readings": "readings.json",
        "readings-table": "readings.csv",
        "per-class": "classes.csv",
        "confusion-table": "confusion.csv",
    }
    argv += [part for flag, file in outputs.items() for part in (f"--{flag}", str(folder / "out" / file))]
    evaluate.main([*argv, "--params", str(PARAMS), *more])
    return read_metrics(folder / "out/scores.json")


def test_scores_of_the_raw_prediction(folder: Path) -> None:
    figures = _run(folder)
    assert list(figures) == ["raw"]
    assert figures["raw"] == pytest.approx(
        {
            "accuracy": 104 / 120,
            "miou": (48 / 64 + 1) / 2,
            "class_accuracy": (48 / 64 + 1) / 2,
            "classes_counted": 2,
            "clusters_used": 3,
            "effective_clusters": np.exp(
                -(0.5 * np.log(0.5) + 0.375 * np.log(0.375) + 0.125 * np.log(0.125))
            ),
            "largest_cluster_share": 0.5,
            "image_share": 0,  # both images are alike
        },
        rel=1e-5,
    )


def test_inputs_that_change_while_it_runs(folder: Path, change_at_end: Any) -> None:
    changed = [folder / name for name in ("predictions.npy", "truth/val.npy", "refined.npy")]
    change_at_end(lambda: [path.write_bytes(path.read_bytes() + b"0") for path in changed])
    with pytest.raises(UserError) as raised:
        _run(folder, "refined", "--refined", str(folder / "refined.npy"))
    assert str(raised.value) == (
        f"evaluate: changed while it ran: {', '.join(map(str, changed))}; its result would belong to neither "
        "the old nor the new, so nothing is written; run `dvc repro` again"
    )
    assert not (folder / "out").exists()


def test_images_that_change_while_it_runs(folder: Path, change_at_end: Any) -> None:
    change_at_end((folder / "images/val/index.csv").unlink)
    with pytest.raises(UserError, match=r"evaluate: changed while it ran: \S+/images/val/index.csv;"):
        _run(folder, "raw", "--images", str(folder / "images"))
    assert not (folder / "out").exists()


def test_tables(folder: Path) -> None:
    _run(folder)
    assert (folder / "out/classes.csv").read_text() == (
        "class,cluster,iou,accuracy,pixels\nsky,2,0.75,0.75,64\ngrass,0,1,1,56\n"
    )
    assert (folder / "out/confusion.csv").read_text() == (
        "actual,predicted,cluster,pixels\n"
        "sky,sky,2,48\nsky,grass,0,0\nsky,cluster 1,1,16\n"
        "grass,sky,2,0\ngrass,grass,0,56\ngrass,cluster 1,1,0\n"
    )


def test_readings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(folder / "truth", NAMES, ("stuff", "thing"))
    raw = _run(folder)["raw"]
    readings = read_metrics(folder / "out/readings.json")["raw_readings"]
    counts = ["num_classes", "num_clusters", "labelled_pixels"]
    assert list(readings) == [*counts, "one_to_one", "many_to_one", "environment"]
    assert readings["environment"]["torch"] == torch.__version__.split("+")[0]
    assert not {"tf32", "deterministic"} & set(readings["environment"])  # no network ran
    same = {key: raw[key] for key in ("accuracy", "miou", "classes_counted")}
    assert readings["one_to_one"]["all"] == same
    assert readings["one_to_one"]["stuff"]["truth_alone"]["accuracy"] == 0.75
    assert readings["many_to_one"]["all"] == {"accuracy": 1, "miou": 1, "classes_counted": 2}
    table = pd.read_csv(folder / "out/readings.csv")
    assert table["score"].tolist()[:2] == ["all · overall", "things · truth_and_prediction"]
    assert len(table) == 2 * (1 + 2 * 4)  # no legacy_picie: three clusters are no two classes
    told = capsys.readouterr().out
    assert "raw: 2 classes, 3 clusters, 120 labeled pixels; in percent" in told
    assert "clusters without a class in one_to_one: 1" in told


def test_the_crf_is_scored_under_the_matching_of_the_raw_prediction(folder: Path) -> None:
    assert _run(folder, "refined", "--refined", str(folder / "refined.npy"))["refined"]["accuracy"] == 1
    swapped = np.load(folder / "refined.npy")
    np.save(folder / "refined.npy", 2 - swapped)
    # A matching of its own would call this perfect.
    assert _run(folder, "refined", "--refined", str(folder / "refined.npy"))["refined"]["accuracy"] == 0


def _entropy(*counts: int) -> float:
    return -sum(count / sum(counts) * math.log(count / sum(counts)) for count in counts)


def test_colour_and_position_stand_beside_it(folder: Path) -> None:
    figures = _run(folder, "raw", "--images", str(folder / "images"))
    assert list(figures) == ["raw", "colour_position", "truth"]
    assert set(figures["colour_position"]) == set(figures["raw"])
    # Sky and grass: 32 and 32 pixels of one image, 32 and 24 of the other.
    of_images = (64 * _entropy(32, 32) + 56 * _entropy(32, 24)) / 120
    expected = pytest.approx(1 - of_images / _entropy(64, 56), rel=1e-5)
    assert figures["truth"] == {
        "effective_clusters": pytest.approx(math.exp(_entropy(64, 56)), rel=1e-5),
        "image_share": expected,
    }
    first = (folder / "out/scores.json").read_bytes()
    _run(folder, "raw", "--images", str(folder / "images"))
    assert (folder / "out/scores.json").read_bytes() == first


def test_without_truth_the_label_free_figures_are_all(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(folder / "truth", ())
    np.save(folder / "truth/val.npy", np.full((2, SIZE, SIZE), 255, np.uint8))
    figures = _run(folder, "raw", "--images", str(folder / "images"))
    free = ["effective_clusters", "image_share"]  # the headline, where there are no scores
    assert list(figures["raw"]) == [*free, "clusters_used", "largest_cluster_share"]
    assert figures["raw"]["clusters_used"] == 3
    assert list(figures) == ["raw", "colour_position"]
    assert set(figures["colour_position"]) == set(figures["raw"])
    assert "no label maps; only label-free metrics are reported" in capsys.readouterr().out
    assert (folder / "out/classes.csv").read_text() == "class,cluster,iou,accuracy,pixels\n"
    assert (folder / "out/confusion.csv").read_text() == "actual,predicted,cluster,pixels\n"
    readings = read_metrics(folder / "out/readings.json")["raw_readings"]
    assert list(readings) == ["num_classes", "num_clusters", "labelled_pixels", "environment"]
    assert (folder / "out/readings.csv").read_text().count("\n") == 1


def test_scores_are_upsampled_before_the_best_is_taken(folder: Path) -> None:
    """Bilinearly, with half-pixel centers; the best of the small scores, enlarged, has other borders."""
    small = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float16)
    weight = enlarging(3, SIZE)
    best = np.einsum("rh,nkhw,cw->nkrc", weight, small.astype(np.float64), weight).argmax(1)
    enlarged = small.argmax(1)[:, np.arange(SIZE) * 3 // SIZE][:, :, np.arange(SIZE) * 3 // SIZE]
    assert (best == enlarged).mean() < 0.95
    np.save(folder / "predictions.npy", small)
    np.save(folder / "truth/val.npy", best.astype(np.uint8))
    write_classes(folder / "truth", ("sky", "grass", "cow"))
    assert _run(folder)["raw"]["accuracy"] == 1


def test_chunks_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _run(folder)
    monkeypatch.setattr("stages.postprocessing.score_maps.CHUNK_ELEMENTS", 1)
    assert _run(folder) == whole


def test_other_numbers_of_images_are_refused(folder: Path) -> None:
    np.save(folder / "predictions.npy", np.zeros((3, 3, 4, 4), np.float16))
    with pytest.raises(UserError, match=r"predictions\.npy: has scores of 3 images, expected 2; delete it"):
        _run(folder)


def test_other_sizes_are_refused(folder: Path) -> None:
    np.save(folder / "refined.npy", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(UserError) as raised:
        _run(folder, "refined", "--refined", str(folder / "refined.npy"))
    assert str(raised.value) == (
        f"{folder / 'refined.npy'}: holds uint8 [2, 4, 4], expected cluster ids uint8 [2, 8, 8] like the "
        "label maps; run `dvc repro refine`"
    )


def test_cluster_ids_beyond_the_predictions_are_refused(folder: Path) -> None:
    np.save(folder / "refined.npy", np.full((2, SIZE, SIZE), 3, np.uint8))
    with pytest.raises(UserError, match="cluster id 3, but the predictions have 3 clusters"):
        _run(folder, "refined", "--refined", str(folder / "refined.npy"))


def test_images_of_another_size_are_refused(folder: Path) -> None:
    np.save(folder / "images/val/images.npy", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(
        UserError, match=r"val: holds images \[2, 4, 4, 3\], but the label maps have shape \[2, 8, 8\]"
    ):
        _run(folder, "raw", "--images", str(folder / "images"))
