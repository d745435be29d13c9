"""Steps that are recorded once and replayed leave what steps leave that are made one after another.

On a CPU `tests.tape` stands for a CUDA graph. It shows that a step takes nothing from the host but its input
tensors, and that it changes its state in place. It cannot show that a GPU captures every kernel.
"""

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from stages.backbone.checkpoint import build_backbone, describe
from stages.core.device import place
from stages.core.graph import MOST_AHEAD, MOST_KINDS, WARM_UP, Compute, CudaRecorder, Graphs, Wish, can_record
from stages.core.step import Drawn
from stages.imaging.batches import ImageSource
from stages.pretraining.pretrainer import Pretrainer
from stages.pretraining.slotcon import MOST_SLOTS, SlotCon
from stages.settings.errors import UserError
from stages.training import clusters
from stages.training.building import build_segmenter, build_trainer
from stages.training.trainer import Trainer
from tests.datasets import read_preset
from tests.tape import Tape

CPU = torch.device("cpu")
SIZE, NUM_STEPS, NUM_EPOCHS = 4, 4, 2  # images of a batch, steps of an epoch, epochs of a run
IMAGES = torch.rand(NUM_STEPS, SIZE, 3, 24, 24, generator=torch.Generator().manual_seed(0))
SMALL = {"arch": "resnet18", "width": 8, "stem_stride": 2}


def _equal(first: Any, second: Any) -> bool:
    """Whether two states have the same structure and the same values, to the bit."""
    (one, structure), (other, same_structure) = tree_flatten(first), tree_flatten(second)
    return structure == same_structure and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b or (a != a and b != b)
        for a, b in zip(one, other, strict=True)
    )


def _record(owner: Pretrainer | Trainer) -> Tape:
    """Let steps run from recorded ones, which are checked; a fault is an error."""
    tape = Tape(owner._compute)
    owner._run = Graphs(tape, owner.state_dict, None)
    return tape


PRETRAINING: dict[str, dict[str, Any]] = {
    "mocov2": {},
    "symmetric": {"symmetric": True},
    "groups": {"bn_splits": 2},
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "lars": {"optimizer": "lars", "lr": 0.5},
    "densecl": {"method": "densecl", "densecl": {"warmup_epochs": 2.0}},
    "slotcon": {"method": "slotcon"},
    "swav": {
        "method": "swav",
        "swav": {"local_crops": 1, "queue_size": 8, "queue_from_epoch": 1, "freeze_epochs": 1},
    },
    "swav, sgd": {"method": "swav", "optimizer": "sgd", "swav": {"freeze_epochs": 1}},
}


def _pretrainer(changes: dict[str, Any], cuda_graph: Wish = "auto") -> Pretrainer:
    whole = read_preset("demo")
    settings = whole.pretrain
    common = {"batch_size": SIZE, "image_px": 16, "epochs": NUM_EPOCHS, "warmup_epochs": 1.0, "queue_size": 8}
    nested = {
        name: getattr(settings, name).model_copy(update=value)
        for name, value in changes.items()
        if isinstance(value, dict)
    }
    dense = settings.dense.model_copy(update={"image_px": 16})
    settings = settings.model_copy(update={**common, "dense": dense, **changes, **nested})
    with contextlib.redirect_stdout(None):
        return Pretrainer(
            settings,
            whole.backbone.model_copy(update=SMALL),
            None,
            num_images=NUM_STEPS * SIZE,
            seed=0,
            precision="float32",
            device=CPU,
            cuda_graph=cuda_graph,
        )


def _pretrain(pretrainer: Pretrainer) -> list[Any]:
    """Figures of all steps and epochs of a run, and the state at its end."""
    seen: list[Any] = []
    for epoch in range(NUM_EPOCHS):
        seen += [pretrainer.train_step(IMAGES[step], epoch, step, NUM_STEPS) for step in range(NUM_STEPS)]
        seen.append(pretrainer.epoch_figures())
    return [*seen, pretrainer.state_dict()]


@pytest.mark.parametrize("name", PRETRAINING)
def test_replayed_steps_of_pretraining_are_those_made_one_by_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotCon, "has_fixed_shape", lambda *_: True)  # as on a GPU
    eager, taped = _pretrainer(PRETRAINING[name]), _pretrainer(PRETRAINING[name])
    tape = _record(taped)
    assert _equal(_pretrain(taped), _pretrain(eager))
    # Of SwAV, steps with frozen prototypes and steps that use the queue are kinds of their own.
    assert tape.num_records == (2 if name.startswith("swav") else 1)
    assert tape.num_replays == NUM_EPOCHS * NUM_STEPS - WARM_UP * tape.num_records


