"""The model card: what an exported model is, what it was trained on, how well it does, and how to use it.

Sections as of Mitchell et al., "Model Cards for Model Reporting" (2019), as far as a run knows them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from stages.core.hashes import FINGERPRINT_DIGITS
from stages.dataset.summary import BITS_IN_USE
from stages.reporting.legend import css
from stages.settings.params import flat
from stages.tools.composing import as_text
from stages.tools.dvc_lock import LOCK
from stages.tools.exporting.model_run import ModelRun
from stages.tools.segmenting.trained_model import PARAMS, TrainedModel

USE = {
    "onnx": """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{file}")
picture = np.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))
ids, scores = session.run(["ids", "scores"], {{"images": picture[None]}})
clusters = json.loads(session.get_modelmeta().custom_metadata_map["clusters"])
for number in np.unique(ids):
    print(clusters[number]["name"], f"{{(ids == number).mean():.1%}}")
""",
    "torch": """\
import json

import numpy as np
import torch
from PIL import Image, ImageOps

files = {{"about.json": ""}}
model = torch.jit.load("{file}", _extra_files=files)
picture = np.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))
with torch.no_grad():
    ids, scores = model(torch.from_numpy(picture.copy())[None])
clusters = json.loads(json.loads(files["about.json"])["clusters"])
for number in ids.unique():
    print(clusters[number]["name"], f"{{(ids == number).float().mean():.1%}}")
