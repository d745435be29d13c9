"""Pixel clustering and training in turn (3, 4.1): one clustering, then one epoch towards it.

The paper fixes centres and assignments for an epoch. Instead of writing an assignment for every pixel
of the data set beforehand, a frozen copy of the network gives the same ones batch by batch while its
successor trains; the centres come from a bounded, seeded sample of pixels (ours).
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stages.clustering.agreement import effective_clusters
from stages.clustering.kmeans import spherical_kmeans
from stages.imaging.resample import Boxes, resample
from stages.imaging.source import ImageSource, shuffled
from stages.runtime.device import autocast
from stages.runtime.errors import UserError
from stages.runtime.generators import torch_generator
from stages.runtime.progress import say, track
from stages.runtime.schema import Train
from stages.runtime.seeds import faiss_seed
from stages.runtime.state import StageState
from stages.segmentation.losses import (
    ViewClusters,
    assign_pixels,
    cluster_weights,
    guidance_loss,
    siamese_loss,
)
from stages.segmentation.network import Segmenter
from stages.segmentation.views import Pair, draw_guides, draw_pair, guide_view

FIGURES = ("loss", "within", "cross", "image_loss", "image_accuracy")


class Training:
    """Pixel-cluster training of one network, from any step to the end.

    Every random number follows from (seed, epoch, step), so a run that went on from a saved state ends
    with the same bytes as one that was never interrupted.

    Args:
        segmenter: the network, on its device.
        settings: `train` of params.yaml.
        pixel_k: clusters of pixels in each view.
        crop_ratio: of the pyramid views.
        size_px: side of the image that the network sees.
        seed: of everything random.
        precision: of the forward passes.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        settings: Train,
        *,
        pixel_k: int,
        crop_ratio: float,
        size_px: int,
        seed: int,
        precision: str,
    ) -> None:
        self._settings, self._pixel_k, self._crop_ratio = settings, pixel_k, crop_ratio
        self._size_px, self._seed, self._precision = size_px, seed, precision
        self._segmenter = segmenter
        self._frozen = copy.deepcopy(segmenter).requires_grad_(False)
        self._device = next(segmenter.parameters()).device
        self._optimizer = torch.optim.Adam(
            _parameter_groups(segmenter, settings), weight_decay=settings.weight_decay
        )
        self._clusters: list[ViewClusters] = []
        self._epoch = self._step = 0
        self._effective_clusters = 0.0
        self._sums = torch.zeros(len(FIGURES), device=self._device)
        self._history: list[dict[str, float]] = []

    def run(self, images: ImageSource, kept_views: Int[Tensor, "N V"], state: StageState) -> pd.DataFrame:
        """Train to the last epoch.

        Args:
            images: all training images.
            kept_views: pseudo-label of each kept view, -1 elsewhere.
            state: where to go on from, and where to save to.

        Returns:
            One row of figures for each epoch.

        Raises:
            UserError: the loss is no longer a number.
        """
        if saved := state.load():
            self._restore(saved)
        while self._epoch < self._settings.epochs:
            if self._step == 0:
                self._start_epoch(images)
            self._run_epoch(images, kept_views, state)
        return pd.DataFrame(self._history, columns=["epoch", *FIGURES, "effective_clusters"])

    def _start_epoch(self, images: ImageSource) -> None:
        """Freeze the network and cluster a sample of both views' pixels, each view on its own."""
        self._frozen.load_state_dict(self._segmenter.state_dict())
        self._frozen.train()
        samples = self._sample_pixels(images)
        clustered = [self._cluster_view(sample, view) for view, sample in enumerate(samples)]
        self._clusters = [clusters for clusters, _ in clustered]
        self._effective_clusters = min(effective for _, effective in clustered)

    @torch.no_grad()
    def _sample_pixels(self, images: ImageSource) -> tuple[Float[Tensor, "P D"], Float[Tensor, "P D"]]:
        clustering, size = self._settings.clustering, self._settings.batch_size
        num_images = max(size, min(clustering.sample_images, len(images)) // size * size)
        per_image = max(1, clustering.sample_pixels // num_images)
        order = torch_generator(self._seed, "train", "sample", self._epoch)
        batches = shuffled(len(images), size, order)[: num_images // size]
        taken: tuple[list[Tensor], list[Tensor]] = ([], [])
        for step, image in enumerate(
            track(
                images.batches(batches), f"cluster epoch {self._epoch + 1}", total=len(batches), unit="batch"
            )
        ):
            generator = torch_generator(self._seed, "train", "sample", self._epoch, step)
            for pixels, feature in zip(
                taken, self._frozen_features(self._draw_pair(image, generator)), strict=True
            ):
                flat = feature.flatten(2)
                count = min(per_image, flat.shape[2])
                places = torch.rand(len(flat), flat.shape[2], generator=generator).topk(count).indices
                chosen = flat.gather(2, places.to(flat.device)[:, None].expand(-1, flat.shape[1], -1))
                pixels.append(chosen.transpose(1, 2).flatten(0, 1).cpu())
        return torch.cat(taken[0]), torch.cat(taken[1])

    def _cluster_view(self, pixels: Float[Tensor, "P D"], view: int) -> tuple[ViewClusters, float]:
        """The clusters of one view, and how many of them are really used."""
        clustering = self._settings.clustering
        centroids = torch.from_numpy(
            spherical_kmeans(
                pixels.numpy(),
                self._pixel_k,
                iterations=clustering.iterations,
                restarts=clustering.restarts,
                seed=faiss_seed(self._seed, "train", "kmeans", self._epoch, view),
                device=self._device,
            )
        )
        assignment = (pixels @ centroids.T).argmax(1)
        weight = cluster_weights(assignment, self._pixel_k, self._settings.pixel_loss.balance)
        clusters = ViewClusters(centroids.to(self._device), weight.to(self._device))
        return clusters, effective_clusters(assignment.numpy())

    def _run_epoch(self, images: ImageSource, kept_views: Int[Tensor, "N V"], state: StageState) -> None:
        order = torch_generator(self._seed, "train", "order", self._epoch)
        batches = shuffled(len(images), self._settings.batch_size, order)
        remaining = batches[self._step :]
        self._segmenter.train()
        progress = track(
            images.batches(remaining), f"train epoch {self._epoch + 1}", total=len(remaining), unit="batch"
        )
        for rows, image in zip(remaining, progress, strict=True):
            self._sums += self._train_step(image, kept_views[rows])
            self._step += 1
            if state.is_due() and self._step < len(batches):
                state.save(self._saved())
        self._end_epoch(len(batches))

    def _end_epoch(self, num_steps: int) -> None:
        if not torch.isfinite(self._sums).all():
            raise UserError(f"train: the loss is not a number after epoch {self._epoch + 1}; lower train.lr")
        figures = dict(zip(FIGURES, (self._sums / num_steps).tolist(), strict=True))
        self._epoch, self._step = self._epoch + 1, 0
        self._sums.zero_()
        figures["effective_clusters"] = self._effective_clusters
        self._history.append({"epoch": self._epoch, **figures})
        say("train", epoch=f"{self._epoch}/{self._settings.epochs}", **figures)

    def _train_step(self, image: Float[Tensor, "N 3 H W"], kept: Int[Tensor, "N V"]) -> Float[Tensor, " F"]:
        generator = torch_generator(self._seed, "train", "views", self._epoch, self._step)
        pair = self._draw_pair(image, generator)
        with torch.no_grad():
            first, second = self._frozen_features(pair)
            targets = (
                assign_pixels(first, self._clusters[0].centroids),
                assign_pixels(second, self._clusters[1].centroids),
            )
        features = self._features(self._segmenter, pair)
        settings = self._settings.pixel_loss
        pixel, within, cross = siamese_loss(
            features,
            targets,
            (self._clusters[0], self._clusters[1]),
            temperature=settings.temperature,
            cross_weight=settings.cross_weight,
        )
        image_loss, accuracy = self._guide(image, kept, generator)
        loss = pixel + self._settings.image_loss.weight * image_loss  # Eq. 5
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return torch.stack([loss, within, cross, image_loss, accuracy]).detach()

    def _guide(
        self, image: Float[Tensor, "N 3 H W"], kept: Int[Tensor, "N V"], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """L_img and the head's accuracy on one kept view of each image; zeros without any."""
        rows, view = draw_guides(kept, generator)
        zero = torch.zeros((), device=self._device)
        if self._segmenter.image_head is None or len(rows) < 2:  # batch norm needs two
            return zero, zero
        guides = guide_view(
            image[rows.to(self._device)],
            view,
            crop_ratio=self._crop_ratio,
            size_px=self._settings.image_loss.view_px,
            strengths=self._settings.photometric,
            generator=generator,
        )
        with autocast(self._device, self._precision):
            logits = self._segmenter.classify(guides)
        return guidance_loss(logits, kept[rows, view].long().to(self._device))

    def _draw_pair(self, image: Float[Tensor, "N 3 H W"], generator: torch.Generator) -> Pair:
        low, high = self._settings.crop_side
        return draw_pair(
            image,
            side=(low, high),
            flip_probability=self._settings.flip_probability,
            size_px=self._size_px,
            strengths=self._settings.photometric,
            generator=generator,
        )

    def _frozen_features(self, pair: Pair) -> tuple[Float[Tensor, "N D H W"], Float[Tensor, "N D H W"]]:
        return self._features(self._frozen, pair)

    def _features(
        self, network: Segmenter, pair: Pair
    ) -> tuple[Float[Tensor, "N D H W"], Float[Tensor, "N D H W"]]:
        """Unit features of the same pixels by way of both views."""
        with autocast(self._device, self._precision):
            first, second = network.feature_map(pair.cut), network.feature_map(pair.uncut)
        return F.normalize(first.float(), dim=1), F.normalize(_cut(second.float(), pair.boxes), dim=1)

    def _saved(self) -> dict[str, Any]:
        return {
            "segmenter": self._segmenter.state_dict(),
            "frozen": self._frozen.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "clusters": [list(view) for view in self._clusters],
            "epoch": self._epoch,
            "step": self._step,
            "effective_clusters": self._effective_clusters,
            "sums": self._sums,
            "history": self._history,
        }

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self._segmenter.load_state_dict(saved["segmenter"])
        self._frozen.load_state_dict(saved["frozen"])
        self._frozen.train()
        self._optimizer.load_state_dict(saved["optimizer"])
        self._clusters = [
            ViewClusters(*(part.to(self._device) for part in view)) for view in saved["clusters"]
        ]
        self._epoch, self._step = saved["epoch"], saved["step"]
        self._effective_clusters = saved["effective_clusters"]
        self._sums = saved["sums"].to(self._device)
        self._history = saved["history"]


def _cut(feature: Float[Tensor, "N D H W"], boxes: Boxes) -> Float[Tensor, "N D H W"]:
    return resample(feature, boxes, (feature.shape[2], feature.shape[3]))


def _parameter_groups(segmenter: Segmenter, settings: Train) -> list[dict[str, Any]]:
    """The five kernel parameters have a rate of their own: few steps have to move their logarithms."""
    kernel = [value for name, value in segmenter.named_parameters() if ".log_kernel." in name]
    others = [value for name, value in segmenter.named_parameters() if ".log_kernel." not in name]
    groups: list[dict[str, Any]] = [{"params": others, "lr": settings.lr}]
    return [*groups, {"params": kernel, "lr": settings.lr * settings.context.lr_factor}] if kernel else groups


def as_tensor(kept_views: Int[np.ndarray, "N V"]) -> Int[Tensor, "N V"]:
    """The kept views as PyTorch takes them."""
    return torch.from_numpy(kept_views.astype(np.int64))
