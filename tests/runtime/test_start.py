"""The start of a stage with networks: what it prints, and when it starts no others."""

import pytest
import torch

from stages.core import distributed
from stages.core.launched import VARIABLES
from stages.runtime import start
from stages.runtime.start import start_stage, tell_device
from stages.settings.schema import Params
from stages.settings.section import Runtime
from tests.datasets import committed_params

PLAIN = Params.model_construct(precision="float32", deterministic=True)


@pytest.fixture
def neutral(monkeypatch: pytest.MonkeyPatch) -> Params:
    for name in ("QUIET", "NO_COLOR", *VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return Params.model_construct(device="cpu", runtime=Runtime.model_validate(committed_params()["runtime"]))


@pytest.mark.parametrize(
    ("precision", "device", "has_instructions", "warns"),
    [
        ("bfloat16", "cpu", False, True),
        ("bfloat16", "cpu", True, False),
        ("bfloat16", "cuda", False, False),
        ("float32", "cpu", False, False),
    ],
)
def test_a_precision_that_the_processor_emulates_is_told(
    neutral: Params,
    precision: str,
    device: str,
    has_instructions: bool,
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    monkeypatch.setattr(start, "choose_device", lambda _: torch.device(device))
    monkeypatch.setattr(start, "describe_device", str)
    monkeypatch.setattr(distributed, "join", lambda one, _: one)
    start_stage("embed", [], neutral, Params.model_construct(precision=precision, deterministic=True))
    assert ("embed: warning: precision: bfloat16 is emulated" in capsys.readouterr().err) == warns


def test_the_processes_that_were_launched_do_the_work(
    neutral: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[tuple[object, ...]] = []
    monkeypatch.setattr(start, "launch", lambda *args: launched.append(args) or True)
    assert start_stage("embed", ["--out", "x"], neutral, PLAIN) is None
    assert launched == [("stages.embed", ["--out", "x"], neutral.runtime, "cpu")]
    assert capsys.readouterr().out == ""
    assert start_stage("embed", [], neutral, PLAIN, alone=True) == torch.device("cpu")
    assert len(launched) == 1
    assert capsys.readouterr().out == f"device: cpu ({torch.get_num_threads()} threads)\n"


def test_the_first_of_several_processes_says_how_many_there_are(
    neutral: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    tell_device(torch.device("cpu"))
    assert capsys.readouterr().out.endswith(" threads), 3 processes\n")
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")
    tell_device(torch.device("cpu"))
    assert capsys.readouterr().out == ""
