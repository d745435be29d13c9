"""`refine` through its command line, on four images of two colours."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages import refine
from stages.postprocessing import fused_crf, gpu_backends
from stages.postprocessing.gpu_backends import require_gpu, settle
from stages.postprocessing.score_maps import cluster_maps
from stages.settings.errors import UserError
from tests.datasets import read_preset, write_params

COUNT, SIZE = 4, 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose right half is red, and scores that see the border two pixels too far left."""
    images = np.full((COUNT, SIZE, SIZE, 3), 40, np.uint8)
    images[:, :, SIZE // 2 :] = 220, 30, 30
    images += np.random.default_rng(0).integers(0, 4, images.shape, dtype=np.uint8)
    scores = np.zeros((COUNT, 3, SIZE // 2, SIZE // 2), np.float16)
    scores[:, 0, :, :3], scores[:, 2, :, 3:] = 0.5, 0.5
    (tmp_path / "images/val").mkdir(parents=True)
    np.save(tmp_path / "images/val/images.npy", images)
    index = {"id": range(COUNT), "source": "a.png", "width": SIZE, "height": SIZE, "sha256": "0" * 64}
    pd.DataFrame(index).to_csv(tmp_path / "images/val/index.csv", index=False)
    np.save(tmp_path / "predictions.npy", scores)
    return tmp_path


def _params(folder: Path, num_workers: int) -> Path:
    changes = {"runtime.num_workers": num_workers, "refine.appearance_px": 6.0, "refine.temperature": 0.5}
    return write_params(folder / "params.yaml", changes)


def _argv(folder: Path, num_workers: int = 1) -> list[str]:
    paths = {"images": "images/val", "predictions": "predictions.npy", "out": "refined.npy"}
    argv = [part for name, path in paths.items() for part in (f"--{name}", str(folder / path))]
    return [*argv, "--params", str(_params(folder, num_workers))]


@pytest.mark.parametrize(("gap", "is_certain"), [(1.0, False), (4.0, True)])
def test_scores_that_leave_nothing_to_change_are_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str], gap: float, is_certain: bool
) -> None:
    """Such as negative squared distances of long features; the temperature is 0.5."""
    scores = np.load(folder / "predictions.npy")
    np.save(folder / "predictions.npy", np.float16(scores * 2 * gap))
    refine.main(_argv(folder))
    said = capsys.readouterr().err
    assert ("so the CRF changes next to nothing; raise refine.temperature (0.5)" in said) == is_certain


def test_borders_move_to_those_of_the_image(folder: Path) -> None:
    refine.main(_argv(folder))
    refined = np.load(folder / "refined.npy")
    assert (refined.dtype, refined.shape) == (np.uint8, (COUNT, SIZE, SIZE))
    np.testing.assert_array_equal(
        refined, np.where(np.arange(SIZE) < SIZE // 2, 0, 2) * np.ones_like(refined)
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "images",
        "params.yaml",
        "predictions.npy",
        "refined.npy",
    ]


def test_bytes_do_not_depend_on_the_number_of_workers(folder: Path) -> None:
    scores = np.random.default_rng(1).uniform(-1, 1, (COUNT, 5, 8, 8)).astype(np.float16)
    np.save(folder / "predictions.npy", scores)
    refine.main(_argv(folder, num_workers=1))
    alone = (folder / "refined.npy").read_bytes()
    refine.main(_argv(folder, num_workers=2))
    assert (folder / "refined.npy").read_bytes() == alone


def test_predictions_of_other_images_are_refused(folder: Path) -> None:
    np.save(folder / "predictions.npy", np.zeros((3, 2, 8, 8), np.float16))
    with pytest.raises(UserError) as raised:
        refine.main(_argv(folder))
    assert str(raised.value) == (
        f"{folder / 'predictions.npy'}: has scores of 3 images, expected 4; "
        "delete it and run `dvc repro` to make it again"
    )
    assert not (folder / "refined.npy").exists()


@pytest.mark.parametrize("array", [np.zeros((4, 2, 8, 8)), np.zeros((4, 8, 8), np.float16)])
def test_arrays_that_are_no_scores_are_refused(folder: Path, array: np.ndarray) -> None:
    np.save(folder / "predictions.npy", array)
    with pytest.raises(UserError, match=r"expected scores float16 \[M, K, h, w\]"):
        refine.main(_argv(folder))


def test_scores_that_are_not_finite_are_refused_and_leave_nothing_behind(folder: Path) -> None:
    np.save(folder / "predictions.npy", np.full((COUNT, 2, 8, 8), np.nan, np.float16))
    with pytest.raises(UserError, match="some scores are not finite"):
        refine.main(_argv(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["images", "params.yaml", "predictions.npy"]


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "predictions.npy").unlink()
    with pytest.raises(UserError) as raised:
        refine.main(_argv(folder))
    assert str(raised.value) == f"{folder / 'predictions.npy'}: not found; run `dvc repro` to make it"


def test_without_a_crf_the_prediction_stays(folder: Path) -> None:
    argv = _argv(folder)
    write_params(folder / "params.yaml", {"refine.backend": "none"})
    refine.main(argv)
    np.testing.assert_array_equal(
        np.load(folder / "refined.npy"), cluster_maps(np.load(folder / "predictions.npy"), SIZE)
    )


def test_the_gpu_is_taken_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for backend in ("auto", "cpu", "none"):
        assert refine.choose_gpu(backend, "auto") is None
    for backend in ("cuda", "fused"):
        with pytest.raises(UserError) as raised:
            refine.choose_gpu(backend, "auto")
        assert str(raised.value) == (
            f"params.yaml: refine.backend: '{backend}' needs a CUDA GPU, but torch {torch.__version__} finds "
            "none; set refine.backend: auto or cpu, or install the GPU driver"
        )
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(refine, "choose_device", chosen.append)
    pairs = [("auto", "auto"), ("auto", "cuda:1"), ("cuda", "cpu"), ("auto", "cpu"), ("cpu", "cuda")]
    pairs += [("fused", "auto"), ("none", "cuda")]
    for backend, device in pairs:
        refine.choose_gpu(backend, device)
    assert chosen == ["cuda", "cuda:1", "cuda", "cuda"]


def test_the_fused_kernel_asks_for_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    require_gpu("fused", gpu)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    require_gpu("cuda", gpu)
    with pytest.raises(UserError) as raised:
        require_gpu("fused", gpu)
    assert str(raised.value) == (
        "params.yaml: refine.backend: 'fused' needs Triton, but gcc or clang, which it compiles with, was "
        "not found; install that, or set refine.backend: cuda"
    )


def test_auto_on_a_gpu_is_the_fused_kernel_or_says_why_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, gpu = read_preset("demo").refine, torch.device("cuda")
    monkeypatch.setattr(gpu_backends, "_fault_of_fused", lambda *_: None)
    assert settle(settings, 9, gpu).backend == "fused"
    assert settle(settings.model_copy(update={"backend": "cuda"}), 9, gpu).backend == "cuda"
    assert not capsys.readouterr().err
    with monkeypatch.context() as inner:  # Triton is there, and cannot be imported
        inner.setitem(sys.modules, "stages.postprocessing.fused_crf", None)
        assert settle(settings, 9, gpu).backend == "cuda"
    assert "slower than fused: ModuleNotFoundError: import of stages.post" in capsys.readouterr().err


def test_the_kernel_is_tried_before_it_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """Triton has no kernels for a CPU, so here it is a kernel that fails."""
    assert settle(read_preset("demo").refine, 9, torch.device("cpu")).backend == "cuda"
    assert "Error: " in capsys.readouterr().err


def test_a_kernel_whose_product_is_wrong_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, cpu = read_preset("demo").refine, torch.device("cpu")
    for factor, backend in ((1.0, "fused"), (1.1, "cuda")):
        monkeypatch.setattr(fused_crf, "FusedKernel", lambda features, one=factor: _Stored(features, one))
        assert settle(settings, 9, cpu).backend == backend
    assert "a product of it is wrong by 0.1" in capsys.readouterr().err


class _Stored:
    """As FusedKernel, from all distances at once, times a factor."""

    def __init__(self, features: torch.Tensor, factor: float) -> None:
        self._kernel = factor * (-torch.cdist(features, features).square() / 2).exp()

    def product(self, values: torch.Tensor) -> torch.Tensor:
        return self._kernel @ values


def test_what_a_gpu_would_write_is_exact_mean_field(folder: Path) -> None:
    settings = read_preset("demo").refine.model_copy(update={"appearance_px": 6.0, "temperature": 0.5})
    images, scores = np.load(folder / "images/val/images.npy"), np.load(folder / "predictions.npy")
    found = list(refine.refine_on_gpu(images, scores, range(1, COUNT), settings, torch.device("cpu")))
    assert len(found) == COUNT - 1
    expected = np.where(np.arange(SIZE) < SIZE // 2, 0, 2)
    for one in found:
        np.testing.assert_array_equal(one, np.broadcast_to(expected, (SIZE, SIZE)))
