"""Mapping of label ids to classes: tables for published data sets, the identity for user data."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stages.dataset.truth import IGNORED, Kind
from stages.settings.errors import UserError

MOST_SHOWN = 40  # characters of a wrong first line


@dataclass(frozen=True)
class Taxonomy:
    """Mapping from label ids in the files to class ids used for scoring.

    Attributes:
        class_names: name of each class id.
        class_kinds: thing or stuff for each class id; empty if unknown.
        class_ids: class id of each label id, `IGNORED` for labels without a class.
        rule: description of the valid label ids, for messages.
        colors: class id of each color 0xRRGGBB, for label maps that are drawn in colors; empty for ids.
        known: label ids that may occur; None: all ids of `class_ids`.
    """

    class_names: tuple[str, ...]
    class_kinds: tuple[Kind, ...]
    class_ids: tuple[int, ...]
    rule: str
    colors: tuple[tuple[int, int], ...] = ()
    known: frozenset[int] | None = None

    def of_colors(self, pixels: np.ndarray) -> np.ndarray | None:
        """Convert RGB [rows, columns, 3] to class ids uint8; None if a color has no class."""
        codes = (pixels.astype(np.int64) << np.array([16, 8, 0])).sum(2)
        values, places = np.unique(codes, return_inverse=True)
        table = dict(self.colors)
        if set(values.tolist()) - set(table):
            return None
        return np.array([table[value] for value in values.tolist()], np.uint8)[places].reshape(codes.shape)

    def to_class_ids(self, label_ids: np.ndarray) -> np.ndarray:
        """Convert known or `IGNORED` label ids to class ids uint8."""
        table = np.full(IGNORED + 1, IGNORED, np.uint8)
        table[: len(self.class_ids)] = self.class_ids
        return table[label_ids]

    def unknown(self, label_ids: np.ndarray) -> np.ndarray:
        """Return the sorted label ids that are unknown to the taxonomy."""
        if self.known is not None:
            return np.setdiff1d(label_ids, [*self.known, IGNORED])
        outside = (label_ids < 0) | (label_ids >= len(self.class_ids))
        return np.setdiff1d(label_ids[outside], [IGNORED])


def plain(class_names: tuple[str, ...]) -> Taxonomy:
    """Build a taxonomy whose label ids are class ids, named by the lines of classes.txt."""
    count = len(class_names)
    rule = (
        f"classes.txt has {count} classes (ids 0 to {count - 1}, and {IGNORED} = ignored); correct it, or "
        "add labels.csv"
    )
    return Taxonomy(class_names, (), tuple(range(count)), rule)


def mapped(class_names: tuple[str, ...], text: str) -> Taxonomy:
    """Build a taxonomy from labels.csv of user data: the header value,class and one line per value.

    A value is a number of the label maps or a color #rrggbb. The class is a name of classes.txt; it is empty
    for values that are ignored.

    Raises:
        UserError: the first fault, without the name of the file.
    """
    lines = [line.strip() for line in text.splitlines()]
    if not lines or lines[0].replace(" ", "") != "value,class":
        is_other = bool(lines) and re.split(r"\s*[;\t]\s*", lines[0]) == ["value", "class"]
        remedy = "; save it with commas" if is_other else ""  # as Excel does in some countries
        found = f", found {lines[0][:MOST_SHOWN]!r}{remedy}" if lines else ""
        raise UserError(f"must begin with the line value,class{found}")
    ids: dict[int, int] = {}
    colors: dict[int, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        value, _, name = (part.strip() for part in line.partition(","))
        if name and name not in class_names:
            raise UserError(f"line {number}: {name!r} is not in classes.txt")
        class_id = class_names.index(name) if name else IGNORED
        if re.fullmatch(r"#[0-9a-fA-F]{6}", value):
            table, key = colors, int(value[1:], 16)
        elif re.fullmatch(r"\d{1,3}", value) and int(value) <= IGNORED:
            table, key = ids, int(value)
        else:
            raise UserError(
                f"line {number}: the value {value!r} is neither a number 0 to 255 nor a color #rrggbb"
            )
        if key in table:
            raise UserError(f"line {number}: the value {value} has a line already")
        table[key] = class_id
    class_ids = tuple(ids.get(value, IGNORED) for value in range(IGNORED + 1))
    rule = f"labels.csv lists {len(ids)} values; add a line for each other value"
    return Taxonomy(class_names, (), class_ids, rule, tuple(sorted(colors.items())), frozenset(ids))


def written(color: Iterable[int]) -> str:
    """A color as in labels.csv."""
    return "#" + "".join(f"{part:02x}" for part in [*color][:3])


def read_taxonomy(path: Path) -> Taxonomy:
    """Read a taxonomy .csv of a reader: label id (0, 1, ...), class, and kind (thing or stuff) per line.

    Labels without a class are ignored.
    """
    table = pd.read_csv(path, keep_default_na=False, dtype={"class_id": str})
    assert list(table["label_id"]) == list(range(len(table)))
    counted = table[table["class_id"] != ""].astype({"class_id": int})
    classes = counted.drop_duplicates(["class_id", "class", "kind"]).sort_values("class_id")
    assert list(classes["class_id"]) == list(range(len(classes)))
    ids = tuple(int(text) if text else IGNORED for text in table["class_id"])
    rule = f"{path.stem} has label ids 0 to {len(ids) - 1}, and {IGNORED} = unlabeled"
    return Taxonomy(tuple(classes["class"]), tuple(classes["kind"]), ids, rule)
