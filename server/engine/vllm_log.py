"""What vLLM's log says about a start that failed, and what to do about it."""

import os
import re
import shutil
from pathlib import Path

_KEEP_BYTES = 16 << 20
_TAIL_BYTES = 256 << 10
_PREFIX = re.compile(r"^\((?:APIServer|EngineCore|Worker|VllmWorker)\S*(?: pid=\d+)?\)\s*")
_STAMP = re.compile(r"^(?:INFO|WARNING|ERROR|DEBUG) \d\d-\d\d [\d:]+ \[[^\]]*\] ?")
_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception|Interrupt)\b|.*: error: )")
_CONSEQUENCE = re.compile(
    "Engine core initialization failed|EngineDeadError|WorkerProc initialization failed"
)
_HINTS = (
    (r"Address already in use", "Another vLLM uses this state directory: stop it."),
    (r"out of memory|OutOfMemory|Cannot allocate memory|MemoryError|KV cache|free memory", "less memory"),
    (r"tool.call.parser", "Set `tool_call_parser` in [engine] to a name from that list."),
    (r"max_model_len|max_position_embeddings", "Lower `max_model_len` in [engine]."),
    (r"trust_remote_code|custom code", "It needs code of its own, which is never run: use another model."),
    (r"config\.json|model type|repo(sitory)? id|No such file|safetensors", "Set `model` to a whole model."),
    (r": error: ", "Correct `args` in [engine]."),
)
_LESS_MEMORY = (
    "Lower `max_model_len` in [engine], or give vLLM another share there: on a GPU "
    "`args = ['--gpu-memory-utilization', '0.6']`, on a CPU `env = {VLLM_CPU_KVCACHE_SPACE = '1'}` (GiB)."
)


def rotate(path: Path) -> bool:
    """Set what a large log holds aside as `<name>.1`, in place of the one before; whether it was large.

    A running vLLM keeps the file open for appending, so it is emptied rather than renamed; what comes between
    the two is lost.
    """
    if not path.exists() or path.stat().st_size <= _KEEP_BYTES:
        return False
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)
    return True


def tail(path: Path, start: int) -> str:
    """The end of what was written after byte `start`."""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")


def explain(text: str) -> tuple[str, str]:
    """The line that says why vLLM ended, and the next step; ("", "") when it says nothing.

    Of the errors the last that is not just the consequence of another; without errors the last line.
    """
    lines = [_STAMP.sub("", _PREFIX.sub("", line)).strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    errors = [n for n, line in enumerate(lines) if _ERROR.match(line) and not _CONSEQUENCE.search(line)]
    line = lines[errors[-1] if errors else -1] if lines else ""
    if "validation error for" in line:  # pydantic says what it is in the next line
        line = " ".join(lines[errors[-1] + 1 :][:1])
    for pattern, hint in _HINTS:
        if re.search(pattern, line, re.IGNORECASE):
            return line[:500], _LESS_MEMORY if hint == "less memory" else hint
    return line[:500], ""
