"""What one optimiser step costs: plain fine-tuning, SDFT on reused rollouts, SDFT on fresh ones.

    sft      cross entropy on the correction's tokens                      (no anchors)
    sft+     the same, with anchors                                        the yardstick
    reuse    forward KL on the same rows, the teacher's states kept        most steps of a round
    round    the same, and a step's share of the rollouts that a full      all steps of a round, but for
             round writes, for all of its lessons at once                  the teacher's reading, once
    fresh    forward KL on rows that the student writes and the teacher    what is published
             reads in the same step                                        (arXiv 2601.19897)

All arms have rows of the same lengths and run in turn, so that a busy machine slows all of them. Time is
the median over repetitions; FLOPs are those of matrix products, counted by torch; memory is the peak of a
GPU, beyond the weights.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from learner.chat import Chat
from learner.config import LearnerConfig
from learner.cores import dtype_of
from learner.model import Model
from learner.optimiser import Optimiser
from learner.plan import steps_for
from learner.rows import Row
from learner.sdft import Teacher, batch_gradient

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "tiny": {
        "model_type": "llama",
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""Dimensions by name, from the models' published `config.json`."""


@dataclass(frozen=True)
class Cost:
    """One arm at one length. `seconds` is a step's median, `spread` half the range of the middle half."""

    arm: str
    prompt: int
    completion: int
    rows: int
    seconds: float
    spread: float
    tera_flops: float
    peak_gib: float | None

    def relative_to(self, other: "Cost") -> dict[str, float]:
        """Time and FLOPs as multiples of another arm's."""
        return {"time": self.seconds / other.seconds, "flops": self.tera_flops / other.tera_flops}


def random_model(shape: str, device: str, *, rank: int = 16, alpha: int = 32) -> Model:
    """A model of a published shape with random weights. Raises `KeyError` for an unknown shape."""
    config = AutoConfig.for_model(**SHAPES[shape], max_position_embeddings=32768)
    with torch.device(device):
        torch.set_default_dtype(dtype_of(device))
        try:
            base = AutoModelForCausalLM.from_config(config)
        finally:
            torch.set_default_dtype(torch.float32)
    eos = SHAPES[shape]["vocab_size"] - 1
    return Model(base, Chat(None, eos, frozenset({eos})), rank=rank, alpha=alpha, digest=shape)


def step_costs(
    model: Model,
    lengths: Sequence[tuple[int, int]],
    config: LearnerConfig,
    *,
    repeat: int,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Cost]:
    """Measure all arms at each `(prompt, completion)` length in tokens, anchors at the same length."""
    share = config.fresh_rollouts / steps_for(config.max_lessons, config)
    for prompt, completion in lengths:
        arms = _arms(model, prompt, completion, config)
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        flops: dict[str, float] = {}
        peaks: dict[str, float | None] = {}
        for name, step in arms.items():
            on_progress(f"{prompt}+{completion}: {name}, counting")
            with FlopCounterMode(display=False) as counter:
                step(0)
            flops[name] = counter.get_total_flops() / 1e12
            peaks[name] = _peak(model, step)
        for number in range(1, repeat + 1):
            for name, step in arms.items():
                on_progress(f"{prompt}+{completion}: {name}, {number} of {repeat}")
                began = _now(model)
                step(number)
                seconds[name].append(_now(model) - began)
        written = seconds.pop("rollouts")
        seconds["round"] = [
            step + share * all_rows for step, all_rows in zip(seconds["reuse"], written, strict=True)
        ]
        flops["round"] = flops["reuse"] + share * flops["rollouts"]
        peaks["round"] = max((peaks["reuse"], peaks["rollouts"]), key=lambda gib: gib or 0.0)
        for name in ("sft", "sft+", "reuse", "round", "fresh"):
            lower, middle, upper = statistics.quantiles(seconds[name], n=4, method="inclusive")
            rows = config.lessons_per_step + (0 if name == "sft" else config.anchors_per_step)
            spread = (upper - lower) / 2
            yield Cost(name, prompt, completion, rows, middle, spread, flops[name], peaks[name])


def _arms(
    model: Model, prompt: int, completion: int, config: LearnerConfig
) -> dict[str, Callable[[int], None]]:
    round_lessons = [
        _row(model, "reuse", prompt, completion, n)
        for n in range(max(config.max_lessons, config.lessons_per_step))
    ]
    lessons = round_lessons[: config.lessons_per_step]
    anchors = [_row(model, "anchor", prompt, completion, 100 + n) for n in range(config.anchors_per_step)]
    plain = config.model_copy(update={"objective": "cross_entropy"})
    parent = model.adapter_state()
    kept = Teacher(model, {}, parent, config)
    kept([*lessons, *anchors])
    optimiser = Optimiser(model.parameters(), {}, config)

    def take(batch: Sequence[Row], settings: LearnerConfig, teacher: Teacher) -> None:
        batch_gradient(model, batch, teacher, settings)
        optimiser.step(1e-5)

    def written(rows: Sequence[Row], number: int) -> tuple[list[Row], Teacher]:
        """The student's own answers to the rows' prompts, and a teacher that has not read them."""
        answers = model.generate(
            [row.student for row in rows],
            max_tokens=completion,
            temperature=config.rollout_temperature,
            seed=number,
        )
        fresh = [replace(r, kind="fresh", completion=tuple(a)) for r, a in zip(rows, answers, strict=True)]
        return fresh, Teacher(model, {anchor: kept.kept[anchor] for anchor in anchors}, parent, config)

    def fresh(number: int) -> None:
        rows, teacher = written(lessons, number)
        take([*rows, *anchors], config, teacher)

    def rollouts(number: int) -> None:
        rows, teacher = written(round_lessons, number)
        teacher(rows)

    return {
        "sft": lambda _: take(lessons, plain, kept),
        "sft+": lambda _: take([*lessons, *anchors], plain, kept),
        "reuse": lambda _: take([*lessons, *anchors], config, kept),
        "rollouts": rollouts,
        "fresh": fresh,
    }


def _row(model: Model, kind: Any, prompt: int, completion: int, seed: int) -> Row:
    """Random ids; the teacher's prompt is longer by a correction as long as the completion."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, len(model.head_VD) - 2, (count,), generator=generator).tolist())

    asked, answer = ids(prompt), ids(completion)
    return Row(kind, asked, asked if kind == "anchor" else asked + ids(completion), answer)


def _peak(model: Model, step: Callable[[int], None]) -> float | None:
    if model.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(0)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def _now(model: Model) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def as_json(costs: Sequence[Cost]) -> list[dict[str, Any]]:
    """Each cost with its ratios to `sft+` at the same length."""
    yardsticks = {(c.prompt, c.completion): c for c in costs if c.arm == "sft+"}
    return [asdict(c) | {"to_sft+": c.relative_to(yardsticks[c.prompt, c.completion])} for c in costs]
