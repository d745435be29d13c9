"""The tables of label ids against the published facts, stated here a second time as ranges and totals."""

from collections import Counter

import numpy as np
import pytest

from stages.dataset.taxonomy import Taxonomy, plain, read_taxonomy
from stages.dataset.truth import IGNORED
from tests.datasets import TAXONOMIES

NAMES = sorted(TAXONOMIES)
# Label ids of COCO-Stuff by class, as PiCIE, IIC and STEGO have them: first to last, then class.
THING_RANGES = (
    (0, 0, 9), (1, 8, 11), (9, 14, 8), (15, 24, 7), (25, 32, 6), (33, 42, 10), (43, 50, 5), (51, 60, 2),
    (61, 70, 3), (71, 76, 0), (77, 82, 1), (83, 90, 4),
)  # fmt: skip
STUFF_CLASSES = (
    "17 17 22 20 20 22 15 25 16 13 12 12 17 17 23 15 15 17 15 21 15 25 13 13 13 13 13 22 26 14 "
    "14 15 22 21 21 24 20 22 15 17 16 15 22 24 21 17 25 16 21 17 22 16 21 21 25 21 26 21 24 20 "
    "17 14 21 26 15 23 20 21 24 15 24 22 25 15 20 17 17 22 14 18 18 18 18 18 18 18 26 26 19 19 "
    "24"
)
NEVER_ANNOTATED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


def counts(name: str) -> tuple[int, int, int]:
    kinds = Counter(read_taxonomy(TAXONOMIES[name]).class_kinds)
    return sum(kinds.values()), kinds["thing"], kinds["stuff"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cocostuff27", (27, 12, 15)),
        ("cocostuff15", (15, 0, 15)),
        ("cocostuff171", (171, 80, 91)),
        ("cityscapes27", (27, 10, 17)),
        ("cityscapes19", (19, 8, 11)),
        ("cityscapes7", (7, 2, 5)),
    ],
)
def test_totals(name: str, expected: tuple[int, int, int]) -> None:
    assert name in NAMES
    assert counts(name) == expected
    labels = 182 if name.startswith("coco") else 34
    assert len(read_taxonomy(TAXONOMIES[name]).class_ids) == labels


def test_no_taxonomy_is_untested() -> None:
    assert NAMES == [
        "cityscapes19", "cityscapes27", "cityscapes7", "cocostuff15", "cocostuff171", "cocostuff27",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_class_names_differ_and_every_class_has_labels(name: str) -> None:
    taxonomy = read_taxonomy(TAXONOMIES[name])
    assert len(set(taxonomy.class_names)) == len(taxonomy.class_names)
    assert set(taxonomy.class_ids) - {IGNORED} == set(range(len(taxonomy.class_names)))


def test_182_labels_become_27_classes() -> None:
    expected = [class_id for first, last, class_id in THING_RANGES for _ in range(first, last + 1)]
    expected += [int(text) for text in STUFF_CLASSES.split()]
    taxonomy = read_taxonomy(TAXONOMIES["cocostuff27"])
    assert list(taxonomy.class_ids) == expected
    kinds = [taxonomy.class_kinds[class_id] for class_id in taxonomy.class_ids]
    assert kinds == ["thing"] * 91 + ["stuff"] * 91
    assert taxonomy.class_names[:3] == ("electronic", "appliance", "food")
    assert taxonomy.class_names[9] == "person"
    assert taxonomy.class_names[12] == "ceiling"
    assert taxonomy.class_names[26] == "water"


def test_the_15_are_the_stuff_of_the_27() -> None:
    coarse, stuff = read_taxonomy(TAXONOMIES["cocostuff27"]), read_taxonomy(TAXONOMIES["cocostuff15"])
    assert stuff.class_names == coarse.class_names[12:]
    assert stuff.class_ids == tuple(i - 12 if i >= 12 else IGNORED for i in coarse.class_ids)


def test_the_171_are_the_labels_that_occur() -> None:
    fine = read_taxonomy(TAXONOMIES["cocostuff171"])
    assert tuple(i for i, class_id in enumerate(fine.class_ids) if class_id == IGNORED) == NEVER_ANNOTATED
    kept = [class_id for class_id in fine.class_ids if class_id != IGNORED]
    assert kept == list(range(171))


def test_34_labels_of_cityscapes_become_27_and_7() -> None:
    fine, groups = read_taxonomy(TAXONOMIES["cityscapes27"]), read_taxonomy(TAXONOMIES["cityscapes7"])
    assert fine.class_ids == (IGNORED,) * 7 + tuple(range(27))
    sizes = Counter(groups.class_ids)
    assert [sizes[group] for group in range(7)] == [4, 6, 4, 2, 1, 2, 8]
    assert groups.class_names == ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
    assert groups.class_ids[7:] == tuple(sorted(groups.class_ids[7:]))


def test_the_19_of_cityscapes_leave_out_the_rare_ones() -> None:
    fine, common = read_taxonomy(TAXONOMIES["cityscapes27"]), read_taxonomy(TAXONOMIES["cityscapes19"])
    left_out = set(fine.class_names) - set(common.class_names)
    assert left_out == {
        "parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer",
    }  # fmt: skip
    assert [name for name in fine.class_names if name not in left_out] == list(common.class_names)


ALL = {**{name: read_taxonomy(TAXONOMIES[name]) for name in NAMES}, "plain": plain(("a", "b"))}


@pytest.mark.parametrize("taxonomy", ALL.values(), ids=ALL)
def test_a_map_of_labels_becomes_one_of_classes(taxonomy: Taxonomy) -> None:
    known = len(taxonomy.class_ids)
    labels = np.array([[*range(known), 255]])
    np.testing.assert_array_equal(taxonomy.to_class_ids(labels)[0], [*taxonomy.class_ids, 255])
    assert taxonomy.to_class_ids(labels).dtype == np.uint8
    np.testing.assert_array_equal(
        taxonomy.unknown(np.array([3000, -1, known, 0, 255, known])), [-1, known, 3000]
    )
