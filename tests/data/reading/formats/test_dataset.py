from pathlib import Path

import pytest

from ppa_fast.data.reading.corpus import ReadOptions, parse_pairs
from ppa_fast.errors import UserError
from tests.data.reading.formats.conftest import Found, found

ROWS = [{"translation": {"en": f"one {i}", "de": f"eins {i}"}, "score": i / 4} for i in range(2_500)]
EXPECTED = [(f"one {i}", f"eins {i}") for i in range(2_500)]


def read(spec: str, **options: str) -> list[Found]:
    return [found(item) for item in parse_pairs(f"en-de:hf:{spec}", ReadOptions(**options)).read()]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_a_data_set_on_disk_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(dev=Dataset.from_list(ROWS[:3])).save_to_disk(tmp_path / "splits")
    assert read(f"{tmp_path}/one") == EXPECTED
    assert read(f"{tmp_path}/splits:dev", score_column="score") == [(*EXPECTED[i], i / 4) for i in range(3)]
    with pytest.raises(UserError, match="no split train, found dev"):
        read(f"{tmp_path}/splits")
    source = parse_pairs(f"en-de:hf:{tmp_path}/one")
    assert (source.name, source.bytes_total) == ("en-de", None)


def test_a_data_set_is_streamed(tmp_path: Path) -> None:
    from datasets import Dataset

    folder = tmp_path / "folder"
    folder.mkdir()
    Dataset.from_list(ROWS).to_parquet(folder / "test.parquet")
    assert read(f"{folder}:test") == EXPECTED
    with pytest.raises(UserError, match="no column src"):
        [*parse_pairs(f"en-de:hf:{folder}:test", ReadOptions(columns=("src", "de"))).read()]
    for spec in (f"{folder}:dev", f"{folder},other:test", f"{tmp_path}/absent", "nobody/nothing-of-the-kind"):
        with pytest.raises(UserError, match=f"hf:{spec}: cannot be read: "):
            read(spec)


def test_a_missing_datasets_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ppa-fast\[datasets\]'"):
        read("any")
