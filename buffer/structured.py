"""A record as a line of JSON: CloudEvents structured mode, the form of an exported log. Pure.

    {"specversion":"1.0","id":…,"source":…,"type":…,"time":…,"stream":…,"sequence":"7","partition":0,
     "partitionkey":…,"datacontenttype":"application/json","data":{…}}

The data comes back byte for byte: it is written as `data` where parsing and printing it gives the same bytes
(so it is for all that we write), and as `data_base64` otherwise. A tombstoned record has neither.
Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md, 3.
"""

import base64
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json

from buffer.records import Record, Stream, UnreadableRecord, timestamp

Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Event(BaseModel):
    """What a line must hold. Further attributes, of a newer writer, are ignored."""

    model_config = ConfigDict(extra="ignore")
    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    time: AwareDatetime
    stream: Stream
    sequence: Count
    partition: Count = 0
    partitionkey: str = ""
    data: Any = None
    data_base64: str | None = None


def to_line(record: Record) -> bytes:
    """One line, its end included."""
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": record.id,
        "source": record.source,
        "type": record.type,
        "time": timestamp(record.time),
        "stream": record.stream,
        "sequence": str(record.sequence),
        "partition": record.partition,
        "partitionkey": record.partition_key,
    }
    if record.data is not None:
        event |= {"datacontenttype": "application/json", **_packed(record.data)}
    return to_json(event) + b"\n"


def from_line(line: bytes) -> Record:
    """Raises `UnreadableRecord` for what is no record of a log."""
    try:
        event = _Event.model_validate(from_json(line))
        data = _unpacked(event)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise UnreadableRecord(f"{at}: {first['msg']}" if at else first["msg"]) from None
    except ValueError as error:
        raise UnreadableRecord(f"not as JSON should be: {error}") from None
    return Record(
        event.stream,
        event.type,
        event.id,
        event.time,
        data,
        event.partitionkey,
        event.source,
        event.sequence,
        event.partition,
    )


def _packed(data: bytes) -> dict[str, Any]:
    try:
        value = from_json(data, allow_inf_nan=False)
        if value is not None and to_json(value) == data:
            return {"data": value}
    except ValueError:
        pass
    return {"data_base64": base64.b64encode(data).decode()}


def _unpacked(event: _Event) -> bytes | None:
    if event.data is not None:
        return to_json(event.data)
    return None if event.data_base64 is None else base64.b64decode(event.data_base64, validate=True)
