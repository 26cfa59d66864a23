"""Object stores, against one on this machine that speaks S3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segtune.errors import DataError, SegtuneError, UsageError
from segtune.imageio.object_store import (
    existing_files,
    fault_of_store,
    fetch_stored,
    is_stored,
    list_stored,
    read_stored,
    write_stored,
)

ROOT = "s3://corpus"


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    from support.object_store import serve

    with serve() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://bucket/a", True),
        ("hf://datasets/user/name", True),
        ("gs://bucket", True),
        ("hub://user/name", False),
        ("segtune://earth", False),
        ("https://example.org/a.png", False),
        ("data/a", False),
        (r"C:\\data", False),
    ],
)
def test_which_names_are_addresses_of_stores(name: str, expected: bool) -> None:
    assert is_stored(name) == expected


def test_files_are_written_listed_and_read(store: Any, tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "deep/c.png", "note.txt"):
        write_stored(f"{ROOT}/pictures/{name}", name.encode())

    def is_png(name: str) -> bool:
        return name.endswith(".png")

    assert list_stored(f"{ROOT}/pictures", is_png) == [f"{ROOT}/pictures/a.png", f"{ROOT}/pictures/b.png"]
    assert list_stored(f"{ROOT}/pictures/", is_png, deep=True)[-1] == f"{ROOT}/pictures/deep/c.png"
    assert list_stored(f"{ROOT}/pictures/*.txt", is_png) == [f"{ROOT}/pictures/note.txt"]
    assert list_stored(f"{ROOT}/pictures/note.txt", is_png) == [f"{ROOT}/pictures/note.txt"]
    assert list_stored(f"{ROOT}/nothing", is_png) == []
    assert existing_files(f"{ROOT}/pictures") == {"a.png", "b.png", "deep/c.png", "note.txt"}
    assert existing_files(f"{ROOT}/nothing/here") == set()
    assert (read_stored(f"{ROOT}/pictures/a.png"), read_stored(f"{ROOT}/pictures/x.png")) == (b"a.png", None)
    fetch_stored(f"{ROOT}/pictures/a.png", tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == b"a.png"


def test_paths_of_this_machine_are_taken_too(tmp_path: Path) -> None:
    place = str(tmp_path / "new")
    assert existing_files(place) == set() and read_stored(f"{place}/a") is None
    write_stored(f"{place}/deep/a", b"1")
    assert existing_files(place) == {"deep/a"} and read_stored(f"{place}/deep/a") == b"1"


@pytest.mark.parametrize(
    "step",
    [
        lambda address: list_stored(address, bool),
        existing_files,
        lambda address: write_stored(f"{address}/a", b"1"),
        lambda address: fetch_stored(f"{address}/a", Path("never")),
    ],
)
def test_a_bucket_that_is_not_there_is_one_line(
    store: Any, step: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^s3://nobody/x.*: the store has no such bucket, folder or file") as raised:
        step("s3://nobody/x")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": ""}, "no credentials for this store: set AWS_ACCESS_KEY_ID and"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store does not answer .*: look at the network and AWS_END"),
    ],
)
def test_a_store_out_of_reach_is_one_line(
    store: Any,
    impatient: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    message: str,
) -> None:
    for name, value in {
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_MAX_ATTEMPTS": "1",
        **variables,
    }.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(SegtuneError, match=f"^s3://corpus/a: {message}") as raised:
        list_stored("s3://corpus/a", bool)
    assert "\n" not in str(raised.value)
    caused = RuntimeError("in a loop far away")
    caused.__cause__ = raised.value.__cause__
    told = fault_of_store(caused)
    assert told is not None and told.startswith("object store: ")


def test_other_errors_are_none_of_a_store() -> None:
    assert fault_of_store(ValueError("a bug")) is None
    assert fault_of_store(FileNotFoundError("a file")) is None


def test_packages_that_are_not_here_are_named() -> None:
    with pytest.raises(UsageError, match=r"gs:// needs a package that is not here .*: pip install gcsfs"):
        list_stored("gs://bucket/a", bool)
    with pytest.raises(UsageError, match="no store is known by the name nowhere://"):
        list_stored("nowhere://bucket/a", bool)
