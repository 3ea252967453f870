// A correction as a card: the way it has gone, and what can be done with it.

import { call, make } from "/web/api.js";
import { sideBySide } from "/web/corrections-diff.js";
import { explained, follow, pill, steps } from "/web/corrections-fate.js";
import { announce, confirmed, problem, tellLists, textOf } from "/web/corrections-parts.js";

const KINDS = {
  correction: "The right answer",
  instruction: "How to change the answer",
  follow_up: "Said in the next turn",
  demonstration: "The answer as it was shown",
  rating: "Rating",
};
const AGAIN_TOKENS = 256; // as many as a preview has

/**
 * `exchange` has what belongs to the answer (see corrections-exchange.js), where there is one. `changed` is called
 * when something was done with the correction, `edit` to change it.
 */
export function fateCard(feedback, { changed, edit, ...exchange }) {
  const way = make("ol", { class: "steps", "aria-label": "What has become of it" });
  const words = make("p", { class: "why" });
  const waits = make("p", { class: "muted hint" });
  const outcome = make("div", { class: "outcome" });
  const ask = make("button", { type: "button", onclick: askAgain }, "Ask again");
  const change = edit ? make("button", { class: "quiet", type: "button", onclick: edit }, "Edit") : null;
  const withdraw = make("button", { class: "quiet", type: "button", onclick: takeBack }, "Withdraw");
  const look = make("span");
  const title = make("h3", { tabindex: -1 }, "Your correction ", look);
  const card = make(
    "section",
    { class: "card fate" },
    title,
    make("dl", {}, ...[
      make("dt", {}, KINDS[feedback.kind] ?? "Correction"),
      make("dd", { class: "said" }, feedback.text ?? "(erased)"),
      ...(feedback.check ? [make("dt", {}, "A right answer contains"), make("dd", { class: "said" }, feedback.check.contains)] : []),
    ]),
    way,
    words,
    waits,
    make("div", { class: "actions" }, ask, change, withdraw),
    outcome,
  );
  show(feedback);
  follow(feedback, (now) => {
    show(now);
    announce(`${look.textContent}. ${explained(now)}`);
    tellLists();
  }, card);
  return card;

  function show(now) {
    feedback = now;
    look.replaceChildren(pill(now));
    way.replaceChildren(...steps(now));
    const by = now.superseded_by ? make("a", { href: `#list=corrections&feedback=${now.superseded_by}` }, "See the later one") : null;
    words.replaceChildren(explained(now), ...(by && !exchange.linked ? [" ", by, "."] : []));
    ask.hidden = now.status !== "served" || !exchange.messages || exchange.linked;
    withdraw.hidden = ["withdrawn", "erased"].includes(now.status);
    waits.replaceChildren();
    if (["received", "accepted"].includes(now.status) && !exchange.linked) learner();
  }

  async function learner() {
    try {
      const { why } = await call("GET", "/v1/learning");
      if (["received", "accepted"].includes(feedback.status)) waits.textContent = `The learner says: ${why}`;
    } catch {
      waits.replaceChildren(); // it is a remark, and the steps stand without it
    }
  }

  async function takeBack() {
    const why = "No further round will learn it. A policy that has learned it already keeps it until it is trained over.";
    if (!(await confirmed("Withdraw this correction?", why, "Withdraw it"))) return;
    withdraw.disabled = true;
    try {
      await call("DELETE", `/v1/feedback/${feedback.id}`);
      await changed(feedback.id);
    } catch (error) {
      outcome.replaceChildren(problem(error));
    } finally {
      withdraw.disabled = false;
    }
  }

  async function askAgain() {
    ask.disabled = true;
    outcome.replaceChildren(make("p", { class: "muted" }, "The model answers…"));
    try {
      const { data: models } = await call("GET", "/v1/models");
      const asked = exchange.messages.map(({ id, ...one }) => one);
      const reply = await call("POST", "/v1/chat/completions", {
        model: models[0].id, messages: asked, temperature: 0, max_completion_tokens: AGAIN_TOKENS, store: false,
      });
      const now = textOf(reply.choices[0].message);
      outcome.replaceChildren(sideBySide("It said", exchange.answers[feedback.choice ?? 0] ?? "", "It says now", now));
      announce(`It says now: ${now}`);
    } catch (error) {
      outcome.replaceChildren(problem(error));
    } finally {
      ask.disabled = false;
      ask.focus();
    }
  }
}
