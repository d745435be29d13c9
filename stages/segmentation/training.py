"""Pixel clustering and training in turn (3, 4.1): one clustering, then one epoch towards it.

The paper fixes centres and assignments for an epoch. Instead of writing an assignment for every pixel
of the data set beforehand, a frozen copy of the network gives the same ones batch by batch while its
successor trains; the centres come from a bounded, seeded sample of pixels (ours).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.imaging.source import ImageSource, shuffled
from stages.runtime.errors import UserError
from stages.runtime.generators import torch_generator
from stages.runtime.progress import say, track
from stages.runtime.schema import Train
from stages.runtime.state import StageState
from stages.segmentation.assignments import FrozenAssignments, StoredAssignments
from stages.segmentation.clusters import PixelClusterer
from stages.segmentation.guidance import Guidance
from stages.segmentation.health import Health
from stages.segmentation.losses import ViewClusters, cluster_weights, siamese_loss
from stages.segmentation.network import Segmenter
from stages.segmentation.siamese import Siamese

FIGURES = ("loss", "within", "cross", "image_loss", "image_accuracy")


class Training:
    """Pixel-cluster training of one network, from any step to the end.

    Every random number follows from (seed, epoch, step), so a run that went on from a saved state ends
    with the same bytes as one that was never interrupted.

    Args:
        segmenter: the network, on its device.
        settings: `train` of params.yaml.
        guidance: the image loss and its views.
        pixel_k: clusters of pixels in each view.
        size_px: side of the image that the network sees.
        seed: of everything random.
        precision: of the forward passes.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        settings: Train,
        guidance: Guidance,
        *,
        pixel_k: int,
        size_px: int,
        seed: int,
        precision: str,
    ) -> None:
        self._settings, self._guidance, self._pixel_k, self._seed = settings, guidance, pixel_k, seed
        self._siamese = Siamese(settings, size_px=size_px, precision=precision)
        self._clusterer = PixelClusterer(settings, self._siamese, pixel_k=pixel_k, seed=seed)
        self._segmenter = segmenter
        self._frozen = copy.deepcopy(segmenter).requires_grad_(False)
        self._device = next(segmenter.parameters()).device
        self._optimizer = torch.optim.Adam(
            _parameter_groups(segmenter, settings), weight_decay=settings.weight_decay
        )
        self._health = Health(pixel_k, collapse_below=settings.clustering.collapse_below, device=self._device)
        self._clusters: list[ViewClusters] = []
        self._epoch = self._step = 0
        self._sums = torch.zeros(len(FIGURES), device=self._device)
        self._history: list[dict[str, float]] = []

    def run(self, images: ImageSource, state: StageState) -> pd.DataFrame:
        """Train to the last epoch.

        Args:
            images: all training images.
            state: where to go on from, and where to save to.

        Returns:
            One row of figures for each epoch.

        Raises:
            UserError: the loss is no longer a number.
        """
        if saved := state.load():
            self._restore(saved)
        while self._epoch < self._settings.epochs:
            self._run_epoch(images, state)
        return pd.DataFrame(self._history)

    def clusters(self) -> dict[str, Any]:
        """Of the last epoch: each cluster's share of pixels, and whether they collapsed."""
        return {"cluster_shares": self._health.cluster_shares(), "collapsed": self._health.is_collapsed()}

    def _run_epoch(self, images: ImageSource, state: StageState) -> None:
        order = torch_generator(self._seed, "train", "order", self._epoch)
        batches = shuffled(len(images), self._settings.batch_size, order)
        assignments = self._start_epoch(images, batches)
        self._segmenter.train()
        remaining = batches[self._step :]
        progress = track(
            images.batches(remaining), f"train epoch {self._epoch + 1}", total=len(remaining), unit="batch"
        )
        for rows, image in zip(remaining, progress, strict=True):
            epochs = self._epoch + self._step / len(batches)
            self._sums += self._train_step(image, rows, assignments, self._guidance.loss_weight(epochs))
            self._step += 1
            if state.is_due() and self._step < len(batches):
                state.save(self._saved())
        self._end_epoch(images, len(batches))

    def _start_epoch(
        self, images: ImageSource, batches: Sequence[Tensor]
    ) -> FrozenAssignments | StoredAssignments:
        """Freeze the network and cluster both views' pixels, unless the epoch goes on from a saved state."""
        clustering, is_new = self._settings.clustering, self._step == 0
        if is_new:
            self._frozen.load_state_dict(self._segmenter.state_dict())
            self._frozen.train()
            views = self._clusterer.cluster(self._frozen, images, batches, self._epoch)
            self._set_clusters([view.centroids for view in views], [view.counts for view in views])
        self._frozen.train(clustering.assign_batch_norm == "batch")
        centroids = (self._clusters[0].centroids, self._clusters[1].centroids)
        frozen = FrozenAssignments(self._frozen, self._siamese, centroids, clustering.assign)
        if is_new:
            self._health.start_epoch([view.counts for view in views], self._probe_pixels(images, frozen))
        if clustering.schedule == "frozen_copy":
            return frozen
        stored = StoredAssignments(frozen, self._siamese, images, batches, seed=self._seed, epoch=self._epoch)
        self._set_clusters(centroids, stored.counts(self._pixel_k))
        return stored

    def _set_clusters(
        self, centroids: Sequence[Float[Tensor, "K D"]], counts: Sequence[Int[Tensor, " K"]]
    ) -> None:
        balance = self._settings.pixel_loss.balance
        self._clusters = [
            ViewClusters(one.to(self._device), cluster_weights(sizes, balance).to(self._device))
            for one, sizes in zip(centroids, counts, strict=True)
        ]

    @torch.no_grad()
    def _probe_pixels(self, images: ImageSource, assignments: FrozenAssignments) -> Int[Tensor, " P"]:
        """Clusters of the pixels of one batch, the same in every epoch."""
        order = torch_generator(self._seed, "train", "probe")
        rows = torch.randperm(len(images), generator=order)[: self._settings.batch_size].sort().values
        (image,) = images.batches([rows])
        return assignments.of_images(image).flatten().cpu()

    def _train_step(
        self,
        image: Float[Tensor, "N 3 H W"],
        rows: Int[Tensor, " N"],
        assignments: FrozenAssignments | StoredAssignments,
        image_weight: float,
    ) -> Float[Tensor, " F"]:
        generator = torch_generator(self._seed, "train", "views", self._epoch, self._step)
        plan = self._siamese.views.draw(image, generator)
        views = (
            self._siamese.views.render(image, plan, 0),
            self._siamese.views.render(image, plan, 1),
        )
        targets = assignments.targets(views, self._step)
        self._health.add(*targets)
        first, second = (self._siamese.features(self._segmenter, view) for view in views)
        settings = self._settings.pixel_loss
        pixel, within, cross = siamese_loss(
            (first.pixels, second.pixels),
            targets,
            (self._clusters[0], self._clusters[1]),
            temperature=settings.temperature,
            cross_weight=settings.cross_weight,
            metric=settings.metric,
        )
        image_loss, accuracy = self._guidance.loss(self._segmenter, image, rows, second.whole_map, generator)
        loss = pixel + image_weight * image_loss  # Eq. 5
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return torch.stack([loss, within, cross, image_loss, accuracy]).detach()

    def _end_epoch(self, images: ImageSource, num_steps: int) -> None:
        if not torch.isfinite(self._sums).all():
            raise UserError(f"train: the loss is not a number after epoch {self._epoch + 1}; lower train.lr")
        self._epoch, self._step = self._epoch + 1, 0
        figures = dict(zip(FIGURES, (self._sums / num_steps).tolist(), strict=True))
        held_out = self._guidance.held_out_accuracy(self._segmenter, images, self._settings.batch_size)
        if held_out is not None:
            figures["held_out_accuracy"] = held_out
        figures |= self._health.figures()
        say("train", epoch=f"{self._epoch}/{self._settings.epochs}", **figures)
        self._health.warn()
        if self._segmenter.context is not None:
            figures |= self._segmenter.context.kernels()
        self._history.append({"epoch": self._epoch, **figures})
        self._sums.zero_()

    def _saved(self) -> dict[str, Any]:
        return {
            "segmenter": self._segmenter.state_dict(),
            "frozen": self._frozen.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "clusters": [list(view) for view in self._clusters],
            "epoch": self._epoch,
            "step": self._step,
            "sums": self._sums,
            "health": self._health.saved(),
            "history": self._history,
        }

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self._segmenter.load_state_dict(saved["segmenter"])
        self._frozen.load_state_dict(saved["frozen"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._clusters = [
            ViewClusters(*(part.to(self._device) for part in view)) for view in saved["clusters"]
        ]
        self._epoch, self._step = saved["epoch"], saved["step"]
        self._sums = saved["sums"].to(self._device)
        self._health.restore(saved["health"])
        self._history = saved["history"]


def _parameter_groups(segmenter: Segmenter, settings: Train) -> list[dict[str, Any]]:
    """The five kernel parameters have a rate of their own: few steps have to move their logarithms."""
    learnt = [(name, value) for name, value in segmenter.named_parameters() if value.requires_grad]
    kernel = [value for name, value in learnt if ".log_kernel." in name]
    others = [value for name, value in learnt if ".log_kernel." not in name]
    groups: list[dict[str, Any]] = [{"params": others, "lr": settings.lr}]
    return [*groups, {"params": kernel, "lr": settings.lr * settings.context.lr_factor}] if kernel else groups
