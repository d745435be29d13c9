"""Figures of a training: means over an epoch, a row for each, and where it goes on after a kill."""

import math

import pytest
import torch

from stages.core.history import History
from stages.settings.errors import UserError

CPU = torch.device("cpu")


def test_a_row_holds_the_means_of_its_steps_and_what_it_was_closed_with() -> None:
    history = History(("loss", "accuracy"), CPU)
    for loss in (3.0, 1.0):
        history.add(torch.tensor([loss, 0.5]))
    assert history.end_epoch({"lr": 0.1}, 2) == {"epoch": 1, "loss": 2.0, "accuracy": 0.5, "lr": 0.1}
    history.add(torch.tensor([7.0, 1.0]))
    assert history.end_epoch({}, 1)["loss"] == 7.0, "an epoch begins at zero"
    table = history.table(["lr"])
    assert list(table.columns) == ["epoch", "loss", "accuracy", "lr"]
    assert table["loss"].tolist() == [2.0, 7.0]
    assert table["lr"].isna().tolist() == [False, True]


def test_a_figure_that_some_steps_lack_is_the_mean_over_the_others() -> None:
    history = History(("loss", "image_loss", "share"), CPU, {"image_loss": "share"})
    for measured in ([1.0, 0.0, 0.0], [1.0, 3.0, 1.0], [1.0, 0.0, 0.0], [1.0, 5.0, 1.0]):
        history.add(torch.tensor(measured))
    assert history.end_epoch({}, 4) == {"epoch": 1, "loss": 1.0, "image_loss": 4.0, "share": 0.5}
    history.add(torch.tensor([1.0, 0.0, 0.0]))
    assert math.isnan(history.end_epoch({}, 1)["image_loss"])


def test_it_goes_on_in_the_middle_of_an_epoch() -> None:
    history, again = (History(("loss",), CPU) for _ in range(2))
    history.add(torch.tensor([1.0]))
    history.end_epoch({}, 1)
    history.add(torch.tensor([2.0]))
    again.load_state_dict(history.state_dict())
    again.add(torch.tensor([4.0]))
    assert again.end_epoch({}, 2) == {"epoch": 2, "loss": 3.0}
    assert again.table([])["loss"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_named_with_its_place(value: float) -> None:
    history = History(("loss",), CPU)
    history.check_finite("train", 0, "lower it")
    history.add(torch.tensor([value]))
    with pytest.raises(UserError) as raised:
        history.check_finite("train", 3, "lower it")
    assert str(raised.value) == "train: not finite in epoch 1, at step 3: loss; lower it"
