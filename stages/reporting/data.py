"""What was read, as the page shows it."""

from collections.abc import Mapping
from typing import Any


def data_tables(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the tables about the data set; shares as text in per cent.

    Args:
        summary: `prepare` of metrics/prepare.json.
    """
    return {
        "splits": [
            {
                "name": name,
                "images": summary[f"{split}_images"],
                "sides": [_sides(summary["sizes_px"][split][side]) for side in ("width", "height")],
            }
            for split, name in (("train", "to learn from"), ("val", "to look at"))
        ],
        "classes": [
            {"name": name, "share": _percent(share)} for name, share in summary["class_shares"].items()
        ],
        "ignored": _percent(summary["ignored_share"]),
        "skipped": [{"reason": reason, "count": count} for reason, count in summary["skipped"].items()],
    }


def _sides(side: Mapping[str, int]) -> str:
    """The median; where sides differ, the smallest and the largest too."""
    if side["min"] == side["max"]:
        return f"{side['median']}"
    return f"{side['median']} ({side['min']} to {side['max']})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
