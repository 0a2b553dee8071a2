"""What several rooms' tests need: a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgresql import FAST, AbsentError, PostgreSQLServer


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQLServer]:
    """Start one server for all tests; where there is none to start, they are skipped, loudly."""
    try:
        server = PostgreSQLServer(FAST)
    except AbsentError as error:
        pytest.skip(f"NOT TESTED: {error}")
    yield server
    server.close()


@pytest.fixture
def postgresql_url(postgresql: PostgreSQLServer) -> str:
    """Return the URL of an empty database."""
    return postgresql.new_database()
