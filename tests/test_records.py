import ast
import builtins
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from geolabel.errors import OutputError
from geolabel.io.records import Store

RECORD = {
    "scores": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    "part": np.arange(6, dtype=np.uint16)[::2],
    "foreign": np.arange(3, dtype=">i4"),
    "one": np.asarray(7, np.int16),
    "ids": np.array([1, 2, 3], np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "whole": np.asarray([True, False]),
    "half": np.asarray([np.nan, 1 / 3], np.float16),
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
        assert back[name].dtype == array.dtype.newbyteorder("<")
        assert back[name].flags.writeable
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
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["00000000.safetensors"]


def test_a_failed_write_leaves_the_old_record_and_no_part(tmp_path: Path):
    class Unreadable:
        def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
            raise OSError(28, "No space left on device")

    store = Store(tmp_path)
    store.write("a", 0, RECORD)
    with pytest.raises(OutputError, match=r"00000000\.safetensors could not be written: No space left"):
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
    with pytest.raises(OutputError, match=r"00000003\.safetensors is damaged .* delete .* and run again"):
        store.read("a", 3)


def test_every_byte_is_looked_after(tmp_path: Path):
    store = Store(tmp_path)
    arrays = {"x": np.arange(3, dtype=np.int32), "y": np.zeros((2, 3), np.uint8)}
    store.write("a", 0, arrays)
    path = tmp_path / store.name("a", 0)
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                back = store.read("a", 0)
            except OutputError:
                continue
            assert back.keys() == arrays.keys()  # it was the space that fills the header up
            assert all(np.array_equal(back[name], array) for name, array in arrays.items())
            assert all(back[name].dtype == array.dtype for name, array in arrays.items())


def test_a_record_is_what_others_read_too(tmp_path: Path):
    store = Store(tmp_path)
    store.write("a", 0, RECORD)
    back = load_file(tmp_path / store.name("a", 0))
    assert all(np.array_equal(back[name], array, equal_nan=name == "half") for name, array in RECORD.items())


def test_parts_of_a_record_are_read_alone(tmp_path: Path):
    store = Store(tmp_path)
    store.write("a", 0, {"x": np.arange(9), "y": np.full(1000, 7.5), "z": np.arange(4)})
    path = tmp_path / store.name("a", 0)
    data = path.read_bytes()
    where = data.index(np.full(1000, 7.5).tobytes())
    path.write_bytes(data[:where] + b"x" + data[where + 1 :])
    assert set(store.read("a", 0, "x", "z")) == {"x", "z"}
    with pytest.raises(OutputError, match="y does not have its checksum"):
        store.read("a", 0)
    with pytest.raises(OutputError, match="damaged"):
        store.read("a", 0, "w")


def test_whole_looks_at_the_size_and_not_at_the_values(tmp_path: Path):
    store = Store(tmp_path)
    assert not store.whole("a", 0)
    store.write("a", 0, {"x": np.arange(1000)})
    assert store.whole("a", 0)
    path = tmp_path / store.name("a", 0)
    data = path.read_bytes()
    for changed, whole in ((data[:-1], False), (data + b"x", False), (data[:-1] + b"x", True), (b"", False)):
        path.write_bytes(changed)
        assert store.whole("a", 0) is whole


def test_reading_parses_no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In CPython 3.11 that fails now and then in threads."""
    store = Store(tmp_path)
    store.write("a", 0, RECORD)

    def parse(*_: object, **__: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    with monkeypatch.context() as patch:
        patch.setattr(ast, "parse", parse)
        patch.setattr(builtins, "compile", parse)
        back = store.read("a", 0)
        assert store.whole("a", 0)
    assert back.keys() == RECORD.keys()


def test_many_threads_read_at_once(tmp_path: Path):
    store = Store(tmp_path)
    for number in range(8):
        store.write("a", number, RECORD | {"ids": np.asarray([number])})

    def read(number: int, depth: int) -> int:
        return read(number, depth - 1) if depth else int(store.read("a", number)["ids"][0])

    numbers = [k % 8 for k in range(800)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, numbers, (k % 50 for k in range(800)))) == numbers


def test_a_missing_record_is_named(tmp_path: Path):
    with pytest.raises(OutputError, match=r"a/00000000\.safetensors is missing"):
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
