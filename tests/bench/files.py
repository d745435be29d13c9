"""What `make scale` measures of stages without a network: prepare, select_views, refine, evaluate, report."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages import evaluate, report, select_views
from stages.core.images import COLUMNS
from stages.core.tensors import write_tensors
from stages.dataset.pack import RECORD, Job, Work, pack
from stages.dataset.source import DataSet, list_data
from stages.dataset.truth import write_classes
from stages.postprocessing.gpu_backends import settle
from stages.postprocessing.score_maps import open_scores
from stages.pseudo_labels.pyramid import VIEWS
from stages.refine import Job as Refinement
from stages.refine import choose_gpu, refine_all, refine_on_gpu
from stages.settings.errors import UserError
from stages.settings.schema import Params
from tests.bench.meter import Observed, Step, observe
from tests.bench.pieces import photographs
from tests.datasets import write_image
from tests.report_inputs import INPUTS, write_report_inputs

CPU = torch.device("cpu")
DECODED = 3  # images that are made and packed to measure `prepare`
REFINED = 2  # images
# As published: width and height of an image, and where images and label maps are.
COCO_PX, CITYSCAPES_PX = (640, 480), (2048, 1024)


def measure_files(
    params: Params, device: torch.device, num_images: tuple[int, int]
) -> Iterator[tuple[str, Observed]]:
    """The cost of an image in each of the stages that no network runs in.

    Args:
        params: the settings.
        device: that the CRF may use.
        num_images: of training and validation.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from _preparing(params, folder / "raw")
        yield "select_views", _selecting(params, folder, num_images[0])
        count = params.report.num_images
        for half, name in ((1, "once"), (2, "twice")):
            _write_results(folder / name, params, half * count)
            yield f"evaluate {name}", _evaluating(folder / name, params, half * count)
            yield f"report {name}", _reporting(folder / name, half * count)
        if params.refine.backend != "none":
            yield "refine", _refining(folder / "once", params, device)


def _preparing(params: Params, folder: Path) -> Iterator[tuple[str, Observed]]:
    """One image of each split: decode, scale, hash and write; in one process."""
    data = _data(params, folder)
    folder.mkdir(exist_ok=True)
    for split, items, side in (
        ("train", data.train[:DECODED], params.prepare.train_px),
        ("val", data.val[:DECODED], params.size_px),
    ):
        labels = folder / "maps.npy" if split == "val" else None
        work = Work(data.decode, data.root, folder / f"{split}.npy", labels, side, params.prepare.protocol)
        for path, shape in work.shapes.items():
            np.save(path, np.zeros((len(items), *shape), np.uint8))
        jobs = [Job(work, items, np.zeros(len(items), RECORD))]  # type: ignore[arg-type]
        yield f"prepare {split}", observe(lambda j=jobs: lambda _: list(pack(j, 1)), len(items), CPU)


def _data(params: Params, folder: Path) -> DataSet:
    """The data set, if it is there; otherwise images of the published sizes."""
    if is_present(params):
        return list_data(params.prepare)
    makers = {"cocostuff": _make_coco, "cityscapes": _make_cityscapes}
    if params.prepare.reader not in makers:
        raise UserError(
            f"preset {params.preset}: {params.prepare.path or 'its folder'} is not there, and images of your "
            "own have no published size to draw; `make scale CHECK=1` measures the images of params.yaml"
        )
    makers[params.prepare.reader](folder, params)
    with contextlib.redirect_stdout(None):
        return list_data(params.prepare.model_copy(update={"path": str(folder.absolute())}))


def is_present(params: Params) -> bool:
    """Whether the images are there to be read, or are generated."""
    path = params.prepare.path
    return params.prepare.reader == "demo" or bool(path and Path(path).exists())


def _make_coco(folder: Path, params: Params) -> None:
    for split in ("train2017", "val2017"):
        for number in range(DECODED):
            _write_pair(
                folder / split / f"{number:012}.jpg",
                folder / "stuffthingmaps" / split / f"{number:012}.png",
                COCO_PX,
            )


def _make_cityscapes(folder: Path, params: Params) -> None:
    chosen = params.prepare.cityscapes
    for split in {*chosen.train, *chosen.val}:
        for number in range(DECODED):
            name = f"{split}/city/{number}"
            _write_pair(
                folder / "leftImg8bit" / f"{name}_leftImg8bit.png",
                folder / "gtFine" / f"{name}_gtFine_labelIds.png",
                CITYSCAPES_PX,
            )


