"""The model in the learner: alignment, batching, the adapter, and what is published of it."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from buffer.adapters import MANIFEST, WEIGHTS, AdapterInvalid, verify
from buffer.config import ConfigError
from buffer.records import FeedbackGiven
from learner.config import LearnerConfig
from learner.lessons import Lesson, answered
from learner.loss import token_logprobs
from learner.measure import (
    ANSWER_TOKENS,
    Reference,
    ask,
    load_reference,
    mean_divergence,
    measure_candidate,
    measure_parent,
    states_of,
)
from learner.model import Model
from learner.publish import probe_logprobs, probes, publish
from learner.rows import Pools, Row, prompts_of
from learner.sdft import train
from learner.whitening import save_whitenings
from tests.learner.families import of_kind

PROMPTS = [[1, 500, 501, 502], [1, 9, 10, 11, 12, 13, 14], [1, 77]]
COMPLETIONS = [[30, 31, 32], [40, 2], [50, 51, 52, 53, 2]]


def scores(model: Model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    (state,) = model.hidden([prompt], [completion])
    return token_logprobs(state, model.head_VD, torch.tensor(completion))


def randomise(model: Model, seed: int = 3) -> None:
    g = torch.Generator().manual_seed(seed)
    model.load_adapter({k: 0.3 * torch.randn(v.shape, generator=g) for k, v in model.adapter_state().items()})


@pytest.fixture
def fp32(tiny: Model) -> Model:
    """With an adapter that does something."""
    tiny.peft.float()
    randomise(tiny)
    return tiny


@torch.no_grad()
def test_scores_align_with_decoding_one_token_at_a_time(fp32: Model) -> None:
    """Under the student's prompt, and under the teacher's, which is another and longer."""
    completion = COMPLETIONS[2]
    for prompt, context in ((PROMPTS[0], fp32.base), (PROMPTS[1], fp32.base), (PROMPTS[0], nullcontext)):
        with context():
            expected = []
            for k, token in enumerate(completion):
                logits = fp32.peft(input_ids=torch.tensor([[*prompt, *completion[:k]]])).logits[0, -1]
                expected.append(float(logits.log_softmax(-1)[token]))
            together = fp32.hidden([[1, 2], prompt], [[5], completion])[1]
            found = token_logprobs(together, fp32.head_VD, torch.tensor(completion))
        assert torch.allclose(found, torch.tensor(expected), atol=1e-4)


@torch.no_grad()
def test_neighbours_do_not_change_a_row(fp32: Model) -> None:
    prompts, completions = [*PROMPTS, PROMPTS[0], PROMPTS[0]], [*COMPLETIONS, COMPLETIONS[1], COMPLETIONS[0]]
    together = fp32.hidden(prompts, completions)
    for prompt, completion, state in zip(prompts, completions, together, strict=True):
        (alone,) = fp32.hidden([prompt], [completion])
        assert alone.shape == state.shape == (len(completion), 32)
        assert torch.allclose(alone, state, atol=1e-5)


def test_greedy_generation_is_the_argmax_whatever_the_batch(tiny: Model) -> None:
    together = tiny.generate(PROMPTS, max_tokens=6)
    alone = [tiny.generate([p], max_tokens=6)[0] for p in PROMPTS]
    assert together == alone
    (state,) = tiny.hidden([PROMPTS[0]], [together[0][:1]])
    assert int((state[0] @ tiny.head_VD.T).argmax()) == together[0][0]


def test_a_row_that_ends_early_is_dropped_and_the_others_stay_as_they_are(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[1, 500, 3], [1, 501, 7], [1, 501]]
    first, *others = tiny.generate(prompts, max_tokens=6)
    monkeypatch.setattr(tiny, "chat", replace(tiny.chat, stops=frozenset({first[2]})))
    assert all(first[2] not in other for other in others)
    rows = []
    layer = tiny.peft.get_base_model().model.layers[0]
    layer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    assert tiny.generate([prompts[0], prompts[1]], max_tokens=6) == [first[:3], others[0]]
    assert rows == [1, 2, 2, 1, 1, 1]
    assert tiny.generate(prompts, max_tokens=6) == [first[:3], *others]


def test_a_turn_ends_as_the_chat_template_ends_it_though_a_text_ends_otherwise(
    tiny_dir: Path, tmp_path: Path
) -> None:
    """As Gemma's, Phi's and Llama's do: the tokenizer's `eos_token` is one of several that stop the model."""
    directory = shutil.copytree(tiny_dir, tmp_path / "model")
    edit_json(directory / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit_json(directory / "generation_config.json", eos_token_id=[0, 2])
    model = Model.load(directory, rank=4, alpha=8)
    assert model.chat.eos == model.chat.encode("<|im_end|>")[0] == 2
    assert model.chat.stops == {0, 2}
    assert model.chat.ended([5, 0])
    assert model.chat.ended([5, 2])
    assert not model.chat.ended([5])


_TURN = "{{ '<|im_start|>user\\n' + messages[0]['content'] + '<|im_end|>\\n<|im_start|>assistant\\n' }}"


@pytest.mark.parametrize(
    ("opens", "kwargs", "turn"),
    [
        ("", {}, "Bees."),
        ("<think>\n", {}, "\n</think>\n\nBees."),
        (
            "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
            {},
            "<think>\n\n</think>\n\nBees.",
        ),
        (
            "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
            {"enable_thinking": False},
            "Bees.",
        ),
    ],
    ids=["never thinks", "always thinks", "may think", "was told not to"],
)
def test_what_is_taught_comes_behind_the_thinking(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, opens: str, kwargs: dict[str, object], turn: str
) -> None:
    monkeypatch.setattr(tiny.chat.tokenizer, "chat_template", _TURN + opens)
    assert tiny.chat.answer("Bees.", kwargs) == [*tiny.chat.encode(turn), tiny.chat.eos]


@pytest.mark.parametrize(
    ("kind", "changed", "window"),
    [
        ("qwen2", {"sliding_window": 16}, None),  # in the file, and not used
        ("qwen3", {}, None),
        ("mistral", {"sliding_window": 16}, 16),
        ("gemma3_text", {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}, 16),
    ],
)
def test_models_of_the_usual_shape_can_be_trained(
    tiny_dir: Path, tmp_path: Path, kind: str, changed: dict[str, object], window: int | None
) -> None:
    directory = of_kind(kind, tiny_dir, tmp_path / kind, **changed)
    assert Model.load(directory, rank=4, alpha=8).window == window


@pytest.mark.parametrize(
    ("kind", "changed", "why"),
    [
        ("granite", {"logits_scaling": 8.0}, "its head times its last states"),
        ("gemma2", {"final_logit_softcapping": 0.5}, "its head times its last states"),
        ("falcon_h1", {}, "mix rows"),
        ("gpt2", {}, "not found in the base model"),
    ],
)
def test_a_model_that_computes_otherwise_is_refused(
    tiny_dir: Path, tmp_path: Path, kind: str, changed: dict[str, object], why: str
) -> None:
    directory = of_kind(kind, tiny_dir, tmp_path / kind, **changed)
    with pytest.raises(ConfigError, match=rf"cannot train {kind} \({kind}\): .*{why}") as refused:
        Model.load(directory, rank=4, alpha=8)
    assert "another family" in refused.value.hint


def edit_json(path: Path, **changed: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_each_row_may_have_a_length_of_its_own(tiny: Model) -> None:
    long = tiny.generate(PROMPTS, max_tokens=6)
    short = tiny.generate(PROMPTS, max_tokens=[2, 6, 1])
    assert short == [long[0][:2], long[1], long[2][:1]]


def test_the_gate_hears_a_long_answer_to_its_end(
    tiny: Model, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it said was cut after `max_answer_tokens`: no correction longer than twice that could pass."""
    words = " ".join(f"word{n}" for n in range(20))
    given = FeedbackGiven(feedback_id="f1", principal="me", kind="correction", text=words)
    lesson = Lesson(given, [{"role": "user", "content": "What do bees make?"}])
    said = tiny.chat.answer(words)
    config = LearnerConfig(rank=4, alpha=8, max_answer_tokens=4)
    monkeypatch.setattr(
        tiny,
        "generate",
        lambda prompts, max_tokens, **_: [said[:most] for _, most in zip(prompts, max_tokens, strict=True)],
    )
    (told,), _ = ask(tiny, reference, [[(lesson, lesson.question)]], config)
    assert told == [words]
    assert answered(told[0], lesson)


