"""Stage `select_views`: select the views with the most reliable pseudo-labels to guide training (4.2.1)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from stages.clustering.usage import effective_clusters
from stages.core.artefacts import write_array, write_metrics
from stages.core.tensors import read_tensors
from stages.pseudo_labels.pyramid import NOT_KEPT, VIEWS
from stages.runtime.progress import say
from stages.runtime.script import run, stage_parser
from stages.runtime.watch import Watch
from stages.settings.errors import UserError
from stages.settings.params import load

KEYS = ("select_ratio", "select_views")


def main(argv: Sequence[str] | None = None) -> None:
    """Rank the views by score and write the pseudo-label of each kept view, -1 for the others."""
    args = _parse(argv)
    params = load(args.params, *KEYS)
    watch = Watch("select_views", args.params, KEYS, [args.labels])
    tensors, _ = read_tensors(args.labels, "score", "pseudo_label")
    score, pseudo_label = tensors["score"].numpy(), tensors["pseudo_label"].numpy()
    kept = select(
        score,
        pseudo_label,
        ratio=params.select_ratio,
        pool=params.select_views.pool,
        scope=params.select_views.scope,
    )
    if not kept.any():
        raise UserError(
            f"params.yaml: select_ratio: {params.select_ratio} keeps none of the {score.size} views; raise it"
        )
    figures = {
        "kept_views": int(kept.sum()),
        "guided_images_share": float(kept.any(axis=1).mean()),
        "effective_clusters": effective_clusters(pseudo_label[kept]),
        "lowest_score": float(score[kept].min()),
        "kept_share": dict(zip(VIEWS, kept.mean(axis=0).tolist(), strict=True)),
    }
    say("select_views", **{name: value for name, value in figures.items() if name != "kept_share"})
    watch.check()
    write_array(args.out, np.where(kept, pseudo_label, NOT_KEPT).astype(np.int32))
    write_metrics(args.metrics, {"select_views": figures})


def select(
    score: Float[np.ndarray, "N V"],
    pseudo_label: Int[np.ndarray, "N V"],
    *,
    ratio: float,
    pool: str,
    scope: str,
) -> Bool[np.ndarray, "N V"]:
    """Select the fraction `ratio` of views with the highest scores; True means kept.

    Args:
        score: cosine similarity of each view to its cluster center.
        pseudo_label: cluster of each view.
        ratio: fraction of the pool to keep, in (0, 1]; the count is rounded half up.
        pool: `pyramid` ranks all views; `whole` ranks only the first view, the whole image; `parts` ranks the
            other five views and keeps every whole image.
        scope: `global` ranks the whole pool at once; `per_cluster` and `per_view` keep the same fraction of
            each cluster or view position.

    Ties go to the earlier image, then to the earlier view.
    """
    kept = np.zeros(score.shape, dtype=bool)
    kept[:, 0] = pool == "parts"
    in_pool = np.empty(score.shape, dtype=bool)
    in_pool[:, 0], in_pool[:, 1:] = pool != "parts", pool != "whole"
    groups = {
        "global": np.zeros(score.shape, dtype=np.int64),
        "per_cluster": pseudo_label,
        "per_view": np.broadcast_to(np.arange(score.shape[1]), score.shape),
    }[scope]
    for group in np.unique(groups[in_pool]):
        members = np.flatnonzero(in_pool & (groups == group))
        best = np.argsort(-score.flat[members], kind="stable")[: int(ratio * len(members) + 0.5)]
        kept.flat[members[best]] = True
    return kept


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = stage_parser("select_views", __doc__)
    parser.add_argument("--labels", type=Path, required=True, help="pseudo-labels and scores from `label`")
    parser.add_argument(
        "--out", type=Path, required=True, help="output: int32 array [images, 6], -1: not kept (.npy)"
    )
    parser.add_argument(
        "--metrics", type=Path, required=True, help="output: statistics of the kept views (.json)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
