"""How much a backbone's features know of the demo's scenes and classes, by labels that no stage trains on.

python -m tests.bench.probe NAME=models/backbone.safetensors ...

Two probes over whole validation images, half of them to learn from, half to ask: the scene by its k nearest
neighbours, and each class's presence by a linear classifier. An untrained backbone stands beside them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from stages.backbone.checkpoint import build_backbone, load_backbone
from stages.backbone.resnet import ResNet, global_feature
from stages.core.images import open_images, read_index
from stages.dataset.truth import read_truth
from stages.imaging.batches import normalise, to_unit
from stages.imaging.resample import resample, whole
from stages.readers.demo.scenes import SCENES
from stages.settings.params import load

NEIGHBOURS = 5


@torch.no_grad()
def features(backbone: ResNet, images: np.ndarray, side: int) -> Float[np.ndarray, "N C"]:
    """Unit global features of whole images."""
    backbone.eval()
    batches = torch.from_numpy(np.array(images)).split(32)
    views = (resample(to_unit(batch), whole(len(batch)), (side, side)) for batch in batches)
    found = torch.cat([global_feature(backbone(normalise(view)).layer4) for view in views])
    return torch.nn.functional.normalize(found, dim=1).numpy()


def scene_accuracy(feature: Float[np.ndarray, "N C"], scene: Int[np.ndarray, " N"]) -> float:
    """Share of the second half whose scene most of their nearest rows of the first half have."""
    half = len(feature) // 2
    known = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(feature[:half], scene[:half])
    return float(known.score(feature[half:], scene[half:]))


def presence_precision(feature: Float[np.ndarray, "N C"], present: Bool[np.ndarray, "N K"]) -> float:
    """Mean average precision over classes of a linear classifier, learnt and asked on halves."""
    half = len(feature) // 2
    scaled = StandardScaler().fit(feature[:half]).transform(feature)
    scores = []
    for column in present.T:
        known, asked = column[:half], column[half:]
        if 0 < known.sum() < half and asked.any():
            linear = LogisticRegression(max_iter=1000).fit(scaled[:half], known)
            scores.append(average_precision_score(asked, linear.decision_function(scaled[half:])))
    return float(np.mean(scores))


def main() -> None:
    """Print one line for each backbone."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.probe", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--images", type=Path, default=Path("data/images"))
    parser.add_argument("--truth", type=Path, default=Path("data/truth"))
    parser.add_argument("backbones", nargs="*", metavar="NAME=PATH")
    args = parser.parse_args()
    params = load(args.params, "backbone", "size_px")
    images, truth = open_images(args.images / "val"), read_truth(args.truth)
    scene = read_index(args.images / "val")["id"].astype(int).to_numpy() % len(SCENES)
    present = np.array(
        [[(labels == k).any() for k in range(len(truth.class_names))] for labels in truth.maps]
    )
    torch.manual_seed(0)
    probed = {"untrained": build_backbone(params.backbone.model_dump())}
    for named in args.backbones:
        name, path = named.split("=", 1)
        probed[name] = load_backbone(Path(path), params.backbone)
    for name, backbone in probed.items():
        feature = features(backbone, images, params.size_px)
        print(
            f"{name}: scene {scene_accuracy(feature, scene):.3f} by {NEIGHBOURS} neighbours "
            f"(chance {1 / len(SCENES):.3f}), classes {presence_precision(feature, present):.3f} mean AP",
            flush=True,
        )


if __name__ == "__main__":
    main()
