"""Whether a process is one of torchrun's, or only has variables of that name."""

import pytest

from stages.core.launched import VARIABLES, is_launched, rank
from stages.settings.errors import UserError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_process_of_torchrun_has_all_of_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_launched()
    assert rank() is None
    for name, value in zip(VARIABLES, "312", strict=True):
        monkeypatch.setenv(name, value)
    assert is_launched()
    assert rank() == 3


def test_variables_of_another_program_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As scripts of SLURM jobs export them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UserError, match=r"^the environment has WORLD_SIZE but not RANK, LOCAL_RANK, .* unset WORLD_SIZE$"
    ):
        is_launched()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"unset RANK WORLD_SIZE$"):
        is_launched()
    assert rank() is None
