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
from PIL import Image
from torch import Tensor

from stages.core.artefacts import atomic_path, write_json
from stages.core.device import choose_device, place
from stages.dataset.decode import bits_in_use, decode_image
from stages.dataset.listing import (
    BAD,
    MANIFEST,
    SAME_NAME,
    SUFFIXES,
    WRITER,
    LeftOut,
    list_images,
    printable,
    read_manifest,
)
from stages.imaging.batches import to_unit
from stages.imaging.resample import interpolation_matrix, resample, whole
from stages.reporting.palette import colourise, palette
from stages.runtime.progress import track
from stages.runtime.script import run
from stages.segmenter.network import Segmenter, pixel_features
from stages.segmenter.pixels import pixel_logits
from stages.segmenter.segmenter_file import load_final_clusters, load_segmenter
from stages.settings.errors import UserError

OVERLAY_SHARE = 0.5  # opacity of the colors over the image
LONGEST_SIDE = 4  # maximum longer side, as a multiple of the training size
BAND_ELEMENTS = 1 << 22  # numbers at full size that are in memory at a time
LONGEST_JPEG = 65_500  # px; JPEG stores sides in 16 bits, and libjpeg stops here
LEGEND = "legend.json"
SOME_LEFT_OUT = 1  # exit code


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the images one by one and write label maps, overlays and a legend."""
    args = _parse(argv)
    segmenter, about = load_segmenter(args.segmenter)
    centroids = load_final_clusters(args.centroids, segmenter)
    check_apart(args.images, args.out)
    left_out = LeftOut()
    names = _images(args.images, left_out)
    before = _check_outputs(args.out, names, may_replace=args.overwrite)
    bits = bits_in_use(args.images, names)
    device = choose_device(args.device)
    segmenter, centroids = place(segmenter, device), centroids.to(device)
    colours = palette(len(centroids))
    # Before the first file, so that after a kill all files of the run are known to be its own.
    _write_manifest(args.out, before.union(*map(output_names, names)))
    written: set[str] = {LEGEND}
    for name in track(names, "segment", unit="image"):
        try:
            picture = np.array(decode_image((args.images / name).read_bytes(), bits=bits)[0])
        except (UserError, OSError) as error:
            reason = error if isinstance(error, UserError) else f"cannot be read ({error.strerror})"
            left_out.add(BAD, f"{printable(name)}: {reason}")
            continue
        clusters = segment(segmenter, centroids, picture, about["size_px"], device)
        _write(args.out, name, picture, clusters, colours)
        written.update(output_names(name))
    legend = {f"cluster {number}": colour.tolist() for number, colour in enumerate(colours)}
    write_json(args.out / LEGEND, {"rgb": legend})
    _write_manifest(args.out, before | written)
    _report(args.out, len(written) // 2, left_out)


def check_apart(images: Path, out: Path) -> None:
    """Refuse an output folder that is, holds, or lies in the folder of the images.

    Raises:
        UserError: outputs could replace images, or be taken for images by the next run.
    """
    given, target = images.resolve(), out.resolve()
    if given == target or given in target.parents or target in given.parents:
        how = "is" if given == target else "lies in" if given in target.parents else "holds"
        raise UserError(
            f"--out {out}: {how} the folder of the images, {images}; choose a folder apart from it, so that "
            "no image is replaced and no output is taken for an image"
        )


def output_names(name: str) -> tuple[str, str]:
    """Names of the two files that are written for an image, relative to the output folder."""
    stem = name.removesuffix(Path(name).suffix)
    return f"{stem}.png", f"{stem}_overlay.jpg"


def _check_outputs(out: Path, names: Sequence[str], *, may_replace: bool) -> frozenset[str]:
    """Refuse to replace files: those of others always, own ones unless that is allowed; return the own ones.

    Raises:
        UserError: a file would be replaced.
    """
    own = read_manifest(out)
    planned = [LEGEND, *(one for name in names for one in output_names(name))]
    present = [name for name in planned if (out / name).exists() or (out / name).is_symlink()]
    foreign = [name for name in present if name not in own]
    if foreign:
        raise UserError(
            f"{out}: has {len(foreign):,} files that segment would replace but has not written "
            f"({', '.join(foreign[:3])}); choose another folder with --out"
        )
    if present and not may_replace:
        raise UserError(
            f"{out}: has {len(present):,} files of an earlier run ({', '.join(present[:3])}); pass "
            "--overwrite to replace them, or choose another folder with --out"
        )
    return own


def _write_manifest(out: Path, names: frozenset[str] | set[str]) -> None:
    write_json(out / MANIFEST, {"written_by": WRITER, "files": sorted(names)})


def _report(out: Path, count: int, left_out: LeftOut) -> None:
    """Say what was done and what was not.

    Raises:
        SystemExit: some images were not segmented.
    """
    print(f"segment: wrote {count:,} images to {out}; color legend: {out / LEGEND}")
    for reason, names in sorted(left_out.items()):
        print(f"segment: left out {names.count:,}: {reason} ({names})")
    if {BAD, SAME_NAME} & set(left_out):
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
    bands = torch.from_numpy(picture).split(max(1, BAND_ELEMENTS // (3 * picture.shape[1])))
    narrow = [resample(to_unit(band[None]), whole(1), (len(band), size[1])) for band in bands]
    return resample(torch.cat(narrow, dim=2), whole(1), size)


def _images(folder: Path, left_out: LeftOut) -> list[str]:
    """The images below a folder, one for each name of an output.

    Raises:
        UserError: there are none.
    """
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


def _write(out: Path, name: str, picture: np.ndarray, clusters: np.ndarray, colours: np.ndarray) -> None:
    """Write label map and overlay; `picture` becomes the overlay."""
    label_name, overlay_name = output_names(name)
    labels = Image.fromarray(clusters, mode="P")
    labels.putpalette(colours.flatten().tolist())
    with atomic_path(out / label_name) as temporary:
        labels.save(temporary, format="PNG")
    mixed = picture  # overwritten band by band: a large image is in memory once
    band = max(1, BAND_ELEMENTS // (3 * picture.shape[1]))
    for start in range(0, len(picture), band):
        rows = slice(start, start + band)
        drawn = colourise(clusters[rows], colours)
        mixed[rows] = (1 - OVERLAY_SHARE) * picture[rows] + OVERLAY_SHARE * drawn
    overlay = Image.fromarray(mixed)
    if max(overlay.size) > LONGEST_JPEG:
        overlay.thumbnail((LONGEST_JPEG, LONGEST_JPEG))
    with atomic_path(out / overlay_name) as temporary:
        overlay.save(temporary, format="JPEG", quality=92)


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
