"""What several rooms' tests need: a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.postgresql import FAST, AbsentError, PostgreSQLServer

# On a busy machine an example that is quick may take long: time is no claim of a property.
settings.register_profile(
    "busy", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("busy")


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
