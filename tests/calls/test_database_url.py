"""Where a store is; and that a password is nowhere else."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from moa_dspy.calls import CallStore, database_url
from moa_dspy.calls.store.database import shown_url
from moa_dspy.errors import StoreError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGSSLMODE", "PGHOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (Path("runs/calls.sqlite"), "runs/calls.sqlite"),
        ("runs/calls.sqlite", "runs/calls.sqlite"),
        ("sqlite:///runs/calls.sqlite", "runs/calls.sqlite"),
        ("sqlite:////var/calls.sqlite", "/var/calls.sqlite"),
        (Path("odd://name.sqlite"), "odd:/name.sqlite"),
    ],
)
def test_a_path_and_a_sqlite_url_are_a_file(place: Path | str, path: str) -> None:
    url = database_url(place)
    assert (url.get_backend_name(), url.database) == ("sqlite", path)
    assert shown_url(url) == path


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_postgresql_url_is_psycopgs(scheme: str) -> None:
    assert database_url(f"{scheme}://h/x").drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    ("place", "sslmode"),
    [
        ("postgresql://db.example/x", "require"),
        ("postgresql://10.0.0.7:5433/x", "require"),
        ("postgresql://127.0.0.1,db.example/x?", "require"),
        ("postgresql:///x?host=db.example", "require"),
        ("postgresql://db.example/x?sslmode=verify-full", "verify-full"),
        ("postgresql://db.example/x?sslmode=disable", "disable"),
        ("postgresql://localhost/x", None),
        ("postgresql://127.0.0.2:99/x", None),
        ("postgresql://[::1]/x", None),
        ("postgresql:///x", None),
        ("postgresql:///x?host=/var/run/postgresql", None),
    ],
)
def test_another_machine_is_asked_for_tls_unless_the_url_says_otherwise(
    place: str, sslmode: str | None
) -> None:
    assert database_url(place).query.get("sslmode") == sslmode


def test_what_the_environment_says_of_tls_and_host_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    assert database_url("postgresql:///x").query["sslmode"] == "require"
    monkeypatch.setenv("PGSSLMODE", "verify-ca")
    assert "sslmode" not in database_url("postgresql:///x").query


def test_a_server_without_tls_is_not_used_where_tls_is_asked_for(postgresql_url: str) -> None:
    with pytest.raises(StoreError, match="does not support SSL"):
        CallStore(f"{postgresql_url}?sslmode=require")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "mysql://h/x",
            "cannot be in 'mysql'; known ones are sqlite:///FILE and postgresql://HOST/NAME",
        ),
        ("postgresql+psycopg2://h/x", r"cannot be in 'postgresql\+psycopg2'"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_another_database_is_refused(place: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        CallStore(place)


@pytest.mark.parametrize(
    "place",
    [
        "postgresql://u:hidden-word@127.0.0.1:1/x",  # nobody listens
        "postgresql://u:hidden-word@127.0.0.1:1/x?nonsense=1",
        "postgresql://u@127.0.0.1:1/x?password=hidden-word",
        "postgresql://u:hidden%2Dword@127.0.0.1:1/x",
        "postgresql://u:p@hidden-word:word@h/x",  # cannot be read
        "mysql://u:hidden-word@h/x",
    ],
)
def test_a_password_is_in_no_error_and_no_log(place: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(StoreError) as caught:
        CallStore(place, timeout_seconds=0.1)
    links: list[BaseException | None] = [caught.value, caught.value.__cause__]
    if not caught.value.__suppress_context__:
        links.append(caught.value.__context__)
    assert "hidden" not in "".join(f"{link!r} {link}" for link in links)
    assert "hidden" not in caplog.text


def test_a_password_is_in_no_repr_and_no_log_of_a_store_that_works(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = CallStore(postgresql_url.replace("moa@", "moa:hidden-word@"))
    assert repr(store) == f"CallStore('{postgresql_url.replace('moa@', 'moa:***@')}')"
    with pytest.raises(StoreError) as caught:
        store.database.rows("SELECT 'hidden-word' FROM nowhere")
    assert "hidden" not in repr(caught.value)
    assert "hidden" not in repr(store.database.__dict__.get("name"))
    assert "hidden" not in caplog.text
    store.close()


@pytest.mark.slow
def test_without_the_driver_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from moa_dspy.calls import CallStore\n"
        "CallStore('postgresql://localhost/x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("localhost/x needs psycopg: pip install 'moa-dspy[postgresql]'.")
