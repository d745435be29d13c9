"""Stage `refine`: align the borders of the predicted clusters with image edges by a dense CRF (4.4)."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16, UInt8

from stages.core.artefacts import read_array
from stages.core.device import choose_device
from stages.core.images import IMAGES, open_images
from stages.core.memory import memory_for
from stages.postprocessing.dense_crf import mean_field
from stages.postprocessing.exact_crf import exact_mean_field
from stages.postprocessing.gpu_backends import import_fused, require_gpu, settle
from stages.postprocessing.score_maps import cluster_maps, open_scores, probabilities, upsample
from stages.runtime.pool import call_in_order, count_cores
from stages.runtime.progress import say, track, warn
from stages.runtime.rows import RowWriter
from stages.runtime.script import run, stage_parser
from stages.runtime.start import tell_device
from stages.runtime.state import StageState
from stages.runtime.watch import Watch
from stages.settings.params import load
from stages.settings.schema import Refine

KEYS = ("refine",)
NEARLY_CERTAIN = 0.99  # mean probability of the likeliest cluster; above, the CRF changes next to nothing
MEASURED_IMAGES = 16


@memory_for("end other programs that use the GPU, or set refine.backend: cpu", "refine: ")
def main(argv: Sequence[str] | None = None) -> None:
    """Refine the predictions of every validation image."""
    args = _parse(argv)
    params = load(args.params, *KEYS, "device", "runtime")
    gpu = choose_gpu(params.refine.backend, params.device)
    if gpu is not None and params.refine.backend == "auto":
        import_fused()  # `watch` notes what is loaded
    watch = Watch("refine", args.params, KEYS, [args.images, args.predictions])
    images = open_images(args.images)
    scores = open_scores(args.predictions, len(images))
    settings = params.refine if gpu is None else settle(params.refine, scores.shape[1], gpu)
    if gpu is not None:
        tell_device(gpu)
    kernels = "cpu" if gpu is None else settings.backend  # with `auto` the machine decides
    state = StageState(watch, interval_seconds=params.runtime.checkpoint_seconds, data=kernels)
    rows = RowWriter(state, np.uint8, images.shape[:3])
    todo = range(rows.done, len(images))
    if params.refine.backend == "none":
        say("refine", backend="none, the prediction is unchanged")
        refined = (cluster_maps(scores[index : index + 1], images.shape[1])[0] for index in todo)
        work = _write_rows(rows, refined)
    elif gpu is not None:
        how = ", fused" if settings.backend == "fused" else ""
        say("refine", backend=f"exact mean field on the GPU{how}")
        work = _write_rows(rows, refine_on_gpu(images, scores, todo, settings, gpu))
    else:
        say("refine", backend="permutohedral lattice on the CPU")
        job = Job(args.images / IMAGES, args.predictions, rows.path, params.refine)
        work = refine_all(job, todo, params.runtime.num_workers)
    if params.refine.backend != "none":
        _warn_if_certain(scores, params.refine.temperature)
    for _ in track(work, "refine", total=len(todo), unit="image"):
        rows.advance(1)

    state.check()
    rows.deliver(args.out)
    state.finish()
    say("refine", images=len(images), clusters=scores.shape[1], size_px=images.shape[1])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = stage_parser("refine", __doc__)
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of packed validation images from `prepare`"
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        help="scores float16 [M, K, h, w] from `predict` (.npy)",
    )
    parser.add_argument("--out", type=Path, required=True, help="output: cluster ids uint8 [M, S, S] (.npy)")
    return parser.parse_args(argv)


def _warn_if_certain(scores: Float16[np.ndarray, "M K h w"], temperature: float) -> None:
    """Warn where the scores of clusters are so far apart that the CRF can hardly change a pixel."""
    measured = scores[:: max(1, len(scores) // MEASURED_IMAGES)]
    likeliest = [
        probabilities(torch.tensor(one, dtype=torch.float32), temperature).amax(0) for one in measured
    ]
    if (mean := float(torch.stack(likeliest).mean())) > NEARLY_CERTAIN:
        warn(
            "refine",
            f"the likeliest cluster of a pixel has a probability of {mean:.3f} in the mean, so the CRF "
            f"changes next to nothing; raise refine.temperature ({temperature:g})",
        )


def choose_gpu(backend: str, device: str) -> torch.device | None:
    """Return the GPU that runs the CRF, or None for the CPU.

    Args:
        backend: `refine.backend`; `auto` uses a GPU if `device` allows one.
        device: `device` of params.yaml.

    Raises:
        UserError: `backend` is `cuda` or `fused` but no GPU is available, or a compiler is missing.
    """
    available = torch.cuda.is_available()
    if backend in ("cpu", "none") or (backend == "auto" and not (available and device != "cpu")):
        return None
    name = device if device.startswith("cuda") else "cuda"
    require_gpu(backend, torch.device(name) if available else None)
    return choose_device(name)


def refine_on_gpu(
    images: UInt8[np.ndarray, "M S S 3"],
    scores: Float16[np.ndarray, "M K h w"],
    todo: Sequence[int],
    settings: Refine,
    gpu: torch.device,
) -> Iterator[UInt8[np.ndarray, "S S"]]:
    """Yield the refined cluster ids of each image, computed by exact mean-field inference."""
    for index in todo:
        upsampled = upsample(scores[index : index + 1], images.shape[1])[0].to(gpu)
        unary = probabilities(upsampled, settings.temperature)
        marginals = exact_mean_field(torch.from_numpy(images[index].copy()).to(gpu), unary, settings)
        yield marginals.argmax(0).byte().cpu().numpy()


def _write_rows(rows: RowWriter, refined: Iterable[np.ndarray]) -> Iterator[None]:
    """Write each refined image to its row; yield once per image."""
    for one in refined:
        rows.array[rows.done] = one
        yield


@dataclass(frozen=True)
class Job:
    """Input and output files and settings; small, because it is sent to the workers with every image.

    Attributes:
        images: uint8 [M, S, S, 3].
        predictions: float16 [M, K, h, w].
        refined: uint8 [M, S, S], preallocated; each image fills its own row.
        settings: CRF settings.
    """

    images: Path
    predictions: Path
    refined: Path
    settings: Refine


def refine_all(job: Job, images: Sequence[int], num_workers: int) -> Iterator[None]:
    """Refine the images with the given indices; yield once per image, in order.

    The result does not depend on `num_workers` (0: one per CPU core available to this process).

    Raises:
        UserError: a worker was killed.
    """
    workers = min(num_workers or count_cores(), len(images))
    calls = [(job, index) for index in images]
    yield from call_in_order(_refine_one, calls, workers, prepare_worker=_use_one_thread)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _refine_one(job: Job, index: int) -> None:
    """Refine image `index` and write it to its row."""
    image = read_array(job.images, memory_map=True)[index]
    scores = read_array(job.predictions, memory_map=True)[index : index + 1]
    unary = probabilities(upsample(scores, image.shape[0])[0], job.settings.temperature).numpy()
    refined = np.load(job.refined, mmap_mode="r+", allow_pickle=False)
    refined[index] = mean_field(image, unary, job.settings).argmax(0)


if __name__ == "__main__":
    run(main)
