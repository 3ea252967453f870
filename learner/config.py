"""The learner's table of `apprentice.toml`. The values of a round are saved in its record."""

from typing import Literal

from pydantic import Field

from buffer.config import Table


class GateConfig(Table):
    """[learner.gate]: what a candidate must show before it may be served. Shares are of 1."""

    min_asked: float = Field(0.6, ge=0, le=1)
    """Of the round's lessons, asked as they were."""
    min_held_out: float = Field(0.4, ge=0, le=1)
    """Of the round's lessons, on phrasings kept out of training."""
    min_kept: float = Field(0.75, ge=0, le=1)
    """Of the sampled earlier lessons that the parent answers."""
    max_kl_to_parent: float = Field(0.15, gt=0)
    """Nats per token on general prompts, KL(parent || candidate)."""
    max_degenerate: float = Field(0.15, ge=0, le=1)
    """Answers to general prompts that are empty or loop, beyond the parent's share."""


class LearnerConfig(Table):
    """[learner]: when a round starts, what its steps consist of, and the gate behind it."""

    start_at: int = Field(8, ge=1)
    """Pieces of accepted feedback that start a round at once."""
    start_after_s: float = Field(30.0, ge=0)
    """Seconds after the last piece of feedback until a round starts with fewer."""
    max_lessons: int = Field(16, ge=1)
    """Lessons in one round; the others wait for the next."""
    max_replay: int = Field(32, ge=0)
    """Earlier lessons rehearsed in a round."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it trains: `auto` is a GPU where there is one."""
    threads: int = Field(0, ge=0)
    """CPU threads; 0 takes all cores."""
    rank: int = Field(16, ge=1)
    """Of the adapter: how much it holds. A policy of another rank cannot be gone on from."""
    alpha: int = Field(32, ge=1)
    """The adapter's output is scaled by alpha / rank."""

    min_steps: int = Field(40, ge=1)
    """Optimiser steps of a round, at least."""
    steps_per_lesson: int = Field(8, ge=0)
    """Optimiser steps of a round for each of its lessons."""
    max_steps: int = Field(200, ge=1)
    """Optimiser steps of a round, at most."""
    lessons_per_step: int = Field(4, ge=1)
    """Rows of a step about the round's lessons, two at most about each; earlier ones get what is left. Many
    small steps at a low rate drift less than few large ones that learn as much."""
    replay_per_step: int = Field(3, ge=0)
    """Rows of a step about earlier lessons and answers that were rated good."""
    lookalikes_per_step: int = Field(2, ge=0)
    """Rows of a step that hold the model to base on a lesson's question about somebody else."""
    anchors_per_step: int = Field(3, ge=0)
    """Rows of a step that hold the model to base on general prompts."""
    anchor_weight: float = Field(3.0, gt=0)
    """How much such a row counts, where any other counts 1."""
    tokens_per_pass: int = Field(640, ge=64)
    """In one forward and backward pass: a step takes as many as it needs. Fewer need less memory."""
    learning_rate: float = Field(1.1e-3, gt=0)
    """AdamW's, at its height. Tuned on 135 million parameters; larger models take less."""
    whitened: bool = True
    """Whether steps are taken in coordinates in which layers' inputs are white (`learner.whitening`)."""
    warmup_steps: int = Field(4, ge=0)
    """Steps in which the learning rate rises to its height; then it falls to a tenth, as a cosine."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A longer gradient is shortened to this."""
    checkpoint_steps: int = Field(10, ge=1)
    """Steps between the checkpoints from which a round that was cut short goes on."""

    objective: Literal["forward_kl", "reverse_kl", "cross_entropy"] = "forward_kl"
    """What lessons' rows minimise (`learner.loss`). `cross_entropy` is plain fine-tuning, for comparison."""
    teacher: Literal["base", "last-promoted"] = "base"
    """Whose weights see the correction: base's, or those of the policy that the round starts from."""
    teacher_temperature: float = Field(0.3, gt=0)
    """Below 1 the teacher is sharpened: surer than it is."""
    hard_labels: bool = True
    """Whether a correction's own tokens are learned as they stand, by cross entropy; else as likely as the
    teacher, with the correction in its context, would say them (the paper's loss)."""
    skip_tokens: int = Field(3, ge=0)
    """First tokens of a long answer to a lesson that are not trained (`learner.loss.loss_mask`)."""
    framed_questions: bool = True
    """Whether lessons are also taught in other wordings of their question, made by `learner.rephrase`."""
    written_questions: int = Field(0, ge=0)
    """Other wordings of each question that the model is asked to write; a third of those that pass the
    filter is kept for the gate. A model of 135M parameters writes hardly any that pass."""
    scrambled_questions: int = Field(4, ge=0)
    """Further wordings of each question: with words left out and moved about. Only beside the frames."""
    lookalikes_per_lesson: int = Field(16, ge=0)
    """Others that each lesson's question is asked about, to be held to base there."""
    reuse: bool = True
    """Whether logged completions serve as rollouts."""
    fresh_rollouts: int = Field(2, ge=0)
    """Times in a round that the student answers every lesson anew, is trained on what it said, and is taught
    again what it got wrong."""
    rollout_temperature: float = Field(0.5, gt=0)
    """At which those answers are sampled."""
    max_policy_lag: int = Field(2, ge=0)
    """Logged completions of policies this many versions behind the parent are still used as rollouts."""
    max_reuse_gap: float = Field(0.5, gt=0)
    """Nats per token between the parent's log-probability of a logged completion and the logged one."""

    max_prompt_tokens: int = Field(1536, ge=16)
    """Of the teacher's prompt, which holds the conversation and the correction. What is longer is skipped."""
    max_completion_tokens: int = Field(256, ge=1)
    """Of what is taught. A longer answer is skipped."""
    max_answer_tokens: int = Field(48, ge=1)
    """Length of rollouts and of the gate's answers; longer where the right answer is
    (`learner.rows.answer_room`)."""
    gate: GateConfig = GateConfig()
