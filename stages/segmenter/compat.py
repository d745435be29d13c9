"""`compat: picie`: settings that reproduce the official PiCIE code where it differs from its paper.

Each behavior is a separate setting in params.yaml; this module sets all of them. Settings such as epochs,
batch size, learning rate, network and sizes are taken from params.yaml.
"""

from typing import Any, TypeVar

from pydantic import BaseModel

from stages.runtime.progress import say
from stages.settings.schema_train import Cluster, Train

Settings = TypeVar("Settings", bound=BaseModel)

# Keys of `train` and their values in the official code.
TRAIN: dict[str, Any] = {
    "freeze": "none",
    "crop_first": False,
    "photometric.jitter_together": False,
    "photometric.gray_probability": 0.0,  # the official code does not recognize the option that it sets
    "photometric.blur_sigma_px": [0.0, 1.8],  # intended as 0.1 to 2; a sign error changes it
    "clustering.kmeans": "minibatch",
    "clustering.unit_centroids": False,
    "clustering.assign": "euclidean",
    "clustering.assign_batch_norm": "running",
    "pixel_loss.metric": "dot",
    "pixel_loss.temperature": 1.0,
    "pixel_loss.balance": "frequency",
    "pixel_loss.cross_weight": 0.5,
    "image_loss.weight": 0.0,
    "context.similarity": "none",
}
# Keys of `cluster`: the final clustering is the same procedure without augmentation.
CLUSTER: dict[str, Any] = {"kmeans": "minibatch", "unit_centroids": False, "batch_norm": "batch"}


def train_settings(settings: Train, compat: str, stored_px: int) -> Train:
    """`train` of params.yaml, or its PiCIE version, where blur is in pixels of the stored image."""
    if compat == "paper":
        return settings
    return _changed("train", settings, {**TRAIN, "photometric.blur_reference_px": stored_px})


def cluster_settings(settings: Cluster, compat: str) -> Cluster:
    """`cluster` of params.yaml, or its PiCIE version."""
    return settings if compat == "paper" else _changed("cluster", settings, CLUSTER)


def _changed(name: str, settings: Settings, values: dict[str, Any]) -> Settings:
    """Replace values under dotted keys, validate the settings again, and log the changes."""
    content = settings.model_dump()
    changed = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        section = content
        for part in sections:
            section = section[part]
        if section[last] != value:
            section[last] = changed[key] = value
    say(name, compat="picie sets", **changed)
    return type(settings).model_validate(content)