def test_with_many_slots_a_graph_is_refused_and_auto_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.pretraining.pretrainer.can_record", lambda wish, device: wish is not False)
    changes = {"method": "slotcon", "slotcon": {"num_prototypes": MOST_SLOTS // SIZE + 1}}
    with pytest.raises(UserError) as raised:
        _pretrainer(changes, cuda_graph=True)
    assert str(raised.value) == (
        "params.yaml: runtime.cuda_graph: true: pretrain.batch_size times slotcon.num_prototypes is more "
        "than 4096, so the shape of a step varies with the number of active slots; set it to auto"
    )
    assert not isinstance(_pretrainer(changes)._run, Graphs)


def test_a_learning_rate_that_is_a_number_of_the_host_is_noticed() -> None:
    eager, changed = _pretrainer({}), _pretrainer({})
    compute = changed._compute

    def with_number(image: Tensor, drawn: Drawn) -> Tensor:
        for group in changed._optimizer.param_groups:
            group["lr"] = float(drawn.numbers[0])
        return compute(image, drawn)

    changed._compute = with_number  # type: ignore[method-assign]
    changed._run = with_number
    assert _equal(_pretrain(changed)[:-1], _pretrain(eager)[:-1])  # without a graph there is no difference
    changed.load_state_dict(_pretrainer({}).state_dict())
    _record(changed)
    with pytest.raises(UserError, match=r"cuda_graph: true: .* \d+ of \d+ tensors differ after a step"):
        _pretrain(changed)


def test_state_that_is_not_changed_in_place_is_noticed() -> None:
    changed = _pretrainer({})
    compute = changed._compute

    def not_in_place(image: Tensor, drawn: Drawn) -> Tensor:
        figures = compute(image, drawn)
        changed._method.queue = changed._method.queue.roll(1, 0)
        return figures

    changed._compute = not_in_place  # type: ignore[method-assign]
    _record(changed)
    with pytest.raises(UserError, match="a step leaves its state elsewhere than it was"):
        _pretrain(changed)


def _is_recording() -> bool:
    return torch.utils._python_dispatch._get_current_dispatch_mode() is not None


def _refusing(changed: Pretrainer) -> Compute:
    """A step that cannot be recorded."""

    def step(image: Tensor, drawn: Drawn) -> Tensor:
        if _is_recording():
            changed._lr.fill_(7)
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors")
        return changed._compute(image, drawn)

    return step


def _hungry(changed: Pretrainer) -> Compute:
    """A step for which memory runs out in the check, before anything is recorded."""
    count = 0

    def step(image: Tensor, drawn: Drawn) -> Tensor:
        nonlocal count
        count += 1
        figures = changed._compute(image, drawn)
        if count == WARM_UP + 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return figures

    return step


def _stale(changed: Pretrainer) -> Compute:
    """A step that, once recorded, takes the same images for ever; numpy's copy is not recorded."""

    def step(image: Tensor, drawn: Drawn) -> Tensor:
        image = torch.from_numpy(image.numpy().copy()) if _is_recording() else image
        return changed._compute(image, drawn)

    return step


@pytest.mark.parametrize(
    ("broken", "fault", "num_records"),
    [
        (
            _refusing,
            "cannot be recorded as a CUDA graph: operation not permitted when stream is capturing",
            1,
        ),
        (_hungry, "cannot be recorded as a CUDA graph: CUDA out of memory.", 0),
        (_stale, "tensors differ after a step from it", 1),
    ],
)
def test_without_a_usable_graph_steps_are_made_as_they_are_and_a_warning_says_so(
    broken: Callable[[Pretrainer], Compute], fault: str, num_records: int
) -> None:
    eager, changed = _pretrainer({}), _pretrainer({})
    told: list[str] = []
    tape = Tape(broken(changed))
    changed._run = Graphs(tape, changed.state_dict, told.append)
    assert _equal(_pretrain(changed), _pretrain(eager))
    assert len(told) == 1
    assert fault in told[0]
    assert told[0].endswith("; steps run without CUDA graphs, which at small sizes takes longer")
    assert tape.num_records == num_records


def test_steps_of_which_none_is_met_again_keep_nothing() -> None:
    """As of `views: pooled` in passes, each with a number of views of its own."""
    kinds = MOST_KINDS + 3
    tape = Tape(lambda image, drawn: image.sum())
    graphs = Graphs(tape, lambda: [], None)
    shown: list[weakref.ref[Tensor]] = []
    for number in (*range(kinds), 1, 1, kinds, kinds, kinds):
        image = torch.zeros(4)
        shown.append(weakref.ref(image))
        graphs(image, Drawn((torch.zeros(number),)))
        del image
        assert not any(one() is not None for one in shown)
    assert tape.num_records == 1, "of one that was met three times, and not of one that came too late"


def test_the_host_starts_no_more_than_a_few_steps_ahead_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else stops it where steps are replayed, and each holds a batch in pinned memory."""
    started: list[int] = []
    waited: list[int] = []

    class Event:
        """The end of a step, which the host can wait for."""

        def __init__(self, blocking: bool) -> None:
            self.number = len(started)

        def record(self, stream: Any) -> None:
            started.append(self.number)

        def synchronize(self) -> None:
            waited.append(self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    for name in ("Stream", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    recorder = CudaRecorder(lambda image, drawn: image, CPU)
    for _ in range(10):
        recorder._wait_for_earlier()
        assert len(started) - len(waited) <= MOST_AHEAD
    assert started == list(range(10))
    assert waited == list(range(10 - MOST_AHEAD))


def test_memory_that_runs_out_in_the_first_step_of_an_optimizer_changes_nothing() -> None:
    """The state that the optimizer has made by then was not there when the step began."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    lacks_memory = True

    def step(image: Tensor, drawn: Drawn) -> Tensor:
        nonlocal lacks_memory
        weight.grad = image * drawn.numbers[0].sum()
        if any(drawn.phase):
            optimizer.step()
            if lacks_memory:
                lacks_memory = False
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return weight.detach().clone()

    told: list[str] = []
    graphs = Graphs(Tape(step), lambda: {"weight": weight, "optimizer": optimizer.state_dict()}, told.append)
    for _ in range(WARM_UP + 1):
        graphs(torch.ones(3), Drawn((torch.ones(1),), (False,)))
    graphs(torch.ones(3), Drawn((torch.ones(1),), (True,)))
    graphs(torch.ones(3), Drawn((torch.ones(1),), (True,)))
    assert len(told) == 1
    torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - 0.1 - 0.19))


