"""CVAT: the format "CVAT for images 1.1", and the labels of a task.

https://docs.cvat.ai/docs/dataset_management/formats/xml_format. The runs of a mask are counted row by row
within its bounding box; the first is of background.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool

from stages.core.artefacts import write_text
from stages.core.atomic import atomic_path
from stages.tools.segmenting.formats import Add, Annotated, Label, LabelMap, runs

FILE, LABELS = "cvat.xml", "cvat_labels.json"


@contextmanager
def write_cvat(out: Path, images: Sequence[Annotated], labels: Sequence[Label], model: str) -> Iterator[Add]:
    """Write cvat.xml, and cvat_labels.json for the constructor of a task; arguments as of `write_coco`."""
    rows = [{"name": label.name, "color": label.colour, "type": "any", "attributes": []} for label in labels]
    write_text(out / LABELS, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    numbers = itertools.count()
    with atomic_path(out / FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        _write(file, _meta(len(images), labels, model))

        def add(image: Annotated, found: LabelMap) -> None:
            size = {"width": str(image.width), "height": str(image.height)}
            element = ElementTree.Element("image", {"id": str(next(numbers)), "name": image.source} | size)
            element.extend(_mask(label, mask) for label, mask in found.masks())
            _write(file, element)

        yield add
        file.write("</annotations>\n")


def _meta(count: int, labels: Sequence[Label], model: str) -> ElementTree.Element:
    meta = ElementTree.Element("meta")
    task = ElementTree.SubElement(meta, "task")
    for key, value in {"name": f"model {model}", "size": str(count), "mode": "annotation"}.items():
        ElementTree.SubElement(task, key).text = value
    rows = ElementTree.SubElement(task, "labels")
    for label in labels:
        row = ElementTree.SubElement(rows, "label")
        for key, value in {"name": label.name, "color": label.colour, "type": "any"}.items():
            ElementTree.SubElement(row, key).text = value
        ElementTree.SubElement(row, "attributes")
    return meta


def _mask(label: Label, mask: Bool[np.ndarray, "H W"]) -> ElementTree.Element:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    inside = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    box = {"left": left, "top": top, "width": inside.shape[1], "height": inside.shape[0]}
    code = ", ".join(map(str, runs(inside).tolist()))
    attributes = {"label": label.name, "source": "auto", "occluded": "0", "z_order": "0", "rle": code}
    return ElementTree.Element("mask", attributes | {key: str(value) for key, value in box.items()})


def _write(file: TextIO, element: ElementTree.Element) -> None:
    file.write(ElementTree.tostring(element, encoding="unicode") + "\n")
