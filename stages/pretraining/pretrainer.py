"""Self-supervised pretraining, from scratch or from a published checkpoint (4.1, 5.1)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from stages.backbone.trunk import Trunk
from stages.checkpoints.published import Published
from stages.core import distributed
from stages.core.device import compile_networks, place, torch_generator
from stages.core.graph import Wish, can_record, run_steps
from stages.core.optimizer_state import restore_optimizer
from stages.core.seeds import derive
from stages.core.step import Drawn, Moment
from stages.pretraining.figures import FeatureMoments, explain, find_faults, is_settled, summarise
from stages.pretraining.methods import build_method
from stages.pretraining.optimizer import build_optimizer, warmup_cosine
from stages.pretraining.views import Views
from stages.runtime.progress import warn
from stages.settings.errors import UserError
from stages.settings.schema_pretrain import Pretrain
from stages.settings.section import Backbone

FIGURES = ("loss", "instance_accuracy", "alignment", "uniformity")
EPOCH_FIGURES = ("effective_rank", "usage", "lr")


class Pretrainer:
    """Pretraining with one method on one data set, from any step to the end.

    Every random number depends only on (seed, epoch, step). A resumed run therefore gives the same bytes as
    an uninterrupted one, and several processes draw the same numbers as one.

    Attributes:
        settings: `pretrain` of params.yaml, for the method that this trains with.
    """

    def __init__(
        self,
        settings: Pretrain,
        backbone: Backbone,
        start: Published | None,
        *,
        num_images: int,
        seed: int,
        precision: str,
        device: torch.device,
        compiled: bool = False,
        cuda_graph: Wish = "auto",
    ) -> None:
        torch.manual_seed(derive(seed, "pretrain", "weights"))
        self.settings, self._seed, self._device = settings, seed, device
        method = build_method(
            settings, backbone, start, num_images=num_images, seed=seed, precision=precision
        )
        self._method = place(method, device)
        if compiled:
            compile_networks(self._method.networks())
        self._replicated = distributed.replicate(self._method)
        parameters = [value for value in method.parameters() if value.requires_grad]
        self._statistics = [value for name, value in method.named_buffers() if ".running_" in name]
        is_capturable = can_record(cuda_graph, device)
        if is_capturable and not method.has_fixed_shape(settings.batch_size):
            if cuda_graph is True:
                raise UserError(f"params.yaml: runtime.cuda_graph: true: {method.VARIES}; set it to auto")
            cuda_graph = is_capturable = False
        self._optimizer = build_optimizer(settings, parameters, is_capturable=is_capturable)
        self._run = run_steps(
            self._compute, self.state_dict, device, wish=cuda_graph, warn=partial(warn, "pretrain")
        )
        self._lr = torch.zeros((), device=device)  # on the device, where each step sets it
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr
        self._faults: list[str] = []
        self._moments = FeatureMoments(self.backbone.channels[-1], device)

    @property
    def backbone(self) -> Trunk:
        """The pretrained trunk."""
        return self._method.backbone

    @property
    def heads(self) -> dict[str, Tensor]:
        """The trained heads that later stages may use, by name."""
        return self._method.heads()

    def train_step(
        self, image: Float[Tensor, "n 3 H W"], epoch: int, step: int, num_steps: int
    ) -> Float[Tensor, " F"]:
        """Train on one batch.

        Args:
            image: this process's share of the batch.
            epoch: epoch number, from 0.
            step: step within the epoch, from 0.
            num_steps: number of steps per epoch.

        Returns:
            `FIGURES` of this process's share.
        """
        drawn = self._draw(len(image), Moment(epoch, step, num_steps))
        return self._run(image, drawn)

    def _draw(self, num_images: int, moment: Moment) -> Drawn:
        """The learning rate of a step, then all that the method draws for it."""
        generator = torch_generator(self._seed, "pretrain", "views", moment.epoch, moment.step)
        views = Views(self.settings.photometric, self.settings.crop_aspect, generator)
        drawn = self._method.draw(views, num_images, moment)
        return drawn.after(torch.tensor(self.settings.lr * self._lr_factor(moment)))

    def _compute(self, image: Float[Tensor, "n 3 H W"], drawn: Drawn) -> Float[Tensor, " F"]:
        """What the device does in a step; `drawn` is on the device, and all state changes in place."""
        self._lr.copy_(drawn.numbers[0])
        self._optimizer.zero_grad()
        figures, feature = self._propagate(image, drawn.without(1))
        self._optimizer.step()
        self._method.after_step()
        distributed.average_(self._statistics)  # each process has seen different groups
        self._moments.add(distributed.gather(feature))
        return figures

    def _propagate(
        self, image: Float[Tensor, "n 3 H W"], drawn: Drawn
    ) -> tuple[Float[Tensor, " F"], Float[Tensor, "n C"]]:
        """Compute the gradients of a batch in passes of the same size; return figures and features."""
        passes = distributed.passes(len(image), self.settings.micro_batch)
        if len(passes) == 1:
            measured = self._replicated(image, drawn)
            measured.loss.backward()
            return torch.stack(measured[: len(FIGURES)]), measured.feature
        targets = self._method.targets(image, drawn)
        figures, features = [], []
        for rows in passes:
            with distributed.gradients_of(self._replicated, is_last=rows is passes[-1]):
                measured = self._replicated(image, drawn, rows, targets)
                (measured.loss / len(passes)).backward()
            figures.append(torch.stack(measured[: len(FIGURES)]).detach())
            features.append(measured.feature)
        return torch.stack(figures).mean(0), torch.cat(features)

    def warn(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Log a warning for each fault in the epoch in which it begins.

        Args:
            epoch: number of completed epochs.
            figures: figures of the last epoch.
        """
        expected = self._method.expected
        faults = find_faults(figures, expected) if is_settled(epoch, self.settings) else []
        for fault in faults:
            if fault not in self._faults:
                warn("pretrain", explain(fault, figures, expected, self.settings.method))
        self._faults = faults

    def summary(self, history: pd.DataFrame) -> dict[str, Any]:
        """Summary of the whole run."""
        return summarise(history, self.settings, self._method.expected)

    def epoch_figures(self) -> dict[str, float]:
        """`EPOCH_FIGURES`; resets their accumulators."""
        rank, usage = self._moments.effective_rank(), self._method.take_usage()
        self._moments.reset()
        return {"effective_rank": rank, "usage": usage, "lr": float(self._lr)}

    def _lr_factor(self, moment: Moment) -> float:
        return warmup_cosine(
            moment.steps,
            total_steps=self.settings.epochs * moment.num_steps,
            warmup_steps=round(self.settings.warmup_epochs * moment.num_steps),
        )

    def state_dict(self) -> dict[str, Any]:
        """All state that the next step depends on."""
        return {
            "method": self._method.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "moments": self._moments.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Resume from a saved state."""
        self._method.load_state_dict(saved["method"])
        restore_optimizer(self._optimizer, saved["optimizer"])
        self._moments.load_state_dict(saved["moments"])
