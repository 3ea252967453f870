"""The programs that know the formats in `deploy/`; where one is missing its tests are skipped and say so."""

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


def run(*command: str | Path) -> str:
    """Run a checker and fail with what it says; what it says where it finds nothing wrong."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def module(name: str) -> list[str]:
    """The command of an installed checker's module."""
    return [sys.executable, "-P", "-m", name]
