"""The trained model as one object: images of any size to cluster ids, names and confidence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from stages.core.device import choose_device, place
from stages.core.hashes import FINGERPRINT_DIGITS, file_sha256
from stages.imaging.batches import to_unit
from stages.imaging.resample import interpolation_matrix, resample, whole
from stages.postprocessing.exact_crf import exact_mean_field
from stages.postprocessing.gpu_backends import require_gpu, settle
from stages.postprocessing.score_maps import probabilities
from stages.prediction.scored_pixels import scored_pixels
from stages.reporting.legend import ClusterLegend, plain_legend, read_cluster_legend
from stages.reporting.lineage import Lineage, lineage
from stages.reporting.names import Names, read_names
from stages.segmenter.pixels import pixel_logits
from stages.segmenter.segmenter_file import load_final_clusters, load_segmenter
from stages.settings.errors import UserError, no_folder
from stages.settings.params import load as load_params
from stages.settings.schema import Refine
from stages.tools.model_files import CENTROIDS, SEGMENTER
from stages.tools.segmenting.scored_features import read_scored_features

REMEDY = "train it with `dvc repro`, or name another model, of this version of the code, with --model"
PARAMS = "params.yaml"  # beside the folder of the model
REPORT_LEGEND = Path("metrics/report/legend.json")  # likewise
LONGEST_SIDE = 4  # maximum longer side, as a multiple of the training size
BAND_ELEMENTS = 1 << 22  # numbers at full size that are in memory at a time
TEMPERATURE = 0.1  # of the softmax over scores that gives probabilities; refine.temperature of the presets


class Segmentation(NamedTuple):
    """The segmentation of one image.

    Attributes:
        ids: cluster id of each pixel; of merged clusters the lowest.
        names: name of each cluster id, `names[id]`.
        confidence: probability of that id by the softmax of scores over `TEMPERATURE`, or by the CRF; of
            merged clusters the sum. It orders pixels by certainty; it is no measured accuracy.
    """

    ids: UInt8[np.ndarray, "H W"]
    names: tuple[str, ...]
    confidence: Float[np.ndarray, "H W"]


class TrainedModel:
    """Network, clusters and names; call it with an image.

    Args:
        folder: of the files of `train` and `cluster`.
        device: auto, cpu, cuda or cuda:<index>.
        names: a names.yaml; None for the legend of the report beside the folder, or else numbers.
        refine: a params.yaml whose section `refine` sets up a dense CRF; None for no CRF.

    Raises:
        UserError: a file is missing or does not fit the others, the params.yaml beside the folder cannot be
            read, or the CRF is for GPUs and the device is not.
    """

    def __init__(
        self, folder: Path, *, device: str = "auto", names: Path | None = None, refine: Path | None = None
    ) -> None:
        segmenter, about = load_segmenter(folder / SEGMENTER, REMEDY)
        sha256 = file_sha256(folder / SEGMENTER)
        centroids = load_final_clusters(folder / CENTROIDS, segmenter, sha256, REMEDY)
        self.crf: Refine | None = None if refine is None else _read_refine(refine)
        self.lineage = lineage(folder / CENTROIDS)
        self.legend, self.named_by = _choose_legend(folder, names, self.lineage, len(centroids))
        self.device = choose_device(device, "--device", keeps_memory=False)  # a photograph may be large
        if self.crf is not None:
            require_gpu(self.crf.backend, self.device, str(refine))
            self._settled = self.crf
            if self.device.type == "cuda":
                self._settled = settle(self.crf, len(centroids), self.device)
        self.segmenter, self.centroids = place(segmenter, self.device), centroids.to(self.device)
        self.features = read_scored_features(folder.absolute().parent / PARAMS)
        self.size_px: int = about["size_px"]
        self.backbone: dict[str, Any] = about["backbone"]
        self.fingerprint = f"{sha256[:FINGERPRINT_DIGITS]}-{self.lineage.own}"

    def __call__(self, picture: np.ndarray) -> Segmentation:
        """Segment one RGB image of any size.

        Raises:
            ValueError: it is no such image.
        """
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"expected RGB uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
        return self.segment([picture])[0]

    def segment(self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Segmentation]:
        """Segment images that have one and the same `working_size`, in one batch."""
        size = self.working_size(pictures[0])
        images = torch.cat([_resize(picture, size, self.device) for picture in pictures])
        pixels = scored_pixels(self.segmenter, images, "float32", **self.features._asdict())
        scores = pixel_logits(pixels, self.centroids, self.segmenter.metric).permute(0, 3, 1, 2)
        found = []
        for picture, image, one in zip(pictures, images, scores, strict=True):
            if self.crf is None:
                found.append(self._at_full_size(one, picture.shape[:2], TEMPERATURE))
            else:
                found.append(self._at_full_size(self._refine(image, one), picture.shape[:2], None))
        return found

    def working_size(self, picture: UInt8[np.ndarray, "H W 3"]) -> tuple[int, int]:
        """(rows, columns) at which the network sees an image.

        The shorter side becomes `size_px`, the training size; both sides are rounded to multiples of the
        stride of the context grid. Panoramas are shrunk further, because the cost of the context module is
        quadratic in the grid size.
        """
        height, width = picture.shape[:2]
        step = self.segmenter.context_stride
        scale = min(self.size_px / min(height, width), LONGEST_SIDE * self.size_px / max(height, width))
        rows, columns = (max(1, round(side * scale / step)) * step for side in (height, width))
        return rows, columns

    def _refine(
        self, image: Float[Tensor, "3 h w"], scores: Float[Tensor, "K r c"]
    ) -> Float[Tensor, "K h w"]:
        """Marginals of the dense CRF at the working size, as stage `refine` computes them (4.4)."""
        assert self.crf is not None
        size = (image.shape[1], image.shape[2])
        upsampled = functional.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
        unary = probabilities(upsampled, self.crf.temperature)
        colours = (image * 255).round().byte().permute(1, 2, 0).contiguous()
        if self.device.type == "cuda" and self.crf.backend != "cpu":
            return exact_mean_field(colours, unary, self._settled)
        from stages.postprocessing.dense_crf import mean_field  # needs pydensecrf, and nothing else here does

        return torch.from_numpy(mean_field(colours.cpu().numpy(), unary.cpu().numpy(), self.crf))

    def _at_full_size(
        self, values: Float[Tensor, "K h w"], size: tuple[int, ...], temperature: float | None
    ) -> Segmentation:
        """Ids and confidence from scores, or from probabilities if `temperature` is None.

        Values are brought to full size band by band, so memory does not grow with clusters times pixels.
        """
        height, width = size
        merged = torch.from_numpy(self.legend.merged).to(values.device).long()
        has_merged = len(merged.unique()) < len(merged)
        begin, length = torch.zeros(1, device=values.device), torch.ones(1, device=values.device)
        rows, columns = (
            interpolation_matrix(begin, length, source, full)[0]
            for source, full in zip(values.shape[1:], (height, width), strict=True)
        )
        ids, confidence = np.empty((height, width), np.uint8), np.empty((height, width), np.float32)
        band = max(1, BAND_ELEMENTS // (len(values) * width))
        for start, part in zip(range(0, height, band), rows.split(band), strict=True):
            full = torch.einsum("bh,khw->kbw", part, values).flatten(0, 1) @ columns.T
            full = full.unflatten(0, (len(values), len(part)))
            highest, best = full.max(0)
            if temperature is None:
                likely = full
            else:
                likely = full.sub_(highest).div_(temperature).exp_()
                likely /= likely.sum(0)
            if has_merged:
                best = merged[best]
                likely = torch.zeros_like(likely).index_add_(0, merged, likely)
            likely = likely.gather(0, best[None])[0]
            ids[start : start + len(part)] = best.byte().cpu().numpy()
            confidence[start : start + len(part)] = likely.clamp(0, 1).cpu().numpy()
        return Segmentation(ids, self.legend.names, confidence)


def load(
    folder: Path | str = "models",
    *,
    device: str = "auto",
    names: Path | str | None = None,
    refine: Path | str | None = None,
) -> TrainedModel:
    """Load the trained model: `load("models")(picture).ids`.

    Arguments are those of `TrainedModel`; paths may be text.

    Raises:
        UserError: there is no such folder, or as of `TrainedModel`.
    """
    if not Path(folder).is_dir():
        remedy = "pass the folder of a trained model (`dvc repro` makes models)"
        raise UserError(f"{folder}: {no_folder(Path(folder))}; {remedy}")
    return TrainedModel(
        Path(folder),
        device=device,
        names=None if names is None else Path(names),
        refine=None if refine is None else Path(refine),
    )


def _read_refine(path: Path) -> Refine:
    """The CRF's settings.

    Raises:
        UserError: the file is missing or invalid, or has no CRF.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; --refine takes its settings from there: pass --params FILE")
    settings: Refine = load_params(path, "refine").refine
    if settings.backend == "none":
        raise UserError(
            f"{path}: refine.backend: none leaves no CRF for --refine; set auto, cpu, cuda or fused"
        )
    return settings


