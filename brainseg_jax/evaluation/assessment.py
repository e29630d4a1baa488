"""Scores a network on cases of a cohort: a quick score during training, a full assessment at the end."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from brainseg_jax import ops, sharding
from brainseg_jax.data.cohort import Cohort, unpack_targets
from brainseg_jax.data.normalization import Normalization
from brainseg_jax.evaluation.calibration import Calibration, calibrate, combine_targets
from brainseg_jax.evaluation.quality import AGREEMENT
from brainseg_jax.evaluation.volumes import score_targets
from brainseg_jax.inference.forward import Forward
from brainseg_jax.inference.network import Inputs, Network, Runner
from brainseg_jax.inference.postprocess import Chooser, PostProcess, make_masks
from brainseg_jax.inference.quality import agreement
from brainseg_jax.metrics import dice, soft_batch_iou

if TYPE_CHECKING:
    from brainseg_jax.evaluation.case_pictures import CasePictures

Loss = Callable[..., jax.Array]  # (logits [B, H, W, K], labels [B, H, W, K], mask=...) -> [B]


class LossSums:
    """Adds up the loss batch by batch while a network runs, on the images of the training size."""

    def __init__(self, loss: Loss, cohort: Cohort, runner: Runner) -> None:
        """Compiles nothing yet."""
        self._runner = runner

        def batch_sums(logits: jax.Array, bits: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
            targets, counted = unpack_targets(bits, cohort.description)
            mask = valid if counted is None else counted * valid.astype(jnp.float32)[:, None, None, None]
            losses = loss(logits, targets, mask=mask)
            return jnp.sum(jnp.where(valid, losses, 0.0)), soft_batch_iou(jax.nn.sigmoid(logits), targets, valid)

        self._batch_sums = jax.jit(
            batch_sums,
            out_shardings=sharding.replicated(runner.mesh),
            compiler_options=ops.compiler_options(deterministic=True, network=False),  # too small to be slow
        )
        self.start()

    def start(self) -> None:
        """Resets all sums."""
        self._bits: dict[int, np.ndarray] = {}  # of the volumes in progress
        self._volumes = 0
        self._loss, self._soft_iou, self._slices, self._batches = 0.0, 0.0, 0, 0

    def expect(self, bits: np.ndarray) -> None:
        """Registers the target bits [n, side, side, 1] of the next input of the network: one view of one volume."""
        self._bits[self._volumes] = bits
        self._volumes += 1

    def add(self, outputs: Forward, owners: np.ndarray, slices: np.ndarray, valid: np.ndarray) -> None:
        """Adds a batch, see `network.OnBatch`."""
        bits = np.stack([self._bits[owner][index] for owner, index in zip(owners, slices, strict=True)])
        for finished in [volume for volume in self._bits if volume < owners.max()]:
            del self._bits[finished]
        everywhere = sharding.replicated(self._runner.mesh)
        loss, soft_iou = self._batch_sums(outputs.logits, *(sharding.put(array, everywhere) for array in (bits, valid)))
        self._loss += float(loss)
        self._soft_iou += float(soft_iou)
        self._slices += int(valid.sum())
        self._batches += 1

    @property
    def loss(self) -> float:
        """Mean over slices."""
        return self._loss / self._slices

    @property
    def soft_iou(self) -> float:
        """Mean of `metrics.soft_batch_iou` over batches. Ignored pixels count, as this metric has no mask."""
        return self._soft_iou / self._batches


@dataclass(frozen=True, eq=False)
class LargestSlice:
    """The slice of a case with the largest reference mask, or if that is empty, with the largest prediction.

    It is small enough to keep one of every case.

    Attributes:
      index: index of the slice.
      scan: [H, W] uint8, the displayed channel.
      attention: [H, W] in [0, 1]; None for a network without gates.
      shape: (H, W, K).
      bits: reference and prediction, packed.
    """

    index: int
    scan: np.ndarray
    attention: np.ndarray | None
    shape: tuple[int, int, int]
    bits: np.ndarray

    @classmethod
    def of(
        cls, scan: np.ndarray, truth: np.ndarray, predicted: np.ndarray, attention: np.ndarray | None
    ) -> "LargestSlice":
        """Selects from a scan [S, H, W], masks [S, H, W, K] bool and attention [S, H, W]; copies the slice."""
        areas = (truth if truth.any() else predicted).sum(axis=(1, 2, 3), dtype=np.int64)
        index = int(np.argmax(areas))
        bits = np.packbits(np.stack([truth[index], predicted[index]]))
        shown = None if attention is None else attention[index].copy()
        return cls(index, scan[index].copy(), shown, truth.shape[1:], bits)

    @property
    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Reference and prediction, each [H, W, K] bool."""
        shape = (2, *self.shape)
        truth, predicted = np.unpackbits(self.bits, count=math.prod(shape)).astype(bool).reshape(shape)
        return truth, predicted


