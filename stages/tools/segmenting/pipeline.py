"""Photographs to finished files: threads write the files of the last ones while the network has the next."""

import functools
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from stages.dataset.left_out import LeftOut
from stages.dataset.own_outputs import Written
from stages.dataset.source import Remark
from stages.runtime.pool import call_in_threads, count_cores
from stages.tools.segmenting.decoding import Photograph
from stages.tools.segmenting.label_files import output_names, to_gray, write_outputs
from stages.tools.segmenting.output_folder import staging
from stages.tools.segmenting.run_manifest import Done, RunManifest, shares, written_in
from stages.tools.segmenting.summaries import CHANGED
from stages.tools.segmenting.trained_model import Segmentation, TrainedModel

MOST_THREADS, GPU_BATCH = 8, 16
BATCH_PIXELS = 1 << 25  # at full size, that wait for a batch


class Pace(NamedTuple):
    """How many images are in work at once.

    Attributes:
        threads: that decode, and as many that write; each has an image in memory.
        batch: images of one working size in a pass of the network.
    """

    threads: int
    batch: int

    @classmethod
    def beside(cls, device: torch.device) -> "Pace":
        """What keeps a GPU busy; on a CPU one image at a time is as fast, for the network has all cores."""
        return cls(min(count_cores(), MOST_THREADS), GPU_BATCH) if device.type == "cuda" else cls(0, 1)


class Segmented(NamedTuple):
    """An image whose files are to be written.

    Attributes:
        photograph: the image.
        ids: cluster id of each pixel.
        confidence: mean over the pixels.
        map: gray levels of the confidence of each pixel, where they are to be written.
    """

    photograph: Photograph
    ids: UInt8[np.ndarray, "H W"]
    confidence: float
    map: UInt8[np.ndarray, "H W"] | None


class Finished(NamedTuple):
    """An image whose files are written, but not yet in place.

    Attributes:
        name: of the image.
        folder: of the files.
        written: the files, by their names.
        done: what the manifest says of the image.
    """

    name: str
    folder: Path
    written: Mapping[str, Written]
    done: Done


def segment_all(
    model: TrainedModel,
    photographs: Iterable[Photograph],
    manifest: RunManifest,
    left_out: LeftOut,
    bits: int,
    pace: Pace,
    *,
    scores: bool,
    overlay: bool,
) -> None:
    """Segment images, write their files and note them in the manifest, in their order.

    Args:
        model: trained model.
        photographs: images; they may be decoded as they are taken.
        manifest: of the run; the files go to its output folder.
        left_out: takes outputs that were changed by hand.
        bits: of `choose_bits`, with which the images were decoded.
        pace: how many images are in work at once.
        scores: whether maps of confidence are written.
        overlay: whether overlays are written.
    """
    with staging(manifest.out) as folder:
        write = functools.partial(_write, folder, model.legend.colours, bits, has_overlay=overlay)
        segmented = _segmented(model, photographs, pace.batch, has_map=scores)
        with closing(call_in_threads(write, segmented, pace.threads)) as finished:
            for one in finished:
                for changed in manifest.take_all(one.folder, one.written):
                    left_out.add(CHANGED, changed)
                for old in set(output_names(one.name, scores=True)) - set(one.written):
                    manifest.drop(old)
                manifest.add(one.name, one.done)
                shutil.rmtree(one.folder)


def _segmented(
    model: TrainedModel, photographs: Iterable[Photograph], most: int, *, has_map: bool
) -> Iterator[Segmented]:
    take = functools.partial(_take, has_map=has_map)
    for batch in _batches(model, photographs, most):
        yield from map(take, batch, model.segment([one.pixels for one in batch]))


def _take(one: Photograph, found: Segmentation, *, has_map: bool) -> Segmented:
    """What the files need; the confidence has more bytes than all the rest."""
    mean = round(float(found.confidence.mean(dtype=np.float64)), 6)
    return Segmented(one, found.ids, mean, to_gray(found.confidence) if has_map else None)


def _batches(model: TrainedModel, photographs: Iterable[Photograph], most: int) -> Iterator[list[Photograph]]:
    """Group images that follow each other and have one working size."""
    batch: list[Photograph] = []
    for one in photographs:
        pixels = sum(each.pixels.shape[0] * each.pixels.shape[1] for each in [*batch, one])
        if batch and (
            len(batch) == most
            or pixels > BATCH_PIXELS
            or model.working_size(batch[0].pixels) != model.working_size(one.pixels)
        ):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _write(
    unfinished: Path,
    colours: UInt8[np.ndarray, "K 3"],
    bits: int,
    one: Segmented,
    *,
    has_overlay: bool,
) -> Finished:
    """Write the files of an image to a folder of their own below that of unfinished files."""
    file, (height, width) = one.photograph.file, one.ids.shape
    state = (file.size_bytes, file.modified_ns, bits if Remark.DEEP in one.photograph.remarks else 0)
    done = Done(*state, width, height, one.confidence, shares(one.ids))
    outputs = output_names(file.name, scores=one.map is not None, overlay=has_overlay)
    folder = Path(tempfile.mkdtemp(dir=unfinished))
    write_outputs(folder, outputs, one.photograph.pixels, one.ids, one.map, colours)
    return Finished(file.name, folder, written_in(folder, outputs), done)
