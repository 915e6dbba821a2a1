"""How values stand in Postgres: as JSON text; sealed, if there is a codec; by reference, if they are large.

A value that is not plain is a JSON object that begins with `{"$perdure":`. Callers give and get plain text and the
`Spot` where it stands; what a run's rows hold looks the same to its code, whichever form it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

import orjson
import structlog

from perdure.errors import InternalError
from perdure.store.queries import load_queries

if TYPE_CHECKING:
    import asyncpg

    Database: TypeAlias = (
        "asyncpg.Pool[Any] | asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"  # who runs a statement
    )

_SQL = load_queries("payloads.sql")
log = structlog.get_logger(__name__)

MARK: Final = '{"$perdure":'
INLINE: Final = 262_144
_SEALED: Final = '{"$perdure":"sealed",'
_PAYLOAD: Final = '{"$perdure":"payload",'
_VALUE: Final = '{"$perdure":"value","value":'
_PART: Final = b"part"
_AT_ONCE: Final = 32 * 1024 * 1024  # bytes that one statement puts or reads, unless one value alone has more


class Spot(NamedTuple):
    """Where a value stands: its kind (`task`, `result`, …), its run, and what tells it from others of that kind."""

    kind: str
    run_id: str
    part: str = ""

    @property
    def context(self) -> bytes:
        """The same as bytes: a sealed value opens nowhere else."""
        return f"{self.kind}\x1f{self.run_id}\x1f{self.part}".encode()


Value: TypeAlias = "tuple[str | None, Spot]"
Body: TypeAlias = "bytes | Unreadable | None"  # of a payload; None when it is gone


class Unreadable(InternalError):
    """A stored value cannot be read: its payload is gone or altered, or its key is not here. The text says which."""


class Codec(Protocol):
    """Seals what is stored. `PERDURE_CODEC` names one; a codec is used from one thread and must not wait.

    One that has to wait for something has `async prepare(contexts, sealed)`, too: it is awaited before values are
    sealed for these contexts, and before these sealed ones are opened.
    """

    def seal(self, data: bytes, context: bytes) -> Mapping[str, str]:
        """`data` sealed for `context`, as the JSON fields that `open` needs."""

    def open(self, sealed: Mapping[str, str], context: bytes) -> bytes:
        """The data. Raises `Unreadable` for another context, altered fields, or a key that is not here."""


class Objects(Protocol):
    """Keeps payloads elsewhere than in Postgres, by their hashes. Raises `ConnectionError` when it cannot."""

    async def put(self, name: str, data: bytes) -> None:
        """Keep `data`, unless it is there."""

    async def get(self, name: str) -> bytes | None:
        """What is kept, None when it is not there."""


class Vault:
    """Gives values the form in which they are stored, and takes it off again.

    Payloads are read from wherever they stand: in Postgres, or in `objects`, once somebody has set that. New ones are
    put there, too, if `elsewhere`; those that it does not take stand in Postgres.
    """

    def __init__(self, codec: Codec | None = None, inline: int = INLINE, *, elsewhere: bool = False) -> None:
        self._codec = codec
        self._inline = inline
        self._elsewhere = elsewhere
        self.objects: Objects | None = None

    @property
    def seals(self) -> bool:
        """Whether values are sealed."""
        return self._codec is not None

    def plain(self, texts: Sequence[str | None]) -> bool:
        """Whether all of `texts` are stored as they are: the common case, decided without a copy."""
        if self._codec is not None:
            return not any(texts)
        small = self._inline // 4  # so many characters are no more bytes than the bound
        return not any(text and (len(text) > small or text.startswith(MARK)) for text in texts)

    async def ready(self, spots: Iterable[Spot] = (), texts: Iterable[str | None] = ()) -> None:
        """Before `seal` for `spots` and `unseal` of `texts`: what the codec has to wait for. `put` and `open` do it.

        Raises `OSError` when a key service is away.
        """
        if (prepare := getattr(self._codec, "prepare", None)) is not None:
            sealed = [orjson.loads(text) for text in texts if text is not None and text.startswith(_SEALED)]
            await prepare([spot.context for spot in spots], sealed)

    # -- in -----------------------------------------------------------------------------------------------------------

    async def put(self, database: Database, values: Sequence[Value]) -> list[str | None]:
        """The stored form of `values`, large ones being put; commit whoever refers to them within an hour."""
        if self.plain([text for text, _ in values]):
            return [text for text, _ in values]
        await self.ready([spot for text, spot in values if text is not None])
        stored: list[str | None] = []
        large: dict[str, tuple[bytes, set[str]]] = {}
        for text, spot in values:
            form = None if text is None else self.seal(text, spot)
            if form is not None and len(form) > self._inline // 4:
                data = form.encode()
                if len(data) > self._inline:
                    digest = hash_of(data)
                    large.setdefault(digest, (data, set()))[1].add(spot.run_id)
                    form = f'{_PAYLOAD}"hash":"{digest}","size":{len(data)}}}'
            stored.append(form)
        await self._put(database, large)
        return stored

    def seal(self, text: str, spot: Spot) -> str:
        """`text` sealed, if there is a codec; never by reference."""
        if self._codec is not None:
            fields = self._codec.seal(text.encode(), spot.context)
            return orjson.dumps({"$perdure": "sealed", **fields}).decode()
        return f"{_VALUE}{text}}}" if text.startswith(MARK) else text

    # -- out ----------------------------------------------------------------------------------------------------------

    async def open(self, database: Database, values: Sequence[Value]) -> list[str | None]:
        """The plain text of stored `values`. Raises `Unreadable`."""
        texts = await self.try_open(database, values)
        for text in texts:
            if isinstance(text, Unreadable):
                raise text
        return texts  # type: ignore[return-value]  # the loop has looked

    async def try_open(self, database: Database, values: Sequence[Value]) -> list[str | Unreadable | None]:
        """The same, with an `Unreadable` in the place of each value that is."""
        if as_it_is(text for text, _ in values):
            return [text for text, _ in values]
        heads = [orjson.loads(text) if text is not None and text.startswith(MARK) else None for text, _ in values]
        wanted = {head["hash"]: int(head["size"]) for head in heads if head is not None and "hash" in head}
        bodies = await self._read(database, wanted)
        await self.ready(texts=[text for text, _ in values])
        await self.ready(texts=[body.decode(errors="replace") for body in bodies.values() if isinstance(body, bytes)])
        return [
            text if head is None or text is None else self._opened(text, head, spot, bodies)
            for (text, spot), head in zip(values, heads, strict=True)
        ]

    def _opened(self, text: str, head: Mapping[str, Any], spot: Spot, bodies: Mapping[str, Body]) -> str | Unreadable:
        try:
            if "hash" in head:
                text = _whole(head["hash"], bodies, spot).decode()
            return self.unseal(text, spot)
        except Unreadable as error:
            return error

    def seal_event(self, data: bytes, run_id: str, seq: int, index: int | None = None) -> bytes:
        """The JSON of an event's data as it is published: sealed, if there is a codec, with the index in sight."""
        if self._codec is None:
            return data
        said: dict[str, Any] = {"sealed": self._codec.seal(data, Spot("event", run_id, str(seq)).context)}
        return orjson.dumps(said if index is None else {"index": index, **said})

    async def open_event(self, event: dict[str, Any]) -> dict[str, Any]:
        """`event` with its data opened; as it is, if it is plain or this process cannot open it."""
        sealed = event["data"].get("sealed")
        if self._codec is None or not isinstance(sealed, dict):
            return event
        try:
            if (prepare := getattr(self._codec, "prepare", None)) is not None:
                await prepare([], [sealed])
            data = self._codec.open(sealed, Spot("event", str(event["run_id"]), str(event["seq"])).context)
        except (Unreadable, OSError):
            return event  # the journal, which the scheduler can read, has what counts
        return {**event, "data": orjson.loads(data)}

    def unseal(self, text: str, spot: Spot) -> str:
        """The plain text of a stored form that is no reference. Raises `Unreadable`."""
        if not text.startswith(MARK):
            return text
        if text.startswith(_VALUE):
            return text[len(_VALUE) : -1]
        said = orjson.loads(text)
        if said["$perdure"] != "sealed":
            raise Unreadable(f"the {spot.kind} of run {spot.run_id} has a form that this version does not know")
        if self._codec is None:
            raise Unreadable(
                f"the {spot.kind} of run {spot.run_id} is sealed with key {said.get('key')!r}, and this process has "
                "no keys: set PERDURE_ENCRYPTION_KEYS, or _KMS, as it is set where the value was written"
            )
        try:
            return self._codec.open(said, spot.context).decode()
        except Unreadable as error:
            raise Unreadable(f"the {spot.kind} of run {spot.run_id} cannot be opened: {error}") from error

    # -- payloads -----------------------------------------------------------------------------------------------------

    async def _put(self, database: Database, large: Mapping[str, tuple[bytes, set[str]]]) -> None:
        batch: list[str] = []
        size = 0
        for digest in sorted(large):  # one order for all who put: nobody waits for one who waits for him
            batch.append(digest)
            size += len(large[digest][0])
            if size >= _AT_ONCE or digest == max(large):
                await self._put_batch(database, {each: large[each] for each in batch})
                batch, size = [], 0

    async def _put_batch(self, database: Database, batch: Mapping[str, tuple[bytes, set[str]]]) -> None:
        """The rows first: from then on nobody deletes the object that goes with one."""
        here = self.objects is None or not self._elsewhere
        for digest in await _put_rows(database, batch, here=here):
            try:
                await self._stow(digest, batch[digest][0])
            except ConnectionError as error:
                log.warning("a payload goes to Postgres", action="payloads.kept_here", reason=str(error))
                await _put_rows(database, {digest: batch[digest]}, here=True)

    async def _stow(self, digest: str, data: bytes) -> None:
        if self.objects is not None:
            await self.objects.put(digest, data)

    async def _read(self, database: Database, wanted: Mapping[str, int]) -> dict[str, Body]:
        bodies: dict[str, Body] = {}
        batch: list[str] = []
        size = 0
        for digest in wanted:
            batch.append(digest)
            size += wanted[digest]
            if size >= _AT_ONCE or len(batch) + len(bodies) == len(wanted):
                found = {record["hash"]: record["body"] for record in await database.fetch(_SQL["read"], batch)}
                for each in batch:
                    body = found.get(each)
                    bodies[each] = await self._fetch(each) if body is None and each in found else body
                batch, size = [], 0
        return bodies

    async def _fetch(self, digest: str) -> Body:
        if self.objects is None:
            return Unreadable(f"payload {digest} stands in an object store, and this process is not connected to NATS")
        return await self.objects.get(digest)

    # -- parts of requests --------------------------------------------------------------------------------------------

    async def seal_part(self, data: bytes) -> bytes:
        """Bytes on their way in, as they are kept until the request is whole."""
        if self._codec is None:
            return b"\0" + data
        await self.ready([Spot("part", "")])
        return b"\1" + orjson.dumps(self._codec.seal(data, _PART))

    async def open_part(self, body: bytes) -> bytes:
        """The bytes that `seal_part` was given. Raises `Unreadable`."""
        if body[:1] == b"\0":
            return body[1:]
        if self._codec is None:
            raise Unreadable("a part of the request is sealed, and this process has no PERDURE_ENCRYPTION_KEYS")
        sealed = orjson.loads(body[1:])
        if (prepare := getattr(self._codec, "prepare", None)) is not None:
            await prepare([], [sealed])
        return self._codec.open(sealed, _PART)