def _choose_legend(
    folder: Path, names: Path | None, clusters: Lineage, num_clusters: int
) -> tuple[ClusterLegend, str]:
    """Names and colors of the clusters, and where they are from.

    Raises:
        UserError: a file is invalid or of other clusters.
    """
    if names is not None:
        given = read_names(names, num_clusters=num_clusters, clusters=clusters, may_lack_clusters=True)
        return plain_legend(num_clusters, given), str(names)
    numbers = plain_legend(num_clusters, Names())
    path = folder.absolute().parent / REPORT_LEGEND
    if not path.is_file():
        return numbers, f"numbers: there is no {path}"
    legend = read_cluster_legend(path, clusters.own)
    return (numbers, f"numbers: {path} is of other clusters") if legend is None else (legend, str(path))


def _resize(
    picture: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], device: torch.device
) -> Float[Tensor, "1 3 h w"]:
    """`resample` of a whole image, with a band of rows in floating point at a time."""
    start, length = torch.zeros(1, device=device), torch.ones(1, device=device)
    columns = interpolation_matrix(start, length, picture.shape[1], size[1])[0]
    bands = torch.from_numpy(np.require(picture, requirements=["C", "W"])).split(
        max(1, BAND_ELEMENTS // (3 * picture.shape[1]))
    )
    narrow = [to_unit(band.to(device)[None]) @ columns.T for band in bands]
    return resample(torch.cat(narrow, dim=2), whole(1, device), size)
