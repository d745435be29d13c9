"""Alternates pixel clustering and training (3, 4.1): each epoch trains toward one clustering.

The paper fixes centers and assignments for an epoch. Instead of storing the assignment of every pixel
beforehand, a frozen copy of the network computes the same assignments batch by batch during training, unless
they are at hand because they were counted; the centers come from a bounded, seeded sample of pixels (ours).
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.backbone.batch_norm import split_batch_norms
from stages.core import distributed
from stages.core.device import compile_networks, torch_generator
from stages.core.graph import Wish, can_record, run_steps
from stages.core.optimizer_state import restore_optimizer
from stages.core.step import Drawn, Moment
from stages.imaging.batches import ImageSource
from stages.runtime.progress import warn
from stages.segmenter.network import Segmenter
from stages.settings.schema_train import Train
from stages.training.clusters import PixelClusterer
from stages.training.guidance import Guidance
from stages.training.health import SIGNS, Health
from stages.training.losses import ViewClusters, cluster_weights, pixel_shares
from stages.training.objective import Objective, Pass
from stages.training.siamese import Plan, Siamese

FIGURES = ("loss", "within", "cross", "image_loss", "image_accuracy", "guidance_weight", "guided_share")
MEASURED_IN = {"image_loss": "guided_share", "image_accuracy": "guided_share"}  # of batches with kept views


class Trainer:
    """Pixel-cluster training of one network, from any step to the end.

    Every random number depends only on (seed, epoch, step). A resumed run therefore gives the same bytes as
    an uninterrupted one, and several processes draw the same numbers as one.

    Args:
        segmenter: the network, on its device.
        settings: `train` of params.yaml.
        guidance: image loss and its views.
        pixel_k: number of pixel clusters per view while training.
        size_px: side of the network input.
        seed: seed of all random numbers.
        precision: precision of the forward passes.
        compiled: whether to use torch.compile.
        cuda_graph: `runtime.cuda_graph`.
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
        compiled: bool = False,
        cuda_graph: Wish = "auto",
    ) -> None:
        self._settings, self._guidance, self._pixel_k, self._seed = settings, guidance, pixel_k, seed
        self._siamese = Siamese(settings, size_px=size_px, precision=precision)
        self._clusterer = PixelClusterer(settings, self._siamese, pixel_k=pixel_k, seed=seed)
        split_batch_norms(segmenter.backbone, 1)
        self._segmenter = segmenter
        self._frozen = copy.deepcopy(segmenter).requires_grad_(False)
        if compiled:
            compile_networks([*segmenter.parts(), *self._frozen.parts()])
        self._device = next(segmenter.parameters()).device
        self._objective = distributed.replicate(
            Objective(segmenter, self._siamese, guidance, settings.pixel_loss)
        )
        is_captured = can_record(cuda_graph, self._device)
        groups = _parameter_groups(segmenter, settings)
        self._optimizer = torch.optim.Adam(groups, fused=True, capturable=is_captured)
        self._run = run_steps(
            self._compute, self.state_dict, self._device, wish=cuda_graph, warn=partial(warn, "train")
        )
        collapse_below = settings.clustering.collapse_below
        self._health = Health(pixel_k, collapse_below=collapse_below, device=self._device)
        self._clusters: list[ViewClusters] = []
        # Targets of a step that are known already; None on a GPU, where a captured step computes its own.
        self._kept: tuple[Int[Tensor, "N H W"], Int[Tensor, "N H W"]] | None = None

    def centroids(self) -> list[Float[Tensor, "K D"]]:
        """Centroids of the first and second view in the last epoch."""
        return [view.centroids for view in self._clusters]

    def names_of_epoch_figures(self) -> list[str]:
        """Keys of `epoch_figures`, in order."""
        held_out = ["held_out_accuracy"] if self._settings.image_loss.held_out else []
        return [*held_out, *SIGNS, *self._kernels()]

    def clusters(self) -> dict[str, Any]:
        """Pixel share of each cluster in the last epoch, and whether the clusters have collapsed."""
        return {"cluster_shares": self._health.cluster_shares(), "collapsed": self._health.is_collapsed()}

    def start_epoch(self, images: ImageSource, batches: Sequence[Int[Tensor, " N"]], epoch: int) -> None:
        """Freeze a copy of the network and cluster the pixels of both views (3).

        Args:
            images: all training images.
            batches: row indices of the epoch's batches, in order.
            epoch: epoch number, from 0.
        """
        self._frozen.load_state_dict(self._segmenter.state_dict())
        self._frozen.train()
        views = self._clusterer.cluster(self._frozen, images, batches, epoch)
        self._set_mode_of_frozen()
        centroids = [view.centroids.to(self._device) for view in views]
        counts, balance = [view.counts for view in views], self._settings.pixel_loss.balance
        self._health.start_epoch(counts, self._probe_maps(images, centroids[1]))
        if balance != "none" and self._settings.clustering.kmeans == "minibatch":
            counts = self._clusterer.count_all(self._frozen, images, batches, epoch, centroids)
        self._set_clusters(
            [
                ViewClusters(one, cluster_weights(sizes, balance))
                for one, sizes in zip(centroids, counts, strict=True)
            ]
        )

    def _set_clusters(self, clusters: Sequence[ViewClusters]) -> None:
        """Copy new clusters to where the last ones are, for a captured step reads them there."""
        if not self._clusters:
            self._clusters = [ViewClusters(*(part.to(self._device) for part in view)) for view in clusters]
            return
        for view, new in zip(self._clusters, clusters, strict=True):
            for part, value in zip(view, new, strict=True):
                part.copy_(value)

    def _set_mode_of_frozen(self) -> None:
        """Select batch or running batch-norm statistics for the assignment."""
        self._frozen.train(self._settings.clustering.assign_batch_norm == "batch")

    def _probe_maps(self, images: ImageSource, centroids: Float[Tensor, "K D"]) -> Int[Tensor, "N H W"]:
        """Cluster maps of one batch of probe images, the same in every epoch."""
        order = torch_generator(self._seed, "train", "probe")
        rows = torch.randperm(len(images), generator=order)[: self._settings.batch_size].sort().values
        (image,) = images.batches([distributed.share(rows)])
        return distributed.gather(self._clusterer.assign_images(self._frozen, image, centroids)).cpu()

    def train_step(
        self, image: Float[Tensor, "n 3 H W"], rows: Int[Tensor, " N"], epoch: int, step: int, num_steps: int
    ) -> Float[Tensor, " F"]:
        """Train on one batch.

        Args:
            image: this process's share of the batch.
            rows: data-set indices of the whole batch.
            epoch: epoch number, from 0.
            step: step within the epoch, from 0.
            num_steps: number of steps per epoch.

        Returns:
            `FIGURES` of this process's share.
        """
        drawn = self._draw(image.shape[2], rows, Moment(epoch, step, num_steps))
        self._kept = self._clusterer.kept_labels(step)
        return self._run(image, drawn)

    def _draw(self, stored_px: int, rows: Int[Tensor, " N"], moment: Moment) -> Drawn:
        """This process's share of the pair of views of a step, then all that guidance draws for it."""
        generator = torch_generator(self._seed, "train", "views", moment.epoch, moment.step)
        plan = self._siamese.views.draw_all(len(rows), stored_px, generator)
        passes = distributed.passes(len(rows) // distributed.world_size(), self._settings.micro_batch)
        return self._guidance.draw(rows, moment.epochs, generator, len(passes)).after(plan.share())

    def _compute(self, image: Float[Tensor, "n 3 H W"], drawn: Drawn) -> Float[Tensor, " F"]:
        """What the device does in a step; `drawn` is on the device, and all state changes in place."""
        maker, passes = self._siamese.views, distributed.passes(len(image), self._settings.micro_batch)
        parts = [(image[rows], Plan.of(drawn.numbers[0][:, rows])) for rows in passes]
        views = [maker.pair(*part) for part in parts]
        targets = [
            self._clusterer.assign(self._frozen, pair, self.centroids())
            if self._kept is None
            else (self._kept[0][rows], self._kept[1][rows])
            for rows, pair in zip(passes, views, strict=True)
        ]
        for pair in targets:
            self._health.add(*pair)
        shares = pixel_shares(targets, self._clusters)
        self._optimizer.zero_grad()
        figures = []
        for number, part in enumerate(parts):
            one = Pass(number, maker.trained(views[number], *part), targets[number], shares[number])
            with distributed.gradients_of(self._objective, is_last=number + 1 == len(passes)):
                loss, others = self._objective(one, self._clusters, image, drawn.without(1))
                loss.backward()
            figures.append(torch.stack([loss.detach(), *others]))
        self._optimizer.step()
        if self._segmenter.context is not None:
            self._segmenter.context.project_kernels()
        total = torch.stack(figures).sum(0)
        # Figures of the whole batch and not of a pass. The weight of guidance comes first in its numbers.
        is_guided = total.new_full((), float(drawn.phase[0]))
        return torch.cat([total, torch.stack([drawn.numbers[1], is_guided])])

    def epoch_figures(self, images: ImageSource) -> dict[str, float]:
        """Diagnostics after an epoch; logs a warning if the clusters have collapsed."""
        batch_size = self._settings.batch_size
        held_out = self._guidance.held_out_accuracy(self._segmenter, images, batch_size)
        own = {} if held_out is None else {"held_out_accuracy": held_out}
        self._health.warn()
        return {**own, **self._health.figures(), **self._kernels()}

    def _kernels(self) -> dict[str, float]:
        return {} if self._segmenter.context is None else self._segmenter.context.kernels()

    def state_dict(self) -> dict[str, Any]:
        """All state that the next step depends on."""
        return {
            "segmenter": self._segmenter.state_dict(),
            "frozen": self._frozen.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "clusters": [list(view) for view in self._clusters],
            "health": self._health.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Resume from a saved state."""
        self._clusterer.forget_labels()
        self._segmenter.load_state_dict(saved["segmenter"])
        self._frozen.load_state_dict(saved["frozen"])
        self._set_mode_of_frozen()
        restore_optimizer(self._optimizer, saved["optimizer"])
        self._set_clusters([ViewClusters(*view) for view in saved["clusters"]])
        self._health.load_state_dict(saved["health"])


def _parameter_groups(segmenter: Segmenter, settings: Train) -> list[dict[str, Any]]:
    """Give the five kernel parameters a learning rate of their own, because their logarithms change slowly.

    They have no weight decay, which would pull each bandwidth and weight toward 1.
    """
    learnt = [(name, value) for name, value in segmenter.named_parameters() if value.requires_grad]
    kernel = [value for name, value in learnt if name.endswith(".log_kernel")]
    others = [value for name, value in learnt if not name.endswith(".log_kernel")]
    lr, decay = settings.lr, settings.weight_decay
    groups: list[dict[str, Any]] = [{"params": others, "lr": lr, "weight_decay": decay}]
    if kernel:
        groups.append({"params": kernel, "lr": lr * settings.context.lr_factor, "weight_decay": 0.0})
    return groups
