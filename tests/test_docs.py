"""What the documentation shows works: commands parse, settings load, examples run, links lead somewhere.

Every fenced block is of a language that has a rule; any other fails by name. Examples run in order against
one gateway in front of a scripted vLLM, with the address replaced. There `$ID` is a fresh completion's id,
`$FEEDBACK` the id of fresh feedback on it, and `$OPENAI_API_KEY` an admin's key.
"""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buffer.config import TABLES, load
from server import cli
from tests.server.running import KEYS, Running, hashed
from tests.server.stub_policies import StubPolicies
from tests.settings_page import MODELS, settings_page

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / "README.md", *(ROOT / name / "README.md" for name in ("server", "buffer", "learner"))),
    *sorted((ROOT / "docs").glob("*.md")),
]
ADDRESS = "http://localhost:8600"
CURL = 'curl() { command curl -sS --fail-with-body "$@" -H "Authorization: Bearer $OPENAI_API_KEY"; }'
"""The README's own lines have no key, as its server has none."""
SYSTEM_COMMANDS = {"cp", "docker", "export", "kubectl", "mkdir", "openssl", "rsync", "sha256sum", "printf"}
"""Of other projects; what they do is not tested."""
_BLOCK = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()[^)\s]+|(?<=src=\")[^\"]+|(?<=srcset=\")[^\"]+")


@dataclass(frozen=True)
class Block:
    """A fenced block. `place` names it as `README.md:12`."""

    place: str
    language: str
    text: str


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(f"{name_of(page)}:{text.count(chr(10), 0, found.start()) + 1}", *found.groups())
        for found in _BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if any(block.language == language for block in blocks_of(page))]


def is_example(block: Block) -> bool:
    """Whether it talks to a server."""
    return block.language in ("python", "typescript") or "curl " in block.text


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    started = Running(tmp_path_factory.mktemp("gateway"), StubPolicies, keys=hashed(KEYS), admins=["root"])
    yield started
    started.stop()


@pytest.fixture
def example(running: Running, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes an example's variables, and puts the gateway's address into it."""
    client = running.client("root-key")
    asked = {"model": "apprentice", "messages": [{"role": "user", "content": "Who runs the bakery?"}]}
    completion = client.post("/v1/chat/completions", json=asked).raise_for_status().json()["id"]
    said = {"completion_id": completion, "kind": "correction", "text": "Ida Holm."}
    feedback = client.post("/v1/feedback", json=said).raise_for_status().json()["id"]
    running.run(running.gateway.until(lambda: running.gateway.buffer.view.feedback(feedback) is not None))
    for name, value in {"ID": completion, "FEEDBACK": feedback, "OPENAI_API_KEY": "root-key"}.items():
        monkeypatch.setenv(name, value)
    return lambda text: text.replace(ADDRESS, running.url)


# --- shell ------------------------------------------------------------------------------------------------


def check_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One command of a `sh` block, by what it calls."""
    name = Path(words[0]).name
    if name == "apprentice":
        # a flag that nobody has stops each command when everything before it has been understood
        unknown = "--no-flag-of-any-command"
        with pytest.raises(SystemExit):
            cli.main([*words[1:], unknown])
        assert capsys.readouterr().err.endswith(f"unrecognized arguments: {unknown}\n")
    elif name == "make":
        assert re.search(rf"^{re.escape(words[1])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif name == "python":
        assert words[1] == "-m" and importlib.util.find_spec(words[2]) is not None
    else:
        assert name in SYSTEM_COMMANDS or (ROOT / words[0]).is_file()
    assert [word for word in words if word.startswith("deploy/") and not (ROOT / word).exists()] == []


def commands_of(script: str) -> Iterator[list[str]]:
    """Each command's words, without variables before it and what comes behind a pipe or `>`."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            yield words


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=lambda b: b.place)
def test_commands_parse(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands_of(block.text):
        if words[0] != "curl":
            check_command(words, capsys)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "sh" and is_example(b)], ids=lambda b: b.place
)
def test_curl_lines_succeed(block: Block, example: Callable[[str], str], tmp_path: Path) -> None:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("needs curl and bash: install them")
    only_curl = "\n".join(
        line for line in example(block.text).replace("\\\n", " ").splitlines() if line.startswith("curl ")
    )
    script = f"set -e\n{CURL}\n{only_curl}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_the_text_names_exist(page: Path) -> None:
    named = re.findall(r"`(?:\.venv/bin/)?apprentice (\w+)", _BLOCK.sub("", page.read_text()))
    assert set(named) - set(cli.COMMANDS) == set()


# --- programs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_python_runs(page: Path, example: Callable[[str], str]) -> None:
    """The blocks of a page are one program."""
    names: dict[str, object] = {}
    for block in blocks_of(page):
        if block.language == "python":
            exec(compile(example(block.text), block.place, "exec"), names)  # noqa: S102
    if (client := names.get("client")) is not None:
        client.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", pages_with("typescript"), ids=name_of)
def test_typescript_runs(page: Path, example: Callable[[str], str], tmp_path: Path) -> None:
    """The blocks of a page are one program, without types: Node runs it as it is."""
    program = "\n".join(block.text for block in blocks_of(page) if block.language == "typescript")
    if shutil.which("node") is None:
        pytest.skip("needs Node: install it")
    file = tmp_path / "program.mjs"
    file.write_text(example(program))
    done = subprocess.run(["node", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# --- settings and the rest --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=lambda b: b.place)
def test_settings_load(block: Block, tmp_path: Path) -> None:
    """Those that are shown as comments, too."""
    file = tmp_path / "apprentice.toml"
    file.write_text(re.sub(r"^# (\w+ = )", r"\1", block.text, flags=re.MULTILINE))
    for table in ("", *TABLES):
        load(MODELS[table], table, file=file, env={})
    assert tomllib.loads(file.read_text())


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=lambda b: b.place)
def test_json_parses(block: Block) -> None:
    json.loads(block.text)


def test_every_block_has_a_rule() -> None:
    known = {"sh", "python", "typescript", "toml", "json", "mermaid", "text"}
    assert [block.place for block in BLOCKS if block.language not in known] == []


def test_text_hides_no_command() -> None:
    """`text` is what a program prints: a command there would go untested."""
    commands = re.compile(r"^\$? ?(?:\.venv/bin/)?(?:apprentice|curl|make) ", re.MULTILINE)
    assert [b.place for b in BLOCKS if b.language == "text" and commands.search(b.text)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for target in _LINK.findall(_BLOCK.sub("", page.read_text())):
        name, _, heading = target.partition("#")
        if re.match(r"https?://", target):
            continue
        to = (page.parent / name) if name else page
        if not to.exists() or (heading and heading not in headings_of(to)):
            lost.append(target)
    assert lost == []


def headings_of(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_the_page_of_settings_is_what_the_tables_say() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page(), (
        "python -m tests.settings_page > docs/settings.md"
    )
    assert "|  |" not in settings_page(), "a setting without a meaning"


def test_examples_name_the_address_that_is_replaced() -> None:
    """Anything else would be asked for real."""
    elsewhere = re.compile(r"localhost(?!:8600)|(?<!http://)localhost:8600")
    assert [b.place for b in BLOCKS if is_example(b) and elsewhere.search(b.text)] == []
