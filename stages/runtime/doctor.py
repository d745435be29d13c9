"""Look at a repository after a crash, say what to do, and do what is safe when told to.

A program of its own, as `preset` is. Ends with 0 if nothing was found, with 1 if something was (and, with
--fix, is left), with 2 if it was called wrongly.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.repair.finding import Finding
from stages.repair.leftovers import experiments, stashes, states, temporaries
from stages.repair.locks import locks
from stages.repair.processes import describe, orphans, working
from stages.repair.queue import queue
from stages.repair.results import cache_objects, outputs
from stages.runtime.errors import UserError, run

FOUND = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Print every finding with its remedy."""
    parser = argparse.ArgumentParser(prog="python -m stages.runtime.doctor", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="of the repository (default: this folder)")
    parser.add_argument("--fix", action="store_true", help="do what cannot lose anything, and say so")
    args = parser.parse_args(argv)
    if not (args.root / ".dvc").is_dir():
        raise UserError(f"{args.root}: has no .dvc, so it is no DVC repository; name its root with --root")

    if busy := working(args.root):
        for process in busy:
            print(f"process {process.pid} ({describe(process)}) is at work here")
        print("wait until it has ended, or end it (kill PID), and ask again")
        sys.exit(FOUND)
    left = 0
    for finding in _findings(args.root):
        print(f"- {finding.what}")
        if args.fix and finding.fix is not None:
            finding.fix()
            print(f"  done: {finding.remedy}")
        else:
            print(f"  to do: {finding.remedy}")
            left += 1
    if left:
        sys.exit(FOUND)
    print("nothing is left to be done" if args.fix else "nothing is wrong here")


def _findings(root: Path) -> Iterator[Finding]:
    """In the order in which they have to be put right; the later ones need the earlier ones done."""
    yield from orphans(root)
    yield from locks(root)
    yield from temporaries(root)
    yield from states(root)
    yield from experiments(root)
    yield from stashes(root)
    try:
        with Repo(str(root)) as repo:
            yield from queue(repo)
            yield from cache_objects(repo)
            yield from outputs(repo)
    except DvcException as error:
        yield Finding(f"dvc cannot tell the state of the results: {error}", "do the above, and ask again")


if __name__ == "__main__":
    run(main)
