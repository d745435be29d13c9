"""Features of pixels as they are scored: those of the network, or STEGO's variants of them (4.1).

Apart from the network, because training and the final clustering never use the variants.
"""

from jaxtyping import Float
from torch import Tensor

from stages.segmenter.network import Segmenter, pixel_features
from stages.segmenter.pixels import EPSILON, Pixels


def scored_pixels(
    segmenter: Segmenter,
    image: Float[Tensor, "N 3 H W"],
    precision: str,
    *,
    mirror: bool,
    unit_features: bool,
) -> Pixels:
    """Features of all pixels, to be compared with centroids.

    Args:
        segmenter: trained network.
        image: RGB in [0, 1].
        precision: of the forward pass.
        mirror: `predict.mirror`: take the mean of the features of an image and of its mirror image.
        unit_features: `predict.unit_features`: features have unit length before they are upsampled.
    """
    pixels = pixel_features(segmenter, image, precision)
    if mirror:
        mirrored = pixel_features(segmenter, image.flip(3), precision).feature.flip(2)
        pixels = pixels._replace(feature=(pixels.feature + mirrored) / 2)
    return _with_unit_mean(pixels) if pixels.is_unit and not unit_features else pixels


def _with_unit_mean(pixels: Pixels) -> Pixels:
    """Divide the features of each image by their mean length, so that they keep their relative lengths.

    Upsampled scores then have the largest value where upsampled features, which STEGO normalizes after
    upsampling, are nearest to a centroid: their length does not change the order of the clusters.
    """
    length = pixels.feature.norm(dim=-1).mean((1, 2)).clamp_min(EPSILON)
    return Pixels(pixels.feature / length[:, None, None, None], is_unit=False)
