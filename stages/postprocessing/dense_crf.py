"""Fully connected conditional random field over the pixels of one image (4.4; Kraehenbuehl & Koltun 2011).

E(x) = sum_i unary_i(x_i) + sum_{i<j} [x_i != x_j] k(i, j): the unary terms come from the
cluster scores; the pairwise kernels favor equal labels for pixels with similar position and color.
"""

import numpy as np
from jaxtyping import Float, UInt8
from pydensecrf.densecrf import DenseCRF2D

from stages.settings.schema import Refine


def mean_field(
    image: UInt8[np.ndarray, "H W 3"], probabilities: Float[np.ndarray, "K H W"], settings: Refine
) -> Float[np.ndarray, "K H W"]:
    """Marginals Q after `iterations` mean-field steps (Kraehenbuehl & Koltun 2011, Algorithm 1).

    Q <- softmax(-unary + sum_m w_m Q D_m^-1/2 K_m D_m^-1/2), D_m the row sums of K_m, with

    K_smoothness(i, j) = exp(-|p_i - p_j|^2 / (2 s_smoothness^2))
    K_appearance(i, j) = exp(-|p_i - p_j|^2 / (2 s_appearance^2) - |c_i - c_j|^2 / (2 s_color^2))

    and positions p in pixels, colors c in RGB levels of 0..255; compatibility: Potts.

    Args:
        image: RGB, 0..255.
        probabilities: of each pixel, summing to 1 over K.
        settings: `iterations`; for each kernel its weight w, 0 to do without it, and s_smoothness
            (`smoothness_px`), s_appearance (`appearance_px`) and s_color (`appearance_color`).

    Returns:
        Probabilities, summing to 1 over K.

    Departs from the paper: pydensecrf filters on a permutohedral lattice, which approximates K, and
    normalizes it on both sides.
    """
    num_clusters, height, width = probabilities.shape
    field = DenseCRF2D(width, height, num_clusters)
    field.setUnaryEnergy(_unary(probabilities))
    if settings.smoothness_weight > 0:
        field.addPairwiseGaussian(sxy=settings.smoothness_px, compat=settings.smoothness_weight)
    if settings.appearance_weight > 0:
        field.addPairwiseBilateral(
            sxy=settings.appearance_px,
            srgb=settings.appearance_color,
            rgbim=np.array(image, order="C"),
            compat=settings.appearance_weight,
        )
    return np.array(field.inference(settings.iterations), dtype=np.float32).reshape(probabilities.shape)


def _unary(probabilities: np.ndarray) -> Float[np.ndarray, "K P"]:
    """Energy -log p; clipped, because a probability of 0 would give infinite energy."""
    clipped = np.clip(probabilities, np.finfo(np.float32).tiny, 1.0)
    return np.ascontiguousarray(-np.log(clipped).reshape(len(probabilities), -1), dtype=np.float32)
