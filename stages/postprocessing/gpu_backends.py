"""Which exact kernel of the dense CRF runs on a GPU: what the settings ask for, and what is there."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from stages.postprocessing.exact_crf import AppearanceKernel
from stages.postprocessing.pixel_blocks import appearance_features
from stages.runtime.progress import warn
from stages.settings.errors import UserError
from stages.settings.schema import Refine

TRIED_PX = 16  # side of the image that the fused kernel is tried on
TOLERANCE = 0.01  # of its products, relative to the largest; they are float16


def require_gpu(backend: str, device: torch.device | None, source: str = "params.yaml") -> None:
    """Check that what `refine.backend` needs is there.

    Args:
        backend: `refine.backend`.
        device: where the CRF is to run; None if there is no GPU.
        source: file with the setting, for messages.

    Raises:
        UserError: the backend is of GPUs and the device is none, or `fused` lacks a compiler.
    """
    key = f"{source}: refine.backend: {backend!r}"
    if backend not in ("cuda", "fused"):
        return
    if device is None or device.type != "cuda":
        found = f"torch {torch.__version__} finds none" if device is None else f"the device is {device}"
        raise UserError(
            f"{key} needs a CUDA GPU, but {found}; set refine.backend: auto or cpu, or install the GPU driver"
        )
    if backend == "fused" and (lack := import_fused()):
        raise UserError(f"{key} needs Triton, but {lack}; install that, or set refine.backend: cuda")


def settle(settings: Refine, num_clusters: int, gpu: torch.device) -> Refine:
    """The settings with the kernel for a GPU in place of `auto`: fused, or cuda where Triton cannot run.

    Both are the same up to rounding and weights below 1e-6; fused is faster, and needs a compiler. A warning
    says why where it is not taken.

    Args:
        settings: `refine` of params.yaml.
        num_clusters: K, for which the kernel is compiled.
        gpu: where the CRF runs.
    """
    if settings.backend != "auto" or settings.appearance_weight == 0:
        return settings
    fault = import_fused() or _fault_of_fused(settings, num_clusters, gpu)
    if fault:
        warn("refine", f"the CRF runs with backend: cuda, which is slower than fused: {fault}")
    return settings.model_copy(update={"backend": "cuda" if fault else "fused"})


def import_fused() -> str | None:
    """Load the fused kernel; returns what is missing, or what the import ends with, None if nothing.

    Triton compiles a kernel itself, but what starts it with the C compiler, when it first runs.
    """
    header = Path(sysconfig.get_path("include")) / "Python.h"
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if importlib.util.find_spec("triton") is None:
        return f"torch {torch.__version__} has come without it"
    if not any(map(shutil.which, compilers)):
        return f"{' or '.join(compilers)}, which it compiles with, was not found"
    if not header.exists():
        return f"{header} (Debian: python3-dev), which it compiles with, was not found"
    try:
        import stages.postprocessing.fused_crf  # noqa: F401  # needs Triton, and nothing else here does
    except Exception as error:  # of libraries that do not fit each other
        return _told(error)
    return None


def _fault_of_fused(settings: Refine, num_clusters: int, gpu: torch.device) -> str | None:
    """What a first small product ends with, if it fails or differs from that of the stored matrix."""
    from stages.postprocessing.fused_crf import FusedKernel

    generator, px = torch.Generator().manual_seed(0), settings.appearance_px
    image = torch.randint(0, 256, (TRIED_PX, TRIED_PX, 3), generator=generator).byte().to(gpu)
    values = torch.rand(TRIED_PX**2, num_clusters, generator=generator).to(gpu)
    try:
        found = FusedKernel(appearance_features(image, px, settings.appearance_color)).product(values)
        exact = AppearanceKernel(image, appearance_px=px, appearance_color=settings.appearance_color)
        expected = exact.product(values)
        difference = float((found - expected).abs().max() / expected.abs().max())
    except torch.OutOfMemoryError:  # tells nothing of Triton
        raise
    except Exception as error:  # of Triton, of the compiler, of the disk that holds its cache
        return _told(error)
    return None if difference <= TOLERANCE else f"a product of it is wrong by {difference:.2g}"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
