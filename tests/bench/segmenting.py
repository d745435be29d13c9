"""How many photographs `segment` does in a second, from their files to its own files."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from stages.core.hashes import file_sha256
from stages.segmenter.segmenter_file import describe_segmenter, save_final_clusters, save_segmenter
from stages.settings.schema import Params
from stages.tools import segment
from stages.tools.estimate import build_untrained
from stages.tools.model_files import CENTROIDS, SEGMENTER
from stages.tools.segmenting import pipeline
from tests.bench.kernels import clouds
from tests.bench.lines import Line
from tests.bench.pieces import unit_points
from tests.datasets import read_preset

SIZE = 4000, 3000  # px
NUM_PHOTOGRAPHS = {"cpu": 4, "cuda": 64}


def measure(device: torch.device, turns: int, *, compiled: bool = False) -> Iterator[Line]:
    """Photographs per second: on a GPU with the threads beside it, and without."""
    params, count = read_preset("folder"), NUM_PHOTOGRAPHS[device.type]
    pace = pipeline.Pace.beside(device)
    spent, paces = [], (pace,) if device.type == "cpu" else (pace, pace._replace(threads=0))
    with tempfile.TemporaryDirectory(prefix="bench.") as folder:
        _write_model(Path(folder), params)
        photographs = Path(folder) / "photographs"
        photographs.mkdir()
        for number in range(count):
            picture = Image.fromarray(clouds(512)).resize(SIZE, Image.Resampling.BICUBIC)
            picture.save(photographs / f"{number}.jpg", quality=90)
        flags = ["--out", f"{folder}/out", "--model", folder, "--device", device.type]
        for _ in range(turns + 1):  # the first warms up
            spent.append([_seconds([str(photographs), *flags], one) for one in paces])
    per_second = (count / np.median(spent[1:], axis=0)).tolist()
    what = f"segment, photographs of {SIZE[0] * SIZE[1] / 1e6:.0f} megapixels, preset folder"
    if device.type == "cpu":
        yield Line(what, f"{per_second[0]:.2f} images/s")
        return
    beside, alone = per_second
    yield Line(what, f"{beside:.2f} images/s", f"without threads {alone:.2f} images/s", beside / alone)


def _write_model(folder: Path, params: Params) -> None:
    """An untrained one."""
    torch.manual_seed(0)
    centroids = torch.from_numpy(unit_points(params.pixel_k, params.train.fpn_dim))
    about = describe_segmenter(params.backbone, params.train, params.size_px)
    segmenter = build_untrained(params, torch.device("cpu"))
    save_segmenter(folder / SEGMENTER, segmenter, [centroids, centroids.clone()], about)
    made_for = file_sha256(folder / SEGMENTER)
    save_final_clusters(folder / CENTROIDS, centroids, None, {}, made_for=made_for)


def _seconds(arguments: list[str], pace: pipeline.Pace) -> float:
    """Of one run over all photographs."""
    with mock.patch.object(pipeline.Pace, "beside", return_value=pace):
        start = time.perf_counter()
        segment.main([*arguments, "--quiet", "--overwrite"])
    return time.perf_counter() - start
