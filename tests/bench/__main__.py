"""How fast the long stages are on this machine: `make bench`, or python -m tests.bench [SECTION ...]."""

import argparse

from stages.core.device import choose_device
from tests.bench import kernels, operators, pretraining, training

# Each gives one line after the other, as it measures.
SECTIONS = {
    "pretraining": pretraining.measure,
    "training": training.measure,
    "operators": operators.measure,
    "clustering": kernels.clustering,
    "crf": kernels.crf,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="with torch.compile too, as `compile: true` does; the bare network without",
    )
    parser.add_argument("--turns", type=int, default=5, help="of each comparison (default: 5)")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there is {', '.join(SECTIONS)}")
    device = choose_device(args.device)
    for name in args.sections or SECTIONS:
        for line in SECTIONS[name](device, args.turns, compiled=args.compile):
            print(line, flush=True)


if __name__ == "__main__":
    main()
