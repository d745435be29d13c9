"""What a result says of where it was made."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from stages.core.device import choose_device, set_numerics
from stages.runtime import environment
from stages.runtime.environment import describe_environment


def test_packages_device_and_threads() -> None:
    found = describe_environment()
    packages = ["torch", "torchvision", "faiss", "numpy", "scipy"]
    assert list(found) == ["python", *packages, "device", "threads"]
    assert found["torch"] == torch.__version__.split("+")[0] == str(version("torch")).split("+")[0]
    assert found["threads"] == torch.get_num_threads()
    assert "absent" not in found.values()
    assert str(found["device"]).startswith("cpu: ")
    of_networks = describe_environment(torch.device("cpu"))
    assert list(of_networks) == [*found, "tf32", "deterministic"]
    assert found.items() <= of_networks.items()


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_the_arithmetic_that_is_in_force(
    precision: str, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for name in ("allow_tf32", "benchmark"):
            patch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))  # restored
        set_numerics(precision, deterministic=deterministic)
        found = describe_environment(torch.device("cpu"))
        assert torch.backends.cudnn.benchmark == (not deterministic)
    choose_device("cpu")
    assert (found["tf32"], found["deterministic"]) == (precision == "tf32", deterministic)
    plain = describe_environment(torch.device("cpu"))
    assert (plain["tf32"], plain["deterministic"]) == (False, True)


def test_the_model_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"model of {device}")
    assert describe_environment(torch.device("cuda:1"))["device"] == "cuda: model of cuda:1"


def test_the_model_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast: 3\nmodel name\t: Slow\n")
    monkeypatch.setattr(environment, "CPU_INFO", tmp_path / "cpuinfo")
    assert describe_environment()["device"] == "cpu: Fast: 3"
    monkeypatch.setattr(environment, "CPU_INFO", tmp_path / "gone")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert describe_environment()["device"] == "cpu: riscv64"


def test_one_of_several_distributions_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_for_cpus(name: str) -> str:
        if name == "faiss-cpu":
            return "1.2.3"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", only_for_cpus)
    found = describe_environment()
    assert (found["faiss"], found["scipy"]) == ("1.2.3", "absent")
