"""Schema of `prepare` in params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.settings.section import Count, Fraction, Section, Sha256, one_fault


class Demo(Section):
    """The generated data set."""

    num_train: Count
    num_val: Count


class SplitRule(Section):
    """Rule that splits user images into training and validation."""

    by: Literal["folder", "lists", "fraction"]
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0)]


class CocoStuff(Section):
    """Image list of COCO-Stuff."""

    list: Annotated[
        str,
        Field(pattern=r"^[\w-]+$"),
        one_fault("must be the name of a list: letters, digits, _ and -"),
    ]


CityscapesFolder = Literal["train", "val", "test", "train_extra"]


class Cityscapes(Section):
    """Image folders of Cityscapes."""

    train: Annotated[list[CityscapesFolder], Field(min_length=1)]
    val: Annotated[list[Literal["train", "val"]], Field(min_length=1)]

    @model_validator(mode="after")
    def _disjoint(self) -> "Cityscapes":
        twice = sorted({name for name in self.train + self.val if (self.train + self.val).count(name) > 1})
        if twice:
            raise ValueError(
                f"val: {', '.join(twice)} occurs more than once in train and val; list it only once"
            )
        return self


class Prepare(Section):
    """Data set and packing of the images."""

    reader: Literal["demo", "folder", "cocostuff", "cityscapes"]
    path: str
    manifest_sha256: Sha256
    protocol: Literal["own", "picie", "picie_long", "stego"]
    taxonomy: Literal[
        "own", "cocostuff27", "cocostuff15", "cocostuff171", "cityscapes27", "cityscapes19", "cityscapes7"
    ]
    train_px: Annotated[int, Field(ge=16)]
    most_damaged: Fraction
    split: SplitRule
    cocostuff: CocoStuff
    cityscapes: Cityscapes
    demo: Demo

    @model_validator(mode="after")
    def _fits_the_reader(self) -> "Prepare":
        if self.reader != "demo" and not self.path:
            raise ValueError(
                f"path: is empty, but reader: {self.reader} reads from it; set it to the folder of "
                f"{'images/' if self.reader == 'folder' else 'the data set'}"
            )
        published = self.reader in ("cocostuff", "cityscapes")
        if self.taxonomy.rstrip("0123456789") != (self.reader if published else "own"):
            known = f"{self.reader}27 or another {self.reader} taxonomy" if published else "own"
            raise ValueError(
                f"taxonomy: {self.taxonomy} does not fit reader: {self.reader}; set it to {known}"
            )
        if self.protocol == "picie_long" and self.reader != "cityscapes":
            raise ValueError("protocol: picie_long requires reader: cityscapes; set it to picie")
        return self
