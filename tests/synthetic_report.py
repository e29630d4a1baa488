"""A small report of synthetic patients, for the tests of its text and of its page in a browser."""

import numpy as np

from brainseg_jax.evaluation.calibration import calibrate, combine
from brainseg_jax.evaluation.case_pictures import (
    CasePictures,
    Overlay,
    attention_pictures,
    outlines,
    probability_pictures,
    scan_pictures,
)
from brainseg_jax.evaluation.quality import columns
from brainseg_jax.evaluation.report import write_report
from brainseg_jax.evaluation.views import Scored
from brainseg_jax.evaluation.volumes import score_targets
from brainseg_jax.inference.quality import Expected, Quality
from brainseg_jax.scans.description import LGG, Description, Target

HOSTILE = "<img src=x onerror=alert(1)>'\"&</script>"  # a name that would be a program, if a page let it
PATIENTS = ("TCGA_AA_0001_19990101", "TCGA_BB_0002_19990101", HOSTILE, "TCGA_AA_0004_19990101")
SLICES, SIZE = 6, 48
SHIFTS = {"TCGA_AA_0001_19990101": 2, "TCGA_BB_0002_19990101": 9, HOSTILE: 5, "TCGA_AA_0004_19990101": 60}


def square(corner, side=12):
    """A mask [SLICES, SIZE, SIZE] of a square that shrinks towards the last slice."""
    mask = np.zeros((SLICES, SIZE, SIZE), bool)
    for k in range(1, SLICES):
        mask[k, corner : corner + side - k, 8 : 8 + side - k] = True
    return mask


BRATS = Description(
    ("T1", "T1-Gd", "T2", "T2-FLAIR"),
    (Target("whole tumor", (1, 2, 3)), Target("tumor core", (1, 3)), Target("enhancing tumor", (3,))),
)


def squares(corner, targets):
    """Masks [SLICES, SIZE, SIZE, K]: the square, and in each later target a smaller one inside."""
    return np.stack([square(corner + 2 * k, 12 - 3 * k) for k in range(targets)], axis=-1)


def make_report(path, names=("first",), *, tolerance=2.0, description=LGG, cases_of_first=1, rated=()):
    """Writes a report of the runs `names`. A prediction is the reference moved down by `SHIFTS`, more in later runs.

    The last patient's prediction moves out of the image, so it is empty and distances are undefined. The first patient
    has `cases_of_first` cases. Runs in `rated` have a number next to each mask, except for that last patient.
    """
    runs, cases = [], []
    random = np.random.default_rng(0)
    found = [(p, "") for p in PATIENTS] + [(PATIENTS[0], str(i)) for i in range(1, cases_of_first)]
    scans = [random.integers(0, 200, (SLICES, SIZE, SIZE)).astype(np.uint8) for _ in found]
    targets = description.names
    for r, name in enumerate(names):
        rows, calibrations = [], []
        for i, (patient, suffix) in enumerate(found):
            truth, predicted = (squares(c, len(targets)) for c in (4, 4 + SHIFTS[patient] + r + len(suffix)))
            probability = np.where(predicted, 0.9, 0.1 * (scans[i] > 150)[..., None]).astype(np.float32)
            known = {"patient": patient} | ({"case": patient + suffix} if cases_of_first > 1 else {})
            known |= {"institution": patient[5:7], "grade": PATIENTS.index(patient) - 1}
            rows += [known | row for row in score_targets(predicted, truth, targets, spacing=None, tolerance=tolerance)]
            if rated:
                of_mask = Quality(0.95 - i / 10, Expected(0.9 - i / 10, 0.8 - i / 10, 1.0 - i / 10))
                of_mask = of_mask if predicted.any() else Quality(None, None)
                of_mask = of_mask if name in rated else of_mask._replace(expected=None)
                rows[-len(targets) :] = [row | columns(of_mask) for row in rows[-len(targets) :]]
            calibrations.append([calibrate(probability[..., k], truth[..., k], scans[i]) for k in range(len(targets))])
            attention = attention_pictures(np.linspace(0, 1, scans[i].size).reshape(scans[i].shape)) if r == 0 else None
            pictures = [probability_pictures(probability[..., k]) for k in range(len(targets))]
            overlay = Overlay(outlines(predicted), pictures, attention)
            if r == 0:
                numbers = list(range(1, SLICES + 1))
                scan = scan_pictures(scans[i])
                cases.append(CasePictures(patient + suffix, (SIZE, SIZE), numbers, scan, outlines(truth), [overlay]))
            else:
                cases[i].overlays.append(overlay)
        epochs = [
            dict.fromkeys(("train_loss", "val_loss", "val_dice_mean", "val_dice_median"), 1 / e) | {"epoch": e}
            for e in (1, 2, 3)
        ]
        patients = [patient for patient, _ in found]
        by_target = {t: combine([own[k] for own in calibrations], patients) for k, t in enumerate(targets)}
        thresholds = dict.fromkeys(targets, 0.5)
        runs.append(
            Scored(name, rows, {"Data": "made up"}, epochs, by_target, thresholds, {"seed": r}, description=description)
        )
    write_report(path, runs, cases, tolerance=tolerance)
    return runs, cases
