"""What a user should be warned of: signs that files or label maps are not what they are taken for."""

from collections.abc import Iterator, Mapping, Sequence

from stages.dataset.left_out import MOST_EXAMPLES, SUSPECT
from stages.dataset.pack import Packed
from stages.dataset.source import REMARKS, DataSet, Remark
from stages.dataset.truth import IGNORED
from stages.settings.errors import listed

WORTH_A_WARNING = 0.05  # share of files that are left out although they may be pictures
SUSPICIOUS_IGNORED = 0.1  # share of ignored pixels, beside a class without a pixel
MOSTLY_IGNORED = 0.5


def doubts_of_files(data: DataSet, train: Sequence[Packed], val: Sequence[Packed]) -> Iterator[str]:
    """What the user should know of the images, with numbers and a remedy."""
    suspects = data.left_out.suspects()
    total = len(train) + len(val) + suspects
    if suspects > WORTH_A_WARNING * total:
        reasons = " | ".join(
            f"{names.count:,}: {reason}" for reason, names in data.left_out.items() if reason in SUSPECT
        )
        yield f"{suspects:,} of {total:,} files that may be pictures are left out ({reasons})"
    for remark, text in REMARKS.items():
        marked = [one.item for one in (*train, *val) if remark in one.remarks]
        names = [str(item.labels if remark == Remark.GRAY_PALETTE else item.source) for item in marked]
        if names:
            yield f"{text}: {len(names):,} ({listed(names, MOST_EXAMPLES)})"
    if data.lacks_maps_in:
        yield f"classes.txt is there, but no label map is used: they belong in {data.lacks_maps_in}"
    yield from _duplicates(train, val)


def _duplicates(train: Sequence[Packed], val: Sequence[Packed]) -> Iterator[str]:
    """Images with the same bytes: within training, and in training and validation."""
    first: dict[str, str] = {}
    within, across = [], []
    for one in train:
        source = one.item.source
        same = first.setdefault(one.files[0].sha256, source) if one.files else source
        if same != source:
            within.append(f"{source} = {same}")
    for one in val:
        if one.files and (original := first.get(one.files[0].sha256)):
            across.append(f"{one.item.source} = {original}")
    for pairs, what, remedy in (
        (within, "training images that are copies of another", "the first of each pair, or it counts twice"),
        (across, "validation images that are copies of a training image", "one of each pair"),
    ):
        if pairs:
            yield f"{what}: {len(pairs):,} ({listed(pairs, MOST_EXAMPLES)}); remove {remedy}"


def doubts_of_labels(class_shares: Mapping[str, float], ignored_share: float) -> Iterator[str]:
    """Signs that label maps do not mean what they are read as."""
    absent = [name for name, share in class_shares.items() if share == 0]
    used = [name for name, share in class_shares.items() if share > 0]
    remedy = "add labels.csv: the header value,class and a line for each value, such as"
    if absent and ignored_share > SUSPICIOUS_IGNORED:
        yield (
            f"the value {IGNORED} covers {ignored_share:.0%} of the labeled images and is ignored, and no "
            f"pixel has the class {listed(absent)}; if {IGNORED} means it, {remedy} {IGNORED},{absent[0]}"
        )
    elif absent:
        yield (
            f"no pixel has the class {listed(absent)} ({len(absent)} of {len(class_shares)} classes); check "
            "that the lines of classes.txt are the ids of the label maps, or add labels.csv"
        )
    elif ignored_share > (SUSPICIOUS_IGNORED if len(used) == 1 else MOSTLY_IGNORED):
        yield (
            f"{ignored_share:.0%} of the pixels have the value {IGNORED} and are ignored; if it is a class, "
            f"{remedy} {IGNORED},NAME"
        )