@dataclass(frozen=True, eq=False)
class CaseAssessment:
    """The assessment of one case, with its masks at full size.

    Attributes:
      name: name of the case.
      rows: identity columns, scores of `volumes.score_targets`, and agreement; one row per target.
      calibrations: target -> calibration.
      pictures: pictures for the report.
      largest: slice for a panel.
      masks: [S, H, W, K] bool.
      attention: [S, H, W] in [0, 1]; None for a network without gates.
    """

    name: str
    rows: list[dict]
    calibrations: dict[str, Calibration]
    pictures: "CasePictures"
    largest: LargestSlice
    masks: np.ndarray
    attention: np.ndarray | None


@dataclass(frozen=True)
class Assessment:
    """The assessment of several cases, without volumes.

    Attributes:
      rows: rows of all cases.
      calibrations: target -> calibration over all cases.
      cases: pictures of each case.
      largest: case -> largest slice.
    """

    rows: list[dict]
    calibrations: dict[str, Calibration]
    cases: "list[CasePictures]"
    largest: dict[str, LargestSlice]


class Assessor:
    """Scores networks on cases of one cohort.

    The devices predict together, so every process must call the same methods.

    Attributes:
      cohort: all cases.
      runner: runs the networks.
      loss: sums of the loss, or None.
    """

    def __init__(self, cohort: Cohort, runner: Runner, loss: Loss | None = None) -> None:
        """See the attributes."""
        self.cohort, self.runner = cohort, runner
        self.loss = LossSums(loss, cohort, runner) if loss else None

    def quick(self, network: Network, cases: Sequence[str], posts: Sequence[PostProcess]) -> dict[str, float]:
        """Returns the loss, and 3-D Dice and IoU over patients.

        The score of a patient is the mean over cases and targets.

        Args:
          network: the network in its current state.
          cases: one or more cases of the cohort.
          posts: post-processing of each target.

        Returns:
          loss, dice_mean, dice_median, iou_mean.
        """
        assert self.loss is not None  # only a training calls this, and it passes its loss
        by_patient: dict[str, list[np.ndarray]] = {}
        for index, probability, _ in self._outputs(network, cases):
            masks = self._masks(index, probability, posts)
            truth, counted = self._truth(index)
            target_dice = np.array(
                [dice(masks[..., k] & counted, truth[..., k] & counted) for k in range(masks.shape[-1])]
            )
            scores = np.array(
                [target_dice.mean(), (target_dice / (2.0 - target_dice)).mean()]
            )  # mean Dice and IoU over the targets
            by_patient.setdefault(self.cohort.patients[index], []).append(scores)
        patients = np.array([np.mean(of_cases, axis=0) for of_cases in by_patient.values()])
        return {
            "loss": self.loss.loss,
            "dice_mean": float(patients[:, 0].mean()),
            "dice_median": float(np.median(patients[:, 0])),
            "iou_mean": float(patients[:, 1].mean()),
        }

    def choose(self, network: Network, cases: Sequence[str]) -> tuple[PostProcess, ...]:
        """For each target, chooses the post-processing that gives the best masks on these cases, see `Chooser`."""
        choosers = [Chooser() for _ in self.cohort.description.targets]
        for index, probability, _ in self._outputs(network, cases):
            canvas = self.cohort.canvases[index][0]
            truth, counted = self._truth(index)
            for k, chooser in enumerate(choosers):
                chooser.add(probability[..., k], truth[..., k], canvas, counted, patient=self.cohort.patients[index])
        return tuple(chooser.best()[0] for chooser in choosers)

    def agreements(self, network: Network, cases: Sequence[str], posts: Sequence[PostProcess]) -> list[dict]:
        """Returns a row per case and target: identity columns, target if there are several, Dice and agreement.

        Args:
          network: see `assess`.
          cases: see `assess`.
          posts: see `assess`.
        """
        names = self.cohort.description.names
        rows = []
        for index, probability, _ in self._outputs(network, cases):
            masks = self._masks(index, probability, posts)
            truth, counted = self._truth(index)
            for k, name in enumerate(names):
                row: dict = self.identity(index) | ({"target": name} if len(names) > 1 else {})
                row |= {"dice": dice(masks[..., k] & counted, truth[..., k] & counted)}
                rows.append(row | {AGREEMENT: self._agreement(index, probability, masks, posts, k)})
        return rows

    def assess(
        self, network: Network, cases: Sequence[str], posts: Sequence[PostProcess], *, tolerance: float
    ) -> Assessment:
        """Predicts each case once and computes everything that a report shows.

        Args:
          network: a network with the channels and targets of the cohort.
          cases: one or more cases of the cohort.
          posts: post-processing of each target.
          tolerance: tolerance of surface Dice, in mm, or in voxels if the spacing is unknown.

        Returns:
          rows and pictures in the order of `cases`. They hold one slice of each case and pictures of
          `case_pictures.MAX_SLICES` slices, but no volume.
        """
        assessed = {}
        for one in self.assess_each(network, cases, posts, tolerance=tolerance):
            assessed[one.name] = one.rows, one.calibrations, one.pictures, one.largest
        rows, calibrations, pictures, largest = zip(*(assessed[name] for name in cases), strict=True)
        return Assessment(
            rows=[row for case_rows in rows for row in case_rows],
            calibrations=combine_targets(calibrations, [case_rows[0]["patient"] for case_rows in rows]),
            cases=list(pictures),
            largest=dict(zip(cases, largest, strict=True)),
        )

    def assess_each(
        self,
        network: Network,
        cases: Sequence[str],
        posts: Sequence[PostProcess],
        *,
        tolerance: float,
        report_cases: Sequence[str] = (),
    ) -> Iterator[CaseAssessment]:
        """Predicts and scores cases one by one, in the order of the cohort.

        Args:
          network: see `assess`.
          cases: cases of the cohort in any order; may be empty.
          posts: see `assess`.
          tolerance: see `assess`.
          report_cases: all cases of the report if `cases` is one shard. Distances are in mm only if the spacing of all
            these cases is known. The number of their slices sets how many slices the report shows.
        """
        # Imported late: matplotlib is slow to load, and training needs it only at the end.
        from brainseg_jax.evaluation import case_pictures

        cohort, description = self.cohort, self.cohort.description
        every_case = cohort.indices(report_cases or cases)
        spacing_known = all(cohort.spacings[index] for index in every_case)
        step = case_pictures.slice_step(sum(len(cohort.numbers[index]) for index in every_case))
        for index, probability, attention in self._outputs(network, cases):
            name, masks = cohort.cases[index], self._masks(index, probability, posts)
            truth, counted = self._truth(index)
            shown_masks = masks & counted[..., None]
            scan = cohort.read_voxels(name)[..., description.shown]
            scores = score_targets(
                masks,
                truth,
                description.names,
                spacing=cohort.spacings[index] if spacing_known else None,
                tolerance=tolerance,
                counted=counted,
            )
            yield CaseAssessment(
                name=name,
                rows=[
                    self.identity(index) | row | {AGREEMENT: self._agreement(index, probability, masks, posts, k)}
                    for k, row in enumerate(scores)
                ],
                calibrations={
                    target: calibrate(probability[..., k], truth[..., k], scan, counted=counted)
                    for k, target in enumerate(description.names)
                },
                pictures=case_pictures.draw_case(
                    name,
                    list(cohort.numbers[index]),
                    scan=scan,
                    truth=truth,
                    masks=shown_masks,
                    probability=probability,
                    attention=attention,
                    step=step,
                ),
                largest=LargestSlice.of(scan, truth, shown_masks, attention),
                masks=masks,
                attention=attention,
            )

    def identity(self, index: int) -> dict[str, str | int]:
        """Returns the identity columns: patient, case if it has another name, then group or institution and grade."""
        cohort = self.cohort
        if cohort.grades is not None:  # the LGG set: one case per patient, named after the patient
            return {"patient": cohort.cases[index], "institution": cohort.groups[index], "grade": cohort.grades[index]}
        columns: dict[str, str | int] = {"patient": cohort.patients[index]}
        if tuple(cohort.patients) != tuple(cohort.cases):
            columns["case"] = cohort.cases[index]
        return columns | ({"group": cohort.groups[index]} if any(cohort.groups) else {})

    def _outputs(self, network: Network, cases: Sequence[str]) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yields index, probability [S, H, W, K] and attention [S, H, W] of each case, in the order of the cohort.

        Both are means over the views, on the case's native grid. Attention is None for a network without gates.
        """
        cohort = self.cohort
        indices = np.sort(cohort.indices(cases)).tolist()
        if self.loss:
            self.loss.start()
        outputs = self.runner.run(
            network, self._inputs(network, indices), on_batch=self.loss.add if self.loss else None
        )
        for index in indices:
            views = [(canvas, next(outputs)) for canvas in cohort.canvases[index]]
            probability = _mean(canvas.from_network(output.probability) for canvas, output in views)
            attention = None
            if views[0][1].attention is not None:
                attention = _mean(canvas.from_network(output.attention) for canvas, output in views)[..., 0]
            yield index, probability, attention

    def _inputs(self, network: Network, indices: Sequence[int]) -> Iterator[Inputs]:
        for index in indices:
            constants = Normalization(*(c[index] for c in self.cohort.normalization))
            for images, bits in self.cohort.views(index):
                if self.loss:
                    assert bits is not None  # a cohort for the loss has its slices
                    self.loss.expect(bits)
                yield network.inputs(images, constants)

    def _masks(self, index: int, probability: np.ndarray, posts: Sequence[PostProcess]) -> np.ndarray:
        """Returns the masks of a case on its native grid, [S, H, W, K] bool."""
        return make_masks(probability, posts, self.cohort.description, self.cohort.canvases[index][0])

    def _agreement(
        self, index: int, probability: np.ndarray, masks: np.ndarray, posts: Sequence[PostProcess], k: int
    ) -> float | None:
        """Returns the agreement of the mask of target k of a case."""
        post = posts[k].on_grid(self.cohort.canvases[index][0].padded)
        return agreement(probability[..., k], masks[..., k], post)

    def _truth(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the reference masks of a case, [S, H, W, K] bool, and the voxels that count, [S, H, W] bool."""
        labels, description = self.cohort.read_labels(index), self.cohort.description
        counted = description.counted(labels)
        return description.masks(labels), np.ones(labels.shape, bool) if counted is None else counted


def _mean(maps: Iterator[np.ndarray]) -> np.ndarray:
    first, *others = maps
    return sum(others, start=first) / np.float32(1 + len(others)) if others else first
