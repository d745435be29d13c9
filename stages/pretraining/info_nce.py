"""InfoNCE of queries against the keys of the batch and a queue."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stages.pretraining.figures import perplexity


def info_nce(
    query: Float[Tensor, "n D"],
    key: Float[Tensor, "N D"],
    queue: Float[Tensor, "Q D"],
    temperature: float,
    *,
    batch_negatives: bool,
    start: int = 0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE loss (MoCo, Eq. 1), accuracy of the queries, and effective share of the queue.

    The last is the mean perplexity of the softmax over the queue, divided by its length; 1 means uniform.

    Args:
        query: unit embeddings of one view of some images.
        key: unit embeddings of the other view of all images of the batch; row `start` + i belongs to query i.
        queue: unit embeddings of other images.
        temperature: softmax temperature.
        batch_negatives: whether the other keys of the batch are also negatives, as in MoCo v3. With only
            the queue, old keys are easy to recognize while the encoder changes fast.
        start: row of the first query's key.
    """
    target = start + torch.arange(len(query), device=query.device)
    against_batch = query @ key.T
    if not batch_negatives:
        against_batch = against_batch.gather(1, target[:, None])
        target = torch.zeros_like(target)
    against_queue = query @ queue.T
    logits = torch.cat([against_batch, against_queue], dim=1) / temperature
    with torch.no_grad():
        accuracy = (logits.argmax(1) == target).float().mean()
        used = perplexity((against_queue / temperature).softmax(1)).mean() / len(queue)
    return F.cross_entropy(logits, target), accuracy, used
