import pickle
from pathlib import Path

import numpy as np
import pytest

from geolabel.errors import OutputError
from geolabel.io.store import Store

RECORD = {
    "scores": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "ids": np.array([1, 2, 3], np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "names": np.array(["clear", "failed"]),
}


def test_a_record_comes_back_as_it_was_written(tmp_path: Path):
    store = Store(tmp_path / "run")
    assert not store.has("merge", 7)
    store.write("merge", 7, RECORD)
    assert store.has("merge", 7)
    assert not store.has("merge", 8)
    back = store.read("merge", 7)
    assert back.keys() == RECORD.keys()
    for name, array in RECORD.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path):
    store = Store(tmp_path)
    store.write("a", 0, RECORD)
    store.write("a", 1, RECORD)
    assert (tmp_path / store.name("a", 0)).read_bytes() == (tmp_path / store.name("a", 1)).read_bytes()


def test_a_store_travels_and_serves_as_a_key(tmp_path: Path):
    store = Store(tmp_path)
    store.write("a", 0, RECORD)
    other = pickle.loads(pickle.dumps(store))
    assert other == store
    assert hash(other) == hash(store)
    np.testing.assert_array_equal(other.read("a", 0)["ids"], [1, 2, 3])


def test_a_record_written_again_replaces_the_first_and_leaves_nothing_else(tmp_path: Path):
    store = Store(tmp_path)
    store.write("a", 0, RECORD)
    store.write("a", 0, {"ids": np.array([9])})
    assert list(store.read("a", 0)) == ["ids"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["00000000.npz"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy before 2 forgets the archive
def test_a_failed_write_leaves_the_old_record_and_no_part(tmp_path: Path):
    class Unreadable:
        def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
            raise OSError(28, "No space left on device")

    store = Store(tmp_path)
    store.write("a", 0, RECORD)
    with pytest.raises(OutputError, match=r"00000000\.npz could not be written: No space left"):
        store.write("a", 0, {"x": Unreadable()})  # type: ignore[dict-item]
    assert set(store.read("a", 0)) == set(RECORD)
    assert len(list((tmp_path / "a").iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_record_is_named(tmp_path: Path, damage: str):
    store = Store(tmp_path)
    store.write("a", 3, {"x": np.arange(1000)})
    path = tmp_path / store.name("a", 3)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[600] ^= 0xFF
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": b"", "text": b"not a record"}[damage])
    with pytest.raises(OutputError, match=r"00000003\.npz is damaged .* delete .* and run again"):
        store.read("a", 3)


def test_a_pickle_is_not_opened(tmp_path: Path):
    store = Store(tmp_path)
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / store.name("a", 0), x=np.array([{"evil": 1}], dtype=object))
    with pytest.raises(OutputError, match="damaged"):
        store.read("a", 0)


def test_a_missing_record_is_named(tmp_path: Path):
    with pytest.raises(OutputError, match=r"a/00000000\.npz is missing"):
        Store(tmp_path).read("a", 0)


def test_remove_deletes_its_own_files_only(tmp_path: Path):
    store = Store(tmp_path / "run")
    store.write("a", 0, RECORD)
    store.write("b", 0, RECORD)
    note = tmp_path / "run" / "note.txt"
    note.write_text("mine")
    store.remove()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["note.txt"]
    note.unlink()
    store.write("a", 0, RECORD)
    store.remove()
    assert not (tmp_path / "run").exists()
    store.remove()
