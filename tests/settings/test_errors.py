"""Many faults of one kind are one line, and none is lost."""

import pytest

from stages.settings.errors import UserError, grouped, raise_faults


def test_faults_of_one_kind_are_one_line_at_the_place_of_the_first() -> None:
    faults = ["a: is odd", *(f"{n}.png: is empty" for n in range(300)), "b: is odd"]
    assert grouped(faults) == (
        "a: is odd",
        "0.png, 1.png, 2.png, ... (300 files): is empty",
        "b: is odd",
    )


@pytest.mark.parametrize("fault", ["no sign in it", "a: same"])
def test_equal_faults_do_not_vanish(fault: str) -> None:
    assert len(grouped([fault] * 5)) == 1
    with pytest.raises(UserError):
        raise_faults([fault] * 5)


def test_a_message_ends() -> None:
    with pytest.raises(UserError) as raised:
        raise_faults(f"{n}: is {n} px wide" for n in range(50))
    assert len(raised.value.faults) == 21
    assert raised.value.faults[-1] == "... and 30 more faults (50 in total)"


def test_nothing_is_no_fault() -> None:
    raise_faults([])
