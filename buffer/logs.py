"""How every process logs: lines for people, or one JSON object a line for programs.

    {"time":"2026-01-01T00:00:00.000Z","level":"INFO","logger":"server","message":…}

and, where there are such, `request_id` (the request that was being answered) and `exception` (a traceback).
"""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from buffer.config import LogFormat
from buffer.records import timestamp

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Names the request that the running task answers; empty outside of one."""


def configure(form: LogFormat) -> None:
    """Send everything from INFO on to standard error in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def as_json(time: datetime, level: str, logger: str, message: str, **more: Any) -> str:
    """One line, without its end."""
    found = {"time": timestamp(time), "level": level, "logger": logger, "message": message, **more}
    return json.dumps(found, ensure_ascii=False, default=str)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        more = {"request_id": asked} if (asked := request_id.get()) else {}
        if record.exc_info:
            more["exception"] = self.formatException(record.exc_info)
        time = datetime.fromtimestamp(record.created, UTC)
        return as_json(time, record.levelname, record.name, record.getMessage(), **more)


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        asked = request_id.get()
        return super().formatMessage(record) + (f" [{asked}]" if asked else "")
