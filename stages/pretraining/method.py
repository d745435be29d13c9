"""What every method of pretraining offers to the Pretrainer, so that it need not know which one it has."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from stages.backbone.trunk import Trunk
from stages.core.step import Drawn, Moment
from stages.pretraining.figures import Expected
from stages.pretraining.views import Views


class Method(nn.Module, ABC):
    """The networks of a method, and all else that its next step depends on.

    Called with the images of this process and what `draw` has drawn, it gives `Measured`. One that trains in
    passes is called with the rows of a pass and the `targets` of the batch as well.

    Attributes:
        VARIES: why its steps may differ in shape; '' if they never do.
    """

    VARIES = ""

    @property
    @abstractmethod
    def backbone(self) -> Trunk:
        """The trunk that later stages get."""

    @property
    @abstractmethod
    def expected(self) -> Expected:
        """What the figures are compared with."""

    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks to compile."""

    def has_fixed_shape(self, num_images: int) -> bool:
        """Whether all steps have the same shape, so that they can be a CUDA graph; see `VARIES`.

        Args:
            num_images: of a batch.
        """
        return True

    @abstractmethod
    def draw(self, views: Views, num_images: int, moment: Moment) -> Drawn:
        """All that is random in a step, or depends on its moment.

        Args:
            views: draws them.
            num_images: of this process's share.
            moment: of the step.
        """

    def targets(self, image: Float[Tensor, "n 3 H W"], drawn: Drawn) -> Any:
        """What passes of parts of a batch learn from, computed from the whole of it.

        A method without them takes each batch at once; the schema refuses `pretrain.micro_batch` with it.
        """
        raise NotImplementedError

    @abstractmethod
    def after_step(self) -> None:
        """Update what the optimizer does not: slow networks, queues, centres."""

    @abstractmethod
    def take_usage(self) -> float:
        """Effective share of the queue or the prototypes that was in use since the last call."""

    @abstractmethod
    def heads(self) -> dict[str, Tensor]:
        """The trained heads that later stages may use, by name."""