def test_a_step_of_another_kind_that_lacks_memory_beside_graphs_goes_on_without_them() -> None:
    """In the middle of such a step the state is neither the old nor the new."""
    changes = PRETRAINING["swav"]
    eager, changed = _pretrainer(changes), _pretrainer(changes)
    recorded: list[weakref.ref[Compute]] = []
    propagate, first = changed._propagate, (True, False)

    class Crowded(Tape):
        """Notes which graphs there are."""

        def record(self, image: Tensor, drawn: Drawn) -> Compute:
            repeat = super().record(image, drawn)
            recorded.append(weakref.ref(repeat))
            return repeat

    def crowded(image: Tensor, drawn: Drawn) -> Any:
        """Has memory for steps of another kind only where no graph is left; the first kind has been seen."""
        found = propagate(image, drawn)
        if drawn.phase != first and any(one() is not None for one in recorded):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found

    changed._propagate = crowded  # type: ignore[method-assign]
    told: list[str] = []
    tape = Crowded(changed._compute)
    changed._run = Graphs(tape, changed.state_dict, told.append)
    assert _equal(_pretrain(changed), _pretrain(eager))
    assert tape.num_replays > 0
    assert len(told) == 1
    assert "a step needs memory that CUDA graphs have taken: CUDA out of memory." in told[0]


def test_a_refused_graph_leaves_no_memory_behind() -> None:
    """Neither itself nor the states that it was compared with, when the step is made without it."""
    changed = _pretrainer({})
    held: list[int] = []

    class Watched(Tape):
        """Counts the tensors of the size of the queue that exist when a step is made."""

        def make(self, image: Tensor, drawn: Drawn) -> Tensor:
            shape = changed._method.queue.shape
            held.append(sum(type(one) is Tensor and one.shape == shape for one in gc.get_objects()))
            return super().make(image, drawn)

    changed._run = Graphs(Watched(_stale(changed)), changed.state_dict, lambda _: None)
    _pretrain(changed)
    first, at_give_up = held[0], held[WARM_UP + 2]
    assert max(held[WARM_UP : WARM_UP + 2]) > first, "the check keeps copies"
    assert at_give_up == held[-1]


