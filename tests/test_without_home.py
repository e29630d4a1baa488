"""Without a home folder: defaults below it are skipped, and messages name what a user can give."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds

from brainseg_jax.config import default_config
from brainseg_jax.data.lgg import prepare
from brainseg_jax.data.splits import Split, write_split
from brainseg_jax.errors import InputError
from brainseg_jax.runs import data
from brainseg_jax.runs.run_folder import claim_run_folder
from brainseg_jax.scans.description import LGG

SPLIT = Split(("a",), ("b",), ("c",))
COHORT = SimpleNamespace(
    cases=("a", "b", "c"), patients=("a", "b", "c"), groups=("", "", ""), fingerprint="0123", description=LGG
)


@pytest.fixture(autouse=True)
def homeless(monkeypatch):
    def expanduser(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", expanduser)
    monkeypatch.setattr(tfds.core.constants, "get_default_data_dir", lambda: "~/tensorflow_datasets")


def test_folders_of_data_below_it_are_left_out(tmp_path):
    config = default_config().data
    config.dir = str(tmp_path)
    assert data._data_folders({"data": {"dir": "~/other"}}, config) == [tmp_path]


def test_the_default_folder_of_data_is_asked_for_by_its_flags(tmp_path):
    words = r"prepared data, ~/tensorflow_datasets, .*--data_dir \(in main: --config.data.dir\) .* TFDS_DATA_DIR$"
    with pytest.raises(InputError, match=words) as raised:
        prepare("phantom", None)
    assert "data_dir=~" not in str(raised.value)


def test_a_split_below_it_is_that_of_the_run(tmp_path, caplog):
    config = default_config().split
    config.file = "~/split.json"
    with pytest.raises(InputError, match=r"^--config.split.file=~/split.json: the home folder"):
        data.choose_split(config, COHORT, tmp_path)
    write_split(tmp_path / "split.json", SPLIT)
    assert data.choose_split(config, COHORT, tmp_path) == SPLIT
    assert f"using {tmp_path}/split.json" in caplog.text


def test_a_source_below_it_is_recorded_as_it_is(tmp_path):
    config = default_config()
    config.data.source = "~/kaggle_3m"
    folder = tmp_path / "lgg_mri" / "three" / "1.0.0"
    claim_run_folder(tmp_path / "run", config, SimpleNamespace(**vars(COHORT), folder=folder), SPLIT)
    assert data.recorded(tmp_path / "run")["data"]["source"] == "~/kaggle_3m"
