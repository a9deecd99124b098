"""Slices of objects and of local files: what to cut from, which index, where the result goes, and what there is to tell of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, NamedTuple

from score_core.checksum import md5_hex
from score_core.errors import ConfigurationError, FormatError, ObjectMismatch, ObjectNotFound
from score_core.ids import check_object_id
from score_core.metadata.base import REGION_INDEX_SUFFIXES, Metadata, indexes_of
from score_core.model import ObjectSpec, SliceReport
from score_core.slicing.base import Contigs
from score_core.slicing.files import Later, LocalFile, RemoteFile
from score_core.slicing.output import OutputFormat, Place, output_name
from score_core.slicing.view import Form, IndexFile, Limits, Wanted, cut
from score_core.transfer.engine import Engine
from score_core.transfer.files import safe_target
from score_core.transfer.stop import Stop

_MAX_INDEX_BYTES: Final = 512 << 20

Target = Path | IO[bytes]
"""A folder, in which a slice gets a name that tells of its regions, or a stream."""


class ViewItem(NamedTuple):
    """One object to cut from. `index_id` is the object of its index, None to find that by the metadata. Names are not trusted."""

    object_id: str
    file_name: str | None = None
    index_id: str | None = None


def view_object(
    engine: Engine, metadata: Metadata | None, item: ViewItem, wanted: Wanted, form: Form, target: Target, *, limits: Limits = Limits()
) -> SliceReport:
    """Writes the wanted records of an object to `target`; of it only its header, its index and what the records are in is fetched.

    Raises:
        ScoreError: as `view.cut` and transfers raise; no file appeared.
    """
    began = time.monotonic()
    object_id = check_object_id(item.object_id)
    with ExitStack() as closing:
        folder = _private_folder(closing)
        stop = engine.stop.child()
        closing.callback(stop.set)  # for what is still asked when something failed

        def work() -> SliceReport:
            known = Later(lambda: _known_of(metadata, item), stop)
            indexes = _Indexes(engine.stopped_by(stop), folder)
            first = Later(lambda: indexes.fetch_first(known.result()), stop) if _needs_index(wanted) else None
            spec = engine.repository.describe(object_id)
            name = item.file_name or known.result().file_name or spec.file_name or object_id
            data = closing.enter_context(RemoteFile(engine, spec, folder, name=name))
            goes_to = _Destination(target, name, wanted, folder, closing)

            def index_file(contigs: Contigs) -> IndexFile | None:
                assert first is not None
                return indexes.best(contigs, first.result())

            made = cut(data, index_file, wanted, form, goes_to.place, folder=folder, limits=limits, stop=stop)
            return SliceReport(
                object_id,
                goes_to.label,
                "sliced",
                size=spec.size,
                bytes_moved=data.fetched + indexes.fetched,
                retries=data.retries + indexes.retries,
                seconds=time.monotonic() - began,
                records=made.records,
                requests=data.requests + indexes.requests,
                format=made.format,
                version=data.version,
                skipped_contigs=made.skipped_contigs,
            )

        report = Later(work, stop).result()
    engine.progress.end(report)
    return report


def view_file(
    path: Path, index: Path | None, wanted: Wanted, form: Form, target: Target, *, limits: Limits = Limits(), stop: Stop | None = None
) -> SliceReport:
    """As `view_object`, of a file of this machine. Its index, if none is given, is looked for beside it.

    Raises:
        ScoreError: as `view.cut`; no file appeared.
    """
    began = time.monotonic()
    stop = stop or Stop()
    with ExitStack() as closing:
        folder = _private_folder(closing)

        def index_file(contigs: Contigs) -> IndexFile | None:
            found = index or _beside(path, long=contigs.are_long)
            if found is None:
                return None
            with LocalFile(found) as file:
                if file.size > _MAX_INDEX_BYTES:
                    raise _too_long(found.name, file.size)
                return IndexFile(file.read(0, file.size), found.name)

        def work() -> SliceReport:
            data = closing.enter_context(LocalFile(path))
            goes_to = _Destination(target, data.name, wanted, folder, closing)
            made = cut(data, index_file, wanted, form, goes_to.place, folder=folder, limits=limits, stop=stop)
            return SliceReport(
                str(path),
                goes_to.label,
                "sliced",
                size=data.size,
                seconds=time.monotonic() - began,
                records=made.records,
                format=made.format,
                skipped_contigs=made.skipped_contigs,
            )

        return Later(work, stop).result()


def _private_folder(closing: ExitStack) -> Path:
    return Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="score-view-", ignore_cleanup_errors=True)))


def _needs_index(wanted: Wanted) -> bool:
    return not wanted.header_only and (wanted.bed is not None or "." not in wanted.regions)


def _beside(path: Path, *, long: bool) -> Path | None:
    """The index of a local file: its name and a suffix, or its name with the suffix replaced."""
    suffixes = sorted(REGION_INDEX_SUFFIXES, key=lambda suffix: suffix != ".csi") if long else REGION_INDEX_SUFFIXES
    names = [path.with_name(path.name + suffix) for suffix in suffixes] + [path.with_suffix(suffix) for suffix in suffixes]
    return next((name for name in names if name.is_file()), None)


class _Known(NamedTuple):
    """What the metadata say of an object: its name, and its indexes' object ids and names, the best first."""

    file_name: str | None
    indexes: tuple[tuple[str, str], ...]


