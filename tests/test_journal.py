"""What a run's journal says where its files cannot be written."""

import pytest

from brainseg_jax.errors import StorageError
from brainseg_jax.runs.journal import Journal


def test_a_tensorboard_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "tensorboard").write_text("a file in its place")
    journal = Journal(tmp_path, epochs=1, steps_per_epoch=1, resumed_epoch=0, enabled=True)
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written .*tensorboard.* resumes from"):
        journal.end_epoch({"epoch": 1, "train_loss": 0.5}, images_per_second=1.0)
    assert not journal.path.exists()  # no row without the others
