"""From what a few steps cost to what a whole run takes: the arithmetic of `make scale`."""

from collections.abc import Callable, Mapping, Sequence

from stages.imaging.batches import DEVICE_SHARE, LOOK_AHEAD
from stages.pretraining.methods import phases
from stages.pseudo_labels.pyramid import VIEWS
from stages.settings.schema import Params
from tests.bench.meter import Observed
from tests.bench.stage_rows import Row, Setting

FLOAT, SCORE, LABEL = 4, 2, 12  # bytes: of a feature; of a score; of a pseudo-label and its score
EVALUATIONS = 2  # processes of `evaluate`: raw and refined
RUNS = 2  # clusterings of `label` and `cluster`
KMEANS_COPIES = 2  # of the points, that a clustering holds at once


class Projection:
    """A whole run, stage by stage.

    Args:
        params: its settings.
        at: where and on what.
        measured: what an image, a point or a batch costs, by name; see `pieces` and `files`.
        dim: features of a view.
        file_bytes: of the backbone's and the segmenter's files.
    """

    def __init__(
        self,
        params: Params,
        at: Setting,
        measured: Mapping[str, Observed],
        *,
        dim: int,
        file_bytes: tuple[float, float],
    ) -> None:
        self._params, self._at, self._measured = params, at, measured
        self._dim, self._file_bytes = dim, file_bytes
        self._train_bytes = 3 * params.prepare.train_px**2  # of a stored image
        self._val_bytes = 3 * params.size_px**2

    def rows(self) -> list[Row]:
        """The stages, in the order of dvc.yaml."""
        stages: Sequence[Callable[[], Row]] = (
            self._prepare, self._pretrain, self._embed, self._label, self._select_views, self._train,
            self._cluster, self._predict, self._refine, self._evaluate, self._report,
        )  # fmt: skip
        return [one() for one in stages]

    def is_resident(self) -> bool:
        """Whether the training images fit on the GPU, by the rule of `ImageSource`."""
        return self._at.num_train * self._train_bytes < DEVICE_SHARE * self._at.free_device_bytes

    def _row(
        self,
        stage: str,
        seconds: float,
        memory: tuple[float, float],
        disk: float,
        basis: str,
        starts: int = 1,
    ) -> Row:
        device, host = memory
        starting = starts * self._at.start_seconds
        return Row(stage, seconds + starting, device, self._at.base_bytes + host, disk, basis)

    def _image_seconds(self, name: str) -> float:
        """Of one training image: of the step or of the reader, whichever is slower."""
        kind = "read" if self._at.fits_memory(self._train_bytes) else "read from disk"
        waits = 0.0 if self.is_resident() else self._measured[kind].seconds
        return max(self._measured[name].seconds, waits)

    def _memory(self, name: str, batch_size: int, *, image_bytes: float = 0.0) -> tuple[float, float]:
        """Of the device and of the host, for a batch of the real size; what is kept does not grow with it."""
        one, stored = self._measured[name], 0.0
        host = one.kept_bytes + one.working_bytes * batch_size / one.items
        if self._at.free_device_bytes:
            read = (LOOK_AHEAD + 1) * batch_size * image_bytes
            stored = self._at.num_train * self._train_bytes if self.is_resident() and image_bytes else 0.0
            return one.device_bytes + stored, one.kept_bytes + one.working_bytes + read
        return 0.0, host

    def _prepare(self) -> Row:
        train, val = (self._measured[f"prepare {split}"] for split in ("train", "val"))
        seconds = self._at.num_train * train.seconds + self._at.num_val * val.seconds
        workers = self._at.cores
        host = workers * (self._at.base_bytes + max(train.working_bytes, val.working_bytes))
        disk = self._at.num_train * self._train_bytes
        disk += self._at.num_val * self._val_bytes * 4 / 3  # images and label maps
        basis = f"{train.items} + {val.items} images, {workers} processes"
        return self._row("prepare", seconds / workers, (0.0, host), disk, basis)

    def _pretrain(self) -> Row:
        settings = self._params.pretrain
        epochs_of = {f"pretrain {one.method}": one.epochs for one in phases(settings) if settings.epochs}
        if not epochs_of:
            return self._row("pretrain", 0, (0.0, 0.0), self._file_bytes[0], "no training")
        seconds, memories, basis = 0.0, [], []
        for name, epochs in epochs_of.items():
            steps = epochs * (self._at.num_train // settings.batch_size)
            seconds += steps * settings.batch_size * self._image_seconds(name)
            memories.append(self._memory(name, settings.batch_size, image_bytes=self._train_bytes))
            items = self._measured[name].items
            basis.append(f"{items} of {settings.batch_size} images, x {steps:,} steps ({epochs} epochs)")
        device, host = (max(memory) for memory in zip(*memories, strict=True))
        return self._row("pretrain", seconds, (device, host), self._file_bytes[0], "; ".join(basis))

    def _embed(self) -> Row:
        seconds = self._at.num_train * self._image_seconds("embed")
        memory = self._memory("embed", self._params.embed.batch_size, image_bytes=self._train_bytes)
        disk = self._at.num_train * len(VIEWS) * self._dim * FLOAT
        basis = f"{self._measured['embed'].items} images of {self._at.num_train:,}, six views each"
        return self._row("embed", seconds, memory, disk, basis)

    def _label(self) -> Row:
        settings, views = self._params.label, self._at.num_train * len(VIEWS)
        points = min(settings.sample_views, views if settings.fit_views == "all" else self._at.num_train)
        iterations = RUNS * settings.restarts * settings.iterations
        one = self._measured["label k-means"]
        # Assigning all views to the centres of both runs is as much work as an iteration over them.
        seconds = one.seconds * (points * iterations + RUNS * views)
        seconds += self._measured["read"].seconds * views * self._dim * FLOAT / self._train_bytes
        held = KMEANS_COPIES * points * self._dim * FLOAT
        basis = f"k-means of {points:,} points, x {iterations:,} iterations, as of {one.items:,} points"
        return self._row("label", seconds, self._where(one, held), views * LABEL, basis)

    def _select_views(self) -> Row:
        one = self._measured["select_views"]
        memory = 0.0, one.kept_bytes + one.working_bytes
        disk = self._at.num_train * len(VIEWS) * FLOAT
        return self._row("select_views", one.seconds * one.items, memory, disk, "the whole stage")

    def _where(self, one: Observed, held: float) -> tuple[float, float]:
        """Memory of points: on the GPU, and once more on the host; or there alone."""
        return (one.device_bytes + held if self._at.free_device_bytes else 0.0), held

    def _train(self) -> Row:
        settings, dim = self._params.train, self._params.train.fpn_dim
        clustering, size = settings.clustering, self._params.train.batch_size
        steps, kmeans = self._at.num_train // size, self._measured["train k-means"]
        if clustering.kmeans == "sample":
            passed = max(size, min(clustering.sample_images, self._at.num_train) // size * size)
            points = clustering.sample_pixels
            spent = 2 * points * clustering.iterations * clustering.restarts * kmeans.seconds
            basis = f"{passed:,} images and {points:,} pixels clustered in each"
        else:
            passed, pixels = steps * size, (self._params.size_px // settings.feature_stride) ** 2
            points = pixels * min(passed, clustering.init_batches * clustering.batches_per_update * size)
            spent = 2 * self._minibatch(points, passed * pixels, clustering.iterations, kmeans)
            basis = f"all pixels of {passed:,} images clustered in each"
        passes = passed * self._image_seconds("train passes")
        others = size * self._measured["train start"].seconds
        stepping = steps * size * self._image_seconds("train")
        device, host = self._memory("train", size, image_bytes=self._train_bytes)
        held = KMEANS_COPIES * points * dim * FLOAT
        device = max(device, kmeans.device_bytes + held) if device else 0.0
        basis = (
            f"{self._measured['train'].items} of {size} images, x {settings.epochs * steps:,} steps "
            f"({settings.epochs} epochs); {basis}"
        )
        seconds = settings.epochs * (passes + spent + others + stepping)
        return self._row("train", seconds, (device, host + held), self._file_bytes[1], basis)

    def _minibatch(self, first: int, pixels: int, iterations: int, kmeans: Observed) -> float:
        """Seconds of mini-batch k-means: one of the first batches, and an update with each of the others."""
        updated = max(0, pixels - first) * self._measured["mini-batch"].seconds
        return first * iterations * kmeans.seconds + updated

    def _cluster(self) -> Row:
        settings, kmeans = self._params.cluster, self._measured["cluster k-means"]
        sampled = min(settings.sample_images, self._at.num_train)
        passed, points = sampled, settings.sample_pixels
        if settings.kmeans == "minibatch" and settings.centroids == "fresh":
            pixels = (self._params.size_px // self._params.train.feature_stride) ** 2
            passed += self._at.num_train
            points = pixels * min(self._at.num_train, settings.init_batches * settings.batch_size)
            spent = RUNS * self._minibatch(points, self._at.num_train * pixels, settings.iterations, kmeans)
            basis = f"all pixels of {self._at.num_train:,} images"
        else:
            iterations = RUNS * settings.restarts * settings.iterations
            spent = points * iterations * kmeans.seconds if settings.centroids == "fresh" else 0.0
            basis = f"k-means of {points:,} pixels, x {iterations:,} iterations, as of {kmeans.items:,}"
        if settings.batch_norm == "fresh":
            passed += self._at.num_train
        device, host = self._memory("cluster", settings.batch_size, image_bytes=self._train_bytes)
        held = KMEANS_COPIES * points * self._params.train.fpn_dim * FLOAT
        device = max(device, self._where(kmeans, held)[0]) if device else 0.0
        seconds = passed * self._image_seconds("cluster") + spent
        disk = self._params.pixel_k * self._params.train.fpn_dim * FLOAT
        basis = f"{self._measured['cluster'].items} of {passed:,} images; {basis}"
        return self._row("cluster", seconds, (device, host + held), disk, basis)

    def _predict(self) -> Row:
        one, cells = self._measured["predict"], self._params.size_px // self._params.train.feature_stride
        device, host = self._memory("predict", self._params.predict.batch_size)
        disk = self._at.num_val * self._params.pixel_k * cells**2 * SCORE
        basis = f"{one.items} of {self._at.num_val:,} images"
        return self._row("predict", self._at.num_val * one.seconds, (device, host), disk, basis)

    def _refine(self) -> Row:
        disk = self._at.num_val * self._params.size_px**2
        if "refine" not in self._measured:
            return self._row("refine", 0, (0.0, 0.0), disk, "no CRF")
        one = self._measured["refine"]
        workers = 1 if one.device_bytes else self._at.cores
        host = one.kept_bytes + one.working_bytes
        if workers > 1:
            host = workers * (self._at.base_bytes + host)
        basis = f"{one.items} of {self._at.num_val:,} images, {workers} process{'es' * (workers > 1)}"
        seconds = self._at.num_val * one.seconds / workers
        return self._row("refine", seconds, (one.device_bytes, host), disk, basis)

    def _evaluate(self) -> Row:
        seconds, host, counts = self._grown("evaluate")
        return self._row("evaluate", seconds, (0.0, host), 0, f"{counts} images", EVALUATIONS)

    def _report(self) -> Row:
        seconds, host, counts = self._grown("report")
        return self._row("report", seconds, (0.0, host), 0, f"{counts} images")

    def _grown(self, name: str) -> tuple[float, float, str]:
        """Seconds and host memory for all validation images, on the line through two sizes."""
        once, twice = (self._measured[f"{name} {size}"] for size in ("once", "twice"))
        first, second = (one.seconds * one.items for one in (once, twice))
        seconds = first + max(0.0, second - first) * (self._at.num_val - once.items) / once.items
        host = max(one.kept_bytes + one.working_bytes for one in (once, twice))
        counts = f"{once.items} and {twice.items} of {self._at.num_val:,}"
        return max(0.0, seconds), host, counts
