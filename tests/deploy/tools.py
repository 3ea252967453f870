"""The programs that know the formats in `deploy/`; without them a test is skipped, and says how to get them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
APT = {"promtool": "prometheus", "prometheus": "prometheus", "systemd-analyze": "systemd"}
"""Program to Debian package."""


def program(name: str) -> str:
    """Where it is. Skips the test where it is nowhere."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}: apt-get install {APT[name]}")
    return found


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a checker and fail with what it says."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def module(name: str) -> list[str]:
    """The command of an installed checker's module."""
    return [sys.executable, "-P", "-m", name]
