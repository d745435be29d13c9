"""COCO: categories, images, and an annotation for each label in each image, as stuff is annotated there.

https://cocodataset.org/#format-data; masks are run-length encoded by pycocotools. Category ids are cluster
ids plus 1, because programs take 0 for background.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.artefacts import atomic_path
from stages.settings.errors import UserError
from stages.tools.segmenting.formats import Annotated, Label, write_list

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


def write_coco(out: Path, images: Sequence[Annotated], labels: Sequence[Label], model: str) -> None:
    """Write coco.json.

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
    with atomic_path(out / FILE) as temporary:
        write_list(temporary, f'{text},\n "annotations": [', _annotations(images, labels), "]}\n")


def _annotations(images: Sequence[Annotated], labels: Sequence[Label]) -> Iterator[dict[str, Any]]:
    coder, number = require_pycocotools(), 0
    for image_id, image in enumerate(images, start=1):
        for label, mask in image.masks(labels):
            number += 1
            code = coder.encode(np.asfortranarray(mask, dtype=np.uint8))
            yield {
                "id": number,
                "image_id": image_id,
                "category_id": label.id + 1,
                "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode("ascii")},
                "area": int(coder.area(code)),
                "bbox": coder.toBbox(code).tolist(),
                "iscrowd": 0,
            }