def _trainer(base: str | None, changes: dict[str, Any], cuda_graph: Wish = "auto") -> Trainer:
    torch.manual_seed(0)
    whole = read_preset("demo", base)
    small = {"batch_size": SIZE, "fpn_dim": 8, "epochs": NUM_EPOCHS}
    clustering = {"sample_images": 8, "sample_pixels": 200, "iterations": 3, "init_batches": 2}
    parts = {
        "clustering": whole.train.clustering.model_copy(update=clustering),
        "image_loss": whole.train.image_loss.model_copy(update={"view_px": 16, **changes}),
    }
    backbone = whole.backbone.model_copy(update=SMALL)
    train = whole.train.model_copy(update={**small, **parts})
    sizes = {"size_px": 16, "pixel_k": 4, "global_k": 3}
    params = whole.model_copy(update={**sizes, "backbone": backbone, "train": train})
    rng = np.random.default_rng(0)
    kept = np.where(rng.random((NUM_STEPS * SIZE, 6)) < 0.3, rng.integers(0, 3, (NUM_STEPS * SIZE, 6)), -1)
    kept[:SIZE] = -1  # a batch without guidance
    weight = params.train.image_loss.weight
    segmenter = build_segmenter(build_backbone(describe(params.backbone)), params, weight)
    return build_trainer(place(segmenter, CPU), kept, params, weight, cuda_graph=cuda_graph)


def _train(trainer: Trainer) -> list[Any]:
    images = ImageSource((IMAGES.flatten(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy(), CPU)
    batches = list(torch.arange(len(images)).split(SIZE))
    seen: list[Any] = []
    for epoch in range(NUM_EPOCHS):
        trainer.start_epoch(images, batches, epoch)
        for step, image in enumerate(images.batches(batches)):
            seen.append(trainer.train_step(image, batches[step], epoch, step, NUM_STEPS))
        seen.append(trainer.epoch_figures(images))
    return [*seen, trainer.state_dict()]


TRAINING: dict[str, tuple[str | None, dict[str, Any]]] = {
    "warm-up": (None, {"warmup_epochs": 2.0, "balance": "inverse"}),
    "ours": ("ours", {}),
    "picie, all views": ("picie", {"views": "all"}),
    "pooled": (None, {"views": "pooled"}),
}


@pytest.mark.parametrize("name", TRAINING)
def test_replayed_steps_of_training_are_those_made_one_by_one(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With guidance, context, and new clusters in each epoch."""
    monkeypatch.setattr(clusters, "KEPT_BYTES", 0)  # a GPU keeps no assignments of the counting pass
    eager, taped = _trainer(*TRAINING[name]), _trainer(*TRAINING[name])
    tape = _record(taped)
    assert _equal(_train(taped), _train(eager))
    assert tape.num_replays > 0


def test_a_weight_of_guidance_that_is_a_number_of_the_host_is_noticed() -> None:
    changed = _trainer(*TRAINING["warm-up"])
    compute = changed._compute

    def with_number(image: Tensor, drawn: Drawn) -> Tensor:
        plan, weight, *others = drawn.numbers
        return compute(image, drawn._replace(numbers=(plan, torch.tensor(float(weight)), *others)))

    changed._compute = with_number  # type: ignore[method-assign]
    _record(changed)
    with pytest.raises(UserError, match="tensors differ after a step"):
        _train(changed)


def test_a_graph_without_a_gpu_is_refused_with_its_remedy() -> None:
    makers: list[Callable[[], object]] = [
        lambda: _pretrainer({}, cuda_graph=True),
        lambda: _trainer(None, {}, cuda_graph=True),
    ]
    for make in makers:
        with pytest.raises(UserError, match=r"cuda_graph: true needs a GPU.*set runtime.cuda_graph: auto"):
            make()


def test_a_graph_in_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.core.distributed.world_size", lambda: 2)
    gpu = torch.device("cuda")
    with pytest.raises(UserError, match="needs one process, but there are 2"):
        can_record(True, gpu)
    assert not can_record("auto", gpu)


def test_auto_takes_graphs_on_a_gpu_with_one_process() -> None:
    assert can_record("auto", torch.device("cuda"))
    assert not can_record("auto", CPU)
    assert not can_record(False, torch.device("cuda"))
