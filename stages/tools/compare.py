"""Compare two runs on one page: scores, settings, sizes of clusters, and the same images side by side.

A run is a revision: an experiment as `dvc exp show` names it, a branch, a tag or a commit, whose results are
read from git and from DVC's cache; or `workspace`, the last `dvc repro` in the working tree, which is never
changed.
"""

import argparse
import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.core.atomic import atomic_folder
from stages.reporting.page import environment
from stages.reporting.pictures import Pictures
from stages.reporting.wall import draw_wall
from stages.runtime.progress import track
from stages.runtime.script import run
from stages.settings.errors import UserError
from stages.settings.write_faults import FULL
from stages.tools.differences import (
    changed_settings,
    cluster_rows,
    image_keys,
    in_order,
    legends,
    score_differences,
    shared_images,
    sizes_heading,
    swatches,
    truth_differs,
)
from stages.tools.revision import read_run

OWN = re.compile(r"compare\.html|[ab]_image_\d+(_\w+)?\.(png|webp)")  # names of the files of a page


def main(argv: Sequence[str] | None = None) -> None:
    """Read both runs and write the page."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.compare", description=__doc__)
    parser.add_argument(
        "revisions", nargs=2, metavar="REVISION", help="experiment, branch, tag, commit, or workspace"
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder, new or written by this tool")
    parser.add_argument("--images", type=int, default=60, help="most validation images (default: 60)")
    args = parser.parse_args(argv)
    _check_out(args.out)
    if args.images < 1:
        raise UserError(f"--images: must be 1 or more, got {args.images}")
    with tempfile.TemporaryDirectory() as scratch:
        with _space_in(Path(scratch)):
            one, other = (read_run(name, Path(scratch) / str(n)) for n, name in enumerate(args.revisions))
        has_truth = one.split.truth.has_labels and other.split.truth.has_labels
        places, clusters = shared_images(one, other, args.images), cluster_rows(one, other)
        both_legends = legends(one, other)
        with atomic_folder(args.out) as folder:
            walls = [
                list(
                    track(
                        draw_wall(each.split, places[side], each.legend, Pictures(folder, prefix=prefix)),
                        "draw",
                    )
                )
                for side, prefix, each in ((0, "a_", one), (1, "b_", other))
            ]
            page = (
                environment(Path(__file__).parent)
                .get_template("compare.html")
                .render(
                    runs=args.revisions,
                    same_images=set(image_keys(one)) == set(image_keys(other)),
                    counts=[len(one.index), len(other.index)],
                    has_truth=has_truth,
                    size_px=one.split.images.shape[1],
                    scores=score_differences(one, other),
                    settings=list(changed_settings(one.settings, other.settings)),
                    clusters=clusters,
                    sizes_heading=sizes_heading(one, other),
                    legends=both_legends,
                    swatches=swatches(both_legends, {name for name, *_ in clusters}),
                    truth_differs=truth_differs(one, other),
                    show_matching=one.legend.shows_matching and other.legend.shows_matching,
                    pairs=in_order(walls[0], walls[1], has_truth=has_truth),
                )
            )
            (folder / "compare.html").write_text(page, encoding="utf-8")
    print(
        f"{args.out / 'compare.html'}: {args.revisions[0]} beside {args.revisions[1]}, {len(walls[0])} images"
    )


@contextlib.contextmanager
def _space_in(scratch: Path) -> Iterator[None]:
    """Say where more space would help, if there is too little.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"{scratch.parent}: has too little space for a copy of both runs ({error.strerror}); free some, "
            "or set the environment variable TMPDIR to a folder on a larger disk"
        ) from error


def _check_out(out: Path) -> None:
    """Refuse to replace what this tool has not written.

    Raises:
        UserError: it is a file, or a folder with a file of another name than this tool gives.
    """
    if out.exists() and not (out.is_dir() and all(OWN.fullmatch(path.name) for path in out.iterdir())):
        raise UserError(
            f"--out {out}: exists, and has other files than those of this tool; choose another folder"
        )


if __name__ == "__main__":
    run(main)
