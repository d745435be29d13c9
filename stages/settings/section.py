"""Building blocks of the schema: types with a range, and sections used by several stages."""

import shlex
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
DEVICE_NAMES = "auto, cpu, cuda or cuda:<index>"


def one_fault(text: str) -> WrapValidator:
    """Say in plain words what a value must be, where pydantic quotes a pattern or has a fault for each type.

    Args:
        text: what the value must be.
    """

    def either(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:
            raise PydanticCustomError("either", text) from None

    return WrapValidator(either)


def low_first(bounds: list[float]) -> list[float]:
    """Check that the bounds of a range are in order.

    Raises:
        ValueError: they are not.
    """
    if bounds[0] > bounds[1]:
        raise ValueError("low is above high")
    return bounds


Count = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
FractionRange = Annotated[
    list[PositiveFraction],
    Field(min_length=2, max_length=2),
    AfterValidator(low_first),
    one_fault("must be [low, high], each > 0 and <= 1"),
]
Range = Annotated[
    list[NonNegative],
    Field(min_length=2, max_length=2),
    AfterValidator(low_first),
    one_fault("must be [low, high], each >= 0"),
]
Device = Annotated[str, Field(pattern=DEVICE), one_fault(f"must be {DEVICE_NAMES}")]
Sha256 = Annotated[  # '': not checked
    str,
    Field(pattern="^([0-9a-f]{64})?$"),
    one_fault("must be the 64 hexadecimal digits of a SHA-256 in lower case, or ''"),
]


def check_micro_batch(micro_batch: int, batch_size: int) -> None:
    """Check that a batch can be cut into passes for batch norm; 0 stands for the whole batch.

    Raises:
        ValueError: it cannot.
    """
    if micro_batch and (micro_batch == 1 or batch_size % micro_batch):
        raise ValueError(
            f"micro_batch: {micro_batch} does not divide batch_size {batch_size} into passes of at least two "
            "images; set a divisor of batch_size, or 0 for the whole batch at once"
        )


class Section(BaseModel):
    """A section of params.yaml: frozen, without defaults, and without unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False
    )


class Backbone(Section):
    """Trunk architecture shared by pretraining, embedding and segmentation."""

    LEAST_WIDTH: ClassVar[int] = 8  # of a ResNet: with fewer, backward passes of torch 2.15 crash on a CPU

    arch: Literal["resnet18", "resnet50", "vit_small", "vit_base"]
    width: Count
    stem_stride: Literal[1, 2, 4]
    patch_px: Literal[8, 14, 16]
    registers: Annotated[int, Field(ge=0)]
    layer_scale: bool

    @property
    def is_vit(self) -> bool:
        """Whether the trunk is a vision transformer (patches instead of a convolutional stem)."""
        return self.arch.startswith("vit")

    @field_validator("stem_stride", "patch_px", mode="before")
    @classmethod
    def _no_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):  # True == 1, so Literal would accept it
            raise PydanticCustomError("int_type", "an int")
        return value


class Photometric(Section):
    """Photometric transforms (color jitter, grayscale, blur), sampled independently for each view."""

    jitter_probability: Fraction
    jitter_together: bool
    brightness: NonNegative
    contrast: NonNegative
    saturation: NonNegative
    hue: Annotated[float, Field(ge=0, le=0.5)]
    gray_probability: Fraction
    blur_probability: Fraction
    blur_sigma_px: Range
    blur_reference_px: Annotated[int, Field(ge=0)]


class Runtime(Section):
    """Settings that do not affect results; no stage depends on them."""

    num_workers: Annotated[int, Field(ge=0)]
    nproc: Annotated[int, Field(ge=0)]
    launcher: str
    timeout_seconds: Positive
    checkpoint_seconds: NonNegative
    check_data: Annotated[list[Literal["files"]], Field(max_length=1)]
    cuda_graph: Annotated[Literal["auto"] | bool, one_fault("must be auto, true or false")]

    @model_validator(mode="after")
    def _one_launcher(self) -> "Runtime":
        try:
            words = shlex.split(self.launcher)
        except ValueError as error:
            raise ValueError(
                f"launcher: {self.launcher!r} is no command ({error}); close the quotation"
            ) from error
        if self.launcher and not words:
            raise ValueError("launcher: is blank; set it to a command such as torchrun, or to ''")
        if self.launcher and self.nproc != 1:
            raise ValueError(
                f"launcher: starts the processes itself, so it requires nproc: 1, got {self.nproc}; "
                "set the number of processes in the launcher"
            )
        return self

    @model_validator(mode="after")
    def _one_process_for_a_graph(self) -> "Runtime":
        if self.cuda_graph is True and (self.launcher or self.nproc != 1):
            raise ValueError(
                "cuda_graph: true needs one process for each stage; set it to auto, or set nproc: 1 and "
                "launcher: ''"
            )
        return self
