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
from stages.tools.experiments import (
    Experiment,
    Row,
    Table,
    experiments,
    finished,
    read_table,
    succeeds,
)
from stages.tools.surroundings import obstacles, uncommitted_code
from stages.tools.table_text import as_markdown, compare, describe_run


def main(argv: Sequence[str] | None = None) -> None:
    """Run or queue the missing experiments, collect the finished ones, write Markdown and CSV."""
    args = _parse(argv)

    table = read_table(args.tables / f"{args.name}.yaml")
    more = dict(map(_change, args.set))
    chosen = _rows(table, args.rows)
    _say_what_rows_keep(more, chosen)
    table = table.model_copy(update={"base": more.pop("base", table.base)})
    bases = args.tables.parent / "bases"
    params = read(args.params)
    seeds, code = _numbers("--seeds", args.seeds), uncommitted_code(Path())
    all_rows = list(experiments(args.name, table, seeds, more, bases, params.model_dump(), code))
    names = {row.name for row in chosen}
    wanted = [experiment for experiment in all_rows if experiment.row in names]
    if args.dry_run:
        numbers = {row.name: number for number, row in enumerate(table.rows, start=1)}
        for experiment in wanted:
            print(f"# row {numbers[experiment.row]}: {experiment.row}, seed {experiment.seed}")
            print(shlex.join(["dvc", *experiment.command("--temp")[3:]]))
        return
    files = {measure.file for measure in table.measures.values()}
    done = finished(files)
    missing = [] if args.collect else [experiment for experiment in wanted if experiment.name not in done]
    if missing:
        raise_faults(f"make table: {one.what}; {one.remedy}" for one in obstacles(Path()))
    failed = _run(args.name, missing, files, is_queued=args.queue)
    if not args.queue:
        compared = compare(table, all_rows, finished(files) if missing else done)
        text = as_markdown(table, compared, describe_run(params, args.set))
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
    if experiment.name not in finished(files):
        raise UserError(
            f"{experiment.name}: DVC ended with success, but the experiment is not among those of this "
            "commit; `make doctor` looks for the cause"
        )


def _rows(table: Table, text: str | None) -> list[Row]:
    numbers = range(1, len(table.rows) + 1)
    asked = numbers if text is None else _numbers("--rows", text)
    if not set(asked) <= set(numbers):
        raise UserError(f"--rows: must be between 1 and {len(table.rows)}, got {text}")
    return [table.rows[number - 1] for number in asked]


def _say_what_rows_keep(more: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Print the rows whose own changes override those of `--set`.

    Raises:
        UserError: all rows set the key themselves, or it is that of --seeds.
    """
    if "seed" in more:
        raise UserError("--set seed: has no effect, because each row runs with each of --seeds")
    for key in more:
        own = [row.name for row in rows if (row.base if key == "base" else key in row.changes)]
        if len(own) == len(rows):
            raise UserError(
                f"--set {key}: has no effect because every row sets this key; select other rows with --rows"
            )
        if own:
            print(f"--set {key}: not applied to {', '.join(map(repr, own))}, which set this key themselves")


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise UserError(f"{flag}: must be comma-separated integers, got {text!r}") from error


def _change(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise UserError(f"--set: must be KEY=VALUE, got {text!r}")
    return key, value


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
        metavar="KEY=VALUE",
        help="change of params.yaml for all rows that do not set this key themselves; base=NAME sets the "
        "base of the rows, a file in presets/bases/",
    )
    parser.add_argument(
        "--tables", type=Path, default=Path("presets/tables"), help="folder of the table definitions"
    )
    parser.add_argument("--out", type=Path, default=Path("metrics/tables"), help="output folder")
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings of the runs, for the head"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    how.add_argument(
        "--queue", action="store_true", help="queue the missing experiments for `dvc queue start`"
    )
    how.add_argument("--collect", action="store_true", help="only print the finished experiments")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
