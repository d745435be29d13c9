"""Segment any folder of images with the trained model; this tool is not a stage and reads no params.yaml.

Outputs for each image: `<name>.png`, a palette image of its cluster ids at full size, and the visualization
`<name>_overlay.jpg`. `legend.json` maps clusters to colors; `segment.json` lists all files of the run. No
file that this tool has not written is ever replaced. A damaged image is named and left out; the exit code is
then 1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.core.artefacts import write_json
from stages.core.device import choose_device, place
from stages.dataset.decode import decode_image
from stages.dataset.listing import (
    BAD,
    NO_ENTRY,
    SAME_NAME,
    SUFFIXES,
    UNREADABLE,
    LeftOut,
    list_images,
    printable,
)
from stages.dataset.source import Remark, read_raw
from stages.dataset.survey import bits_in_use, describe_bits
from stages.imaging.batches import to_unit
from stages.imaging.resample import interpolation_matrix, resample, whole
from stages.reporting.palette import palette
from stages.runtime.progress import track
from stages.runtime.script import run
from stages.segmenter.network import Segmenter, pixel_features
from stages.segmenter.pixels import pixel_logits
from stages.segmenter.segmenter_file import load_final_clusters, load_segmenter
from stages.settings.errors import UserError
from stages.tools.segment_outputs import (
    BAND_ELEMENTS,
    LEGEND,
    check_apart,
    check_outputs,
    output_names,
    write_manifest,
    write_outputs,
)

LONGEST_SIDE = 4  # maximum longer side, as a multiple of the training size
SOME_LEFT_OUT = 1  # exit code


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the images one by one and write label maps, overlays and a legend."""
    args = _parse(argv)
    segmenter, about = load_segmenter(args.segmenter)
    centroids = load_final_clusters(args.centroids, segmenter)
    check_apart(args.images, args.out)
    left_out, remarks = LeftOut(), LeftOut()
    names = _images(args.images, left_out)
    before = check_outputs(args.out, names, may_replace=args.overwrite)
    bits = bits_in_use(args.images, names)
    if bits is not None:
        print(f"segment: {describe_bits(bits)}", flush=True)
    device = choose_device(args.device)
    segmenter, centroids = place(segmenter, device), centroids.to(device)
    colours = palette(len(centroids))
    # Before the first file, so that after a kill all files of the run are known to be its own.
    planned = [LEGEND, *(one for name in names for one in output_names(name))]
    write_manifest(args.out, {**before, **dict.fromkeys(planned)})
    written = [LEGEND]
    for name in track(names, "segment", unit="image"):
        try:
            picture, found = _open(args.images, name, bits or 16)
        except UserError as fault:
            left_out.add(BAD, f"{printable(name)}: {fault}")
            continue
        for remark in found:
            remarks.add(remark.text(), name)
        clusters = segment(segmenter, centroids, picture, about["size_px"], device)
        write_outputs(args.out, name, picture, clusters, colours)
        written += output_names(name)
    legend = {f"cluster {number}": colour.tolist() for number, colour in enumerate(colours)}
    write_json(args.out / LEGEND, {"rgb": legend})
    times = {name: (args.out / name).stat().st_mtime_ns for name in written}
    write_manifest(args.out, {**before, **times})
    _report(args.out, len(written) // 2, left_out, remarks)


def _open(folder: Path, name: str, bits: int) -> tuple[np.ndarray, Remark]:
    """Decode an image.

    Raises:
        UserError: it cannot be read or decoded.
    """
    try:
        picture, remarks = decode_image(read_raw(folder, name)[1], bits=bits)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from error
    return np.array(picture), remarks


def _report(out: Path, count: int, left_out: LeftOut, remarks: LeftOut) -> None:
    """Say what was done and what was not.

    Raises:
        SystemExit: some images were not segmented.
    """
    print(f"segment: wrote {count:,} images to {out}; color legend: {out / LEGEND}")
    for text, names in remarks.items():
        print(f"segment: {names.count:,} images {text} ({names})")
    for reason, names in sorted(left_out.items()):
        print(f"segment: left out {names.count:,}: {reason} ({names})")
    if {BAD, SAME_NAME, NO_ENTRY, UNREADABLE} & set(left_out):
        raise SystemExit(SOME_LEFT_OUT)


def segment(
    segmenter: Segmenter, centroids: Tensor, picture: np.ndarray, size_px: int, device: torch.device
) -> np.ndarray:
    """Segment an image uint8 [H, W, 3] of any size into cluster ids uint8 [H, W].

    The image is resized so that its shorter side is `size_px`, the training size; both sides are rounded to
    multiples of the stride of the context grid. Panoramas are shrunk further, because the cost of the context
    module is quadratic in the grid size. Scores are brought to full size band by band, so memory does not
    grow with the number of clusters times the pixels.
    """
    height, width = picture.shape[:2]
    step = segmenter.context_stride
    scale = min(size_px / min(height, width), LONGEST_SIDE * size_px / max(height, width))
    target = tuple(max(1, round(side * scale / step)) * step for side in (height, width))
    image = _resize(picture, (target[0], target[1])).to(device)
    pixels = pixel_features(segmenter, image, "float32")
    scores = pixel_logits(pixels, centroids, segmenter.metric)[0].permute(2, 0, 1)
    begin, length = torch.zeros(1, device=device), torch.ones(1, device=device)
    rows, columns = (
        interpolation_matrix(begin, length, source, full)[0]
        for source, full in zip(scores.shape[1:], (height, width), strict=True)
    )
    clusters = np.empty((height, width), np.uint8)
    band = max(1, BAND_ELEMENTS // (len(centroids) * width))
    for start, part in zip(range(0, height, band), rows.split(band), strict=True):
        full = torch.einsum("bh,khw->kbw", part, scores).flatten(0, 1) @ columns.T
        best = full.unflatten(0, (len(centroids), len(part))).argmax(0)
        clusters[start : start + len(part)] = best.byte().cpu().numpy()
    return clusters


def _resize(picture: np.ndarray, size: tuple[int, int]) -> Tensor:
    """`resample` of a whole image, with a band of rows in floating point at a time."""
    start, length = torch.zeros(1), torch.ones(1)
    columns = interpolation_matrix(start, length, picture.shape[1], size[1])[0]
    bands = torch.from_numpy(picture).split(max(1, BAND_ELEMENTS // (3 * picture.shape[1])))
    narrow = [to_unit(band[None]) @ columns.T for band in bands]
    return resample(torch.cat(narrow, dim=2), whole(1), size)


def _images(folder: Path, left_out: LeftOut) -> list[str]:
    """The images below a folder, one for each name of an output.

    Raises:
        UserError: there are none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; pass a folder of images")
    names, stems = [], set()
    for name in sorted(list_images(folder, left_out)):
        stem = output_names(name)[0]
        if stem in stems:
            left_out.add(SAME_NAME, name)
        else:
            stems.add(stem)
            names.append(name)
    if not names:
        reasons = "".join(f"; left out {found.count:,}: {why} ({found})" for why, found in left_out.items())
        raise UserError(f"{folder}: has no images ({', '.join(SUFFIXES)}){reasons}; pass a folder of images")
    return names


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.tools.segment", description=__doc__)
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of images of any size and aspect ratio"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="output folder, apart from the folder of the images"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files of an earlier run; never those of others"
    )
    parser.add_argument(
        "--segmenter",
        type=Path,
        default=Path("models/segmenter.safetensors"),
        help="trained segmenter from `train`",
    )
    parser.add_argument(
        "--centroids",
        type=Path,
        default=Path("models/pixel_centroids.safetensors"),
        help="pixel centroids from `cluster`",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
