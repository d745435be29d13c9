"""A look at all files of a data set before any is packed: what must be decided for the set as a whole."""

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from PIL import Image

from stages.dataset.decode import FileDecoder
from stages.dataset.label_maps import is_reordered
from stages.dataset.sixteen_bits import BITS, LARGEST, SUFFIXES, largest_value
from stages.dataset.source import DataSet
from stages.dataset.taxonomy import Taxonomy
from stages.runtime.pool import count_cores
from stages.runtime.progress import track

MOST_THREADS = 4  # each decodes a whole image


def survey(data: DataSet) -> DataSet:
    """The data set with a decoder that knows the bits and the palettes of the set, and notes on them."""
    decode = data.decode
    if not isinstance(decode, FileDecoder):
        return data
    bits = bits_in_use(decode.root, sorted({item.source for item in (*data.train, *data.val)}))
    maps = sorted({item.labels for item in data.val if item.labels is not None})
    by_gray = has_gray_palettes(decode.root, maps, decode.taxonomy)
    notes = () if bits is None else (describe_bits(bits),)
    decode = replace(decode, bits=bits or 16, by_gray=by_gray)
    return replace(data, decode=decode, bits=bits, notes=(*data.notes, *notes))


def decoding(data: DataSet) -> tuple[object, ...]:
    """What decides how files become pixels and class ids, besides their content."""
    decode = data.decode
    return (decode.taxonomy, decode.bits, decode.by_gray) if isinstance(decode, FileDecoder) else ()


def describe_bits(bits: int) -> str:
    """A note on the bits in use."""
    return f"images with 16 bits per channel use {bits} of them: 0 to {(1 << bits) - 1:,} becomes 0 to 255"


def bits_in_use(root: Path, names: Iterable[str], *, is_quiet: bool = False) -> int | None:
    """Bits that the images with 16 bits per channel use, over the whole data set; None if there are none.

    A set that is stored with 16 bits per channel often uses 12. Taken for 16 bits, its images would be black;
    scaled one by one, their brightness would no longer compare.

    Args:
        root: folder of the data set.
        names: images, relative to it.
        is_quiet: show no progress.
    """
    paths = [root / name for name in names if name.lower().endswith(SUFFIXES)]
    threads, largest = ThreadPoolExecutor(min(count_cores(), MOST_THREADS)), -1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = threads.map(_largest_value, paths)
        try:
            for value in values if is_quiet else track(values, "bits in use", total=len(paths), unit="image"):
                largest = max(largest, value)
                if largest == LARGEST:
                    break
        finally:
            threads.shutdown(cancel_futures=True)
    return None if largest < 0 else next(bits for bits in BITS if largest < 1 << bits)


def _largest_value(path: Path) -> int:
    try:
        return largest_value(path)
    except Exception:  # what cannot be opened is named when it is packed
        return -1


def has_gray_palettes(root: Path, names: Iterable[str], taxonomy: Taxonomy) -> bool:
    """Whether a program has turned the gray label maps of the set into palette images."""
    for name in names:
        try:
            with Image.open(root / name) as image:
                is_palette = image.mode == "P"
            if is_palette and is_reordered((root / name).read_bytes(), taxonomy):
                return True
        except Exception:  # what cannot be opened is named when it is packed
            continue
    return False
