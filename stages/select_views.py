"""Stage `select_views`: the views whose pseudo-labels are clear enough to guide the training (4.2.1)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from stages.clustering.agreement import effective_clusters
from stages.core.artefacts import write_array, write_metrics
from stages.core.tensors import read_tensors
from stages.pseudo_labels.pyramid import VIEWS
from stages.runtime.progress import say
from stages.runtime.script import run
from stages.runtime.watch import Watch
from stages.settings.errors import UserError
from stages.settings.params import load

KEYS = ("select_ratio", "select_views")


def main(argv: Sequence[str] | None = None) -> None:
    """Read labels and scores, rank, write the pseudo-label of each kept view and -1 for the others."""
    parser = argparse.ArgumentParser(prog="python -m stages.select_views", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings (default: params.yaml)"
    )
    parser.add_argument("--labels", type=Path, required=True, help="pseudo-labels and scores, of `label`")
    parser.add_argument(
        "--out", type=Path, required=True, help="int32 array [images, 6] to write (.npy); -1: not kept"
    )
    parser.add_argument("--metrics", type=Path, required=True, help="what was kept, to write (.json)")
    args = parser.parse_args(argv)

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
    write_array(args.out, np.where(kept, pseudo_label, -1).astype(np.int32))
    write_metrics(args.metrics, {"select_views": figures})


def select(
    score: Float[np.ndarray, "N V"],
    pseudo_label: Int[np.ndarray, "N V"],
    *,
    ratio: float,
    pool: str,
    scope: str,
) -> Bool[np.ndarray, "N V"]:
    """Which views are kept: the `ratio` with the highest scores, True is kept.

    Args:
        score: cosine of each view to its own centre.
        pseudo_label: its cluster.
        ratio: share of the pool that is kept, in (0, 1]; the number is rounded half up.
        pool: `pyramid` ranks all views; `whole` only the first, the whole image; `parts` all others, and
            keeps every whole image.
        scope: rank `global`ly, or the same share `per_cluster`, or `per_view` position.

    Ties go to the earlier image, then the earlier view.
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


if __name__ == "__main__":
    run(main)
