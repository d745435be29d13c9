"""Segment any photographs with the trained model; this tool is not a stage.

Outputs for each image, at its own size and as it is displayed: `<name>.png`, a palette image of cluster ids,
and the visualization `<name>_overlay.jpg`. For all: `legend.json` with ids, names and colors, `manifest.csv`
with a row for each image, and `segment.json`, which lists all files of the run. Run again, it goes on where
it was stopped and does not repeat what is done. No file that this tool has not written is ever replaced. A
damaged image is named and left out; the exit code is then 1, as it is if a table or a format was changed by
another program, and so could not be written.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.core.hashes import FINGERPRINT_DIGITS
from stages.core.memory import memory_for
from stages.dataset.left_out import (
    BAD,
    LISTING,
    LONG_NAME,
    NO_ENTRY,
    ODD_NAME,
    SAME_NAME,
    SAME_OUTPUT,
    UNREADABLE,
    LeftOut,
)
from stages.reporting.legend import css
from stages.runtime.device_text import describe_device
from stages.runtime.progress import track
from stages.runtime.script import run
from stages.settings.section import DEVICE, DEVICE_NAMES
from stages.tools.segmenting import coco
from stages.tools.segmenting.decoding import choose_bits, open_photographs, read_photograph, without_faults
from stages.tools.segmenting.earlier_run import begin
from stages.tools.segmenting.given_paths import HELP
from stages.tools.segmenting.output_folder import alone_in
from stages.tools.segmenting.photographs import Photographs, find_photographs
from stages.tools.segmenting.pipeline import Pace, segment_all
from stages.tools.segmenting.run_manifest import FEATURES, FOLDER, LEGEND, MODEL, TABLE
from stages.tools.segmenting.scored_features import ScoredFeatures
from stages.tools.segmenting.summaries import FORMATS, files_of, formats_to_renew, write_summaries
from stages.tools.segmenting.trained_model import PARAMS, TrainedModel, load

__all__ = ("TrainedModel", "load", "main", "read_photograph")
INCOMPLETE = 1  # exit code
SCARCE = "pass --device cpu, or end other programs that use the GPU; what is done is not done again"


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the images and write all outputs."""
    args = _parse(argv)
    log: Callable[[str], None] = (lambda _: None) if args.quiet else lambda text: print(f"segment: {text}")
    left_out, remarks = LeftOut(), LeftOut()
    formats = list(dict.fromkeys(name for names in args.format for name in names))
    if "coco" in formats:
        coco.require_pycocotools()
    photographs = find_photographs(args.photos, args.out, left_out, scores=args.scores, overlay=args.overlay)
    params = (args.params or args.model.absolute().parent / PARAMS) if args.refine else None
    with memory_for(SCARCE):
        model = load(args.model, device=args.device, names=args.names, refine=params)
    log(f"device: {describe_device(model.device)}")
    log(f"names of clusters: {model.named_by}")
    if model.features != ScoredFeatures():
        log(f"{model.features}, as {args.model.absolute().parent / PARAMS} says")
    with alone_in(args.out):
        unwritten = _run(model, photographs, formats, left_out, remarks, log, args)
    for text, names in remarks.items():
        log(f"{text}: {names.count:,} ({names})")
    is_broken = _report(left_out, log)
    if unwritten or (is_broken and not args.skip_broken):
        raise SystemExit(INCOMPLETE)


