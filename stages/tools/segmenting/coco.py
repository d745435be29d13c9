"""COCO: categories, images, and an annotation for each label in each image, as stuff is annotated there.

https://cocodataset.org/#format-data; masks are run-length encoded by pycocotools. Category ids are cluster
ids plus 1, because programs take 0 for background.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stages.settings.errors import UserError
from stages.tools.segmenting.formats import Add, Annotated, Label, LabelMap, json_list

FILE = "coco.json"


def require_pycocotools() -> Any:
    """The module pycocotools.mask.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "--format coco: needs pycocotools; install it with pip install 'fs4[export]' or pip install "
            "pycocotools"
        ) from error
    return mask


@contextmanager
def write_coco(out: Path, images: Sequence[Annotated], labels: Sequence[Label], model: str) -> Iterator[Add]:
    """Write coco.json, to which the images are then added one by one.

    Args:
        out: output folder.
        images: images with label maps.
        labels: labels of the masks.
        model: fingerprint of the model.
    """
    head = {
        "info": {"description": f"Pre-annotations by the model {model}", "version": "1.0"},
        "licenses": [],
        "categories": [
            {"id": label.id + 1, "name": label.name, "supercategory": "stuff"} for label in labels
        ],
        "images": [
            {"id": number, "file_name": one.source, "width": one.width, "height": one.height}
            for number, one in enumerate(images, start=1)
        ],
    }
    text = json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}")
    coder, image_ids, numbers = require_pycocotools(), itertools.count(1), itertools.count(1)
    with json_list(out / FILE, f'{text},\n "annotations": [', "]}\n") as write:

        def add(_: Annotated, found: LabelMap) -> None:
            image_id = next(image_ids)
            by_column = np.asfortranarray(found.ids)  # as masks are encoded
            for label in found.labels:
                code = coder.encode((by_column == label.id).view(np.uint8))
                annotation = {
                    "id": next(numbers),
                    "image_id": image_id,
                    "category_id": label.id + 1,
                    "segmentation": {"size": list(by_column.shape), "counts": code["counts"].decode("ascii")},
                    "area": int(coder.area(code)),
                    "bbox": coder.toBbox(code).tolist(),
                    "iscrowd": 0,
                }
                write(json.dumps(annotation))

        yield add
