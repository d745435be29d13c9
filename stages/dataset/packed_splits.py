"""Packs both splits of a data set into arrays in the state folder, so that a stopped run goes on."""

import time

import numpy as np

from stages.dataset.pack import MAPS, RECORD, TRAIN, VAL, Job, Packed, Work, pack, record
from stages.dataset.source import DataSet
from stages.runtime.progress import say, tell, track
from stages.runtime.state import StageState
from stages.settings.schema import Params


def pack_splits(state: StageState, data: DataSet, params: Params) -> tuple[list[Packed], list[Packed]]:
    """Pack both splits into arrays and records in the state folder.

    Args:
        state: of the stage; packing goes on where an earlier run was stopped.
        data: training and validation images.
        params: `size_px`, `prepare` and `runtime` of params.yaml.

    Returns:
        One result per training image and per validation image.
    """
    is_new, settings, arrays, jobs = state.load() is None, params.prepare, [], []
    for items, images, labels, side_px in (
        (data.train, TRAIN, None, settings.train_px),
        (data.val, VAL, state.folder / MAPS, params.size_px),
    ):
        work = Work(data.decode, data.root, state.folder / images, labels, side_px, settings.protocol)
        for path, shape in work.shapes.items():
            arrays.append(state.array(path.name, np.uint8, (len(items), *shape), is_new=is_new))
        jobs.append(Job(work, items, state.array(f"record_{images}", RECORD, (len(items),), is_new=is_new)))
    records = np.concatenate([job.finished for job in jobs])
    if known := int((records["width"] > 0).sum()):
        tell(f"prepare: {known:,} of {len(records):,} images are already packed by an earlier run")
    results: list[Packed] = []

    def save() -> None:
        """Flush arrays before records, so that after a power loss no record refers to an unwritten row."""
        for array in arrays:
            array.flush()
        for job, first in zip(jobs, (0, len(data.train)), strict=True):
            for place, one in enumerate(results[first : first + len(job.items)]):
                job.finished[place] = record(one)
            job.finished.flush()
        state.save({})

    start = time.monotonic()
    packing = pack(jobs, params.runtime.num_workers)
    try:
        for one in track(packing, "prepare", total=len(records), unit="image"):
            results.append(one)
            if state.is_due():
                save()
    finally:
        save()
    say("prepare", images_per_second=(len(records) - known) / (time.monotonic() - start))
    return results[: len(data.train)], results[len(data.train) :]
