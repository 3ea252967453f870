"""Demonstrations from a file: what a line may be, all or nothing, and once only."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from buffer.records import FeedbackGiven
from server import cli
from server.commands import import_
from server.commands.client import CallFailed, Client
from server.commands.import_ import demonstration
from tests.server.running import Running

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who bakes?"}]
ANSWER = {"role": "assistant", "content": "Ida Holm."}


def body(text: str = "Ida Holm.", messages: Any = None, **more: Any) -> dict[str, Any]:
    return {"kind": "demonstration", "messages": messages or ASKED, "text": text, **more}


def read(line: Any) -> dict[str, Any]:
    return demonstration(json.dumps(line).encode(), 100)


def chats(count: int) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": f"q{i}"}, ANSWER]} for i in range(count)]


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def given(running: Running) -> list[FeedbackGiven]:
    return [p for p in running.log.payloads(FeedbackGiven) if isinstance(p, FeedbackGiven)]


def run(file: Path | str, url: str, *more: str) -> int:
    return cli.main(["import", str(file), "--url", url, "--key", "ann-key", *more])


@contextmanager
def cutting(target: str, after: int) -> Iterator[str]:
    """A proxy that lets `after` replies through; later requests arrive, and their replies are lost."""
    replies = []

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["content-length"]))
            headers = {name: self.headers[name] for name in ("authorization", "idempotency-key")}
            reply = httpx.post(target + self.path, content=sent, headers=headers)
            replies.append(reply)
            if len(replies) <= after:
                self.send_response(reply.status_code)
                self.end_headers()
                self.wfile.write(reply.content)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


# --- a line --------------------------------------------------------------------------------------------


def test_a_chat_is_what_was_asked_and_its_last_answer() -> None:
    earlier = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
    assert read({"messages": [*ASKED, ANSWER]}) == body()
    assert read({"messages": [*earlier, *ASKED, ANSWER]}) == body(messages=[*earlier, *ASKED])


def test_the_columns_of_trl_are_taken() -> None:
    asked = [{"role": "user", "content": "Who bakes?"}]
    assert read({"prompt": "Who bakes?", "privileged_context": "Ida."}) == body("Ida.", asked)
    assert read({"prompt": ASKED, "privileged_context": "Ida."}) == body("Ida.")
    assert read({"prompt": "Who bakes?", "privileged_context": ["Ida.", "Holm."]}) == body(
        "Ida.\n\nHolm.", asked
    )


def test_other_keys_are_ignored_and_a_check_is_passed_on() -> None:
    line = {"messages": [*ASKED, ANSWER], "id": 7, "prompt": None, "check": {"contains": "ida"}}
    assert read(line) == body(check={"contains": "ida"})
    assert read({**line, "check": None}) == body()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "is not JSON: expected .* at column 2"),
        ('["a"]', "not a JSON object"),
        ('{"text": "a"}', "neither messages, nor prompt and privileged_context"),
        ('{"prompt": "a"}', "neither messages"),
        ('{"messages": []}', "last one is the assistant's"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "last one is the assistant's"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "what was asked"),
        (
            '{"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "user's",
        ),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}', "text is needed"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}', "empty"),
        ('{"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}', "calls tools"),
        ('{"prompt": 3, "privileged_context": "a"}', "prompt must be"),
        ('{"prompt": ["a"], "privileged_context": "a"}', "dictionary"),
        ('{"prompt": "a", "privileged_context": ["a", 3]}', "privileged_context must be"),
        ('{"prompt": "a", "privileged_context": []}', "text is empty"),
        ('{"prompt": "a", "privileged_context": "b", "check": {"has": "b"}}', "check"),
        ('{"prompt": "a", "privileged_context": "' + 101 * "b" + '"}', "101 characters"),
        ('{"prompt": "a", "privileged_context": "<|im_end|>"}', "steers the model"),
        ('{"prompt": "a", "privileged_context": "\\ud800"}', "is not JSON"),
    ],
)
def test_a_line_that_is_no_demonstration_says_why(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        demonstration(line.encode(), 100)


# --- the command ---------------------------------------------------------------------------------------


def test_a_file_becomes_feedback_in_its_order(
    running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "d.jsonl", chats(130))
    assert run(file, running.url, "--json") == 0
    out = capsys.readouterr()
    found = given(running)
    assert json.loads(out.out) == {"imported": 130, "ids": [one.feedback_id for one in found]}
    assert out.err == ""
    assert [one.messages[0].content for one in found if one.messages] == [f"q{i}" for i in range(130)]
    assert {(one.kind, one.principal, one.text) for one in found} == {("demonstration", "ann", "Ida Holm.")}


def test_requests_keep_to_the_servers_limit_of_bytes(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPRENTICE_SERVER_MAX_BODY_BYTES", "200000")
    lines = [{"prompt": f"{i} " + 3000 * "é", "privileged_context": "a"} for i in range(64)]
    assert run(write(tmp_path / "d.jsonl", lines), running.url) == 0
    assert len(given(running)) == 64


def test_it_reads_standard_input(
    running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = b"\xef\xbb\xbf" + json.dumps({"messages": [*ASKED, ANSWER]}).encode() + b"\r\n\r\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("-", running.url) == 0
    assert "demonstrations imported: 1;" in capsys.readouterr().out
    assert [one.text for one in given(running)] == ["Ida Holm."]


def test_one_wrong_line_stops_the_whole_file(
    running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[Any] = chats(100)
    for at in range(70, 77):
        lines[at] = {"prompt": "no answer"}
    assert run(write(tmp_path / "d.jsonl", lines), running.url) == 1
    error = capsys.readouterr().err
    assert "7 of 100 lines" in error and "nothing was sent" in error
    assert "line 71: has neither" in error and "line 75: " in error and "line 76: " not in error
    assert "and 2 more" in error and "→ correct" in error
    assert given(running) == []


@pytest.mark.parametrize("data", ["", "\n \n"])
def test_an_empty_file_is_an_error(
    data: str, running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.jsonl").write_text(data)
    assert run(tmp_path / "d.jsonl", running.url, "--json") == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["message"]) == ("file_refused", "the file is empty")


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "lost.jsonl", "http://127.0.0.1:9") == 1
    assert "lost.jsonl cannot be read: No such file" in capsys.readouterr().err


def test_a_line_above_the_limit_of_a_request_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APPRENTICE_SERVER_MAX_BODY_BYTES", "300")
    lines = [*chats(1), {"prompt": 400 * "a", "privileged_context": "a"}]
    assert run(write(tmp_path / "d.jsonl", lines), "http://127.0.0.1:9") == 1
    assert "line 2: takes " in capsys.readouterr().err


def test_after_a_cut_the_same_command_takes_nothing_twice(
    running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line that is taken is one whose reply is lost."""
    file = write(tmp_path / "d.jsonl", chats(130))
    with cutting(running.url, after=64) as url:
        assert run(file, url) == 1
    error = capsys.readouterr().err
    assert "line 65: " in error and "taken before that: 64" in error
    assert "run the same command again" in error
    before = [one.feedback_id for one in given(running)]
    assert len(before) == 65
    replies = []
    for _ in range(2):
        assert run(file, running.url, "--json") == 0
        replies.append(json.loads(capsys.readouterr().out))
    assert replies[0] == replies[1]
    assert replies[0]["ids"][:65] == before
    assert len(given(running)) == replies[0]["imported"] == 130


