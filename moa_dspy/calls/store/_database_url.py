"""Where a store is: a file, or a PostgreSQL database by its URL; passwords are never shown."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc

from moa_dspy.errors import StoreError

_SECRET_OPTIONS = ("password", "sslpassword")
_DEFAULTS = {
    # Without these a server that vanished is noticed after two hours.
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}


def database_url(place: Path | str) -> sa.URL:
    """Return the URL of ``place``: a file, ``sqlite:///FILE`` or ``postgresql://HOST/NAME``.

    A password may be in the URL; better it is not, but in ``PGPASSWORD`` or ``~/.pgpass``,
    as libpq reads them. A host that is not this machine is asked for TLS (``sslmode=require``)
    unless the URL or ``PGSSLMODE`` says otherwise.

    Raises:
        StoreError: If the URL cannot be read, or is of a database of another kind.
    """
    if isinstance(place, Path) or "://" not in place:
        return sa.URL.create("sqlite", database=str(place))
    try:
        url = sa.make_url(place)
    except (exc.ArgumentError, ValueError):
        # Not with its cause: that may quote a part of the password.
        raise StoreError("The URL of the call store cannot be read.") from None
    kind = url.drivername
    if kind in ("sqlite", "sqlite+pysqlite"):
        if not url.database or url.database == ":memory:":
            raise StoreError("A call store in SQLite needs a file: sqlite:///FILE.")
        return sa.URL.create("sqlite", database=url.database)
    if kind in ("postgresql", "postgres", "postgresql+psycopg"):
        return _with_defaults(url.set(drivername="postgresql+psycopg"))
    raise StoreError(
        f"A call store cannot be in {kind!r}; known are sqlite:///FILE and postgresql://HOST/NAME."
    )


def shown(url: sa.URL) -> str:
    """Return what may be written about ``url``: a file's path, or a URL without passwords."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    masked = {name: "***" for name in _SECRET_OPTIONS if name in url.query}
    kept = {name: value for name, value in url.query.items() if name not in _DEFAULTS}
    plain = url.set(drivername="postgresql", query={**kept, **masked})
    return plain.render_as_string(hide_password=True)


def secrets_of(url: sa.URL) -> tuple[str, ...]:
    """Return every password in ``url``, longest first."""
    options = [url.query[name] for name in _SECRET_OPTIONS if name in url.query]
    found = [url.password or "", *(text for text in options if isinstance(text, str))]
    return tuple(sorted({text for text in found if text}, key=len, reverse=True))


def _with_defaults(url: sa.URL) -> sa.URL:
    defaults = dict(_DEFAULTS)
    if "PGSSLMODE" not in os.environ and not all(map(_is_this_machine, _hosts(url))):
        defaults["sslmode"] = "require"
    missing = {name: value for name, value in defaults.items() if name not in url.query}
    return url.update_query_dict(missing)


def _hosts(url: sa.URL) -> list[str]:
    given = url.query.get("host", os.environ.get("PGHOST", "")) if url.host is None else url.host
    listed = [given] if isinstance(given, str) else list(given)
    return [host for text in listed for host in text.split(",")]


def _is_this_machine(host: str) -> bool:
    # No host, a path or a name that starts with @ is a socket of this machine.
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