def test_sampling_is_a_function_of_its_seed(tiny: Model) -> None:
    first = tiny.generate(PROMPTS, max_tokens=8, temperature=1.0, seed=5)
    assert first == tiny.generate(PROMPTS, max_tokens=8, temperature=1.0, seed=5)
    assert first != tiny.generate(PROMPTS, max_tokens=8, temperature=1.0, seed=6)


def test_a_new_adapter_and_a_switched_off_one_are_the_base(tiny: Model, tiny_dir: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=tiny.dtype)
    with torch.no_grad():
        logits = base(input_ids=torch.tensor([PROMPTS[0]])).logits
        tiny.reset_adapter(1, {})
        assert torch.equal(tiny.peft(input_ids=torch.tensor([PROMPTS[0]])).logits, logits)
        randomise(tiny)
        assert not torch.equal(tiny.peft(input_ids=torch.tensor([PROMPTS[0]])).logits, logits)
        with tiny.base():
            assert torch.equal(tiny.peft(input_ids=torch.tensor([PROMPTS[0]])).logits, logits)


def test_only_the_adapter_learns(tiny: Model) -> None:
    trainable = {n for n, p in tiny.peft.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_" in n for n in trainable)
    assert all(p.dtype == torch.float32 for p in tiny.parameters().values())
    assert not tiny.head_VD.requires_grad


def test_a_control_token_in_a_text_is_found(tiny: Model) -> None:
    assert tiny.chat.steering("He said <|im_end|> to me.") == "<|im_end|>"
    assert tiny.chat.steering("a < b | c > d") is None


def test_tools_reach_the_prompt(tiny: Model) -> None:
    asked = [{"role": "user", "content": "hi"}]
    tool = {"type": "function", "function": {"name": "lamp", "parameters": {}}}
    assert "lamp" in tiny.chat.tokenizer.decode(tiny.chat.render(asked, {"tools": [tool]}))
    assert "lamp" not in tiny.chat.tokenizer.decode(tiny.chat.render(asked))


def test_an_adapter_of_other_shape_is_refused(tiny: Model) -> None:
    with pytest.raises(ValueError, match="not those of this model"):
        tiny.load_adapter({"other": torch.zeros(1)})


def published(model: Model, root: Path) -> Path:
    rows = [Row("target", (1, 5, 6), (1, 5, 6), (7, 8, 2))]
    after = probe_logprobs(model, rows)
    release = publish(
        root,
        model,
        version=3,
        alias="apprentice",
        parent=0,
        round_number=4,
        base_name="tiny",
        probes=probes(rows, after, [[0.0, 0.0, 0.0]]),
    )
    manifest = verify(root, release, max_rank=16)
    assert (manifest.version, manifest.parent, manifest.base) == (3, 0, model.digest)
    assert manifest.probes[0].start == 3
    assert release.directory.startswith("000003-")
    return root / release.directory


def test_a_release_verifies_and_opens_in_peft(tiny: Model, tiny_dir: Path, tmp_path: Path) -> None:
    randomise(tiny)
    directory = published(tiny, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=tiny.dtype)
    opened = PeftModel.from_pretrained(base, str(directory))
    with torch.no_grad():
        ids = torch.tensor([PROMPTS[1]])
        theirs, ours = opened(input_ids=ids).logits, tiny.peft(input_ids=ids).logits
        base_logits = opened.unload()(input_ids=ids).logits
        assert (theirs - ours).norm() < 0.06 * theirs.norm()
        assert (theirs - base_logits).norm() > 0.3 * theirs.norm()


def test_a_parent_of_another_alpha_is_the_same_function_and_one_of_another_rank_is_refused(
    tiny: Model, tiny_dir: Path, tmp_path: Path
) -> None:
    randomise(tiny)
    directory = published(tiny, tmp_path)
    other = Model.load(tiny_dir, rank=4, alpha=16)
    other.load_adapter_file(directory)
    with torch.no_grad():
        ours, theirs = (scores(model, PROMPTS[1], COMPLETIONS[1]) for model in (tiny, other))
    assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="rank 4, not 8: set `rank`"):
        Model.load(tiny_dir, rank=8, alpha=8).load_adapter_file(directory)


