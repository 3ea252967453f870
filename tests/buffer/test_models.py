"""What a processor says of itself, in the words of Linux on x86 and on Arm."""

from pathlib import Path

import pytest

from buffer.models import cpu_has_bf16


@pytest.mark.parametrize(
    ("told", "has"),
    [
        ("flags\t\t: fma avx avx2 f16c\nflags\t\t: fma avx avx2 f16c\n", False),
        ("model name\t: avx512bw\nflags\t\t: fma avx2\n", False),
        ("flags\t\t: avx2 avx512f avx512bw avx512_bf16\n", True),
        ("Features\t: fp asimd i8mm\n", False),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("processor\t: 0\n", True),
    ],
)
def test_a_processor_has_bf16_where_it_says_so_or_says_nothing(told: str, has: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(told)
    assert cpu_has_bf16(tmp_path / "cpuinfo") == has


def test_a_system_without_the_file_is_taken_to_have_bf16(tmp_path: Path) -> None:
    assert cpu_has_bf16(tmp_path / "none")
