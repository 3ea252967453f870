// What becomes of feedback, in words and steps, from "received" to "learned" or to the reason why not.

import { call, make } from "/web/api.js";
import { policyName, sentence } from "/web/corrections-parts.js";

const STEPS = ["Received", "Accepted", "In training", "Trained", "Learned"];
const REACHED = { received: 0, accepted: 1, training: 2, trained: 3, served: 4 };

const SHORT = {
  received: ["Received", "moving"],
  accepted: ["Waits for training", "moving"],
  training: ["In training", "moving"],
  trained: ["Trained", "moving"],
  served: ["Learned", "good"],
  skipped: ["Left out", "warn"],
  quarantined: ["Set aside", "warn"],
  refused: ["Not learned", "bad"],
  superseded: ["Replaced", "past"],
  held: ["Taken out again", "warn"],
  withdrawn: ["Withdrawn", "past"],
  erased: ["Erased", "past"],
};

const LEFT_OUT = {
  rating_only: "A bad rating alone does not say what would have been right. A correction does.",
  no_hint: "Your next message says that the answer was wrong, but not what would be right.",
  not_a_chat: "Only answers in a chat can be taught.",
  no_user_turn: "The conversation does not end with a plain message that could be learned from.",
  not_rehearsable: "The rated answer was not kept whole, or is too long to be rehearsed.",
  no_teacher: "It has no text that the model could go by.",
  template_refuses: "The model cannot be asked in this form: the conversation has turns that it does not take.",
  template_mismatch: "The model is asked in another form now than when it gave this answer. Ask again, and correct the new answer.",
  answer_too_long: "It is too long to be learned. A shorter correction may fit.",
  teacher_too_long: "Told that, the model does not come to the end of its answer. Say what the answer should have been.",
  teacher_misses_hint: "Told that, the model still does not answer so. Say what the answer should have been.",
  prompt_too_long: "Conversation and correction together are too long for the model. A shorter correction may fit.",
};

/** A status in one or two words. */
export function pill(feedback) {
  const [text, look] = SHORT[feedback.status];
  return make("span", { class: `pill ${look}` }, text);
}

/** Whether more will become of it by itself. A rating waits for nothing. */
export function moving(feedback) {
  return SHORT[feedback.status][1] === "moving" && feedback.kind !== "rating";
}

/** What the status means, for somebody who knows nothing of how models learn. */
export function explained({ status, reason, round, policy }) {
  const why = reason ? sentence(reason) : "";
  switch (status) {
    case "received":
      return "It is safely stored. The learner will look at it soon.";
    case "accepted":
      return "The learner will take it into its next round of training.";
    case "training":
      return `The model is learning it now, in round ${round}.`;
    case "trained":
      return `Round ${round} learned it. ${sentence(policyName(policy))} is about to be put to use.`;
    case "served":
      return `The model has learned it: ${policyName(policy)} and all that grow from it answer with it.`;
    case "skipped":
      return LEFT_OUT[reason] ?? `The learner left it out. ${why}`;
    case "quarantined":
      return `It is set aside and not learned. ${why}`;
    case "refused":
      return `Round ${round} did not pass its tests, so nothing of it is used. ${why} Other words may be easier to learn.`;
    case "superseded":
      return "You corrected the same question again, and the later correction counts.";
    case "held":
      return `It was learned, but the model does not use it at present: ${sentence(reason || "its policy is not in use").toLowerCase()}`;
    case "withdrawn":
      return "You took it back. No further round learns it; what was learned before stays until it is trained over.";
    default:
      return "Its text was erased.";
  }
}

/** The way it has gone and has yet to go, as a list. */
export function steps(feedback) {
  const { status, round, policy } = feedback;
  const reached = REACHED[status];
  let labels = STEPS;
  if (reached === undefined) {
    const passed = status === "refused" ? 3 : policy !== null ? 4 : round !== null ? 3 : 1;
    labels = [...STEPS.slice(0, passed), SHORT[status][0]];
  }
  const last = reached ?? labels.length - 1;
  return labels.map((label, i) => {
    const ended = i === last && (reached === undefined || status === "served");
    const look = i < last ? "done" : i > last ? "next" : ended ? `end ${SHORT[status][1]}` : "now";
    const heard = { done: " (done)", next: " (to come)", now: " (now)" }[look] ?? "";
    return make("li", { class: look, "aria-current": i === last && "step" }, label, make("span", { class: "unseen" }, heard));
  });
}

/**
 * Look again and again what has become of it, calling `changed` with each news, until nothing more will, or `card`
 * is no longer shown.
 */
export async function follow(feedback, changed, card) {
  let pause = 2000;
  while (moving(feedback)) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    if (!card.isConnected) return;
    if (document.hidden) continue;
    try {
      const now = await call("GET", `/v1/feedback/${feedback.id}`);
      pause = now.status === feedback.status ? Math.min(pause * 1.25, 10_000) : 2000;
      if (now.status !== feedback.status && card.isConnected) changed(now);
      feedback = now;
    } catch {
      pause = Math.min(pause * 2, 30_000); // the server may be back by then
    }
  }
}