PLAIN: Final = Vault()


def vault_of(database: Any) -> Vault:
    """The vault of whoever runs statements: a pool, or a connection of one."""
    kind = getattr(database, "_connection_class", None)  # a pool has no attributes of ours, its connections have
    vault = getattr(kind or database, "vault", PLAIN)
    return vault if isinstance(vault, Vault) else PLAIN


def as_it_is(texts: Iterable[str | None]) -> bool:
    """Whether all of `texts`, as they are stored, are plain."""
    return not any(text is not None and text.startswith(MARK) for text in texts)


def size_of_payload(text: str | None) -> int:
    """The bytes that a stored form refers to; 0 for one that has no payload."""
    return int(orjson.loads(text)["size"]) if text is not None and text.startswith(_PAYLOAD) else 0


def hash_of(data: bytes) -> str:
    """The name of a payload (BLAKE2b, 256 bits, hex)."""
    return blake2b(data, digest_size=32).hexdigest()


async def _put_rows(database: Database, batch: Mapping[str, tuple[bytes, set[str]]], *, here: bool) -> list[str]:
    """Put the rows, with their bodies if `here`; those that have none, neither now nor from before."""
    uses = [(run_id, digest) for digest, (_, run_ids) in batch.items() for run_id in run_ids]
    records = await database.fetch(
        _SQL["put"],
        list(batch),
        [len(data) for data, _ in batch.values()],
        [data if here else None for data, _ in batch.values()],
        [run_id for run_id, _ in uses],
        [digest for _, digest in uses],
    )
    return [record["hash"] for record in records]


def _whole(digest: str, bodies: Mapping[str, Body], spot: Spot) -> bytes:
    body = bodies.get(digest)
    if isinstance(body, Unreadable):
        raise body
    if body is None:
        raise Unreadable(f"the {spot.kind} of run {spot.run_id} is gone: there is no payload {digest}")
    if hash_of(body) != digest:
        raise Unreadable(f"the {spot.kind} of run {spot.run_id} was altered: payload {digest} has another hash")
    return body
