"""A small report of made-up patients, for the tests of its text and of its page in a browser."""

import numpy as np

from brainseg_jax.evaluation.calibration import calibrate
from brainseg_jax.evaluation.case_pictures import (
    Case,
    Overlay,
    attention_pictures,
    outline,
    probability_pictures,
    scan_pictures,
)
from brainseg_jax.evaluation.report import Scored, write_report
from brainseg_jax.evaluation.volumes import score_volume

HOSTILE = "<img src=x onerror=alert(1)>'\"&</script>"  # a name that would be a program, if a page let it
PATIENTS = ("TCGA_AA_0001_19990101", "TCGA_BB_0002_19990101", HOSTILE, "TCGA_AA_0004_19990101")
SLICES, SIZE = 6, 48
SHIFTS = {"TCGA_AA_0001_19990101": 2, "TCGA_BB_0002_19990101": 9, HOSTILE: 5, "TCGA_AA_0004_19990101": 60}


def square(corner, side=12):
    """A mask [SLICES, SIZE, SIZE] of a square, which grows smaller towards the last slice."""
    mask = np.zeros((SLICES, SIZE, SIZE), bool)
    for k in range(1, SLICES):
        mask[k, corner : corner + side - k, 8 : 8 + side - k] = True
    return mask


def make_report(path, names=("first",), *, tolerance=2.0):
    """Writes a report of runs `names`; a patient's prediction is its truth moved down by `SHIFTS`, more in later runs.

    The last patient's is moved out of the image, so nothing is predicted and distances are undefined.
    """
    runs, cases = [], []
    random = np.random.default_rng(0)
    scans = [random.integers(0, 200, (SLICES, SIZE, SIZE)).astype(np.uint8) for _ in PATIENTS]
    for r, name in enumerate(names):
        rows, calibrations = [], []
        for i, patient in enumerate(PATIENTS):
            truth, predicted = square(4), square(4 + SHIFTS[patient] + r)
            probability = np.where(predicted, 0.9, 0.1 * (scans[i] > 150)).astype(np.float32)
            known = {"patient": patient, "institution": patient[5:7], "grade": i - 1}
            rows.append(known | score_volume(predicted, truth, spacing=None, tolerance=tolerance))
            calibrations.append(calibrate(probability, truth, scans[i]))
            attention = attention_pictures(np.linspace(0, 1, truth.size).reshape(truth.shape)) if r == 0 else None
            overlay = Overlay(outline(predicted), probability_pictures(probability), attention)
            if r == 0:
                numbers = list(range(1, SLICES + 1))
                cases.append(Case(patient, (SIZE, SIZE), numbers, scan_pictures(scans[i]), outline(truth), [overlay]))
            else:
                cases[i].overlays.append(overlay)
        epochs = [
            dict.fromkeys(("train_loss", "val_loss", "val_dice_mean", "val_dice_median"), 1 / e) | {"epoch": e}
            for e in (1, 2, 3)
        ]
        calibration = sum(calibrations[1:], start=calibrations[0])
        runs.append(Scored(name, rows, {"Data": "made up"}, epochs, calibration, 0.5, {"seed": r}))
    write_report(path, runs, cases, tolerance=tolerance)
    return runs, cases
