"""Print the results of the last `dvc repro`: scores, run times and the path of the report."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from stages.core.artefacts import read_metrics
from stages.runtime.script import duration, read_times, run
from stages.runtime.watch import summarise
from stages.settings.params import read
from stages.tools.changes import changed_stages

PIPELINE = Path("dvc.yaml")
WIDTH = 80  # terminal columns
NAMES = {
    "colour_position": "k-means on color and position",
    "raw": "prediction",
    "refined": "prediction + dense CRF",
}
SCORES = {"accuracy": "accuracy", "miou": "mIoU"}
LABEL_FREE = {"effective_clusters": "effective clusters", "image_share": "told by the image alone"}
FRACTIONS = {"accuracy", "miou", "image_share"}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the summary."""
    parser = argparse.ArgumentParser(prog="python -m stages.tools.results", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings of the run (default: params.yaml)"
    )
    parser.add_argument(
        "--metrics", type=Path, default=Path("metrics"), help="folder of the metrics (default: metrics)"
    )
    args = parser.parse_args(argv)
    params = read(args.params)
    stale = changed_stages() if PIPELINE.exists() else []
    raw = read_metrics(args.metrics / "evaluate/raw.json")
    refined = read_metrics(args.metrics / "evaluate/refined.json")
    figures = {**raw, **(refined if params.refine.backend != "none" else {})}
    data = read_metrics(args.metrics / "prepare.json")["prepare"]
    images = f"{data['train_images']:,} training images, {data['val_images']:,} validation images"
    if stale:
        print(f"\n{_of_an_earlier_run(stale)}\n`prepare` has last read {images}.\n")
    else:
        print(f"\nPreset {params.preset}: {images},\n{params.pixel_k} pixel clusters, seed {params.seed}.\n")
    print("\n".join(_table(figures)))
    print("\n".join(_times(read_times())))
    print(f"Report: {args.metrics / 'report/index.html'}")


def _of_an_earlier_run(stale: Sequence[str]) -> str:
    """What the results are if settings, code or data have changed since: not those of params.yaml."""
    text = (
        f"Results of an earlier run: {summarise(stale)} would run again (see `dvc status`); run `dvc repro`."
    )
    return "\n".join(wrap(text, WIDTH))


def _table(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the score table; without label maps, it shows label-free metrics."""
    columns = SCORES if "accuracy" in figures["raw"] else LABEL_FREE
    yield " " * 32 + "".join(f"{heading:>24}" for heading in columns.values())
    for key, name in NAMES.items():
        if key in figures:
            yield f"{name:32}" + "".join(f"{_shown(column, figures[key]):>24}" for column in columns)
    yield ""


def _shown(column: str, figures: Mapping[str, Any]) -> str:
    value = figures.get(column)
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if column in FRACTIONS else f"{value:.1f}"


def _times(seconds: Mapping[str, float]) -> Iterator[str]:
    """Yield the last run times of the stages, longest first, wrapped to the terminal width.

    A stage whose results came from the cache has the time of its last run, which made others.
    """
    if not seconds:
        return
    total, line = sum(seconds.values()), "Last run time of each stage, perhaps with other settings:"
    yield f"{line} {duration(total)} in total"
    line = " "
    for stage, one in sorted(seconds.items(), key=lambda item: -item[1]):
        word = f" {stage} {duration(one)},"
        if len(line + word) > WIDTH:
            yield line
            line = " "
        line += word
    yield line.rstrip(",") + "\n"


if __name__ == "__main__":
    run(main)
