"""A record as a Kafka message: CloudEvents binary mode. Pure.

The message key is the id, so that compaction takes a record away after its tombstone; the partition is
therefore chosen here, from the partition key. A tombstone is a message without a value.
Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md, 3.2.
"""

import zlib
from dataclasses import dataclass
from datetime import datetime

from buffer.records import Record, Stream, UnreadableRecord, timestamp

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Message:
    """What Kafka stores of one record."""

    key: bytes
    value: bytes | None
    headers: Headers

    def size(self) -> int:
        """An upper bound of its bytes in a batch: five a length, and the record's own fields."""
        headers = sum(len(name) + len(value) + 10 for name, value in self.headers)
        return len(self.key) + len(self.value or b"") + headers + 40


def to_message(record: Record) -> Message:
    attributes = {
        "specversion": "1.0",
        "id": record.id,
        "source": record.source,
        "type": record.type,
        "time": timestamp(record.time),
        "sequence": str(record.sequence),
        "partitionkey": record.partition_key,
    }
    headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
    if record.data is not None:
        headers.append(("content-type", b"application/json"))
    return Message(record.id.encode(), record.data, headers)


def from_message(stream: Stream, value: bytes | None, headers: Headers) -> Record:
    """Raises `UnreadableRecord` for a message that is not one of ours."""
    try:
        ours = ((name, text) for name, text in headers if name.startswith("ce_") and text is not None)
        ce = {name.removeprefix("ce_"): text.decode() for name, text in ours}
        if ce["specversion"] != "1.0":
            raise ValueError(f"CloudEvents {ce['specversion']}")
        if not 0 <= (sequence := int(ce["sequence"])) < 1 << 63:
            raise ValueError(f"sequence {sequence}")
        return Record(
            stream,
            ce["type"],
            ce["id"],
            datetime.fromisoformat(ce["time"]),
            value,
            ce.get("partitionkey", ""),
            ce["source"],
            sequence,
        )
    except (KeyError, ValueError) as error:
        raise UnreadableRecord(f"no CloudEvents 1.0 message in binary mode: {error!r}") from error


def partition_of(partition_key: str, partitions: int) -> int:
    """Equal keys share a partition. Where partitions are added, a key stays or moves to an added one, never
    to another that was there before: no record can so come behind a later one that was sent there first.

    Linear hashing (Litwin, VLDB 1980): even for a power of two, else within a factor of two.
    """
    bits = (partitions - 1).bit_length()
    digest = zlib.crc32(partition_key.encode())
    partition = digest % (1 << bits)
    return partition if partition < partitions else digest % (1 << (bits - 1))
