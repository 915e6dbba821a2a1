"""Postgres 16 as our own child."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import asyncpg

from perdure.embedded import binaries
from perdure.embedded.accounts import Account, hand_over, open_path, other_account
from perdure.embedded.ports import HOST
from perdure.embedded.server import EmbeddedServer
from perdure.errors import SetupError

USER = DATABASE = "perdure"
_SOCKET_PATH_LIMIT = 90  # the kernel allows 107 bytes, with the socket's own name


class PostgresServer(EmbeddedServer):
    """Postgres with the superuser and database `perdure`, on loopback and a Unix socket.

    `fast=True` leaves out fsync: for tests, whose data may go with the machine. `template` is an initialised data
    folder to copy instead of running initdb (0.1 s instead of 0.4 s).
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": SIGTERM would wait for every client to leave

    def __init__(
        self, home: Path, *, port: int | None = None, fast: bool = False, template: Path | None = None
    ) -> None:
        super().__init__(home, port=port)
        self._fast = fast
        self._template = template
        self._account: Account | None = None
        self._socket_dir: Path | None = None

    @property
    def url(self) -> str:
        """`postgresql://perdure@127.0.0.1:PORT/perdure`."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """The URL of another database of this server."""
        return f"postgresql://{USER}@{HOST}:{self.port}/{database}"

    @property
    def account(self) -> Account | None:
        """As root another user: Postgres refuses to run as root."""
        return self._account

    def command(self) -> list[str]:
        """The program and its arguments: settings stand here, so that the data folder keeps no old ones."""
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": str(self._socket_dir or ""),
            "max_connections": "300",
            "shared_buffers": "128MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "jit": "off",
        }
        if self._fast:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        program = binaries.postgres_folder() / "postgres"
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(program), "-D", str(self.data_dir), "-p", str(self.port), *arguments]

    async def prepare(self) -> None:
        """Make the data folder and check that it is ours. Raises `SetupError` for one of another version."""
        await asyncio.to_thread(self._prepare)

    async def ready(self) -> bool:
        """It takes a connection to its database; the first time that database is made."""
        if not await asyncio.to_thread(self._listens):
            return False
        try:
            try:
                connection = await asyncpg.connect(self.url, timeout=2)
            except asyncpg.InvalidCatalogNameError:
                await self._create_database()
                return False
            await connection.close(timeout=2)
        except (OSError, TimeoutError, asyncpg.PostgresError):  # on a busy machine, each of them: the next look may do
            return False
        return True

    async def stop(self, *, timeout: float = 20.0) -> None:
        """Disconnect the clients, write all out and end."""
        await super().stop(timeout=timeout)
        if self._socket_dir is not None:
            await asyncio.to_thread(shutil.rmtree, self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def _listens(self) -> bool:
        """Whether our child has the port, by the file it writes: who else answers there must not be asked anything."""
        try:
            said = (self.data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        # Its lines: process id, data folder, start, port, socket folder, address, memory, status.
        return len(said) > 7 and said[0] == str(self.pid) and said[3] == str(self.port) and said[7].strip() == "ready"

    def _prepare(self) -> None:
        self._account = other_account()
        self._check_version()
        if not (self.data_dir / "PG_VERSION").exists():
            self._initialise()
        if self._socket_dir is None:
            self._socket_dir = self._make_socket_dir()
        if self._account:
            open_path(binaries.postgres_folder() / "postgres")
            open_path(self.data_dir)
            hand_over(self.data_dir, self._account)
        # Postgres refuses a data folder that others may read.
        self.data_dir.chmod(0o700)

    def _check_version(self) -> None:
        try:
            found = (self.data_dir / "PG_VERSION").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return
        if found != str(binaries.POSTGRES_MAJOR):
            raise SetupError(
                f"{self.data_dir} was made by Postgres {found}, and this is Postgres {binaries.POSTGRES_MAJOR}. "
                "Nothing was changed. Dump it with the old version and load it into a new PERDURE_HOME, "
                "set DATABASE_URL to a server of that version, or move the folder away to begin with an empty one."
            )

    def _initialise(self) -> None:
        """Make the data folder beside its place and rename it, so that a crash leaves no half of one."""
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise SetupError(
                f"{self.data_dir} is not empty and holds no Postgres data (PG_VERSION is missing); "
                "move it away, or set PERDURE_HOME to another folder"
            )
        self.home.mkdir(parents=True, exist_ok=True)
        fresh = self.home / f"{self.name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        if self._template is not None:
            shutil.copytree(self._template, fresh)
        else:
            self._initdb(fresh)
        if self.data_dir.exists():
            self.data_dir.rmdir()
        fresh.rename(self.data_dir)

    def _initdb(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        if self._account:
            open_path(binaries.postgres_folder() / "postgres")
            open_path(folder)
            hand_over(folder, self._account)
        # Trust: the embedded server listens on loopback only and belongs to one user of one machine, like the
        # files under its home. A shared machine sets DATABASE_URL to a server with passwords.
        command = [
            *(str(binaries.postgres_folder() / "initdb"), "-D", str(folder), "-U", USER, "--auth=trust"),
            *("--encoding=UTF8", "--locale=C", *(["--no-sync"] if self._fast else [])),
        ]
        done = subprocess.run(  # noqa: S603  fixed arguments
            command,
            check=False,
            capture_output=True,
            text=True,
            env=self.environment(),
            cwd="/",
            user=self._account.uid if self._account else None,
            group=self._account.gid if self._account else None,
            extra_groups=[] if self._account else None,
        )
        if done.returncode != 0:
            shutil.rmtree(folder, ignore_errors=True)
            raise SetupError(f"Postgres cannot make its data folder {self.data_dir}: {done.stderr.strip()}")

    def _make_socket_dir(self) -> Path:
        """A short folder: the path of a Unix socket is limited, the path of our home is not."""
        base = tempfile.gettempdir()
        if len(os.fsencode(base)) > _SOCKET_PATH_LIMIT - 30:
            base = "/tmp"  # noqa: S108  the fresh folder in it is ours alone
        # Named after the home, so that the folder of a start that was killed is found and removed. One of someone
        # else stays as it is (rmtree fails or refuses a link), and ours gets a name of its own.
        name = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        folder = Path(base) / f"perdure-pg-{os.geteuid()}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            folder = Path(tempfile.mkdtemp(prefix="perdure-pg-", dir=base))
        if self._account:
            open_path(folder)
            os.chown(folder, self._account.uid, self._account.gid)
        return folder

    async def _create_database(self) -> None:
        connection = await asyncpg.connect(self.url_of("postgres"), timeout=self.start_timeout)
        try:
            await connection.execute(f'CREATE DATABASE "{DATABASE}"')
        finally:
            await connection.close(timeout=2)
