"""What a pretrained model holds beside its trunk, in the names that this project gives it.

`projection.*`: linear layer 0, batch norm 1 (if any), ReLU, linear layer 3. `prototypes.weight`: of SwAV,
in the space of the projection. `classifier.weight`, `classifier.bias`: of a supervised model.
"""

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stages.nets.trunk import HEADS
from stages.runtime.tensors import read_tensors


def read_heads(path: Path) -> dict[str, Tensor]:
    """The heads that lie beside a trunk of this project.

    Raises:
        UserError: the file is no safetensors file of this project.
    """
    tensors, _ = read_tensors(path)
    return {name: value for name, value in tensors.items() if name.startswith(HEADS)}


def project(feature: Float[Tensor, "N C"], heads: Mapping[str, Tensor]) -> Float[Tensor, "N D"]:
    """Unit embeddings: the projection head in evaluation mode."""
    hidden = F.linear(feature, heads["projection.0.weight"], heads.get("projection.0.bias"))
    if "projection.1.running_mean" in heads:
        hidden = F.batch_norm(
            hidden,
            heads["projection.1.running_mean"],
            heads["projection.1.running_var"],
            heads["projection.1.weight"],
            heads["projection.1.bias"],
        )
    embedding = F.linear(F.relu(hidden), heads["projection.3.weight"], heads.get("projection.3.bias"))
    return F.normalize(embedding, dim=1)


def class_probabilities(feature: Float[Tensor, "N C"], heads: Mapping[str, Tensor]) -> Float[Tensor, "N K"]:
    """What a supervised model says of a feature."""
    return F.linear(feature, heads["classifier.weight"], heads.get("classifier.bias")).softmax(1)
