"""How fast the long stages are on this machine: `make bench`, or python -m tests.bench [SECTION ...].

Prints one Markdown table. Goodput is the speed of the whole work by that of its network alone, on random
tensors of the same shapes: 1 where all time goes into the network.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from stages.core.device import choose_device
from tests.bench import kernels, operators, precision, pretraining, reading, segmenting, training
from tests.bench.lines import head

# Each gives one line of the table after the other, as it measures.
SECTIONS = {
    "pretraining": pretraining.measure,
    "training": training.measure,
    "precision": precision.measure,
    "reading": reading.measure,
    "operators": operators.measure,
    "clustering": kernels.clustering,
    "crf": kernels.crf,
    "segmenting": segmenting.measure,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="with torch.compile too, as `compile: true` does; the bare network without",
    )
    parser.add_argument("--turns", type=int, default=3, help="of each comparison (default: 3)")
    args = parser.parse_args(argv)
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there is {', '.join(SECTIONS)}")
    with contextlib.redirect_stdout(sys.stderr):
        device = choose_device(args.device, "--device")
    print("\n".join(head(device)), flush=True)
    for name in args.sections or SECTIONS:
        for line in SECTIONS[name](device, args.turns, compiled=args.compile):
            print(line, flush=True)


if __name__ == "__main__":
    main()
