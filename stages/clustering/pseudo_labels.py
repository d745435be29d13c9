"""Signs that pseudo-labels are too weak to guide, before any training is spent on them (ours)."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int

from stages.clustering.agreement import agreement
from stages.runtime.schema import WeakLabels


def agreement_with_order(pseudo_label: Int[np.ndarray, " N"], num_blocks: int) -> float:
    """How far labels of images in file order follow that order: agreement with as many even blocks of it.

    High for frames of one video, whose neighbours look alike whatever they show; and for folders that are
    sorted by content, where it is no fault.
    """
    blocks = np.arange(len(pseudo_label)) * num_blocks // len(pseudo_label)
    return agreement(pseudo_label, blocks)


def weaknesses(figures: Mapping[str, float], global_k: int, limits: WeakLabels) -> Iterator[str]:
    """What is wrong with the pseudo-labels, each with what helps.

    Args:
        figures: stability, agreement_with_position and agreement_with_order, each 1 at most, 0 for chance;
            effective_clusters.
        global_k: number of pseudo-labels.
        limits: from where on a figure is called weak.
    """
    stability, position, order = (
        figures[name] for name in ("stability", "agreement_with_position", "agreement_with_order")
    )
    if stability < limits.stability_below:
        yield f"a second clustering agrees by {stability:.2f} only: pretrain longer, or lower global_k"
    if position > limits.position_above:
        yield (
            f"they follow the view's place in the image by {position:.2f}: pretrain longer, set "
            "select_views.pool: whole, or lower train.image_loss.weight"
        )
    if order > limits.order_above:
        yield (
            f"they follow the order of the files by {order:.2f}, as frames of a video do: unless folders are "
            "sorted by content, lower global_k or train.image_loss.weight"
        )
    if (used := figures["effective_clusters"]) < limits.used_below * global_k:
        yield (
            f"the views fall into few of them, as if {used:.1f} of {global_k} were in use: pretrain longer, "
            "lower global_k, or set label.centres: kmeans"
        )