""",
}
SCORES = {
    "raw": ("metrics/evaluate/raw.json", "raw"),
    "raw + dense CRF": ("metrics/evaluate/refined.json", "refined"),
    "baseline: k-means on color and position": ("metrics/evaluate/raw.json", "colour_position"),
}
FIGURES = ("accuracy", "miou", "effective_clusters", "image_share")


def model_card(model: TrainedModel, folder: Path, file: str, form: str, checked: str) -> str:
    """Write the card.

    Args:
        model: the trained model.
        folder: of its files; beside it are metrics and settings of the run, or what is not is said to be
            unknown.
        file: name of the exported file.
        form: onnx or torch.
        checked: how the file was compared with the original.

    Raises:
        UserError: a file of the run is damaged.
    """
    run = ModelRun.of(folder)
    return "\n".join(
        [
            f"# {file}",
            "",
            "Unsupervised semantic segmentation (FS^4, arXiv 2202.11981): the classes are clusters that the",
            "training found in images without labels.",
            "",
            f"Model {model.fingerprint}. {checked}",
            "",
            "## Use",
            "",
            "Input `images`: RGB uint8 [N, H, W, 3], images of any size, one size in a call. Output `ids`:",
            "uint8 [N, H, W]; of merged clusters the lowest id. Output `scores`: float32 [N, K, H, W], the",
            "similarity of each pixel to each cluster, before merging: 4 K H W bytes for each image.",
            f"Inside, images are resized so that the shorter side is {model.size_px} px, as in training.",
            "",
            *_lines_of_use(run, form, file),
            "",
            "## Clusters",
            "",
            *_clusters(model),
            "",
            "## Training data",
            "",
            *describe_data(run),
            "",
            "## Scores",
            "",
            *_scores(run),
            "",
            "## Limits",
            "",
            *_limits(run, model),
            "",
            "## Settings",
            "",
            *_settings(run),
            "",
        ]
    )


def _lines_of_use(run: ModelRun, form: str, file: str) -> Iterator[str]:
    yield from ("```python", USE[form].format(file=file) + "```", "")
    yield '`convert("RGB")` clips gray of 16 bits at 255, keeps the high bytes of 16-bit colors, and drops'
    yield "transparency. Before it, lay transparent pixels over white, and divide images of 16 bits by"
    bits = None if run.doubt else (run.prepared or {}).get(BITS_IN_USE)
    if bits is None:
        yield "2^(b - 8), b being the bits that they use (8, 10, 12, 14 or 16); clip at 255."
    else:
        yield f"{1 << bits - 8}, as in training (0 to {(1 << bits) - 1:,} becomes 0 to 255); clip at 255."


def _clusters(model: TrainedModel) -> Iterator[str]:
    yield from ("| id | name | color | counts as |", "| --- | --- | --- | --- |")
    legend = model.legend
    for number, name in enumerate(legend.names):
        shown = name.replace("|", "\\|")
        yield f"| {number} | {shown} | {css(legend.colours[number])} | {int(legend.merged[number])} |"


def describe_data(run: ModelRun) -> Iterator[str]:
    """The images, and what the backbone started from; nothing if there is a doubt that the model saw them."""
    if run.doubt:
        yield f"Unknown: {run.doubt}."
        return
    figures = run.prepared
    if figures is None:
        yield "Unknown: there is no metrics/prepare.json beside the model."
        return
    yield f"{figures['train_images']:,} training images and {figures['val_images']:,} validation images"
    manifest = str(figures["manifest_sha256"])[:FINGERPRINT_DIGITS]
    yield f"(manifest {manifest}). No labels of them were used in training."
    yield from _start(run)
    yield from (f"- {note}" for note in figures["notes"])


def _start(run: ModelRun) -> Iterator[str]:
    """What the backbone started from, which may have been trained with labels of other images."""
    figures = run.figures("metrics/pretrain.json", "pretrain")
    if figures is None:
        yield "What the backbone started from is unknown: there is no metrics/pretrain.json beside the model."
    elif "init" not in figures:
        yield "The backbone started from random weights."
    else:
        start = figures["init"]
        how = "has a classifier, as networks have that were trained with labels"
        if "classifier" not in start["heads"].split():
            how = "may have been trained with labels: how it was trained is not known here"
        sha256 = start["sha256"][:FINGERPRINT_DIGITS]
        yield f"The backbone started from a checkpoint (SHA-256 {sha256}), which {how}."


def _scores(run: ModelRun) -> Iterator[str]:
    shown = {title: place for title, place in SCORES.items() if run.has_crf or place[1] != "refined"}
    found = {title: figures for title, place in shown.items() if (figures := run.figures(*place)) is not None}
    if not found:
        yield "Unknown: there are no metrics/evaluate/*.json beside the model."
        return
    columns = [one for one in FIGURES if any(one in figures for figures in found.values())]
    if run.doubt_of_scores:
        yield f"Whether these are scores of this model is not known: {run.doubt_of_scores}."
    yield "Of the run that lies beside the model, on its validation images:"
    yield ""
    yield "| | " + " | ".join(columns) + " |"
    yield "| --- " * (len(columns) + 1) + "|"
    for title, figures in found.items():
        cells = ["-" if figures.get(one) is None else f"{figures[one]:.4g}" for one in columns]
        yield f"| {title} | " + " | ".join(cells) + " |"


def _limits(run: ModelRun, model: TrainedModel) -> Iterator[str]:
    yield "- A cluster is what looks alike to the network. It need not be one thing, nor all of a thing."
    yield "- Every pixel gets a cluster, also in images unlike those of the training."
    if run.has_crf:
        yield "- The exported file does without the dense CRF of the pipeline."
    if run.scored_features not in (None, model.features):
        yield f"- The scores are of {run.scored_features}, and the exported file has {model.features}."
    if run.doubt:
        return
    figures = run.prepared
    yield from (f"- Data: {warning}" for warning in ([] if figures is None else figures["warnings"]))
    trained = run.figures("metrics/train.json", "train")
    if trained is not None and trained["collapsed"]:
        yield "- Training collapsed: few clusters hold most pixels."


def _settings(run: ModelRun) -> Iterator[str]:
    """The settings of the training, or why they are unknown; those in params.yaml may be others by now."""
    trained, why = run.trained
    if trained:
        yield f"The model was trained with these settings, by `{LOCK}`."
        yield from _changes(trained, run.present)
        yield from _as_yaml(as_text(CommentedMap(trained)))
    elif run.present:
        yield f"Whether the model was trained with these settings is not known: {why}. They are those of"
        yield f"`{PARAMS}` beside it."
        yield from _as_yaml((run.project / PARAMS).read_text(encoding="utf-8"))
    else:
        yield f"Unknown: {why}, and no {PARAMS}."


def _as_yaml(text: str) -> Iterator[str]:
    yield from ("", "```yaml", text.rstrip(), "```")


def _changes(trained: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[str]:
    """What the params.yaml of today says otherwise."""
    now = dict(flat(present))
    other = [key for key, value in flat(trained) if present and (key not in now or now[key] != value)]
    if other:
        yield f"`{PARAMS}` beside it has other values of {', '.join(f'`{key}`' for key in other)}."