def _write_pair(image: Path, labels: Path, size: tuple[int, int]) -> None:
    width, height = size
    write_image(image, photographs(1, max(size))[0, :height, :width])
    write_image(labels, photographs(1, max(size))[0, :height, :width, 0] // 16 + 8)


def _selecting(params: Params, folder: Path, count: int) -> Observed:
    """With all images, for they are but numbers."""
    rng = np.random.default_rng(0)
    tensors = {
        "pseudo_label": torch.from_numpy(rng.integers(0, params.global_k, (count, len(VIEWS)))),
        "score": torch.from_numpy(rng.random((count, len(VIEWS)), dtype=np.float32)),
    }
    write_tensors(folder / "labels.safetensors", tensors, {})
    argv = ["--params", _params(folder, params), "--labels", str(folder / "labels.safetensors")]
    argv += ["--out", str(folder / "kept.npy"), "--metrics", str(folder / "select.json")]
    return observe(lambda: _quiet(lambda: select_views.main(argv)), count, CPU, steps=1)


def _params(folder: Path, params: Params) -> str:
    """Settings as a file; JSON is YAML too."""
    path = folder / "params.yaml"
    path.write_text(params.model_dump_json(), encoding="utf-8")
    return str(path)


def _quiet(work: Callable[[], None]) -> Step:
    """Without its lines, which are those of a run that is none."""

    def step(_: int) -> None:
        with contextlib.redirect_stdout(StringIO()), contextlib.redirect_stderr(StringIO()):
            work()

    return step


def _write_results(folder: Path, params: Params, num_val: int) -> None:
    """What evaluate, refine and report read: random predictions at the sizes of params.yaml."""
    folder.mkdir()
    write_report_inputs(folder)
    rng, side, clusters = np.random.default_rng(0), params.size_px, params.pixel_k
    num_train = params.evaluate.baseline_images
    for split, count, px in (("train", num_train, params.prepare.train_px), ("val", num_val, side)):
        np.save(folder / "images" / split / "images.npy", photographs(count, px))
        rows = {"id": range(count), "source": "a.png", "width": px, "height": px, "sha256": "0" * 64}
        pd.DataFrame(rows)[list(COLUMNS)].to_csv(folder / "images" / split / "index.csv", index=False)
    truth = photographs(num_val, side)[..., 0] % clusters
    np.save(folder / "truth/val.npy", truth)
    write_classes(folder / "truth", [f"class {number}" for number in range(clusters)])
    np.save(folder / "refined.npy", truth)
    cells = side // params.train.feature_stride
    scores = rng.random((num_val, clusters, cells, cells), dtype=np.float32).astype(np.float16)
    np.save(folder / "predictions.npy", scores)
    np.save(folder / "kept_views.npy", rng.integers(-1, params.global_k, (num_train, len(VIEWS)), np.int32))
    tensors = {"score": torch.rand(num_train, len(VIEWS))}
    write_tensors(folder / "labels.safetensors", tensors, {})
    write_tensors(folder / "centroids.safetensors", {"centroids": torch.eye(clusters)}, {})
    _params(folder, params)


def _evaluating(folder: Path, params: Params, num_val: int) -> Observed:
    """Both runs, each as dvc.yaml calls it."""

    def run(name: str, flag: str, path: str) -> None:
        argv = ["--name", name, flag, str(folder / path), "--params", str(folder / "params.yaml")]
        inputs = {"predictions": "predictions.npy", "truth": "truth"}
        outputs = {
            "metrics": INPUTS["raw" if name == "raw" else "refined-scores"],
            "readings": f"{name}_readings.json",
            "readings-table": f"{name}_readings.csv",
            "per-class": "classes.csv" if name == "raw" else "refined_classes.csv",
            "confusion-table": "confusion.csv" if name == "raw" else "refined_confusion.csv",
        }
        for option, file in {**inputs, **outputs}.items():
            argv += [f"--{option}", str(folder / file)]
        evaluate.main(argv)

    def both() -> None:
        run("raw", "--images", "images")
        run("refined", "--refined", "refined.npy")

    return observe(lambda: _quiet(both), num_val, CPU, steps=1)


def _reporting(folder: Path, num_val: int) -> Observed:
    argv = [part for name, path in INPUTS.items() for part in (f"--{name}", str(folder / path))]
    argv += ["--params", str(folder / "params.yaml")]
    return observe(lambda: _quiet(lambda: report.main(argv)), num_val, CPU, steps=1)


def _refining(folder: Path, params: Params, device: torch.device) -> Observed:
    """The CRF of an image: on the GPU, or in one process."""
    images = folder / "images/val/images.npy"
    gpu = choose_gpu(params.refine.backend, device.type)
    if gpu is not None:
        array = np.load(images, mmap_mode="r")
        scores = open_scores(folder / "predictions.npy", len(array))
        todo, settings = range(REFINED), settle(params.refine, params.pixel_k, gpu)
        return observe(
            lambda: lambda _: list(refine_on_gpu(array, scores, todo, settings, gpu)), REFINED, gpu
        )
    job = Refinement(images, folder / "predictions.npy", folder / "refined.npy", params.refine)
    return observe(lambda: lambda _: list(refine_all(job, range(REFINED), 1)), REFINED, CPU)
