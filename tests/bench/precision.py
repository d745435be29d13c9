"""Steps of the preset `folder` in each precision, and without deterministic algorithms, on a GPU."""

from collections.abc import Iterator

import torch

from stages.core.device import set_numerics
from tests.bench import pretraining, training
from tests.bench.lines import Line
from tests.datasets import read_preset

# Precision, and whether algorithms are deterministic. On a CPU tf32 and `deterministic` have no effect.
KINDS: dict[str, tuple[tuple[str, bool], ...]] = {
    "cpu": (),
    "cuda": (("float32", True), ("tf32", True), ("bfloat16", True), ("tf32", False), ("bfloat16", False)),
}


def measure(device: torch.device, turns: int, *, compiled: bool = False) -> Iterator[Line]:
    """A step of pretraining and one of training for each kind; nothing on a CPU."""
    for precision, deterministic in KINDS[device.type]:
        set_numerics(precision, deterministic=deterministic)
        params = read_preset("folder").model_copy(update={"precision": precision, "compile": compiled})
        said = "" if deterministic else ", deterministic: false"
        for module in (pretraining, training):
            yield module.step_of(params, device, turns, "auto", said)
    set_numerics("float32", deterministic=True)  # as the other sections take it
