"""The network and the trainer that params.yaml describes."""

import numpy as np
import torch
from jaxtyping import Int

from stages.backbone.trunk import Trunk
from stages.core.graph import Wish
from stages.core.seeds import derive
from stages.segmenter.network import Segmenter
from stages.settings.schema import Params
from stages.training.guidance import Guidance
from stages.training.trainer import Trainer


def build_segmenter(backbone: Trunk, params: Params, weight: float) -> Segmenter:
    """The network of `train`, with an image head if the weight of guidance is above 0.

    Seeds torch's global generator, for the weights that are not pretrained.

    Args:
        backbone: pretrained or not; becomes a part of the network.
        params: params.yaml.
        weight: of guidance, a number (`guidance_weight`).
    """
    torch.manual_seed(derive(params.seed, "train", "weights"))
    settings = params.train
    return Segmenter(
        backbone,
        fpn_dim=settings.fpn_dim,
        feature_stride=settings.feature_stride,
        context=settings.context,
        num_view_clusters=params.global_k if weight > 0 else 0,
        head=settings.image_loss.head,
        metric=settings.pixel_loss.metric,
        freeze=settings.freeze,
    )


def build_trainer(
    segmenter: Segmenter,
    kept_views: Int[np.ndarray, "N V"],
    params: Params,
    weight: float,
    *,
    cuda_graph: Wish = "auto",
) -> Trainer:
    """The trainer of `train`.

    Args:
        segmenter: the network, on its device.
        kept_views: pseudo-label of each kept view of each image, `NOT_KEPT` elsewhere.
        params: params.yaml.
        weight: of guidance, a number (`guidance_weight`).
        cuda_graph: `runtime.cuda_graph`.
    """
    guidance = Guidance(
        params.train.image_loss,
        params.train.photometric,
        torch.from_numpy(kept_views.astype(np.int64)),
        weight=weight,
        num_labels=params.global_k,
        crop_ratio=params.crop_ratio,
        seed=params.seed,
        precision=params.precision,
    )
    return Trainer(
        segmenter,
        params.train,
        guidance,
        pixel_k=params.train.clusters_per_view(params.pixel_k),
        size_px=params.size_px,
        seed=params.seed,
        precision=params.precision,
        compiled=params.compile,
        cuda_graph=cuda_graph,
    )
