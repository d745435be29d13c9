"""Run the experiments of one of the paper's tables, and print them beside the paper's numbers; no stage.

What is finished is not run again: after a kill, or for one more seed, say the same once more. Each
experiment runs apart from the working tree (`dvc exp run --temp`) and shares the cache, so that rows with
the same pretraining pretrain once.
"""

import argparse
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.ablation.comparison import as_markdown, compare
from stages.ablation.experiments import experiments, finished
from stages.ablation.experiments import run as run_command
from stages.ablation.table_file import Row, Table, read_table
from stages.runtime.artefacts import write_csv, write_text
from stages.runtime.errors import UserError, run


def main(argv: Sequence[str] | None = None) -> None:
    """Queue or run what is missing, collect what is there, write Markdown and CSV."""
    parser = argparse.ArgumentParser(prog="python -m stages.table", description=__doc__)
    parser.add_argument("name", help="a table: 2 to 6 of the paper, or guidance (how much of it)")
    parser.add_argument("--seeds", default="0,1,2", help="of params.yaml (default: 0,1,2)")
    parser.add_argument("--rows", help="to run, counted from 1, as in 2,6; all are printed (default: all)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a change of params.yaml for all rows that do not set the key themselves",
    )
    parser.add_argument("--tables", type=Path, default=Path("presets/tables"), help="folder of the tables")
    parser.add_argument("--out", type=Path, default=Path("metrics/tables"), help="folder to write to")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="print the commands, and run nothing")
    how.add_argument("--queue", action="store_true", help="queue what is missing, for `dvc queue start`")
    how.add_argument("--collect", action="store_true", help="run nothing, print what is there")
    args = parser.parse_args(argv)

    table = read_table(args.tables / f"{args.name}.yaml")
    more = dict(map(_change, args.set))
    all_rows = list(experiments(args.name, table, _numbers("--seeds", args.seeds), more))
    chosen = _rows(table, args.rows)
    _say_what_rows_keep(more, chosen)
    names = {row.name for row in chosen}
    wanted = [experiment for experiment in all_rows if experiment.row in names]
    if args.dry_run:
        for experiment in wanted:
            print(shlex.join(["dvc", *experiment.command("--temp")[3:]]))
        return
    done = finished()
    missing = [] if args.collect else [experiment for experiment in wanted if experiment.name not in done]
    for number, experiment in enumerate(missing, start=1):
        title = f"table {args.name}: {number}/{len(missing)}  {experiment.row}  seed {experiment.seed}"
        print(title, flush=True)
        start = time.monotonic()
        run_command(experiment.command("--queue" if args.queue else "--temp"))
        if not args.queue:
            print(f"{title}  took {time.monotonic() - start:.0f} s", flush=True)
    if args.queue:
        print("queued; next: dvc queue start, and when it is through, the same with --collect")
        return
    compared = compare(table, all_rows, finished() if missing else done)
    text = as_markdown(table, compared)
    write_text(args.out / f"{args.name}.md", text)
    write_csv(args.out / f"{args.name}.csv", compared)
    print(text)


def _rows(table: Table, text: str | None) -> list[Row]:
    numbers = range(1, len(table.rows) + 1)
    asked = numbers if text is None else _numbers("--rows", text)
    if not set(asked) <= set(numbers):
        raise UserError(f"--rows: must be between 1 and {len(table.rows)}, got {text}")
    return [table.rows[number - 1] for number in asked]


def _say_what_rows_keep(more: Mapping[str, str], rows: Sequence[Row]) -> None:
    """A row's own changes stand above those of `--set`, which must not go unsaid.

    Raises:
        UserError: all rows set the key themselves.
    """
    for key in more:
        own = [row.name for row in rows if key in row.changes]
        if len(own) == len(rows):
            raise UserError(f"--set {key}: changes nothing, since every row sets it itself; see --rows")
        if own:
            print(f"--set {key}: not for {', '.join(map(repr, own))}, which set it themselves")


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{flag}: must be whole numbers with commas between them, got {text!r}") from error


def _change(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise UserError(f"--set: must be KEY=VALUE, got {text!r}")
    return key, value


if __name__ == "__main__":
    run(main)
