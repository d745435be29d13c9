"""Random views for whole steps of a method, the same at each call."""

import torch

from stages.pretraining.views import Views
from stages.settings.params import load
from tests.datasets import REPOSITORY


def drawn_views() -> Views:
    """With the colors of params.yaml."""
    photometric = load(REPOSITORY / "params.yaml", "pretrain").pretrain.photometric
    return Views(photometric, 0.75, torch.Generator().manual_seed(5))
