"""Instance-level self-supervised pretraining, from scratch or from a published checkpoint (4.1, 5.1)."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from stages.contrast.moco import Encoder, MoCo, alignment, info_nce, uniformity
from stages.contrast.schedule import warmup_cosine
from stages.contrast.views import random_view
from stages.imaging.source import ImageSource, shuffled
from stages.nets.checkpoint import build_backbone, describe
from stages.nets.published import Published
from stages.nets.trunk import Trunk
from stages.runtime.device import autocast, place
from stages.runtime.errors import UserError
from stages.runtime.generators import torch_generator
from stages.runtime.progress import say, track
from stages.runtime.schema import Backbone, Pretrain
from stages.runtime.seeds import derive
from stages.runtime.state import StageState

FIGURES = ("loss", "instance_accuracy", "alignment", "uniformity")


class Pretraining:
    """MoCo v2 on one data set, from any step to the end.

    Every random number follows from (seed, epoch, step), so a run that went on from a saved state ends
    with the same bytes as one that was never interrupted.
    """

    def __init__(
        self,
        settings: Pretrain,
        backbone: Backbone,
        start: Published | None,
        *,
        seed: int,
        precision: str,
        device: torch.device,
    ) -> None:
        torch.manual_seed(derive(seed, "pretrain", "weights"))
        self._settings, self._seed, self._precision, self._device = settings, seed, precision, device
        encoder = Encoder(
            build_backbone(describe(backbone)),
            settings.projection_dim,
            head_batch_norm=settings.head_batch_norm,
        )
        if start is not None:
            start.fill(encoder.backbone)
            say("pretrain", projection_of_checkpoint=start.fill_head("projection", encoder.head))
        moco = MoCo(
            encoder,
            queue_size=settings.queue_size,
            projection_dim=settings.projection_dim,
            key_momentum=settings.key_momentum,
            bn_splits=settings.bn_splits,
            generator=torch_generator(seed, "pretrain", "queue"),
        )
        self._moco = place(moco, device)
        self._optimizer = _optimizer(settings, list(encoder.parameters()))
        self._epoch = self._step = 0
        self._sums = torch.zeros(len(FIGURES), device=device)
        self._history: list[dict[str, float]] = []

    def run(self, images: ImageSource, state: StageState) -> tuple[Trunk, pd.DataFrame]:
        """Train to the last epoch.

        Returns:
            The backbone of the query encoder, and one row of figures for each epoch.

        Raises:
            UserError: the loss is no longer a number.
        """
        if saved := state.load():
            self._restore(saved)
        while self._epoch < self._settings.epochs:
            self._run_epoch(images, state)
        self._moco.eval()
        return self._moco.query_encoder.backbone, pd.DataFrame(
            self._history, columns=["epoch", *FIGURES, "lr"]
        )

    def _run_epoch(self, images: ImageSource, state: StageState) -> None:
        order = torch_generator(self._seed, "pretrain", "order", self._epoch)
        batches = shuffled(len(images), self._settings.batch_size, order)
        num_steps, first = len(batches), self._step
        source = images.batches(batches[first:])
        for batch in track(
            source, f"pretrain epoch {self._epoch + 1}", total=num_steps - first, unit="batch"
        ):
            lr = self._set_lr(self._epoch * num_steps + self._step, num_steps)
            self._sums += self._train_step(batch)
            self._step += 1
            if state.is_due() and self._step < num_steps:
                state.save(self._saved())
        figures = dict(zip(FIGURES, (self._sums / num_steps).tolist(), strict=True))
        if not torch.isfinite(self._sums).all():
            raise UserError(
                f"pretrain: the loss is not a number after epoch {self._epoch + 1}; lower pretrain.lr"
            )
        self._epoch, self._step = self._epoch + 1, 0
        self._sums.zero_()
        self._history.append({"epoch": self._epoch, **figures, "lr": lr})
        say("pretrain", epoch=f"{self._epoch}/{self._settings.epochs}", **figures)

    def _train_step(self, image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " F"]:
        generator = torch_generator(self._seed, "pretrain", "views", self._epoch, self._step)
        first, second = (self._view(image, generator) for _ in range(2))
        order = torch.randperm(len(image), generator=generator).to(self._device)
        loss, accuracy, query, key = self._recognise(first, second, order)
        if self._settings.symmetric:
            swapped_loss, swapped_accuracy, _, _ = self._recognise(second, first, order)
            loss, accuracy = (loss + swapped_loss) / 2, (accuracy + swapped_accuracy) / 2
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._moco.update_key_encoder()
        self._moco.enqueue(key)
        return torch.stack([loss.detach(), accuracy, alignment(query, key), uniformity(key)])

    def _recognise(
        self, queried: Float[Tensor, "N 3 S S"], keyed: Float[Tensor, "N 3 S S"], order: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss and accuracy of one view's queries against the other's keys, then both embeddings."""
        with autocast(self._device, self._precision):
            query, key = self._moco.queries(queried), self._moco.keys(keyed, order)
        loss, accuracy = info_nce(
            query,
            key,
            self._moco.queue,
            self._settings.temperature,
            batch_negatives=self._settings.batch_negatives,
        )
        return loss, accuracy, query.detach(), key

    def _view(self, image: Float[Tensor, "N 3 H W"], generator: torch.Generator) -> Float[Tensor, "N 3 S S"]:
        low, high = self._settings.crop_area
        return random_view(
            image,
            area=(low, high),
            strengths=self._settings.photometric,
            size_px=self._settings.image_px,
            generator=generator,
        )

    def _set_lr(self, step: int, steps_per_epoch: int) -> float:
        factor = warmup_cosine(
            step,
            total_steps=self._settings.epochs * steps_per_epoch,
            warmup_steps=round(self._settings.warmup_epochs * steps_per_epoch),
        )
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.lr * factor
        return self._settings.lr * factor

    def _saved(self) -> dict[str, Any]:
        return {
            "moco": self._moco.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "epoch": self._epoch,
            "step": self._step,
            "sums": self._sums,
            "history": self._history,
        }

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self._moco.load_state_dict(saved["moco"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._epoch, self._step = saved["epoch"], saved["step"]
        self._sums = saved["sums"].to(self._device)
        self._history = saved["history"]


def _optimizer(settings: Pretrain, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Weight decay holds back the weights alone, not biases and batch norms (ours)."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=settings.lr)
