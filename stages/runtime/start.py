"""The start of a stage with networks: its processes, its device, its arithmetic."""

import sys
from collections.abc import Sequence

import torch

from stages.core import distributed
from stages.core.device import choose_device, set_numerics
from stages.runtime.device_text import describe_device
from stages.runtime.launch import launch
from stages.runtime.progress import tell, warn
from stages.settings.schema import Params


def start_stage(
    stage: str,
    argv: Sequence[str] | None,
    neutral: Params,
    params: Params,
    *,
    alone: bool = False,
) -> torch.device | None:
    """Launch the processes of a stage; in each of them, join the others and choose device and arithmetic.

    Args:
        stage: name of the stage.
        argv: command-line arguments of its script; None for those of this process.
        neutral: `device` and `runtime` of params.yaml.
        params: `precision` and `deterministic` of params.yaml.
        alone: run in this process, whatever `runtime` says.

    Returns:
        The device of this process; None if the processes that it launched have done the work.

    Raises:
        UserError: as `choose_device` and `launch`.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not alone and launch(f"stages.{stage}", arguments, neutral.runtime, neutral.device):
        return None
    device = distributed.join(choose_device(neutral.device), neutral.runtime.timeout_seconds)
    set_numerics(params.precision, deterministic=params.deterministic)
    tell_device(device)
    if params.precision == "bfloat16" and _emulates_bfloat16(device):
        warn(stage, "precision: bfloat16 is emulated by this processor: about ten times as slow as float32")
    return device


def tell_device(device: torch.device) -> None:
    """Print what the work runs on."""
    count = distributed.world_size()
    tell(f"device: {describe_device(device)}" + (f", {count} processes" if count > 1 else ""))


def _emulates_bfloat16(device: torch.device) -> bool:
    """Whether networks in bfloat16 are much slower on a device than those in float32."""
    return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
