"""The verdict: what is good and what is wrong in a run, in plain words, each with what to change (ours)."""

from collections.abc import Iterator, Mapping

import pandas as pd

from stages.reporting.evidence import Evidence, Finding

# A lead over k-means on color and position below these may be chance: about twice the spread (standard
# deviation) between seeds in docs/results.md.
LEAD = {"accuracy": 0.05, "miou": 0.02}
# Where clusters followed images this much more than the truth does, scores fell: CamVid in docs/results.md,
# from a guidance weight of 0.3.
IMAGE_SHARE_ABOVE_TRUTH = 0.2
# The smallest data sets of docs/results.md have 468 images; below, pretraining sees too little variety.
FEW_TRAIN_IMAGES = 400
# A single image is then more than 2 % of the score.
FEW_VAL_IMAGES = 50
# IoU below which a class counts as not found: about what two unrelated tenths of the pixels have.
LOST_BELOW = 0.05
# Share of the truth's own effective number, from which on clusters count as in use where classes are uneven.
TRUTH_SHARE = 0.5
# Points of accuracy that the CRF may cost before it counts as harmful.
CRF_COST = 0.01


def verdict(evidence: Evidence) -> list[Finding]:
    """Judge a run; what is wrong comes first, then what is to be known, then what is good."""
    found = [
        *_against_baseline(evidence),
        *_collapse(evidence),
        *_images(evidence),
        *_crf(evidence.metrics),
        *_lost_classes(evidence.per_class),
        *(_pseudo_labels(evidence) if evidence.guidance > 0 else ()),
        *_data(evidence),
    ]
    if evidence.unused_names:
        found.append(Finding("wrong", f"The given names are not used. {evidence.unused_names}."))
    return sorted(found, key=lambda finding: ("wrong", "note", "good").index(finding.kind))


def _better_features(evidence: Evidence) -> str:
    """What to do for better features of the backbone, as a sentence."""
    return _one_of(
        "pretrain longer (pretrain.epochs)" if evidence.trains else "",
        "" if evidence.is_published else "start from a published model (pretrain.init)",
        "add photographs",
    )


def _one_of(*ways: str) -> str:
    """A sentence of what helps; ways that do not apply are empty."""
    text = " or ".join(way for way in ways if way)
    return f"{text[0].upper()}{text[1:]}."


def _against_baseline(evidence: Evidence) -> Iterator[Finding]:
    """Whether the network finds more than color and position tell."""
    raw, baseline = evidence.metrics["raw"], evidence.metrics.get("colour_position", {})
    if raw.get("accuracy") is None:
        yield Finding(
            "note",
            "No validation pixel has a label, so nothing here says whether clusters are the things that you "
            "mean. Look at the images and at the regions of each cluster, and give the clusters names.",
        )
        return
    leads = {
        key: float(mine) - float(theirs)
        for key in LEAD
        if (mine := raw.get(key)) is not None and (theirs := baseline.get(key)) is not None
    }
    if not leads:
        return
    points = " and ".join(
        f"{abs(100 * lead):.1f} points of {'accuracy' if key == 'accuracy' else 'mIoU'} "
        f"{'ahead' if lead > 0 else 'behind'}"
        for key, lead in leads.items()
    )
    text = f"Against k-means on color and position, which uses no network, the prediction is {points}"
    if min(leads.values()) <= 0:
        yield Finding(
            "wrong", f"{text}. The network has learned less than colors tell.", _better_features(evidence)
        )
    elif any(lead < LEAD[key] for key, lead in leads.items()):
        yield Finding("wrong", f"{text}. Another seed could turn this around.", _better_features(evidence))
    else:
        yield Finding("good", f"{text}.")


def _collapse(evidence: Evidence) -> Iterator[Finding]:
    """Whether most pixels are in a few clusters; the limit is that of `train`."""
    effective, count = float(evidence.metrics["raw"]["effective_clusters"] or 0), evidence.num_clusters
    limit, truth = evidence.collapse_below, evidence.metrics.get("truth", {}).get("effective_clusters")
    if truth is not None:  # clusters as uneven as the classes are right
        limit = min(limit, TRUTH_SHARE * (truth - 1) / (count - 1))
    text = f"Effectively {effective:.1f} of {count} clusters are in use"
    remedy = _one_of(
        "" if evidence.balance == "inverse" else "set train.pixel_loss.balance: inverse",
        "lower train.lr",
        "pretrain longer" if evidence.trains else "",
    )
    if (effective - 1) / (count - 1) >= limit:
        yield Finding("good", f"{text}.")
    elif evidence.data["val_images"] < count:
        text += ". Either these few validation images show little else, or the clusters have collapsed."
        yield Finding("note", text, f"If they have: {remedy[0].lower()}{remedy[1:]}")
    else:
        yield Finding("wrong", f"The clusters have collapsed: {text[0].lower()}{text[1:]}.", remedy)


