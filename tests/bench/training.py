"""Where the time of an epoch of `train` goes: `python -m tests.bench.training --help`.

Random images, the network of a preset. Wall time on a machine that does other things says little; the
thread-seconds beside it are the processor time of all threads of this process.
"""

import argparse
import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from stages.backbone.checkpoint import build_backbone, describe
from stages.core.device import choose_device, place
from stages.imaging.batches import ImageSource
from stages.pseudo_labels.pyramid import VIEWS
from stages.settings.schema import Params
from stages.train import KEYS, build_segmenter, build_trainer, train
from stages.training.clusters import PixelClusterer
from stages.training.siamese import ViewMaker
from stages.training.trainer import Trainer
from tests.bench.pretraining import NO_STATE
from tests.datasets import read_preset

PHASES = {
    "augmentation": (ViewMaker, "render"),
    "clustering": (PixelClusterer, "cluster"),
    "counting": (PixelClusterer, "count_all"),
    "assignment": (PixelClusterer, "assign"),
    "training": (Trainer, "train_step"),
}
KINDS = ("ours", "picie")
NUM_IMAGES = 64


class Clock:
    """Wall and thread-seconds of each phase, without those of phases inside it."""

    def __init__(self) -> None:
        self.spent: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        self._inner: list[np.ndarray] = [np.zeros(2)]

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(np.zeros(2))
            start = now()
            result = function(*args, **kwargs)
            took = now() - start
            self.spent[name] += took - self._inner.pop()
            self._inner[-1] += took
            return result

        return timed

    @contextlib.contextmanager
    def timing(self, phases: Mapping[str, tuple[type, str]]) -> Iterator[None]:
        """Time methods, by name of the phase, as long as the context lasts."""
        with contextlib.ExitStack() as stack:
            for name, (owner, attribute) in phases.items():
                timed = self.wrap(name, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, timed))
            yield


def now() -> np.ndarray:
    """Wall and thread-seconds; on a GPU, when its work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def bench_epoch(
    images: np.ndarray, kind: str, preset: str, precision: str, *, parts: bool, compiled: bool = False
) -> Clock:
    """One epoch: on the base `ours` or `picie`; the second one, if the first compiles."""
    whole = read_preset(preset, kind)
    settings = whole.train
    if not parts:
        context = settings.context.model_copy(update={"similarity": "none"})
        image_loss = settings.image_loss.model_copy(update={"weight": 0.0})
        settings = settings.model_copy(update={"context": context, "image_loss": image_loss})
    changes = {
        "train": settings.model_copy(update={"epochs": 1}),
        "precision": precision,
        "compile": compiled,
    }
    params = whole.model_copy(update=changes)
    source = ImageSource(images, choose_device(whole.device))
    trainer = random_trainer(params, len(images), source.device)
    if compiled:
        train(trainer, source, namespace(params), NO_STATE)
    clock = Clock()
    with clock.timing(PHASES):
        clock.wrap("everything else", train)(trainer, source, namespace(params), NO_STATE)
    return clock


def namespace(params: Params) -> SimpleNamespace:
    """What `train` reads of params.yaml."""
    return SimpleNamespace(**{key: getattr(params, key) for key in KEYS})


def random_trainer(params: Params, num_images: int, device: torch.device) -> Trainer:
    """An untrained trainer whose images have random pseudo-labels, four of ten kept."""
    rng, shape = np.random.default_rng(0), (num_images, len(VIEWS))
    kept = np.where(rng.random(shape) < 0.4, rng.integers(0, params.global_k, shape), -1)
    segmenter = build_segmenter(build_backbone(describe(params.backbone)), namespace(params))
    return build_trainer(place(segmenter, device), kept, namespace(params))


def measure(device: torch.device, turns: int, *, compiled: bool = False) -> Iterator[str]:
    """Lines for `make bench`: an epoch of each kind in turns, so that a machine that slows down slows all.

    Args:
        device: as it is called in the lines.
        turns: of each comparison.
        compiled: whether one under torch.compile takes part.
    """
    preset = "folder"
    images = random_images(NUM_IMAGES, preset)
    epochs: dict[str, Callable[[], Clock]] = {
        kind: partial(bench_epoch, images, kind, preset, "float32", parts=False) for kind in KINDS
    }
    epochs["ours in bfloat16"] = partial(bench_epoch, images, "ours", preset, "bfloat16", parts=False)
    if compiled:
        epochs["ours compiled"] = partial(
            bench_epoch, images, "ours", preset, "float32", parts=False, compiled=True
        )
    spent: dict[str, list[float]] = {name: [] for name in epochs}
    for turn in range(turns):
        for name, epoch in epochs.items():
            clock = epoch()
            spent[name].append(float(sum(clock.spent.values(), np.zeros(2))[0]))
            if turn == turns - 1:
                yield from table(name, clock, len(images))
    for name in list(epochs)[1:]:
        ratio = statistics.median(one / plain for one, plain in zip(spent[name], spent["ours"], strict=True))
        yield f"training on {device}: an epoch of {name!r} takes {ratio:.2f} times one of 'ours'"


def random_images(count: int, preset: str) -> np.ndarray:
    """Bytes of the side at which a preset stores images."""
    side = read_preset(preset).prepare.train_px
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def table(kind: str, clock: Clock, num_images: int) -> Iterator[str]:
    """Seconds of each phase."""
    yield f"{kind}: {num_images} images, {torch.get_num_threads()} threads"
    yield f"  {'':16} {'wall s':>8} {'thread s':>9} {'images/s':>9}"
    total = sum(clock.spent.values(), np.zeros(2))
    for name, (wall, threads) in [*clock.spent.items(), ("epoch", total)]:
        yield f"  {name:16} {wall:8.2f} {threads:9.2f} {num_images / wall:9.1f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each kind of epoch."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.training", description=__doc__)
    parser.add_argument("--preset", default="folder", help="of presets/ (default: folder)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="the base")
    parser.add_argument("--num-images", type=int, default=NUM_IMAGES, help="random ones (default: 64)")
    parser.add_argument("--images", type=Path, help="packed images (.npy) in place of random ones")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--parts", action="store_true", help="with context and guidance, as the preset says")
    parser.add_argument("--threads", type=int, help="of the CPU (default: as torch finds)")
    args = parser.parse_args(argv)

    if args.threads:
        torch.set_num_threads(args.threads)
    images = np.load(args.images) if args.images else random_images(args.num_images, args.preset)
    for kind in args.kinds:
        clock = bench_epoch(images, kind, args.preset, args.precision, parts=args.parts)
        print("\n".join(table(kind, clock, len(images))), flush=True)


if __name__ == "__main__":
    main()
