"""What sections of params.yaml are made of: types with a range, and sections that two stages share."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]


def _low_first(bounds: list[float]) -> list[float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"must be [low, high], got {bounds}")
    return bounds


FractionRange = Annotated[
    list[PositiveFraction], Field(min_length=2, max_length=2), AfterValidator(_low_first)
]
Range = Annotated[list[NonNegative], Field(min_length=2, max_length=2), AfterValidator(_low_first)]


class Section(BaseModel):
    """A part of params.yaml: frozen, complete, and nothing beside what is named."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False
    )


class Backbone(Section):
    """The trunk that pretraining, embedding and segmentation share."""

    arch: Literal["resnet18", "resnet50", "vit_small", "vit_base"]
    width: Count
    stem_stride: Literal[1, 2, 4]
    patch_px: Literal[8, 14, 16]
    registers: Annotated[int, Field(ge=0)]
    layer_scale: bool

    @property
    def is_vit(self) -> bool:
        """Whether it has patches in place of a stem."""
        return self.arch.startswith("vit")

    @field_validator("stem_stride", "patch_px", mode="before")
    @classmethod
    def _no_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):  # True == 1, so the choice alone would take it
            raise PydanticCustomError("int_type", "an int")
        return value


class Photometric(Section):
    """Random changes of colour and sharpness, drawn for each view on its own."""

    jitter_probability: Fraction
    jitter_together: bool
    brightness: NonNegative
    contrast: NonNegative
    saturation: NonNegative
    hue: Annotated[float, Field(ge=0, le=0.5)]
    gray_probability: Fraction
    blur_probability: Fraction
    blur_sigma_px: Range
    blur_reference_px: Count
