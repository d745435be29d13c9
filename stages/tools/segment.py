"""Segment any folder of images with the trained model; this tool is not a stage and reads no params.yaml.

Outputs for each image: `<name>.png`, a palette image of its cluster ids at full size, and the visualization
`<name>_overlay.jpg`. `legend.json` maps clusters to colors.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stages.core.artefacts import atomic_path, write_json
from stages.core.device import choose_device, place
from stages.dataset.decode import SUFFIXES, decode_image
from stages.imaging.batches import to_unit
from stages.imaging.resample import resample, whole
from stages.reporting.palette import colourise, palette
from stages.runtime.progress import track
from stages.runtime.script import run
from stages.segmenter.network import Segmenter, pixel_features
from stages.segmenter.pixels import pixel_logits
from stages.segmenter.segmenter_file import load_final_clusters, load_segmenter
from stages.settings.errors import UserError

OVERLAY_SHARE = 0.5  # opacity of the colors over the image
LONGEST_SIDE = 4  # maximum longer side, as a multiple of the training size


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the images one by one and write label maps, overlays and a legend."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.segment", description=__doc__)
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of images of any size and aspect ratio"
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder")
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
    args = parser.parse_args(argv)

    segmenter, about = load_segmenter(args.segmenter)
    centroids = load_final_clusters(args.centroids, segmenter)
    files = list(_images(args.images))
    device = choose_device(args.device)
    segmenter, centroids = place(segmenter, device), centroids.to(device)
    colours = palette(len(centroids))
    for file in track(files, "segment", unit="image"):
        picture = _open(file)
        clusters = segment(segmenter, centroids, picture, about["size_px"], device)
        _write(args.out / file.relative_to(args.images), picture, clusters, colours)
    legend = {f"cluster {number}": colour.tolist() for number, colour in enumerate(colours)}
    write_json(args.out / "legend.json", {"rgb": legend})
    print(f"segment: wrote {len(files)} images to {args.out}; color legend: {args.out / 'legend.json'}")


def segment(
    segmenter: Segmenter, centroids: Tensor, picture: np.ndarray, size_px: int, device: torch.device
) -> np.ndarray:
    """Segment an image uint8 [H, W, 3] of any size into cluster ids uint8 [H, W].

    The image is resized so that its shorter side is `size_px`, the training size; both sides are rounded to
    multiples of the stride of the context grid. Panoramas are shrunk further, because the cost of the context
    module is quadratic in the grid size.
    """
    height, width = picture.shape[:2]
    step = segmenter.context_stride
    scale = min(size_px / min(height, width), LONGEST_SIDE * size_px / max(height, width))
    target = tuple(max(1, round(side * scale / step)) * step for side in (height, width))
    image = resample(to_unit(torch.from_numpy(picture)[None]), whole(1), (target[0], target[1])).to(device)
    pixels = pixel_features(segmenter, image, "float32")
    scores = pixel_logits(pixels, centroids, segmenter.metric)
    full = F.interpolate(
        scores.permute(0, 3, 1, 2), size=(height, width), mode="bilinear", align_corners=False
    )
    return full.argmax(1)[0].byte().cpu().numpy()


def _images(folder: Path) -> Iterator[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder}: has no images ({', '.join(SUFFIXES)}); pass a folder of images")
    stems: dict[Path, Path] = {}
    for file in files:
        if other := stems.get(file.with_suffix("")):
            raise UserError(f"{file}: has the same name as {other} except for the suffix; rename one of them")
        stems[file.with_suffix("")] = file
    yield from files


def _open(path: Path) -> np.ndarray:
    try:
        return np.array(decode_image(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); repair or remove it") from error
    except UserError as fault:
        raise UserError(f"{path}: {fault}") from fault


def _write(path: Path, picture: np.ndarray, clusters: np.ndarray, colours: np.ndarray) -> None:
    labels = Image.fromarray(clusters, mode="P")
    labels.putpalette(colours.flatten().tolist())
    mixed = (1 - OVERLAY_SHARE) * picture + OVERLAY_SHARE * colourise(clusters, colours)
    with atomic_path(path.with_suffix(".png")) as temporary:
        labels.save(temporary, format="PNG")
    with atomic_path(path.with_name(f"{path.stem}_overlay.jpg")) as temporary:
        Image.fromarray(mixed.astype(np.uint8)).save(temporary, format="JPEG", quality=92)


if __name__ == "__main__":
    run(main)
