"""The formats in which users keep labelled scans: which one a folder has, and which files belong to which case.

Names, JSON, TOML and tables are read here, and the first image of pairs; all other pixels are read case by case, later.
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
