"""The log out to a file, and from a file into an empty state: backup and restore.

A file holds a record a line (`buffer.structured`), each partition in its order. A restored record keeps its
source, sequence and partition, by which readers drop what comes again; so a view built from the restored log
is the view that was built from the original.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from buffer.backend import journal_path
from buffer.config import BufferConfig, Shared
from buffer.journal import Journal
from buffer.log import ExportRefused, Log, LogNotEmpty, LogUnavailable, read_to_end
from buffer.records import KEYED, PAYLOADS, STREAMS, Record, UnreadableRecord
from buffer.structured import from_line, to_line

Progress = Callable[[int, int], None]
"""Called with how many records are done, and of how many."""


@dataclass
class Exported:
    """What a file got. `unknown` are records of types that are not known here: they are exported, too."""

    records: int = 0
    erased: int = 0
    unknown: int = 0
    unrelayed: tuple[str, ...] = ()
    """Streams whose last records, appended here, the broker did not have yet: the file lacks them."""


class Watermarks:
    """The highest sequence seen of each source in each partition: what a reader knows records by."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, int], int] = {}

    def pass_(self, record: Record) -> bool:
        """Whether it is new to a reader; if so, it is seen from now on."""
        key = (record.source, record.stream, record.partition)
        if record.sequence <= self._seen.get(key, 0):
            return False
        self._seen[key] = record.sequence
        return True

    def seen(self, source: str, stream: str) -> int:
        return max((n for (s, t, _), n in self._seen.items() if (s, t) == (source, stream)), default=0)


def export(
    log: Log, write: Callable[[bytes], object], progress: Progress = lambda done, of: None
) -> Exported:
    """Write every record up to the log's present end, once, those that are tombstoned without their data.

    Reads the log twice, since a tombstone comes after its record. Raises `LogUnavailable`.
    """
    erased, total = set(), 0
    for records, _ in read_to_end(log):
        erased |= {(r.stream, r.id) for r in records if r.data is None}
        total += len(records)
    last = {stream: log.last(stream) for stream in STREAMS}
    exported, marks = Exported(), Watermarks()
    copies: set[tuple[str, str, int]] = set()  # of a tombstone, which a relay sends to every partition
    for records, _ in read_to_end(log):
        for record in filter(marks.pass_, records):
            if record.data is None:
                copy = (record.source, record.stream, record.sequence)
                if copy in copies:
                    continue
                copies.add(copy)
            gone = (record.stream, record.id) in erased
            write(to_line(replace(record, data=None) if gone else record))
            exported.records += 1
            exported.erased += gone
            exported.unknown += record.type not in PAYLOADS
        progress(exported.records, max(total, exported.records))
    exported.unrelayed = tuple(
        s for s, one in last.items() if one is not None and marks.seen(one.source, s) < one.sequence
    )
    return exported


def restore(shared: Shared, config: BufferConfig, read: Callable[[], Iterable[bytes]]) -> int:
    """Put the lines of an export into this state's empty log, all or none; how many records they are.

    With Kafka they go into the journal, from which the relay takes them over. `read` gives the lines. No
    other process may run on the state. Raises `ExportRefused`, `LogNotEmpty` and what the log raises.
    """
    journal = Journal(journal_path(shared), max_bytes=config.max_bytes)
    log: Log = journal
    try:
        if config.backend == "kafka":
            from buffer.kafka import KafkaLog

            log = KafkaLog(journal, config.kafka, name="restore")
            _require_empty_topics(log, config)
        return journal.restore(lambda: records_of(read())).result()
    finally:
        log.close()


def records_of(lines: Iterable[bytes]) -> Iterator[Record]:
    """The records of an export's lines.

    Raises `ExportRefused` for a line that is none, and where a reader would take a record for a repetition,
    because in its stream, whose order decides, a later one of its source comes first.
    """
    marks = Watermarks()
    for number, line in enumerate(lines, start=1):
        try:
            record = from_line(line)
        except UnreadableRecord as error:
            raise ExportRefused(
                f"line {number} is no record of a log: {error}",
                "give the whole, unchanged file that `apprentice export` wrote",
            ) from None
        if record.stream not in KEYED and not marks.pass_(record):
            raise ExportRefused(
                f"line {number}: record {record.id} comes after a later one of {record.source}",
                "keep the lines in their order",
            )
        yield record


def _require_empty_topics(log: Log, config: BufferConfig) -> None:
    """Make the topics that are missing; raise `LogNotEmpty` where there ever was a record in one."""
    from kafka.errors import KafkaError

    from buffer.topics import ensure_topics

    try:
        ensure_topics(config.kafka, name="restore")
    except KafkaError as error:
        raise LogUnavailable(f"the broker: {error!r}", "check that it runs; try again") from error
    if any(end for partitions in log.ends().values() for end in partitions.values()):
        raise LogNotEmpty(
            f"the topics {config.kafka.topic_prefix}* have records already",
            "restore under another topic_prefix in [buffer.kafka]",
        )
