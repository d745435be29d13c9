"""Pixels as points of position and color, sorted into compact blocks; which blocks are near each other.

A weight of the appearance kernel is exp(-d^2 / 2), d the distance of two points, so two blocks that are far
apart have no weight that matters. Ours; the splits are those of a k-d tree (Bentley 1975).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int32, UInt8
from torch import Tensor

KEY_BITS = 20  # of a coordinate within its segment, for sorting


class BlockPairs(NamedTuple):
    """Sorted pixels in B blocks, and the pairs of blocks whose weights matter.

    Attributes:
        order: pixel of each sorted place; Q is P rounded up to whole blocks. Numbers of P and more are no
            pixels, but points where the last pixel is.
        features: of each sorted place.
        offsets: the partners of block b are `partners[offsets[b] : offsets[b + 1]]`.
        partners: numbers of blocks, ascending for each block.
        schedule: every block once, those with most partners first, so that a GPU ends with short ones.
    """

    order: Int[Tensor, " Q"]
    features: Float[Tensor, "Q F"]
    offsets: Int32[Tensor, " B+1"]
    partners: Int32[Tensor, " pairs"]
    schedule: Int32[Tensor, " B"]


def appearance_features(
    image: UInt8[Tensor, "H W 3"], appearance_px: float, appearance_color: float
) -> Float[Tensor, "P 5"]:
    """Row, column, R, G, B over their standard deviations, with a mean of 0.

    The appearance kernel of two pixels is exp(-d^2 / 2), d the distance of their features.
    """
    rows, columns = (torch.arange(side, device=image.device) / appearance_px for side in image.shape[:2])
    places = torch.cartesian_prod(rows, columns)
    features = torch.cat([places, image.flatten(0, 1).float() / appearance_color], dim=1)
    return features - features.mean(0)  # so that products lose as few digits as possible


def pair_blocks(features: Float[Tensor, "P F"], block: int, smallest_weight: float) -> BlockPairs:
    """Sort points into blocks of `block`, and find the pairs of blocks that can have a weight that matters.

    The weight of two points is exp(-d^2 / 2). A pair of blocks is left out if its bounding boxes say that
    every weight is below `smallest_weight`. A sum of weights times values then misses at most
    `smallest_weight` times the sum of absolute values.
    """
    features = torch.cat([features, features[-1:].expand(-len(features) % block, -1)])
    order = _sort_by_splits(features, block)
    features = features[order]
    is_near = _squared_gaps(*_boxes(features, block)) <= -2 * math.log(smallest_weight)
    lengths = is_near.sum(1)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    schedule = lengths.argsort(descending=True, stable=True)
    return BlockPairs(order, features, offsets.int(), is_near.nonzero()[:, 1].int(), schedule.int())


def _sort_by_splits(features: Float[Tensor, "Q F"], block: int) -> Int[Tensor, " Q"]:
    """Order in which each block of `block` points is compact; all segments of a level are split at once.

    A segment, of whole blocks, is sorted along its longest side; its two halves are the next segments.
    """
    count, device = len(features) // block, features.device
    blocks, order = torch.arange(count, device=device), torch.arange(len(features), device=device)
    for level in range((count - 1).bit_length()):
        segments = 1 << level
        bounds = torch.arange(segments + 1, device=device) * count // segments
        segment = torch.searchsorted(bounds, blocks, right=True) - 1  # of each block
        members = torch.arange(-(-count // segments), device=device) + bounds[:-1, None]
        members = torch.minimum(members, bounds[1:, None] - 1)
        points = features[order]
        low, high = _boxes(points, block)
        low, high = low[members].amin(1), high[members].amax(1)
        axis = (high - low).argmax(1, keepdim=True)
        start, side = (part.gather(1, axis)[segment] for part in (low, high - low))  # [count, 1]
        place = points.view(count, block, -1).gather(2, axis[segment, :, None].expand(-1, block, 1))[..., 0]
        key = ((place - start) / side.clamp_min(1e-12) * ((1 << KEY_BITS) - 1)).long()
        key += segment[:, None] << (KEY_BITS + 1)
        order = order[key.flatten().argsort(stable=True)]
    return order


def _boxes(points: Float[Tensor, "Q F"], block: int) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B F"]]:
    """Lowest and highest coordinates of each block."""
    blocks = points.unflatten(0, (-1, block))
    return blocks.amin(1), blocks.amax(1)


def _squared_gaps(lows: Float[Tensor, "B F"], highs: Float[Tensor, "B F"]) -> Float[Tensor, "B B"]:
    """Smallest squared distance of a point in one box to a point in another."""
    gap = lows.new_zeros(len(lows), len(lows))
    for low, high in zip(lows.T, highs.T, strict=True):
        apart = torch.maximum(low[:, None] - high, low - high[:, None])
        gap += apart.clamp_min_(0).square_()
    return gap
