"""Run the experiments of one of the paper's tables and compare the results with the paper; not a stage.

Finished experiments are not run again: repeat the command after an interruption or with more seeds. Those of
another commit or of another params.yaml do not count. Each experiment runs outside the working tree (`dvc exp
run --temp`) and shares the DVC cache, so rows with the same pretraining settings pretrain only once. After an
experiment that fails the others run, and the last line names it.
"""

import argparse
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stages.core.artefacts import write_csv, write_text
from stages.runtime.script import run
from stages.settings.errors import UserError, raise_faults
from stages.settings.params import read
from stages.tools.experiments import Experiment, experiments, succeeds
from stages.tools.finished_experiments import finished, show, waiting
from stages.tools.overrides import value_of
from stages.tools.surroundings import git_obstacle, obstacles, uncommitted_code
from stages.tools.table_changes import (
    check_settings,
    numbers,
    parse_change,
    row_numbers,
    say_what_rows_keep,
    with_changes,
)
from stages.tools.table_file import Row, read_table
from stages.tools.table_text import announce, as_markdown, compare, describe_run

PARAMS = Path("params.yaml")  # DVC's experiments know no other


def main(argv: Sequence[str] | None = None) -> None:
    """Run or queue the missing experiments, collect the finished ones, write Markdown and CSV."""
    args = _parse(argv)

    written = read_table(args.tables / f"{args.name}.yaml")
    changes = [parse_change(text, written) for text in args.set]
    every = range(1, len(written.rows) + 1)
    asked = every if args.rows is None else row_numbers("--rows", args.rows, written)
    say_what_rows_keep(changes, written, asked)
    table = with_changes(written, changes)
    bases = args.tables.parent / "bases"
    params = read(PARAMS)
    seeds, code = numbers("--seeds", args.seeds), uncommitted_code(Path())
    all_rows = list(experiments(args.name, table, seeds, bases, params.model_dump(), code))
    chosen = {number: written.rows[number - 1] for number in asked}
    names = {row.name for row in chosen.values()}
    wanted = [experiment for experiment in all_rows if experiment.row in names]
    check_settings(params, wanted)
    _check_guidance(chosen.values(), wanted)
    if args.dry_run:
        _print_commands(args.name, chosen, wanted)
        return
    if (broken := git_obstacle(Path())) is not None:
        raise UserError(f"make table: {broken.what}; {broken.remedy}")
    files = {measure.file for measure in table.measures.values()}
    shown = show()
    done = finished(shown, files)
    there = {*done, *waiting(shown)} if args.queue else done.keys()
    missing = [] if args.collect else [experiment for experiment in wanted if experiment.name not in there]
    if missing:
        raise_faults(f"make table: {one.what}; {one.remedy}" for one in obstacles(Path()))
        print("\n".join(announce(args.name, chosen, missing)), flush=True)
    failed = _run(args.name, missing, files, is_queued=args.queue)
    if not args.queue:
        compared = compare(table, all_rows, finished(show(), files) if missing else done)
        text = as_markdown(table, compared, describe_run(params, written, changes))
        write_text(args.out / f"{args.name}.md", text)
        write_csv(args.out / f"{args.name}.csv", compared)
        print(text)
    if failed:
        raise UserError(
            f"table {args.name}: {len(failed)} of {len(missing)} experiments failed: {'; '.join(failed)}; "
            "the output above says why; the others are kept: run the same `make table` again to run these"
        )
    if args.queue:
        print("queued; next: dvc queue start; when it is done, run this command with --collect")


def _print_commands(table: str, rows: Mapping[int, Row], wanted: Sequence[Experiment]) -> None:
    """Print the command of each experiment; all else in comments, so that a shell can take the text."""
    print("\n".join(f"# {line}" for line in announce(table, rows, wanted)))
    number_of = {row.name: number for number, row in rows.items()}
    for experiment in wanted:
        print(f"# row {number_of[experiment.row]}: {experiment.row}, seed {experiment.seed}")
        print(shlex.join(["dvc", *experiment.command("--temp")[3:]]))


def _check_guidance(rows: Collection[Row], wanted: Sequence[Experiment]) -> None:
    """Refuse rows with guidance if its weight is 0: they would run without it, under the name of it.

    Args:
        rows: as the file of the table has them.
        wanted: the experiments of these rows.

    Raises:
        UserError: there are such rows.
    """
    key = "train.image_loss.weight"  # a number or auto
    guided = {row.name for row in rows if "train.image_loss.head" in row.changes}
    silent = dict.fromkeys(
        one.row for one in wanted if one.row in guided and value_of(key, one.settings[key]) == 0
    )
    if silent:
        raise UserError(
            f"train.image_loss.weight: is 0, so {', '.join(map(repr, silent))} would run without guidance; "
            "add --set train.image_loss.weight=1.0, as presets of COCO-Stuff have it (Cityscapes: 0.1), or "
            "select other rows with --rows"
        )


def _run(table: str, missing: Sequence[Experiment], files: Collection[str], *, is_queued: bool) -> list[str]:
    """Run or queue experiments; one that fails does not stop the others.

    Returns:
        Row and seed of each that failed.

    Raises:
        UserError: DVC has lost a result, as it would those of the others.
    """
    failed = []
    for number, experiment in enumerate(missing, start=1):
        title = f"table {table}: {number}/{len(missing)}  {experiment.row}  seed {experiment.seed}"
        print(title, flush=True)
        start = time.monotonic()
        if not succeeds(experiment.command("--queue" if is_queued else "--temp")):
            failed.append(f"{experiment.row}, seed {experiment.seed}")
            print(f"{title}  failed", flush=True)
        elif not is_queued:
            _check_kept(experiment, files)
            print(f"{title}  took {time.monotonic() - start:.0f} s", flush=True)
    return failed


def _check_kept(experiment: Experiment, files: Collection[str]) -> None:
    """Look whether DVC has kept a run: it can end with success and lose the result.

    Raises:
        UserError: the experiment is not there, or has no metrics.
    """
    if experiment.name not in finished(show(), files):
        raise UserError(
            f"{experiment.name}: DVC ended with success, but the experiment is not among those of this "
            "commit; `make doctor` looks for the cause"
        )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.tools.table", description=__doc__)
    parser.add_argument(
        "name",
        help="table: 1 to 6 (numbers in the paper), base (from PiCIE's base to ours, one switch at a time), "
        "or guidance (weight of the guidance loss)",
    )
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated seeds (default: 0,1,2)")
    parser.add_argument(
        "--rows", help="rows to run, counted from 1, such as 2,6; all rows are printed (default: all)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="[ROWS:]KEY=VALUE",
        help="change of params.yaml for all rows that do not set this key themselves, or for some: "
        "1,2:pretrain.init=FILE; base=NAME sets the base of the rows, a file in presets/bases/",
    )
    parser.add_argument(
        "--tables", type=Path, default=Path("presets/tables"), help="folder of the table definitions"
    )
    parser.add_argument("--out", type=Path, default=Path("metrics/tables"), help="output folder")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    how.add_argument(
        "--queue", action="store_true", help="queue the missing experiments for `dvc queue start`"
    )
    how.add_argument("--collect", action="store_true", help="only print the finished experiments")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