def _run(
    model: TrainedModel,
    photographs: Photographs,
    formats: Sequence[str],
    left_out: LeftOut,
    remarks: LeftOut,
    log: Callable[[str], None],
    args: argparse.Namespace,
) -> list[str]:
    """Segment what is yet to be done, and write the files for all images, alone in the output folder.

    Returns:
        As of `write_summaries`.
    """
    bits = choose_bits(photographs, args.model, log, is_quiet=args.quiet)
    formats = [*formats, *formats_to_renew(args.out, formats)]
    if "coco" in formats:
        coco.require_pycocotools()
    files = {"scores": args.scores, "overlay": args.overlay}
    extra = [LEGEND, TABLE, LISTING, *files_of(args.out, formats)]
    manifest, todo = begin(
        args.out,
        photographs,
        _made_by(model, photographs),
        [css(colour) for colour in model.legend.colours],
        extra,
        bits=bits,
        overwrite=args.overwrite,
        **files,
    )
    if before := len(photographs.names) - len(todo):
        log(f"{before:,} images are done already")
    try:
        with memory_for(SCARCE):
            names = todo if args.quiet else track(todo, "segment", unit="image")
            pace = Pace.beside(model.device)
            opened = open_photographs(photographs.root, names, bits, pace.threads)
            sound = without_faults(opened, left_out, remarks)
            segment_all(model, sound, manifest, left_out, bits, pace, **files)
        return write_summaries(args.out, model, manifest, photographs, formats, left_out, log)
    finally:
        manifest.save()


def _made_by(model: TrainedModel, photographs: Photographs) -> dict[str, str]:
    """What decides label maps and overlays, in the words of a message; names alone decide neither."""
    legend = repr((model.legend.colours.tolist(), model.legend.merged.tolist()))
    digits = hashlib.sha256(legend.encode()).hexdigest()
    return {
        MODEL: model.fingerprint,
        FOLDER: str(photographs.root),
        "list of colors and merged clusters": digits[:FINGERPRINT_DIGITS],
        FEATURES: "" if model.features == ScoredFeatures() else str(model.features),
        "choice of --refine": "none" if model.crf is None else model.crf.model_dump_json(),
    }


def _report(left_out: LeftOut, log: Callable[[str], None]) -> bool:
    """Say what was not done; what is broken is said even if the tool is to be quiet.

    Returns:
        Whether something is broken, so that images were not segmented.
    """
    broken = {BAD, SAME_NAME, SAME_OUTPUT, ODD_NAME, LONG_NAME, NO_ENTRY, UNREADABLE}
    for reason, names in sorted(left_out.items()):
        if reason in broken:
            print(f"segment: left out {names.count:,}: {reason} ({names})", file=sys.stderr)
        else:
            log(f"left out {names.count:,}: {reason} ({names})")
    return not broken.isdisjoint(left_out)


def device_name(text: str) -> str:
    """A name of a device, as a flag gives it."""
    if not re.fullmatch(DEVICE, text):
        raise argparse.ArgumentTypeError(f"expected {DEVICE_NAMES}, got {text!r}")
    return text


def _formats(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(FORMATS)}")
    return names


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.tools.segment", description=__doc__)
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTOS", help=f"images of any size: {HELP}".replace("pass ", ""))
    add("--out", type=Path, required=True, help="output folder, apart from the folders of images")
    add("--model", type=Path, default=Path("models"), help="folder of the trained model (default: models)")
    add("--names", type=Path, help="names.yaml; default: the legend of the report, or else numbers")
    add(
        "--format",
        type=_formats,
        action="append",
        default=[],
        help=f"pre-annotations for other programs: {', '.join(FORMATS)}; several with commas between",
    )
    add("--scores", action="store_true", help="write <name>_confidence.png: gray, 255 is a confidence of 1")
    add("--no-overlay", dest="overlay", action="store_false", help="write no <name>_overlay.jpg")
    add("--refine", action="store_true", help="align borders with image edges by the dense CRF; slower")
    add("--params", type=Path, help="settings of --refine; default: params.yaml beside the folder of --model")
    add("--overwrite", action="store_true", help="do all again, over files of segment; never those of others")
    add("--skip-broken", action="store_true", help="exit code 0 even if images had to be left out")
    add("--quiet", action="store_true", help="say only what went wrong")
    add("--device", type=device_name, default="auto", help=DEVICE_NAMES)
    args = parser.parse_args(argv)
    if args.params and not args.refine:
        parser.error("--params has the settings of --refine; pass --refine as well")
    return args


if __name__ == "__main__":
    run(main)
