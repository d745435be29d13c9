"""Where the time of an epoch of `train` goes: `python -m tests.bench.training --help`.

Random images, the network of a preset. Wall time on a machine that does other things says little; the
thread-seconds beside it are the processor time of all threads of this process.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from stages.core.device import autocast, choose_device, torch_generator
from stages.core.graph import Wish
from stages.imaging.batches import ImageSource, shuffled
from stages.settings.schema import Params
from stages.tools.estimate import build_untrained, random_pseudo_labels, weight_of
from stages.train import train
from stages.training.building import build_trainer
from stages.training.clusters import PixelClusterer
from stages.training.siamese import ViewMaker
from stages.training.trainer import Trainer
from tests.bench.clock import Clock
from tests.bench.interleaved import Comparison, compare
from tests.bench.lines import WISHES, Line
from tests.bench.pretraining import NO_STATE, random_views
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
# The preset and the number of images of an epoch, for each kind of device.
SETUPS = {"cpu": ("folder", NUM_IMAGES), "cuda": ("cocostuff27", 1024)}
DEMO_STEPS = 5  # of one turn


def bench_epoch(
    images: np.ndarray, kind: str, preset: str, precision: str, *, parts: bool, compiled: bool = False
) -> Clock:
    """One epoch: on the base `ours` or `picie`; the second one, if the first compiles."""
    params = settings_of(kind, preset, precision, parts=parts, compiled=compiled)
    source = ImageSource(images, choose_device(params.device))
    trainer = random_trainer(params, len(images), source.device)
    if compiled:
        train(trainer, source, params, NO_STATE)
    clock = Clock()
    with clock.timing(PHASES):
        clock.wrap("everything else", train)(trainer, source, params, NO_STATE)
    return clock


def settings_of(kind: str, preset: str, precision: str, *, parts: bool, compiled: bool) -> Params:
    """A preset on a base, for one epoch; without parts it has neither context nor guidance."""
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
    return whole.model_copy(update=changes)


def random_trainer(params: Params, num_images: int, device: torch.device, wish: Wish = "auto") -> Trainer:
    """An untrained trainer whose images have random pseudo-labels."""
    kept, segmenter = random_pseudo_labels(params, num_images), build_untrained(params, device)
    return build_trainer(segmenter, kept, params, weight_of(params), cuda_graph=wish)


def measure(device: torch.device, turns: int, *, compiled: bool = False) -> Iterator[Line]:
    """Whole epochs beside the bare passes of the same shapes, and a step of the demo."""
    preset, count = SETUPS[device.type]
    usual = "float32" if device.type == "cpu" else "bfloat16"
    kinds = [("ours", "float32", False), ("ours", "bfloat16", False), ("picie", usual, False)]
    kinds += [("ours", usual, True)] if compiled else []
    for kind, precision, is_compiled in kinds:
        has_parts = kind == "ours"
        what = kind if has_parts else f"{kind} without context and guidance"
        params = settings_of(kind, preset, precision, parts=has_parts, compiled=is_compiled)
        found = compare_epochs(params, count, device, turns)
        how = f"{params.backbone.arch}, {params.size_px} px, batch {params.train.batch_size}, {precision}"
        yield Line(
            f"training, an epoch of {count} images, {what}, {how}{', compiled' * is_compiled}: goodput",
            f"{count / found.seconds:.1f} images/s",
            f"bare network {count / found.bare_seconds:.1f} images/s",
            found.goodput,
        )
    demo = read_preset("demo").model_copy(update={"compile": compiled})
    for wish, said in WISHES[device.type].items():
        yield step_of(demo, device, turns, wish, said)


def compare_epochs(params: Params, count: int, device: torch.device, turns: int) -> Comparison:
    """An epoch of `train`, and its passes through the network on random views, without anything else."""
    images = random_images(count, params.prepare.train_px)
    source, trainer = ImageSource(images, device), random_trainer(params, count, device)

    def whole() -> None:
        with contextlib.redirect_stdout(None):
            train(trainer, source, params, NO_STATE)

    clustering, size = params.train.clustering, params.train.batch_size
    in_steps = count // size
    counted = clustering.kmeans == "minibatch" and params.train.pixel_loss.balance != "none"
    if clustering.kmeans == "minibatch":
        clustered = in_steps
    else:
        clustered = max(1, min(clustering.sample_images, count) // size)
    # Clustering, counting, assignment: two views each; and the probe of health. A CPU keeps what is counted.
    assigned = in_steps * (1 + (counted and device.type != "cpu"))
    frozen = 2 * clustered + 2 * assigned + 1
    bare = _bare(params, device)
    return compare(whole, lambda: bare(frozen, in_steps), turns=turns, device=device)


def _bare(params: Params, device: torch.device) -> Callable[[int, int], None]:
    """Takes numbers of batches that pass forward alone, and of steps: two views, guidance, and back."""
    settings = params.train
    network = build_untrained(params, device)
    view = random_views(settings.batch_size, params.size_px, device)
    guide = random_views(settings.batch_size, settings.image_loss.view_px, device)

    def run(frozen: int, steps: int) -> None:
        for _ in range(frozen):
            with torch.no_grad(), autocast(device, params.precision):
                network(view)
        for _ in range(steps):
            with autocast(device, params.precision):
                found = [network(view), network(view)]
                found += [network.classify(guide)] if network.image_head is not None else []
            torch.stack([one.float().sum() for one in found]).sum().backward()
            network.zero_grad()

    return run


def step_of(params: Params, device: torch.device, turns: int, wish: Wish, said: str) -> Line:
    """A step at the settings of a preset; `said` ends the name of the line."""
    size = params.train.batch_size
    trainer = random_trainer(params, 2 * size, device, wish)
    source = ImageSource(random_images(2 * size, params.prepare.train_px), device)
    batches = shuffled(len(source), size, torch_generator(0, "bench"))
    trainer.start_epoch(source, batches, 0)
    (image,) = source.batches(batches[:1])
    bare = _bare(params, device)

    def whole() -> None:
        for step in range(DEMO_STEPS):
            trainer.train_step(image, batches[0], 0, step, DEMO_STEPS)

    # The frozen network assigns the pixels of both views.
    found = compare(whole, lambda: bare(2 * DEMO_STEPS, DEMO_STEPS), turns=turns, device=device)
    return Line(
        f"a step of training, {params.preset}, {params.backbone.arch} of width {params.backbone.width}, "
        f"{params.size_px} px, batch {size}, {params.precision}{', compiled' * params.compile}{said}",
        f"{1000 * found.seconds / DEMO_STEPS:.1f} ms",
        f"bare network {1000 * found.bare_seconds / DEMO_STEPS:.1f} ms",
        found.goodput,
    )


def random_images(count: int, side: int) -> np.ndarray:
    """Bytes, as a preset stores images."""
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
    side = read_preset(args.preset).prepare.train_px
    images = np.load(args.images) if args.images else random_images(args.num_images, side)
    for kind in args.kinds:
        clock = bench_epoch(images, kind, args.preset, args.precision, parts=args.parts)
        print("\n".join(table(kind, clock, len(images))), flush=True)


if __name__ == "__main__":
    main()
