// One exchange: what was asked and answered, what its reader thinks of it, and what became of that.

import { call, make } from "/web/api.js";
import { fateCard } from "/web/corrections-card.js";
import { explained } from "/web/corrections-fate.js";
import { correctionForm, hasDraft } from "/web/corrections-form.js";
import { rememberSent, sentByLink } from "/web/corrections-link.js";
import { announce, backLink, policyName, problem, tellLists, textOf, when } from "/web/corrections-parts.js";

const ROLES = { system: "Instructions", developer: "Instructions", user: "Asked", assistant: "Answered", tool: "A tool said" };

/** Everything about one exchange. Raises what the API refuses. */
export async function exchangePanel(id, { back, linked = false }) {
  const completion = await call("GET", `/v1/chat/completions/${encodeURIComponent(id)}`);
  const [messages, feedback] = await Promise.all([conversationOf(completion, linked), feedbackOn(id, linked)]);
  const answers = completion.choices.map(({ message, text }) => (message ? textOf(message) : (text ?? "")));
  const exchange = { id, messages, answers, linked };
  const teaching = make("div", { class: "teaching" });
  const panel = make(
    "article",
    {},
    back ? backLink(back) : null,
    make("h2", { tabindex: -1 }, "Answer of ", when(completion.created)),
    make("p", { class: "muted meta" }, `Answered by ${policyName(completion.policy)}${ended(completion)}`),
    conversation(messages, answers),
    rating(exchange, feedback),
    teaching,
  );
  showTeaching(teaching, exchange, feedback);
  return panel;
}

/** A piece of feedback that belongs to no exchange that can be shown. */
export async function feedbackPanel(id, { back }) {
  const feedback = await call("GET", `/v1/feedback/${encodeURIComponent(id)}`);
  return make(
    "article",
    {},
    backLink(back),
    make("h2", { tabindex: -1 }, "Correction of ", when(feedback.created)),
    fateCard(feedback, { changed: () => location.reload() }),
  );
}

/** All messages; the question alone where there are none, or with a link that does not open earlier ones. */
async function conversationOf({ id, asked }, linked) {
  const question = [{ role: "user", content: asked }];
  const messages = [];
  for (let after = ""; ; after = `&after=${messages.at(-1).id}`) {
    try {
      const page = await call("GET", `/v1/chat/completions/${encodeURIComponent(id)}/messages?limit=100${after}`);
      messages.push(...page.data);
      if (!page.has_more) return messages.length ? messages : question;
    } catch (error) {
      if (!linked || error.status !== 403) throw error;
      return question;
    }
  }
}

/** One's own feedback on an exchange, newest first. */
async function feedbackOn(id, linked) {
  if (linked) return Promise.all(sentByLink().map((one) => call("GET", `/v1/feedback/${one}`)));
  const { data } = await call("GET", `/v1/feedback?completion_id=${encodeURIComponent(id)}&order=desc&mine=true`);
  return data;
}

function ended({ status }) {
  return { complete: "", aborted: " · broken off", failed: " · failed", unfinished: " · without an end" }[status] ?? "";
}

// --- what was said -------------------------------------------------------------------------------------

function conversation(messages, answers) {
  const begin = messages.findLastIndex((one) => one.role === "assistant") + 1;
  const earlier = messages.slice(0, begin), turn = messages.slice(begin);
  const count = earlier.length === 1 ? "One earlier message" : `${earlier.length} earlier messages`;
  return make(
    "div",
    { class: "conversation" },
    earlier.length ? make("details", {}, make("summary", {}, count), ...earlier.map(message)) : null,
    ...turn.map(message),
    ...answers.map((text, i) => bubble("assistant", answers.length > 1 ? `Answer ${i + 1}` : "Answered", text)),
    answers.length === 0 ? make("p", { class: "muted" }, "There is no answer: the server stopped before its end.") : null,
  );
}

function message(one) {
  return bubble(one.role, ROLES[one.role] ?? one.role, textOf(one));
}

function bubble(role, who, text) {
  return make("section", { class: `bubble ${role}` }, make("h3", {}, who), make("p", { class: "said" }, text || "(nothing)"));
}

// --- thumbs --------------------------------------------------------------------------------------------

function rating(exchange, feedback) {
  let given = feedback.find((one) => one.kind === "rating" && !["withdrawn", "erased"].includes(one.status));
  const told = make("p", { class: "muted hint" });
  const thumb = (value, text) =>
    make("button", { class: `quiet thumb ${value > 0 ? "up" : "down"}`, type: "button", onclick: () => press(value) }, text);
  const [good, bad] = [thumb(1, "Good answer"), thumb(-1, "Bad answer")];
  const group = make("div", { class: "rating" }, good, bad, told);
  show();
  return group;

  function show() {
    good.setAttribute("aria-pressed", given?.value > 0);
    bad.setAttribute("aria-pressed", given?.value < 0);
    const rehearsed = "Good answers are rehearsed when the model learns other things.";
    told.textContent = !given ? "" : given.value > 0 ? rehearsed : "To teach the right answer, write it below.";
  }

  async function press(value) {
    good.disabled = bad.disabled = true;
    try {
      const same = given && Math.sign(given.value) === value;
      if (given) await call("DELETE", `/v1/feedback/${given.id}`);
      given = undefined;
      if (!same) {
        const { id } = await call("POST", "/v1/feedback", { completion_id: exchange.id, kind: "rating", value });
        rememberSent(id);
        given = { id, value };
      }
      show();
      announce(same ? "Your rating is withdrawn." : `Rated as a ${value > 0 ? "good" : "bad"} answer. ${told.textContent}`);
      tellLists();
    } catch (error) {
      show();
      told.replaceChildren(problem(error));
    } finally {
      good.disabled = bad.disabled = false;
      (value > 0 ? good : bad).focus();
    }
  }
}

// --- the correction and its fate -----------------------------------------------------------------------

function showTeaching(place, exchange, feedback, editing = hasDraft(exchange.id)) {
  const lessons = feedback.filter((one) => one.kind !== "rating");
  const current = lessons.find((one) => !["withdrawn", "erased"].includes(one.status));
  const earlier = lessons.filter((one) => one !== current);
  const writing = exchange.answers.length > 0 && (editing || !current);
  const show = (now, edited) => {
    showTeaching(place, exchange, now, edited);
    place.querySelector(edited ? "textarea" : "h3")?.focus();
  };
  const changed = async (id) => {
    const now = await feedbackOn(exchange.id, exchange.linked);
    show(now, false);
    const one = now.find((each) => each.id === id);
    if (one) announce(explained(one));
    tellLists();
  };
  const parts = [
    current && fateCard(current, { ...exchange, changed, edit: writing ? undefined : () => show(feedback, true) }),
    writing && make("section", { class: "writing" }, make("h3", { tabindex: -1 }, current ? "Change your correction" : "Correct it"), form()),
    earlier.length > 0 &&
      make(
        "details",
        { class: "earlier" },
        make("summary", {}, `Earlier corrections (${earlier.length})`),
        ...earlier.map((one) => fateCard(one, { ...exchange, changed })),
      ),
  ];
  place.replaceChildren(...parts.filter(Boolean));

  function form() {
    return correctionForm({
      completion: exchange.id,
      answers: exchange.answers,
      start: current && startOf(current),
      sent: (id) => {
        rememberSent(id);
        return changed(id);
      },
      cancelled: current && (() => show(feedback, false)),
    });
  }
}

/** What the form begins with when a correction is edited. */
function startOf({ kind, text, check, choice }) {
  return { kind: kind === "instruction" ? kind : "correction", text: kind === "follow_up" ? "" : text, check, choice };
}