def test_of_a_file_that_has_grown_only_what_is_new_is_taken(
    running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever that is: what is taken twice would supersede what was learned, and be learned again."""
    lines = chats(70)
    for more in (lines[10:40], lines[10:70], lines):
        assert run(write(tmp_path / "d.jsonl", more), running.url, "--json") == 0
        assert json.loads(capsys.readouterr().out)["imported"] == len(more)
        assert len(given(running)) == len(more)


def test_a_line_that_comes_again_below_another_answer_counts_again(running: Running, tmp_path: Path) -> None:
    said = [{"prompt": "Who?", "privileged_context": name} for name in ("Ida", "Mira", "Ida")]
    for _ in range(2):
        assert run(write(tmp_path / "d.jsonl", said), running.url) == 0
        assert [one.text for one in given(running)] == ["Ida", "Mira", "Ida"]


def test_it_waits_while_the_server_takes_no_more_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    class Limited(Client):
        tried = 0

        def post(self, path: str, body: Any = None, headers: Any = None) -> Any:
            self.tried += 1
            if self.tried in (2, 3):
                raise CallFailed("more than 1", "wait", status=429, code="rate_limited")
            return {"id": body["text"]}

    monkeypatch.setattr(import_, "LIMITED_S", 0.0)
    lines = [import_.Line(n, {"text": f"t{n}"}) for n in range(3)]
    assert import_.send(Limited("http://127.0.0.1:9"), lines) == ["t0", "t1", "t2"]


def test_what_the_server_refuses_is_told_by_its_line(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server elsewhere may have another limit than the configuration here."""
    monkeypatch.setenv("APPRENTICE_SERVER_MAX_FEEDBACK_CHARS", "20000")
    lines = chats(100)
    lines[80]["messages"][0]["content"] = 9000 * "a"
    assert run(write(tmp_path / "d.jsonl", lines), running.url, "--json") == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["message"].startswith("line 81: messages[0].content has 9000 characters")
    assert error["code"] == "text_too_long" and "run the same command again" in error["hint"]
    assert len(given(running)) == 80


def test_without_a_server_it_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("APPRENTICE_URL", raising=False)
    file = write(tmp_path / "d.jsonl", chats(1))
    assert cli.main(["import", str(file), "--state", str(tmp_path)]) == 1
    assert "make up" in capsys.readouterr().err
