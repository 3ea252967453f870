"""What the learner computes on, and how it shares the processor with what serves.

Threads of one matrix product wait for each other by spinning. When another process takes one of their cores,
a spinning thread keeps the core that its own partner needs: on 2 cores beside one busy process a training
step then takes 15 s instead of 2.7 s. With a short spin it takes 5.5 s, and 2.9 s on a quiet machine.
Source: GOMP_SPINCOUNT in the libgomp manual.
"""

import os
from typing import TYPE_CHECKING

from buffer.models import cpu_has_bf16

if TYPE_CHECKING:
    import torch

_SPINS = "1000"


def use_cores(threads: int) -> None:
    """Let torch compute on so many threads, 0 for all cores. Comes before torch is imported anywhere."""
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)


def dtype_of(device: str) -> "torch.dtype":
    """What the base is computed in: bf16, or fp32 on a processor that has no bf16."""
    import torch

    return torch.bfloat16 if torch.device(device).type != "cpu" or cpu_has_bf16() else torch.float32


def device_of(wanted: str) -> str:
    """The device that a setting stands for: `auto` is a GPU where torch finds one."""
    import torch

    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
