"""What a run's metrics_log says where its files cannot be written."""

import pytest

from brainseg_jax.errors import StorageError
from brainseg_jax.runs.metrics_log import MetricsLog


def test_a_tensorboard_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "tensorboard").write_text("a file in its place")
    metrics_log = MetricsLog(tmp_path, epochs=1, steps_per_epoch=1, resumed_epoch=0, enabled=True)
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written .*tensorboard.* resumes from"):
        metrics_log.end_epoch({"epoch": 1, "train_loss": 0.5}, images_per_second=1.0)
    assert not metrics_log.path.exists()  # no row without the others
