"""Label Studio: tasks with predictions, and the labeling interface that they are for.

https://labelstud.io/guide/predictions and https://labelstud.io/tags/brushlabels. A brush mask is RGBA,
run-length encoded as by the package rle-pack of thi.ng/umbrella: 32 bits for the number of values, 5 for the
bits of a value less 1, four times 4 for the bits of each size of run less 1; then, for each run, a bit of 1,
2 for the size in use, the length less 1 in so many bits, and the value.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool

from stages.core.artefacts import write_text
from stages.tools.segmenting.formats import Add, Annotated, Label, LabelMap, json_list, runs

FILE, INTERFACE = "label_studio.json", "label_studio.xml"
PARTS = re.compile(r"label_studio_\d{3,}\.json")
# Of a file. Label Studio refuses uploads of 250 MiB, unless its DATA_UPLOAD_MAX_MEMORY_SIZE is larger.
LARGEST_BYTES = 200_000_000
HEAD, TAIL = "[", "]\n"
# Label Studio serves files of its own machine under this address, with their path below the document root.
# Its local storage must be a folder below that root, so the root is the parent of the common folder.
URL = "/data/local-files/?d="
CHANNELS = 4  # RGBA
VALUE_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)


@contextmanager
def write_label_studio(
    out: Path, images: Sequence[Annotated], labels: Sequence[Label], model: str
) -> Iterator[Add]:
    """Write label_studio.json, perhaps in parts, and label_studio.xml; arguments as of `write_coco`."""
    _write_interface(out / INTERFACE, labels)
    with _parts(out) as write:
        yield lambda image, found: write(json.dumps(_task(image, found, model), ensure_ascii=False))


@contextmanager
def _parts(out: Path) -> Iterator[Callable[[str], None]]:
    """Write tasks to label_studio.json, and those that would make it too large to label_studio_002.json."""
    names = itertools.chain([FILE], (f"label_studio_{number:03}.json" for number in itertools.count(2)))
    # Bytes. Each task is counted with a comma and a line end: the first has no comma, but one more line ends
    # before the tail.
    empty = len(HEAD + TAIL)
    with ExitStack() as part:
        write, size = part.enter_context(json_list(out / next(names), HEAD, TAIL)), empty

        def add(task: str) -> None:
            nonlocal write, size
            more = len(task.encode()) + 2  # with a comma and the end of a line
            if size + more > LARGEST_BYTES and size > empty:
                part.close()
                write, size = part.enter_context(json_list(out / next(names), HEAD, TAIL)), empty
            write(task)
            size += more

        yield add


def _write_interface(path: Path, labels: Sequence[Label]) -> None:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
    brush = ElementTree.SubElement(view, "BrushLabels", name="labels", toName="image")
    for label in labels:
        ElementTree.SubElement(brush, "Label", value=label.name, background=label.colour)
    ElementTree.indent(view)
    write_text(path, ElementTree.tostring(view, encoding="unicode") + "\n")


def _task(image: Annotated, found: LabelMap, model: str) -> dict[str, Any]:
    regions = [
        {
            "id": hashlib.sha256(f"{image.source} {label.id}".encode()).hexdigest()[:10],
            "from_name": "labels",
            "to_name": "image",
            "type": "brushlabels",
            "original_width": image.width,
            "original_height": image.height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": list(encode_brush(mask)), "brushlabels": [label.name]},
        }
        for label, mask in found.masks()
    ]
    prediction = {"model_version": model, "score": image.confidence, "result": regions}
    path = quote(os.fsencode(f"{image.folder}/{image.source}".lstrip("/")))
    return {"data": {"image": URL + path}, "predictions": [prediction]}


def encode_brush(mask: Bool[np.ndarray, "H W"]) -> bytes:
    """Encode a mask whose pixels are RGBA (255, 255, 255, 255) inside and 0 outside."""
    header = f"{mask.size * CHANNELS:032b}{VALUE_BITS - 1:05b}"
    parts = [header, *(f"{bits - 1:04b}" for bits in LENGTH_BITS)]
    longest = 1 << LENGTH_BITS[-1]
    for number, length in enumerate((runs(mask) * CHANNELS).tolist()):
        value = "1" * VALUE_BITS if number % 2 else "0" * VALUE_BITS
        while length:
            part = min(length, longest)
            size = next(index for index, bits in enumerate(LENGTH_BITS) if part <= 1 << bits)
            parts.append(f"1{size:02b}{part - 1:0{LENGTH_BITS[size]}b}{value}")
            length -= part
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
