"""`compat: picie`: the baseline as its official code behaves, where that is not as the paper says.

Each behaviour is a switch of its own in params.yaml; here they are thrown together. What a user chooses
there by hand (epochs, batch size, learning rate, network, sizes) stays as params.yaml says.
"""

from typing import Any, TypeVar

from pydantic import BaseModel

from stages.runtime.progress import say
from stages.settings.schema_train import Cluster, Train

Settings = TypeVar("Settings", bound=BaseModel)

# Of `train`; PROTOCOL of the official code, behaviour by behaviour.
TRAIN: dict[str, Any] = {
    "freeze": "none",
    "crop_first": False,
    "photometric.jitter_together": False,
    "photometric.gray_probability": 0.0,  # asked for under a name that the code does not know
    "photometric.blur_sigma_px": [0.0, 1.8],  # what is left of 0.1 to 2 after a slip of sign
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
# Of `cluster`: the last clustering is one more pass of the same, without augmentation.
CLUSTER: dict[str, Any] = {"kmeans": "minibatch", "unit_centroids": False, "batch_norm": "batch"}


def train_settings(settings: Train, compat: str, stored_px: int) -> Train:
    """`train` of params.yaml, or of PiCIE; blur there is in pixels of the stored image, whatever its side."""
    if compat == "paper":
        return settings
    return _changed("train", settings, {**TRAIN, "photometric.blur_reference_px": stored_px})


def cluster_settings(settings: Cluster, compat: str) -> Cluster:
    """`cluster` of params.yaml, or of PiCIE."""
    return settings if compat == "paper" else _changed("cluster", settings, CLUSTER)


def _changed(name: str, settings: Settings, values: dict[str, Any]) -> Settings:
    """The settings with other values under dotted keys, checked again; what changes is said."""
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
