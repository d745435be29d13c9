"""Label maps in palettes, such as those of PASCAL VOC, beside a labels.csv of colors."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from stages.dataset.label_maps import decode_labels
from stages.dataset.taxonomy import mapped
from stages.dataset.truth import IGNORED
from stages.settings.errors import UserError

CLASSES = ("background", "plane")
HEAD = "value,class\n"
COLORS = HEAD + "#000000,background\n#800000,plane\n"
VOID = "#e0e0c0,\n"
NUMBERS = "0,background\n1,plane\n"
WHITE_VOID = "has the color #e0e0c0, which labels.csv does not list; add a line for it"


def voc(*indices: int) -> bytes:
    """A palette PNG whose index 255 is the border of objects."""
    palette = np.zeros((256, 3), np.uint8)
    palette[1], palette[255] = (128, 0, 0), (224, 224, 192)
    image = Image.fromarray(np.array([indices], np.uint8), "P")
    image.putpalette(palette.tobytes())
    image.save(buffer := BytesIO(), "PNG")
    return buffer.getvalue()


def rgb(*colors: tuple[int, int, int]) -> bytes:
    Image.fromarray(np.array([colors], np.uint8)).save(buffer := BytesIO(), "PNG")
    return buffer.getvalue()


def fault(content: bytes, mapping: str) -> str:
    with pytest.raises(UserError) as raised:
        decode_labels(content, mapped(CLASSES, mapping))
    return str(raised.value)


@pytest.mark.parametrize("numbers", ["", NUMBERS], ids=["colors", "colors and numbers"])
@pytest.mark.parametrize("indices", [(0, 1, 255), (255, 255), (1, 255)])
def test_a_color_of_a_palette_that_is_not_listed_is_named(indices: tuple[int, ...], numbers: str) -> None:
    assert fault(voc(*indices), COLORS + numbers) == WHITE_VOID


def test_the_line_that_the_message_asks_for_mends_it() -> None:
    labels, _ = decode_labels(voc(0, 1, 255), mapped(CLASSES, COLORS + VOID))
    assert labels.tolist() == [[0, 1, IGNORED]]


def test_colors_of_a_palette_are_read_whatever_their_indices_are_called() -> None:
    """No map is read by its indices because of one pixel, where the next is read by its colors."""
    swapped = COLORS + VOID + "0,plane\n1,background\n"
    labels, _ = decode_labels(voc(0, 1, 255), mapped(CLASSES, swapped))
    assert labels.tolist() == [[0, 1, IGNORED]]


def test_without_colors_in_the_list_the_index_is_the_value() -> None:
    labels, _ = decode_labels(voc(0, 1, 255), mapped(CLASSES, HEAD + NUMBERS))
    assert labels.tolist() == [[0, 1, IGNORED]]


def test_several_colors_and_more_than_a_picture_of_labels_has() -> None:
    assert fault(rgb((0, 0, 0), (1, 2, 3), (4, 5, 6)), COLORS).startswith("has the colors #")
    every = [f"#{number:06x},plane\n" for number in range(100)]
    colors = [(0, 0, number) for number in range(101)]
    assert fault(rgb(*colors), HEAD + "".join(every)) == (
        "has the color #000064, which labels.csv does not list; add a line for it"
    )


def test_white_that_is_not_listed_is_not_ignored() -> None:
    assert fault(rgb((255, 255, 255)), COLORS) == (
        "has the color #ffffff, which labels.csv does not list; add a line for it"
    )


def test_a_gray_map_of_three_channels_is_read_by_its_values_if_these_are_listed() -> None:
    labels, _ = decode_labels(rgb((0, 0, 0), (1, 1, 1)), mapped(CLASSES, HEAD + NUMBERS + "#ff0000,plane\n"))
    assert labels.tolist() == [[0, 1]]