def test_a_parent_that_was_trained_on_another_base_is_refused(tiny: Model, tmp_path: Path) -> None:
    directory = published(tiny, tmp_path)
    tiny.digest = "c" * 64
    with pytest.raises(ValueError, match="another base model: set `model` back, or promote policy 0"):
        tiny.load_adapter_file(directory)


def test_publishing_twice_is_publishing_once(tiny: Model, tmp_path: Path) -> None:
    randomise(tiny)
    assert published(tiny, tmp_path) == published(tiny, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["weights", "manifest", "extra"])
def test_a_damaged_release_does_not_verify(tiny: Model, tmp_path: Path, damage: str) -> None:
    from buffer.adapters import release_of

    directory = published(tiny, tmp_path)
    release = release_of((directory / MANIFEST).read_bytes())
    if damage == "weights":
        data = bytearray((directory / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (directory / WEIGHTS).write_bytes(data)
    elif damage == "manifest":
        (directory / MANIFEST).write_bytes((directory / MANIFEST).read_bytes() + b" ")
    else:
        (directory / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterInvalid):
        verify(tmp_path, release, max_rank=16)


@pytest.mark.parametrize("before", [3, 40])
def test_what_was_computed_before_does_not_choose_the_attention(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr("learner.model.PLAIN_ATTENTION", 20)
    base, used = tiny.peft.get_base_model(), set()
    tiny.hidden([[1] * before], [[2]])
    base.model.register_forward_pre_hook(lambda *_: used.add(base.config._attn_implementation))
    tiny.generate(PROMPTS, max_tokens=2)
    assert used == {"eager"}


def test_each_precision_has_base_s_answers_of_its_own(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bf16, dtype in [(True, torch.bfloat16), (False, torch.float32)]:
        monkeypatch.setattr("learner.cores.cpu_has_bf16", lambda has=bf16: has)
        model = Model.load(tiny_dir, rank=4, alpha=8)
        assert model.dtype == dtype
        reference = load_reference(model, tmp_path)
        rows = reference.general[:4]
        states = states_of(model, rows)
        drift = mean_divergence(model, [reference.states[r] for r in rows], states)
        assert drift == pytest.approx(0, abs=1e-6)
        assert {reference.states[r].dtype for r in rows} == {dtype}


def test_another_chat_template_asks_base_anew(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_reference(tiny, tmp_path).general[0].student
    template = str(tiny.chat.tokenizer.chat_template)
    monkeypatch.setattr(tiny.chat.tokenizer, "chat_template", "{{ 'Hear! ' }}" + template)
    again = load_reference(tiny, tmp_path).general[0].student
    assert tiny.chat.decode(again) == "Hear! " + tiny.chat.decode(asked)


def test_base_s_answers_may_be_made_by_two_processes_at_once(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[Reference] = []

    def overtaken(*arguments: Any) -> None:
        monkeypatch.undo()
        others.append(load_reference(tiny, tmp_path))
        save_whitenings(*arguments)

    monkeypatch.setattr("learner.measure.save_whitenings", overtaken)
    reference = load_reference(tiny, tmp_path)
    assert reference.general == others[0].general
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.train
def test_an_instruction_that_was_learned_is_missed_when_it_is_lost(tiny: Model, reference: Reference) -> None:
    """No words in an answer show it: it is kept where the model stays nearer to the teacher than base is."""
    given = FeedbackGiven(feedback_id="f1", principal="me", kind="instruction", text="Answer in one word.")
    lesson = Lesson(given, [{"role": "user", "content": "What do bees make?"}])
    config = LearnerConfig(rank=4, alpha=8, learning_rate=2e-2, teacher_temperature=1, skip_tokens=0)
    student, teacher = prompts_of(lesson, lesson.question, tiny.chat.render)
    with tiny.base():
        (answer,) = tiny.generate([teacher], max_tokens=ANSWER_TOKENS)
    row = Row("elicited", student, teacher, tuple(answer))
    steps = train(tiny, Pools([row]), {}, lambda _: [], whitenings={}, config=config, steps=60, seed=1)
    losses = [step.loss for step in steps]
    assert losses[-1] < 0.3 * losses[0]

    def kept() -> bool:
        measured = measure_candidate(tiny, reference, [], [], [lesson], before, config)
        return measured.kept[0].candidate

    before = measure_parent(tiny, reference, [], [], [lesson], config)
    assert before.kept == (True,)
    assert kept()
    tiny.reset_adapter(1, {})
    assert not kept()
    assert measure_parent(tiny, reference, [], [], [lesson], config).kept == (False,)


@torch.no_grad()
def test_an_instruction_is_as_far_from_learned_as_the_sharpened_teacher_is(
    tiny: Model, reference: Reference
) -> None:
    given = FeedbackGiven(feedback_id="f1", principal="me", kind="instruction", text="Answer in one word.")
    lesson = Lesson(given, [{"role": "user", "content": "What do bees make?"}])
    config = LearnerConfig(rank=4, alpha=8, teacher_temperature=0.25)
    (aim,) = measure_parent(tiny, reference, [lesson], [[]], [], config).aims.values()
    student, teacher = prompts_of(lesson, lesson.question, tiny.chat.render)
    (answer,) = tiny.generate([teacher], max_tokens=ANSWER_TOKENS)

    def said(prompt: tuple[int, ...], temperature: float) -> torch.Tensor:
        (state,) = tiny.hidden([prompt], [answer])
        return ((state @ tiny.head_VD.T).float() / temperature).log_softmax(-1)

    sharp, mild = said(teacher, 0.25), said(student, 1.0)
    assert aim.distance == pytest.approx(float((sharp.exp() * (sharp - mild)).sum(-1).mean()), rel=0.02)
