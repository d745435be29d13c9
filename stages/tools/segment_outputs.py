"""Files that `segment` writes: which they are, and which files of others it must not touch."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stages.core.artefacts import atomic_path, write_json
from stages.dataset.listing import MANIFEST, WRITER, read_manifest
from stages.reporting.palette import colourise
from stages.settings.errors import UserError

OVERLAY_SHARE = 0.5  # opacity of the colors over the image
BAND_ELEMENTS = 1 << 22  # numbers at full size that are in memory at a time
LONGEST_JPEG = 65_500  # px; JPEG stores sides in 16 bits, and libjpeg stops here
LEGEND = "legend.json"


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


def check_outputs(out: Path, names: Sequence[str], *, may_replace: bool) -> dict[str, int | None]:
    """Refuse to replace files: those of others always, own ones unless that is allowed; return the own ones.

    A file that was changed after segment has written it, such as a label map corrected by hand, is no longer
    its own.

    Raises:
        UserError: a file would be replaced.
    """
    own = read_manifest(out)
    planned = [LEGEND, *(one for name in names for one in output_names(name))]
    present = [name for name in planned if os.path.lexists(out / name)]
    foreign = [name for name in present if not _is_own(out / name, name, own)]
    if not own and os.path.lexists(out / MANIFEST):
        foreign.append(MANIFEST)
    if foreign:
        raise UserError(
            f"{out}: has {len(foreign):,} files that segment would replace but has not written, or that were "
            f"changed since ({', '.join(foreign[:3])}); choose another folder with --out"
        )
    if present and not may_replace:
        raise UserError(
            f"{out}: has {len(present):,} files of an earlier run ({', '.join(present[:3])}); pass "
            "--overwrite to replace them, or choose another folder with --out"
        )
    return own


def _is_own(path: Path, name: str, own: Mapping[str, int | None]) -> bool:
    return name in own and own[name] in (None, path.lstat().st_mtime_ns)


def write_manifest(out: Path, files: Mapping[str, int | None]) -> None:
    """Write down which files are segment's own, and when they were written, in ns; None: not yet."""
    write_json(out / MANIFEST, {"written_by": WRITER, "files": dict(sorted(files.items()))})


def write_outputs(
    out: Path, name: str, picture: np.ndarray, clusters: np.ndarray, colours: np.ndarray
) -> None:
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
