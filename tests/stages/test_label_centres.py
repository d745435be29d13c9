"""`label` with centres of the pretrained model, against loops in float64 (4.2.1)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import label
from stages.core.artefacts import read_metrics
from stages.pretraining.pretrainer import Pretrainer
from stages.pseudo_labels.centres import KINDS, Space, choose_centres
from stages.settings.data_size import CENTRES
from stages.settings.params import load
from tests.published_models import classifier

OUTPUTS = ("labels.safetensors", "label.json")
ARGV = ["--embeddings", "embeddings.npy", "--backbone", "backbone.safetensors"]
ARGV += ["--out", OUTPUTS[0], "--metrics", OUTPUTS[1]]
CHANNELS, DIM = 8, 5


@pytest.fixture
def ready(bench: Any) -> Any:
    """Features of 16 images, of any length."""
    rng = np.random.default_rng(0)
    np.save("embeddings.npy", (3 * rng.random((16, 6, CHANNELS))).astype(np.float32))
    return bench


def _swav_heads(num_prototypes: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "projection.0.weight": torch.randn(CHANNELS, CHANNELS),
        "projection.1.weight": torch.rand(CHANNELS) + 0.5,
        "projection.1.bias": torch.randn(CHANNELS),
        "projection.1.running_mean": torch.randn(CHANNELS),
        "projection.1.running_var": torch.rand(CHANNELS) + 0.5,
        "projection.3.weight": torch.randn(DIM, CHANNELS),
        "projection.3.bias": torch.randn(DIM),
        "prototypes.weight": torch.randn(num_prototypes, DIM),
    }


def _classifier(num_classes: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    fc = classifier(num_classes, CHANNELS)
    return {"classifier.weight": fc["fc.weight"], "classifier.bias": fc["fc.bias"]}


def _labelled(bench: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors, about = bench.tensors(OUTPUTS[0])
    return {name: value.numpy() for name, value in tensors.items()}, about


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.sqrt((values**2).sum())


def _plain_projection(feature: np.ndarray, heads: dict[str, torch.Tensor]) -> np.ndarray:
    own = {name.removeprefix("projection."): value.double().numpy() for name, value in heads.items()}
    hidden = own["0.weight"] @ feature
    hidden = (hidden - own["1.running_mean"]) / np.sqrt(own["1.running_var"] + 1e-5)
    hidden = np.maximum(hidden * own["1.weight"] + own["1.bias"], 0)
    return _unit(own["3.weight"] @ hidden + own["3.bias"])


def test_views_belong_to_groups_of_prototypes(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    heads = _swav_heads(7)
    ready.write_backbone(heads)
    label.main(ARGV)
    assert "label: centres prototypes  asked_for auto" in capsys.readouterr().out
    found, about = _labelled(ready)
    assert about == {"global_k": 4, "centres": "prototypes"}
    assert read_metrics(Path(OUTPUTS[1]))["label"]["centres"] == "prototypes"
    prototypes = np.stack([_unit(row) for row in heads["prototypes.weight"].double().numpy()])
    groups = (prototypes @ found["centroids"].T).argmax(1)
    assert set(groups) == {0, 1, 2, 3}
    for group in range(4):  # k-means has ended: a centre is the mean of its prototypes
        mean = _unit(prototypes[groups == group].sum(0))
        np.testing.assert_allclose(found["centroids"][group], mean, atol=1e-5)
    embeddings = np.load("embeddings.npy").astype(np.float64)
    for image in range(16):
        for view in range(6):
            cosines = found["centroids"] @ _plain_projection(embeddings[image, view], heads)
            assert found["pseudo_label"][image, view] == cosines.argmax()
            assert found["score"][image, view] == pytest.approx(cosines.max(), abs=1e-5)


def test_as_many_clusters_as_prototypes_leave_them_as_they_are(ready: Any) -> None:
    heads = _swav_heads(4)
    ready.write_backbone(heads)
    label.main(ARGV)
    found, _ = _labelled(ready)
    unit = heads["prototypes.weight"] / heads["prototypes.weight"].norm(dim=1, keepdim=True)
    order = (found["centroids"] @ unit.numpy().T).argmax(1)
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_allclose(found["centroids"], unit.numpy()[order], atol=1e-5)


@pytest.mark.parametrize("fit_views", ["whole", "all"])
def test_views_belong_to_the_classes_that_are_most_often_the_first(ready: Any, fit_views: str) -> None:
    heads = _classifier(9)
    ready.write_backbone(heads)
    ready.params(label__fit_views=fit_views, global_k=3)
    label.main(ARGV)
    found, about = _labelled(ready)
    assert about == {"global_k": 3, "centres": "classifier"}
    weight, bias = heads["classifier.weight"].double().numpy(), heads["classifier.bias"].double().numpy()
    embeddings = np.load("embeddings.npy").astype(np.float64)
    logits = np.array([[weight @ view + bias for view in image] for image in embeddings])
    exponentials = np.exp(logits)
    probability = exponentials / exponentials.sum(2, keepdims=True)
    first = logits.argmax(2)[:, :1] if fit_views == "whole" else logits.argmax(2)
    counts = [(first == number).sum() for number in range(9)]
    kept = sorted(sorted(range(9), key=lambda number: (-counts[number], number))[:3])
    np.testing.assert_array_equal(found["centroids"], np.eye(9, dtype=np.float32)[kept])
    np.testing.assert_array_equal(found["pseudo_label"], probability[:, :, kept].argmax(2))
    np.testing.assert_allclose(found["score"], probability[:, :, kept].max(2), atol=1e-6)


def test_all_classes_are_the_classifier_itself(ready: Any) -> None:
    """More classes than images: k-means could not do that."""
    heads = _classifier(20)
    ready.write_backbone(heads)
    ready.params(global_k=20, pretrain__method="supervised", pretrain__init="model.pth")
    label.main(ARGV)
    found, _ = _labelled(ready)
    embeddings = torch.from_numpy(np.load("embeddings.npy"))
    logits = embeddings @ heads["classifier.weight"].T + heads["classifier.bias"]
    np.testing.assert_array_equal(found["pseudo_label"], logits.argmax(2).numpy())


def test_kmeans_can_be_forced(ready: Any) -> None:
    ready.write_backbone({**_swav_heads(7), **_classifier(9)})
    ready.params(label__centres="kmeans")
    label.main(ARGV)
    found, about = _labelled(ready)
    assert about["centres"] == "kmeans"
    assert found["centroids"].shape == (4, CHANNELS)
    embeddings = np.load("embeddings.npy").astype(np.float64)
    cosines = np.array([[found["centroids"] @ _unit(view) for view in image] for image in embeddings])
    np.testing.assert_array_equal(found["pseudo_label"], cosines.argmax(2))


def test_kmeans_of_what_the_projector_makes(ready: Any) -> None:
    """A.1 takes features from projectors, where 4.2.1 takes those of the trunk."""
    heads = {name: value for name, value in _swav_heads(7).items() if name.startswith("projection")}
    ready.write_backbone(heads)
    label.main(ARGV)
    assert _labelled(ready)[1]["centres"] == "kmeans"  # unless it is asked for
    ready.params(label__centres="projector")
    label.main(ARGV)
    found, about = _labelled(ready)
    assert (about["centres"], found["centroids"].shape) == ("projector", (4, DIM))
    embeddings = np.load("embeddings.npy").astype(np.float64)
    projected = np.array([[_plain_projection(view, heads) for view in image] for image in embeddings])
    cosines = projected @ found["centroids"].T
    np.testing.assert_array_equal(found["pseudo_label"], cosines.argmax(2))
    np.testing.assert_allclose(found["score"], cosines.max(2), atol=1e-5)


def test_views_that_are_mapped_in_parts_are_all_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.pseudo_labels.centres.PART_VIEWS", 4)
    features = 3 * np.random.default_rng(0).random((10, CHANNELS)).astype(np.float32)
    unit = np.stack([_unit(view) for view in features.astype(np.float64)])
    space = Space("kmeans", {}, torch.device("cpu"))
    np.testing.assert_allclose(space.points(features), unit, atol=1e-6)
    ((found, score),) = space.assign(features, [torch.from_numpy(unit[[1, 5, 9]]).float()])
    cosines = unit @ unit[[1, 5, 9]].T
    np.testing.assert_array_equal(found, cosines.argmax(1))
    np.testing.assert_allclose(score, cosines.max(1), atol=1e-6)


@pytest.mark.parametrize("method", CENTRES)
def test_the_heads_of_each_method_are_those_that_settings_are_held_against(bench: Any, method: str) -> None:
    """Before pretraining only the settings are known; after it the model tells which heads there are."""
    bench.params(pretrain__method=method)
    params = load(Path("params.yaml"), "pretrain", "backbone")
    heads = Pretrainer(
        params.pretrain, params.backbone, None, num_images=16, seed=0, precision="float32",
        device=torch.device("cpu"),
    ).heads  # fmt: skip
    allowed = {name for name, kind in KINDS.items() if set(kind.needs) <= set(heads)}
    assert set(CENTRES[method]) == allowed
    assert choose_centres("auto", heads) == CENTRES[method][0]


def test_what_the_model_does_not_have_is_refused(ready: Any) -> None:
    ready.write_backbone(_classifier(9))
    ready.params(label__centres="prototypes")
    assert ready.fault(label.main, ARGV) == (
        "params.yaml: label.centres: prototypes needs a pretrained model with prototypes.weight, "
        "projection.0.weight, projection.3.weight, but this one supports only classifier, kmeans; set one of "
        "these or auto, or choose another pretrain.init"
    )


@pytest.mark.parametrize(
    ("heads", "what"), [(_swav_heads(3), "3 prototypes"), (_classifier(3), "3 classes of the classifier")]
)
def test_more_clusters_than_centres_are_refused(
    ready: Any, heads: dict[str, torch.Tensor], what: str
) -> None:
    ready.write_backbone(heads)
    assert ready.fault(label.main, ARGV) == (
        f"params.yaml: global_k: 4 is more than the {what}; lower it or set label.centres: kmeans"
    )


def test_a_crop_whose_feature_is_not_finite_is_refused(ready: Any) -> None:
    ready.write_backbone()
    embeddings = np.load("embeddings.npy")
    embeddings[3, 2] = np.nan
    np.save("embeddings.npy", embeddings)
    assert ready.fault(label.main, ARGV) == (
        "label: some features are not finite; the network of `pretrain` has diverged; lower pretrain.lr, or "
        "set precision: float32"
    )