def _images(evidence: Evidence) -> Iterator[Finding]:
    """Whether clusters describe whole images instead of what is in them; only the truth can tell."""
    raw, truth = evidence.metrics["raw"], evidence.metrics.get("truth", {}).get("image_share")
    share = raw.get("image_share")
    if share is None or evidence.data["val_images"] < 2 or (raw.get("clusters_used") or 0) < 2:
        return
    text = f"{100 * share:.0f} % of a pixel's cluster can be told from its image alone"
    lower = "lower train.image_loss.weight; if it is low, lower global_k or train for fewer epochs."
    if truth is None:
        if evidence.guidance > 0:
            lower = f"If clusters follow whole images, {lower}"
        yield Finding(
            "note",
            f"{text}. This is right if each image shows something else, and too much if the images show one "
            "kind of scene, as frames of a video do.",
            lower if evidence.guidance > 0 else "",
        )
        return
    text += f"; of its true class, {100 * truth:.0f} %"
    if share > truth + IMAGE_SHARE_ABOVE_TRUTH:
        remedy = f"{lower[0].upper()}{lower[1:]}" if evidence.guidance > 0 else _better_features(evidence)
        yield Finding("wrong", f"Clusters follow whole images instead of what is in them: {text}.", remedy)
    else:
        yield Finding("good", f"Clusters do not follow whole images: {text}.")


def _crf(metrics: Mapping[str, Mapping[str, float | None]]) -> Iterator[Finding]:
    raw, refined = metrics["raw"].get("accuracy"), metrics["refined"].get("accuracy")
    if raw is not None and refined is not None and refined < raw - CRF_COST:
        yield Finding(
            "wrong",
            f"The CRF costs {100 * (raw - refined):.1f} points of accuracy.",
            "Lower refine.appearance_weight or refine.appearance_px, or set refine.backend: none.",
        )


def _lost_classes(per_class: pd.DataFrame) -> Iterator[Finding]:
    """Classes that occur and that no cluster finds."""
    iou, pixels = (pd.to_numeric(per_class[column], errors="coerce") for column in ("iou", "pixels"))
    lost = per_class["class"][(iou.fillna(0) < LOST_BELOW) & (pixels > 0)].astype(str).tolist()
    if lost:
        yield Finding(
            "wrong",
            f"{len(lost)} of {(pixels > 0).sum()} classes not found: {', '.join(lost)}.",
            "The confusion matrix shows which clusters hold their pixels. Small classes need a larger "
            "pixel_k or a larger size_px.",
        )


def _pseudo_labels(evidence: Evidence) -> Iterator[Finding]:
    """Whether the pseudo-labels that guide training may mislead it; limits are those of `label`."""
    label, weak = evidence.label, evidence.weak
    longer = "pretrain longer" if evidence.trains else ""
    signs = [
        (
            label["agreement_with_order"] > weak.order_above,
            f"The pseudo-labels follow the order of the files ({label['agreement_with_order']:.2f}; 0 is "
            "chance, 1 is identical), as frames of a video do",
            "Unless your folders are sorted by content, lower global_k or train.image_loss.weight.",
        ),
        (
            label["agreement_with_position"] > weak.position_above and evidence.parts_guide,
            "The pseudo-labels follow the position of a view in its image "
            f"({label['agreement_with_position']:.2f}; 0 is chance, 1 is identical)",
            _one_of(longer, "set select_views.pool: whole", "lower train.image_loss.weight"),
        ),
        (
            label["stability"] < weak.stability_below,
            f"The pseudo-labels are not stable: a second clustering agrees by only {label['stability']:.2f} "
            "(0 is chance, 1 is identical)",
            _one_of(longer, "lower global_k"),
        ),
        (
            label["effective_clusters"] < weak.used_below * evidence.global_k,
            f"Effectively only {label['effective_clusters']:.1f} of {evidence.global_k} pseudo-labels are in "
            "use",
            _one_of(
                longer,
                "lower global_k",
                "" if label.get("centres") == "kmeans" else "set label.centres: kmeans",
            ),
        ),
    ]
    bad = [Finding("wrong", f"{text}.", remedy) for is_bad, text, remedy in signs if is_bad]
    yield from bad or [Finding("good", "The pseudo-labels, which guide training, show no sign of weakness.")]


def _data(evidence: Evidence) -> Iterator[Finding]:
    """Few photographs, and what `prepare` warned of."""
    data = evidence.data
    if (count := data["train_images"]) < FEW_TRAIN_IMAGES:
        text = f"There are only {count:,} photographs to learn from"
        if evidence.is_published:
            yield Finding("note", f"{text}; the backbone starts from a published model.")
        else:
            yield Finding(
                "wrong",
                f"{text}.",
                "Add photographs, with or without labels, or start from a published model (pretrain.init).",
            )
    if (count := data["val_images"]) < FEW_VAL_IMAGES:
        yield Finding("note", f"With {count:,} validation images, figures on this page are uncertain.")
    for warning in data["warnings"]:
        yield Finding("wrong", f"Check the data: {warning}.")