def _known_of(metadata: Metadata | None, item: ViewItem) -> _Known:
    name, found = None, []
    if metadata is not None and (item.index_id is None or item.file_name is None):
        try:
            entity = metadata.entity(item.object_id)
        except ObjectNotFound:
            entity = None
        if entity is not None:
            name = entity.file_name
            if item.index_id is None:
                siblings = list(metadata.entities(analysis_id=entity.analysis_id, study_id=entity.study_id))
                found = [(index.object_id, index.file_name) for index in indexes_of(entity, siblings, REGION_INDEX_SUFFIXES)]
    if item.index_id is not None:
        found = [(check_object_id(item.index_id), f"index {item.index_id}")]
    return _Known(name, tuple(found))


@dataclass
class _Indexes:
    """An object's indexes, each fetched whole; usually one."""

    engine: Engine
    folder: Path
    fetched: int = 0
    requests: int = 0
    retries: int = 0
    _known: _Known = field(default=_Known(None, ()))

    def fetch_first(self, known: _Known) -> IndexFile | None:
        """The index that most likely serves; None if there is none."""
        self._known = known
        return self._fetch(*known.indexes[0]) if known.indexes else None

    def best(self, contigs: Contigs, first: IndexFile | None) -> IndexFile | None:
        """The first, or a CSI where contigs are too long for the others."""
        if first is None or first.name.endswith(".csi") or not contigs.are_long:
            return first
        other = next((index for index in self._known.indexes if index[1].lower().endswith(".csi")), None)
        return first if other is None else self._fetch(*other)

    def _fetch(self, object_id: str, name: str) -> IndexFile:
        try:
            spec = self.engine.repository.describe(object_id)
        except ObjectNotFound as error:
            raise ObjectNotFound(f"The index {name} is not there: {error}", status=404) from None
        if spec.size > _MAX_INDEX_BYTES:
            raise _too_long(name, spec.size)
        data = self._read(spec, name)
        if spec.md5 is not None and md5_hex(data) != spec.md5:  # nothing in an index would tell
            data = self._read(spec, name)
            if md5_hex(data) != spec.md5:
                raise ObjectMismatch(f"{name} is damaged", expected=spec.md5, actual=md5_hex(data))
        return IndexFile(data, name)

    def _read(self, spec: ObjectSpec, name: str) -> bytes:
        with RemoteFile(self.engine, spec, self.folder, name=name, suffix=".index") as file:
            try:
                return file.read(0, spec.size)
            finally:
                self.fetched += file.fetched
                self.requests += file.requests
                self.retries += file.retries


def _too_long(name: str, size: int) -> FormatError:
    return FormatError(f"{name} has {size:,} bytes, more than any index has")


class _Destination:
    """The stream, or the file in the folder that gets a slice; its name tells of the regions, so it is known once the format is."""

    def __init__(self, target: Target, name: str, wanted: Wanted, folder: Path, closing: ExitStack) -> None:
        self._target = target
        self._name = name
        self._wanted = wanted
        self._folder = folder
        self._closing = closing
        self.label = "-"

    def place(self, form: OutputFormat) -> Place:
        where = self._target
        if isinstance(where, Path):
            where = safe_target(where, slice_name(self._name, self._wanted, form))
            self.label = str(where)
        return self._closing.enter_context(Place(where, self._folder))


def slice_name(name: str, wanted: Wanted, extension: str) -> str:
    """The name of the file that a slice of the file `name` is written to."""
    return output_name(name.rpartition("/")[2], _what(wanted), extension)


def check_names(items: Sequence[ViewItem], wanted: Wanted) -> None:
    """Raises `ConfigurationError` if the slices of two items would be written to one file."""
    taken: dict[tuple[str, bool], str] = {}
    for item in items:
        name = item.file_name or item.object_id
        target = slice_name(name, wanted, ""), name.lower().endswith((".vcf.gz", ".vcf.bgz", ".bcf"))
        if target in taken:
            raise ConfigurationError(
                f"The slices of objects {taken[target]} and {item.object_id} would have the same file name, {target[0]}...: "
                "ask for them one after another, with two folders"
            )
        taken[target] = item.object_id


def _what(wanted: Wanted) -> str:
    """What a slice's name says of it."""
    if wanted.header_only:
        return "header"
    if wanted.bed is not None:
        return wanted.bed.name
    return "__".join({"*": "unplaced", ".": "all"}.get(region, region) for region in wanted.regions)
