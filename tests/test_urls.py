"""URLs that are written or shown give nobody access."""

from __future__ import annotations

import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import click
import pytest

from geolabel.cli.terminal import announce
from geolabel.errors import GeolabelError, SceneError
from geolabel.io.error_messages import in_words
from geolabel.io.read.files import request, url_of
from geolabel.io.read.scenes import SceneReader
from geolabel.urls import clean, database_uri, path_of, without_secrets

SECRETS = ("PASSW0RD", "TOKEN")


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("https://me:PASSW0RD@host/a.tif", "https://host/a.tif"),
        ("https://TOKEN@host:8080/a.tif", "https://host:8080/a.tif"),
        ("https:/me:PASSW0RD@host/a.tif?sig=TOKEN is no folder", "https:/host/a.tif is no folder"),
        ("https://me:PASSW0RD/x@host/a.tif?sig=TOKEN", "https://host/a.tif"),
        ("https://me:PASSW0RD#x@host/a.tif", "https://host/a.tif"),
        ("https://host/a.tif?X-Amz-Signature=TOKEN&X-Amz-Date=1", "https://host/a.tif"),
        ("https://host/a.tif?sv=2024&sig=TOKEN%3D#TOKEN", "https://host/a.tif"),
        ("https://host/a@b/c.tif", "https://host/a@b/c.tif"),
        ("http://[::1]:80/a@b.tif?TOKEN", "http://[::1]:80/a@b.tif"),
        ("s3://KEY:TOKEN@bucket/a.tif?versionId=1", "s3://bucket/a.tif"),
        ("zip+https://me:PASSW0RD@host/a.zip!b.tif", "zip+https://host/a.zip!b.tif"),
        ("/vsicurl/https://me:PASSW0RD@host/a.tif?sig=TOKEN", "/vsicurl/https://host/a.tif"),
        ("/vsicurl?url=https%3A%2F%2Fme%3APASSW0RD%40host%2Fa.tif%3Fsig%3DTOKEN", "/vsicurl/https://host/a.tif"),
        ("/vsicurl?header.Authorization=TOKEN&url=https://host/a.tif", "/vsicurl/https://host/a.tif"),
        ("/vsizip/{/vsicurl/https://host/a.zip?sig=TOKEN}/b.tif", "/vsizip/{/vsicurl/https://host/a.zip}/b.tif"),
        ("/vsis3/bucket/a.tif?sig=TOKEN", "/vsis3/bucket/a.tif"),
        ("GET https://host/a?TOKEN, twice", "GET https://host/a, twice"),
        ("nonnumeric port: 'PASSW0RD@127.0.0.1:80'", "nonnumeric port: '127.0.0.1:80'"),
        ("/data/a?b@c.tif", "/data/a?b@c.tif"),
        ("C:\\data\\a#1.tif", "C:\\data\\a#1.tif"),
        ("ask me@host.org", "ask me@host.org"),
        ("", ""),
    ],
)
def test_what_is_left_of_a_url(given: str, written: str) -> None:
    assert without_secrets(given) == written
    assert without_secrets(written) == written
    assert str(GeolabelError(given)) == written
    assert clean({"a": [given, 1], "b": (None,)}) == {"a": [written, 1], "b": [None]}


def test_a_scene_is_called_by_its_url_without_secrets() -> None:
    url = "http://me:PASSW0RD@127.0.0.1:9/a.tif?sig=TOKEN"
    with pytest.raises(SceneError) as caught, SceneReader(url, name=url) as reader:
        _ = reader.scene
    assert not any(secret in str(caught.value) for secret in SECRETS)
    assert "127.0.0.1:9/a.tif" in str(caught.value)


def test_foreign_words_are_quoted_without_secrets() -> None:
    assert in_words(OSError("strange: https://me:PASSW0RD@host/a?TOKEN")) == 'Python says "strange: https://host/a"'


def test_what_is_printed_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    from geolabel.cli.options import Session, _configure_logging

    with click.Context(click.Command("x")):
        announce({"scene": "https://host/a.tif?sig=TOKEN"}, as_json=True)
        announce({"scene": "https://host/a.tif?sig=TOKEN"}, as_json=False)
    _configure_logging(Session(verbose=1))
    logging.getLogger("geolabel.x").info("reading %s", "https://me:PASSW0RD@host/a.tif?sig=TOKEN")
    said = "".join(capsys.readouterr())
    assert said.count("https://host/a.tif") == 3
    assert not any(secret in said for secret in SECRETS)


def test_a_run_knows_its_scene_by_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geolabel.io.read import fingerprints
    from geolabel.io.read.sources import FileSource

    monkeypatch.setattr(FileSource, "pin", lambda _: None)
    monkeypatch.setattr(fingerprints, "_look", lambda _: "")
    monkeypatch.setattr(FileSource, "header", property(lambda _: None))
    marks = [
        fingerprints.fingerprint(SceneReader(f"https://me:PASSW0RD@host/a.tif?id={number}&sig=TOKEN")) or {}
        for number in (1, 1, 2)
    ]
    assert marks[0] == marks[1] != marks[2]
    assert not any(secret in json.dumps(marks) for secret in SECRETS)
    assert marks[0]["uri"] == "https://host/a.tif"


def test_user_and_password_are_sent_as_such() -> None:
    asked = request("http://me:a%20b@host:80/a?b=1#c")
    assert (asked.full_url, asked.get_header("Authorization")) == ("http://host:80/a?b=1", "Basic bWU6YSBi")
    assert url_of("/vsis3/bucket/a") == "s3://bucket/a"
    assert url_of("/vsicurl?url=https%3A%2F%2Fhost%2Fa") == "https://host/a"


@pytest.mark.parametrize(
    ("text", "windows", "path"),
    [
        ("file:///data/a b.tif", False, "/data/a b.tif"),
        ("file:///C:/data/a.tif", True, "C:/data/a.tif"),
        ("file:///C:/data/a.tif", False, "/C:/data/a.tif"),
        ("/C:/data/a.tif", True, "/C:/data/a.tif"),
        ("file://server/share/a.tif", True, "//server/share/a.tif"),
        ("s3://bucket/a.tif", True, "s3://bucket/a.tif"),
    ],
)
def test_a_url_of_a_file_names_a_path_of_the_system(text: str, windows: bool, path: str):
    assert path_of(text, windows=windows) == path


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (PurePosixPath("/data/a b?#%.gpkg"), "file:///data/a%20b%3F%23%25.gpkg?mode=ro"),
        (PureWindowsPath(r"C:\data\a b.gpkg"), "file:///C:/data/a%20b.gpkg?mode=ro"),
        (PureWindowsPath(r"\\server\share\a.gpkg"), "file:////server/share/a.gpkg?mode=ro"),
    ],
)
def test_a_database_has_a_uri_also_on_a_share_of_windows(path: PurePath, uri: str):
    assert database_uri(path, "ro") == uri


def test_a_database_opens_by_its_uri_whatever_it_is_called(tmp_path: Path):
    path = tmp_path / "a?b#c%20d'\u5c71.gpkg"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE a (b)")
    with closing(sqlite3.connect(database_uri(path, "ro"), uri=True)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]
