"""The reason of a failed start, found in what vLLM 0.32 really writes (shortened)."""

from pathlib import Path

import pytest

from server.engine.vllm_log import explain, rotate, tail

MEMORY = """\
(EngineCore pid=9) ERROR 11-24 21:06:19 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-24 21:06:19 [core.py:1510] RuntimeError: Worker failed with error \
'Available memory on node 0 (11.49/14.34 GiB) on kv cache allocation is less than requested memory.'
(APIServer pid=8) INFO 11-24 21:06:23 [utils.py:628] [shutdown] send sigterm to process EngineCore
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked shared_memory objects
  warnings.warn('resource_tracker: There appear to be %d '
"""
CONTEXT = """\
Traceback (most recent call last):
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len (8192).
"""
MODEL = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, Invalid repository ID or local directory specified: '/models/x'.
Please verify the following requirements:
"""
PARSER = "KeyError: 'invalid tool call parser: nope (chose from { hermes,llama3_json })'\n"
FLAG = "usage: api_server.py [model_tag]\napi_server.py: error: unrecognized arguments: --bogus\n"


@pytest.mark.parametrize(
    "text, line, hint",
    [
        (MEMORY, "less than requested memory", "VLLM_CPU_KVCACHE_SPACE"),
        (CONTEXT, "User-specified max_model_len (100000)", "max_model_len"),
        (MODEL, "Invalid repository ID", "model"),
        (PARSER, "invalid tool call parser", "tool_call_parser"),
        (FLAG, "unrecognized arguments: --bogus", "args"),
    ],
)
def test_it_names_the_cause_and_the_next_step(text: str, line: str, hint: str) -> None:
    found = explain(text)
    assert line in found[0]
    assert hint in found[1]


def test_without_errors_it_is_the_last_line() -> None:
    assert explain("(APIServer pid=1) INFO 11-24 21:06:23 [a.py:1] loading\n\n") == ("loading", "")
    assert explain("") == ("", "")


def test_only_this_starts_part_of_the_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text("ValueError: of the last start\n")
    start = path.stat().st_size
    with path.open("a") as file:
        file.write("OSError: of this one\n")
    assert tail(path, start) == "OSError: of this one\n"


def test_a_large_log_is_set_aside_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    with path.open("ab", buffering=0) as writing:
        writing.write(b"x" * (17 << 20))
        assert rotate(path)
        writing.write(b"after")
        assert path.read_bytes() == b"after"
        assert not rotate(path)
    assert (tmp_path / "vllm.log.1").stat().st_size == 17 << 20
