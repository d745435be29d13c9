"""Decoding of photographs, ahead of their use, and the bits of 16-bit channels that become 8."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from stages.core.artefacts import read_metrics
from stages.dataset.decode import decode_image
from stages.dataset.left_out import BAD, LeftOut
from stages.dataset.sixteen_bits import BITS
from stages.dataset.source import REMARKS, RawFile, Remark, read_raw
from stages.dataset.summary import BITS_IN_USE
from stages.dataset.survey import bits_in_use, describe_bits
from stages.runtime.pool import call_in_threads
from stages.runtime.progress import warn
from stages.settings.errors import UserError
from stages.tools.segmenting.photographs import Photographs

TURNED = "images turned as their EXIF orientation says, with label maps as displayed"
SUMMARY = Path("metrics/prepare.json")  # beside the folder of the model


class Photograph(NamedTuple):
    """A decoded photograph.

    Attributes:
        file: the file as it was when read.
        pixels: RGB uint8 [H, W, 3], as displayed.
        remarks: what was seen in the file.
    """

    file: RawFile
    pixels: np.ndarray
    remarks: Remark


def choose_bits(photographs: Photographs, model: Path, log: Callable[[str], None], *, is_quiet: bool) -> int:
    """Bits of 16-bit channels that become 8, as in training; without such images all.

    Args:
        photographs: images to segment.
        model: folder of the model; beside it may be what `prepare` has said of the training images.
        log: takes what is done.
        is_quiet: show no progress.
    """
    found = bits_in_use(photographs.root, photographs.names, is_quiet=is_quiet)
    path, trained = model.absolute().parent / SUMMARY, _trained_bits(model)
    bits = _bits(found, trained)
    if found is None:
        return bits
    if found > trained > 0:
        warn(
            "segment",
            f"images use {found} bits of 16, and those of training {trained} ({path}): these are darker than "
            "what the model has learned",
        )
    log(describe_bits(bits) + (f", as {path} says of the training images" if bits == trained else ""))
    return bits


def _trained_bits(model: Path) -> int:
    """Bits that the 16-bit images of training use; 0 if there were none, or if that is not known."""
    path = model.absolute().parent / SUMMARY
    return int(read_metrics(path).get("prepare", {}).get(BITS_IN_USE, 0)) if path.is_file() else 0


def _bits(found: int | None, trained: int) -> int:
    """Bits of 16 that become 8, from those that photographs and training images use."""
    return max(BITS) if found is None else max(found, trained)


def read_photograph(
    path: Path | str, model: Path | str = "models", bits: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """RGB as `segment` sees it: as displayed, transparent pixels over white, 16 bits scaled to 8.

    Args:
        path: of the photograph.
        model: folder of the model, beside which `prepare` has said how many of 16 bits training used.
        bits: of 16 that become 8: 8, 10, 12, 14 or 16; None: as many as training used, or this photograph, if
            it uses more. `segment` takes one number for all photographs of a run.

    Raises:
        UserError: it cannot be read or decoded.
    """
    root, name = Path(path).parent, Path(path).name
    if bits is None:
        bits = _bits(bits_in_use(root, [name], is_quiet=True), _trained_bits(Path(model)))
    try:
        return open_photograph(root, name, bits).pixels
    except UserError as fault:
        raise UserError(f"{path}: {fault}") from fault


def open_photographs(
    root: Path, names: Iterable[str], bits: int, threads: int
) -> Iterator[tuple[str, Photograph | UserError]]:
    """Each name with its photograph, or with what is wrong with it; threads decode the next ones.

    Args:
        root: folder of the photographs.
        names: relative to it.
        bits: of `choose_bits`.
        threads: number of photographs that are decoded ahead.
    """

    def attempt(name: str) -> tuple[str, Photograph | UserError]:
        try:
            return name, open_photograph(root, name, bits)
        except UserError as fault:
            return name, fault

    with contextlib.ExitStack() as stack:
        if threads:  # one that ends its own filter of warnings ends those of the others: one around all
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield from call_in_threads(attempt, names, threads)


def without_faults(
    opened: Iterable[tuple[str, Photograph | UserError]], left_out: LeftOut, remarks: LeftOut
) -> Iterator[Photograph]:
    """The photographs that could be decoded.

    Args:
        opened: of `open_photographs`.
        left_out: takes the others.
        remarks: takes what the user should know of these.
    """
    for name, one in opened:
        if isinstance(one, UserError):
            left_out.add(BAD, name, str(one))
            continue
        for remark, text in {**REMARKS, Remark.TURNED: TURNED}.items():
            if remark in one.remarks:
                remarks.add(text, name)
        yield one


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
    return Photograph(file, np.array(picture), remarks)
