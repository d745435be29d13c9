"""Write the trained model as one file that runs without this project, and a model card beside it.

The file takes RGB images uint8 [N, H, W, 3] of any size, all of one size in a call, and gives `ids`, uint8
[N, H, W], and `scores`, float32 [N, K, H, W]. It resizes images as `segment` does, so it has the same label
maps (without the CRF). It is compared with the original before it is written.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from stages.core.artefacts import write_text
from stages.core.atomic import atomic_path
from stages.core.images import IMAGES, open_images
from stages.runtime.script import run
from stages.settings.errors import UserError, no_folder
from stages.tools.exporting.exported_network import ExportedNetwork
from stages.tools.exporting.model_card import model_card
from stages.tools.segmenting.trained_model import TrainedModel, load

INPUT, OUTPUTS = "images", ("ids", "scores")
VALIDATION = Path("data/images/val")  # beside the folder of the model
SUFFIXES = {"onnx": "onnx", "torch": "pt"}  # of examples, by format
ABOUT = "about.json"  # name of the metadata in a torch file
OPSET = 17  # onnxruntime 1.12 and later
TOLERANCE = 1e-3  # largest difference of a score; cosines are -1 to 1
CHECKED_IMAGES = 8
ASPECTS = ((1.0, 1.0), (1.0, 0.75), (0.6, 1.0))  # shares of the rows and columns that are checked

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def main(argv: Sequence[str] | None = None) -> None:
    """Export, compare, and write the card."""
    args = _parse(argv)
    card_path = _card_path(args.out, SUFFIXES[args.format], overwrite=args.overwrite)
    if args.images is not None:
        _require_packed(args.images)
    if args.format == "onnx":
        _require_onnx()
    model = load(args.model, device="cpu", names=args.names)
    if "patch_px" in model.backbone:
        raise UserError(
            f"{args.model}: has a ViT as its backbone, and only ResNets can be exported so far; use "
            "`stages.tools.segment.load` in Python"
        )
    project = args.model.absolute().parent
    images, kind = _check_images(project, args.images)
    about = _about(model)
    with atomic_path(args.out) as temporary:
        predict = (_write_onnx if args.format == "onnx" else _write_torch)(model, temporary, about)
        difference, moved = compare(model, predict, images)
        found = f"{kind}: largest difference of a score {difference:.2g}, other ids {moved:.4%}"
        print(f"export: compared on {found}")
        if not difference <= TOLERANCE:
            raise UserError(
                f"--out {args.out}: not written, because the scores of the exported model differ by "
                f"{difference:.2g} from those of the original; at most {TOLERANCE:g} is allowed"
            )
        card = model_card(model, args.model, args.out.name, args.format, f"Compared on {found}.")
    write_text(card_path, card)
    print(f"export: wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB) and {card_path}")


def _card_path(out: Path, suffix: str, *, overwrite: bool) -> Path:
    """The file for the model card, after a look at what would be replaced.

    Raises:
        UserError: it is a folder, or without `overwrite` a file.
    """
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; pass a file to write, such as {out / 'model'}.{suffix}")
    card = out.with_name(f"{out.name}.md")
    if card.is_dir():
        raise UserError(f"--out {out}: {card} is a folder, where the card goes; pass another file to write")
    if present := [path for path in (out, card) if path.exists() and not overwrite]:
        raise UserError(f"--out {out}: {present[0]} exists; pass --overwrite to replace it")
    return card


def _require_packed(folder: Path) -> None:
    """Check what is to be compared on, before the model is loaded.

    Raises:
        UserError: there is no such folder, or it has no packed images, such as one of photographs.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: {no_folder(folder)}; pass one such as {VALIDATION}")
    if not (folder / IMAGES).is_file():
        raise UserError(
            f"--images {folder}: has no {IMAGES}, so it is no folder of images that `prepare` has packed; "
            f"pass one such as {VALIDATION}"
        )


