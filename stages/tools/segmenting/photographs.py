"""The photographs that `segment` is given: files, folders and patterns, as names below one folder."""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from stages.core.artefacts import LONGEST_NAME, read_metrics
from stages.dataset.decode import decode_image
from stages.dataset.label_map_folders import label_maps_among
from stages.dataset.left_out import (
    LONG_NAME,
    MASK,
    ODD_NAME,
    OWN_OUTPUT,
    SAME_NAME,
    SAME_OUTPUT,
    LeftOut,
    is_odd,
)
from stages.dataset.listing import SUFFIXES, list_images, reason_by_suffix
from stages.dataset.own_outputs import OwnOutputs
from stages.dataset.sixteen_bits import BITS, is_deep
from stages.dataset.source import RawFile, Remark, read_raw
from stages.dataset.summary import BITS_IN_USE
from stages.dataset.survey import bits_in_use, describe_bits
from stages.runtime.progress import warn
from stages.settings.errors import UserError, raise_faults
from stages.tools.segmenting.label_files import output_names

ORIENTATION = 0x0112  # EXIF tag; 1: as stored
SUMMARY = Path("metrics/prepare.json")  # beside the folder of the model
HELP = "pass images, folders of images, or patterns such as 'photos/**/*.jpg'"


@dataclass(frozen=True)
class Photographs:
    """Images to segment.

    Attributes:
        root: deepest folder that has all of them; outputs have their paths below it.
        names: paths relative to `root`, with slashes, sorted; no two have an output of one name.
    """

    root: Path
    names: list[str]


class Photograph(NamedTuple):
    """One of them, decoded.

    Attributes:
        file: the file as it was when read.
        pixels: RGB uint8 [H, W, 3], as displayed.
        remarks: what the user should know of it.
        is_turned: whether its EXIF orientation turned it.
        is_deep: whether it has 16 bits per channel.
    """

    file: RawFile
    pixels: np.ndarray
    remarks: Remark
    is_turned: bool
    is_deep: bool


def find_photographs(
    given: Sequence[str], out: Path, left_out: LeftOut, *, scores: bool, overlay: bool = True
) -> Photographs:
    """List the images.

    Args:
        given: files, folders and patterns.
        out: output folder.
        left_out: takes everything that is not segmented, with its reason.
        scores: whether maps of confidence are written.
        overlay: whether overlays are written.

    Raises:
        UserError: something given is not there, there are no images, or `out` is not apart from a folder.
    """
    folders, files = _sort(given)
    for folder in folders:
        _check_apart(folder, out)
    bases = [os.path.abspath(folder) for folder in folders] + [os.path.abspath(file.parent) for file in files]
    root = Path(os.path.commonpath(bases))
    if files and root.resolve() == out.resolve():
        raise UserError(f"--out {out}: is the folder of the images; choose another, so that none is replaced")
    outputs = OwnOutputs()
    found, listed = set(_files(files, root, left_out, outputs)), set[str]()
    for folder in folders:
        inner = LeftOut()
        below = os.path.relpath(os.path.abspath(folder), root)
        prefix = "" if below == "." else f"{below}/"
        listed |= {prefix + name for name in list_images(folder, inner, outputs=outputs)}
        for reason, some in inner.items():
            for name in some.files:
                left_out.add(reason, prefix + name)
    masks = label_maps_among(sorted(listed))
    for name in sorted(masks - found):  # what is given by its own name is meant
        left_out.add(MASK, name)
    names = _one_for_each_output(sorted(found | listed - masks), left_out, scores=scores, overlay=overlay)
    if not names:
        suffixes = ", ".join(SUFFIXES)
        raise UserError(f"{' '.join(given)}: has no images ({suffixes}){left_out.sentence()}; {HELP}")
    return Photographs(root, names)


def choose_bits(photographs: Photographs, model: Path, log: Callable[[str], None], *, is_quiet: bool) -> int:
    """Bits of 16-bit channels that become 8, as in training; without such images all.

    Args:
        photographs: images to segment.
        model: folder of the model; beside it may be what `prepare` has said of the training images.
        log: takes what is done.
        is_quiet: show no progress.
    """
    found = bits_in_use(photographs.root, photographs.names, is_quiet=is_quiet)
    if found is None:
        return max(BITS)
    path = model.absolute().parent / SUMMARY
    trained = read_metrics(path).get("prepare", {}).get(BITS_IN_USE, 0) if path.is_file() else 0
    if found > trained > 0:
        warn(
            "segment",
            f"images use {found} bits of 16, and those of training {trained} ({path}): these are darker than "
            "what the model has learned",
        )
    bits = max(found, trained)
    log(describe_bits(bits) + (f", as {path} says of the training images" if bits == trained else ""))
    return bits


def open_photograph(root: Path, name: str, bits: int) -> Photograph:
    """Decode an image, with the bits of `choose_bits`.

    Raises:
        UserError: it cannot be read or decoded.
    """
    try:
        file, content = read_raw(root, name)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from error
    picture, remarks = decode_image(content, bits=bits)
    with Image.open(BytesIO(content)) as image:
        has_deep = is_deep(image)  # first, because to read the EXIF block of a PNG decodes it
        return Photograph(file, np.array(picture), remarks, _is_turned(image), has_deep)


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # a damaged EXIF block, which the decoder ignores as well
        return False


def _sort(given: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The folders and the files that are given.

    Raises:
        UserError: something is not there; the error lists everything.
    """
    folders: list[Path] = []
    files: list[Path] = []
    faults = []
    for one in given:
        matches = [one] if os.path.lexists(one) else sorted(glob.glob(one, recursive=True))
        if not matches:
            what = "matches no file" if glob.has_magic(one) else "no such file or folder"
            faults.append(f"{one}: {what}; {HELP}")
        for match in map(Path, matches):
            (folders if match.is_dir() else files).append(match)
    raise_faults(faults)
    return folders, files


def _files(files: Iterable[Path], root: Path, left_out: LeftOut, outputs: OwnOutputs) -> list[str]:
    """Names of the files that are images, by their suffix."""
    names = []
    for file in files:
        name = Path(os.path.relpath(os.path.abspath(file), root)).as_posix()
        if file.name in outputs.inside(file.parent):
            left_out.add(OWN_OUTPUT, name)
        elif reason := reason_by_suffix(file.suffix.lower()):
            left_out.add(reason, name)
        else:
            names.append(name)
    return names


def _one_for_each_output(
    names: Iterable[str], left_out: LeftOut, *, scores: bool, overlay: bool
) -> list[str]:
    """The names without those that cannot be written, or would write a file of an earlier one."""
    kept = []
    stems: set[str] = set()
    taken: set[str] = set()
    for name in names:
        outputs = output_names(name, scores=scores, overlay=overlay)
        if is_odd(name):
            left_out.add(ODD_NAME, name)
        elif any(len(os.path.basename(one).encode()) > LONGEST_NAME for one in outputs):
            left_out.add(LONG_NAME, name)
        elif os.path.splitext(name)[0] in stems:
            left_out.add(SAME_NAME, name)
        elif taken.intersection(outputs):
            left_out.add(SAME_OUTPUT, name)
        else:
            stems.add(os.path.splitext(name)[0])
            taken.update(outputs)
            kept.append(name)
    return kept


def _check_apart(images: Path, out: Path) -> None:
    """Refuse an output folder that is, holds, or lies in a folder of images.

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
