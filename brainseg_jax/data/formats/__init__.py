"""Recognizes the format of a folder of labelled scans, and lists the files of each case.

This package reads names, JSON, TOML, tables, and the first image of pairs. Other pixels are read later, case by case.
"""

from brainseg_jax.data.formats.images import list_images
from brainseg_jax.data.formats.listing import ALL, CaseFiles, Files, Listing, Slices, targets_from_values
from brainseg_jax.data.formats.recognize import list_cohort

__all__ = [
    "ALL",
    "CaseFiles",
    "Files",
    "Listing",
    "Slices",
    "list_cohort",
    "list_images",
    "targets_from_values",
]
