"""Fully connected conditional random field over the pixels of one image (4.4; Kraehenbuehl & Koltun 2011).

E(x) = sum_i unary_i(x_i) + sum_{i<j} [x_i != x_j] k(i, j): the unary terms come from the
cluster scores; the pairwise kernels favor equal labels for pixels with similar position and color.
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydensecrf.densecrf import DenseCRF2D

from stages.postprocessing.score_maps import upsample


def probabilities(
    scores: Float[np.ndarray, "K h w"], size_px: int, temperature: float
) -> Float[np.ndarray, "K S S"]:
    """Probability of each cluster at each pixel, for the unary terms of 4.4.

    The paper gives no formula; ours is softmax(cosine / temperature) over upsampled cosines.

    Args:
        scores: cosine to each center, in [-1, 1], at feature resolution.
        size_px: side of the result.
        temperature: low values give confident unaries, so the pairwise terms have less influence.

    Returns:
        float32, in [0, 1], sums to 1 over K.
    """
    cosines = upsample(np.asarray(scores)[None], size_px)[0]
    return torch.softmax(cosines / temperature, dim=0).numpy()


def mean_field(
    image: UInt8[np.ndarray, "H W 3"],
    probabilities: Float[np.ndarray, "K H W"],
    *,
    iterations: int,
    smoothness_weight: float,
    smoothness_px: float,
    appearance_weight: float,
    appearance_px: float,
    appearance_color: float,
) -> Float[np.ndarray, "K H W"]:
    """Marginals Q after `iterations` mean-field steps (Kraehenbuehl & Koltun 2011, Algorithm 1).

    Q <- softmax(-unary + sum_m w_m Q D_m^-1/2 K_m D_m^-1/2), D_m the row sums of K_m, with

    K_smoothness(i, j) = exp(-|p_i - p_j|^2 / (2 s_smoothness^2))
    K_appearance(i, j) = exp(-|p_i - p_j|^2 / (2 s_appearance^2) - |c_i - c_j|^2 / (2 s_color^2))

    Args:
        image: RGB, 0..255.
        probabilities: of each pixel, summing to 1 over K.
        iterations: mean-field steps.
        smoothness_weight: weight of the first kernel (compatibility: Potts); 0 disables it.
        smoothness_px: s_smoothness, in pixels.
        appearance_weight: weight of the second kernel; 0 disables it.
        appearance_px: s_appearance, in pixels.
        appearance_color: s_color, in RGB levels of 0..255.

    Returns:
        Probabilities, summing to 1 over K.

    Departs from the paper: pydensecrf filters on a permutohedral lattice, which approximates K, and
    normalizes it on both sides.
    """
    num_clusters, height, width = probabilities.shape
    field = DenseCRF2D(width, height, num_clusters)
    field.setUnaryEnergy(_unary(probabilities))
    if smoothness_weight > 0:
        field.addPairwiseGaussian(sxy=smoothness_px, compat=smoothness_weight)
    if appearance_weight > 0:
        field.addPairwiseBilateral(
            sxy=appearance_px,
            srgb=appearance_color,
            rgbim=np.array(image, order="C"),
            compat=appearance_weight,
        )
    return np.array(field.inference(iterations), dtype=np.float32).reshape(probabilities.shape)


def _unary(probabilities: np.ndarray) -> Float[np.ndarray, "K P"]:
    """Energy -log p; clipped, because a probability of 0 would give infinite energy."""
    clipped = np.clip(probabilities, np.finfo(np.float32).tiny, 1.0)
    return np.ascontiguousarray(-np.log(clipped).reshape(len(probabilities), -1), dtype=np.float32)
