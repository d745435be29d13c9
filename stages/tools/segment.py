"""Segment any folder of images with the trained model; no stage, and no params.yaml is needed.

For each image: `<name>.png`, its cluster ids as a palette picture of the image's own size, and
`<name>_overlay.jpg` to look at. `legend.json` says which colour is which cluster.
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
from stages.core.tensors import read_tensors
from stages.dataset.decode import SUFFIXES, decode_image
from stages.imaging.batches import to_unit
from stages.imaging.resample import resample, whole
from stages.reporting.palette import colourise, palette
from stages.runtime.progress import track
from stages.runtime.script import run
from stages.segmenter.network import Segmenter, load_segmenter, unit_pixels
from stages.segmenter.pixels import pixel_logits
from stages.settings.errors import UserError

OVERLAY_SHARE = 0.5  # of the colours over the image
LONGEST_SIDE = 4  # times the side that the network was trained at


def main(argv: Sequence[str] | None = None) -> None:
    """Read the model, segment image by image, write what was found beside a legend."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.segment", description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of images, of any size and shape")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--segmenter", type=Path, default=Path("models/segmenter.safetensors"), help="trained network"
    )
    parser.add_argument(
        "--centroids", type=Path, default=Path("models/pixel_centroids.safetensors"), help="its classes"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    args = parser.parse_args(argv)

    segmenter, about = load_segmenter(args.segmenter)
    centroids = read_tensors(args.centroids)[0]["centroids"]
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
    print(f"segment: {len(files)} images are in {args.out}; the colours are in {args.out / 'legend.json'}")


def segment(
    segmenter: Segmenter, centroids: Tensor, picture: np.ndarray, size_px: int, device: torch.device
) -> np.ndarray:
    """Cluster ids uint8 [H, W] of an image uint8 [H, W, 3] of any size.

    The network sees it with the shorter side at `size_px`, the side that it was trained at, its shape kept
    to the next multiple of the context grid's stride. A panorama is shrunk further, for every pixel of the
    grid attends to every other.
    """
    height, width = picture.shape[:2]
    step = segmenter.context_stride
    scale = min(size_px / min(height, width), LONGEST_SIDE * size_px / max(height, width))
    target = tuple(max(1, round(side * scale / step)) * step for side in (height, width))
    image = resample(to_unit(torch.from_numpy(picture)[None]), whole(1), (target[0], target[1])).to(device)
    scores = pixel_logits(unit_pixels(segmenter, image, "float32"), centroids, "dot").permute(0, 3, 1, 2)
    full = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
    return full.argmax(1)[0].byte().cpu().numpy()


def _images(folder: Path) -> Iterator[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder}: holds no images ({', '.join(SUFFIXES)}); name a folder that does")
    stems: dict[Path, Path] = {}
    for file in files:
        if other := stems.get(file.with_suffix("")):
            raise UserError(f"{file}: has the same name as {other} but for its ending; rename one of them")
        stems[file.with_suffix("")] = file
    yield from files


def _open(path: Path) -> np.ndarray:
    try:
        return np.array(decode_image(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend it, or take it away") from error
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