def compare(
    model: TrainedModel, predict: Predict, images: UInt8[np.ndarray, "N S S 3"]
) -> tuple[float, float]:
    """Largest difference of a score from the original, and share of pixels with another id.

    Images are cut to several aspects, because the sizes in the file must not be those of the example.
    """
    original = ExportedNetwork(model).eval()
    difference, moved, pixels = 0.0, 0, 0
    for rows, columns in ASPECTS:
        part = images[:, : max(1, round(rows * images.shape[1])), : max(1, round(columns * images.shape[2]))]
        ids, scores = predict(np.ascontiguousarray(part))
        with torch.no_grad():
            _, expected = original(torch.from_numpy(part.copy()))
        scale = max(1.0, float(expected.abs().max()))  # squared distances have no bound
        apart = float(np.abs(scores - expected.numpy()).max()) / scale
        difference = float(np.maximum(difference, apart))  # NaN if one is; Python's `max` would drop it
        for image, found in zip(part, ids, strict=True):
            moved += int((model(np.ascontiguousarray(image)).ids != found).sum())
            pixels += found.size
    return difference, moved / pixels


def _about(model: TrainedModel) -> dict[str, str]:
    """Metadata: text or JSON by name."""
    return {
        "clusters": json.dumps(model.legend.rows(), ensure_ascii=False),
        "model": model.fingerprint,
        "input": "RGB uint8 [N, H, W, 3], any size",
        "working_size_px": str(model.size_px),
    }


def _trace(model: TrainedModel) -> torch.jit.ScriptModule:
    """The network as a graph that takes images of any size."""
    side = model.size_px
    example = torch.arange(2 * side * side * 3).remainder(256).byte().view(2, side, side, 3)
    with warnings.catch_warnings(), torch.no_grad():
        # Sides of cells and similar are constants in the graph; `compare` would notice if they must not be.
        warnings.simplefilter("ignore")
        network = ExportedNetwork(model).eval().requires_grad_(False)
        return torch.jit.trace(network, (example,), check_trace=False)


def _write_torch(model: TrainedModel, path: Path, about: dict[str, str]) -> Predict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is to go some day; torch.export knows sizes less freely
        torch.jit.save(_trace(model), str(path), _extra_files={ABOUT: json.dumps(about)})
        again = torch.jit.load(str(path))

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            ids, scores = again(torch.from_numpy(images))
        return ids.numpy(), scores.numpy()

    return predict


def _write_onnx(model: TrainedModel, path: Path, about: dict[str, str]) -> Predict:
    import onnx
    import onnxruntime

    axes = {
        INPUT: {0: "N", 1: "H", 2: "W"},
        "ids": {0: "N", 1: "H", 2: "W"},
        "scores": {0: "N", 2: "H", 3: "W"},
    }
    example = torch.zeros(1, model.size_px, model.size_px, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is to go some day; the other one needs onnxscript
        torch.onnx.export(
            _trace(model),
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes=axes,
        )
    written = onnx.load(str(path))
    onnx.helper.set_model_props(written, about)
    onnx.checker.check_model(written)
    onnx.save(written, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = session.run(list(OUTPUTS), {INPUT: images})
        return np.asarray(ids), np.asarray(scores)

    return predict


def _check_images(project: Path, given: Path | None) -> tuple[UInt8[np.ndarray, "N S S 3"], str]:
    """Images to compare on, and what they are."""
    folder = given or VALIDATION
    if given is not None or (project / VALIDATION).is_dir():
        images = open_images(given or project / VALIDATION)
        chosen = np.linspace(0, len(images) - 1, min(CHECKED_IMAGES, len(images))).round().astype(int)
        return np.stack([images[index] for index in chosen]), f"{len(chosen)} images of {folder}"
    noise = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    return noise, f"2 images of noise, because there is no {project / VALIDATION}"


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format onnx: needs {error.name}; install it with pip install 'fs4[export]' or pip install "
            "onnx onnxruntime"
        ) from error


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.tools.export", description=__doc__)
    add = parser.add_argument
    add("--format", choices=("onnx", "torch"), required=True, help="onnx, or torch: TorchScript")
    add("--out", type=Path, required=True, help="file to write; the card is beside it, as <out>.md")
    add("--model", type=Path, default=Path("models"), help="folder of the trained model (default: models)")
    add("--names", type=Path, help="names.yaml; default: the legend of the report, or else numbers")
    add("--images", type=Path, help="packed images to compare on; default: data/images/val beside --model")
    add("--overwrite", action="store_true", help="replace the file and its card")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
