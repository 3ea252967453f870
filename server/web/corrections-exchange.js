// One exchange: what was asked and answered, what its reader thinks of it, and what became of that.

import { call, make } from "/web/api.js";
import { sideBySide } from "/web/corrections-diff.js";
import { explained, follow, pill, steps } from "/web/corrections-fate.js";
import { correctionForm, hasDraft } from "/web/corrections-form.js";
import { announce, confirmed, policyName, problem, textOf, when } from "/web/corrections-parts.js";

const ROLES = { system: "Instructions", developer: "Instructions", user: "Asked", assistant: "Answered", tool: "A tool said" };
const KINDS = { correction: "Should have been", instruction: "How to change it", follow_up: "Said in the next turn", demonstration: "Demonstrated answer", rating: "Rating" };
const AGAIN_TOKENS = 256; // as many as a preview has

/** Everything about one exchange. Raises what the API refuses. */
export async function exchangePanel(id, { signal, back, linked = false }) {
  const path = `/v1/chat/completions/${encodeURIComponent(id)}`;
  const [completion, { data: messages }, feedback] = await Promise.all([
    call("GET", path),
    call("GET", `${path}/messages?limit=1000`),
    feedbackOn(id),
  ]);
  const answers = completion.choices.map((choice) => textOf(choice.message));
  const exchange = { id, completion, messages, answers, signal, linked };
  const teaching = make("div", { class: "teaching" });
  const panel = make(
    "article",
    {},
    back ? make("a", { class: "back", href: back }, "‹ Back to the list") : null,
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
export async function feedbackPanel(id, { signal, back }) {
  const feedback = await call("GET", `/v1/feedback/${encodeURIComponent(id)}`);
  return make(
    "article",
    {},
    make("a", { class: "back", href: back }, "‹ Back to the list"),
    make("h2", { tabindex: -1 }, "Correction of ", when(feedback.created)),
    fateCard(feedback, { signal, changed: () => location.reload() }),
  );
}

async function feedbackOn(id) {
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
  const again = async (id) => {
    const now = await feedbackOn(exchange.id);
    showTeaching(place, exchange, now, false);
    place.querySelector("h3").focus();
    const one = now.find((each) => each.id === id);
    if (one) announce(explained(one));
    tellLists();
  };
  const edit = () => {
    showTeaching(place, exchange, feedback, true);
    place.querySelector("textarea").focus();
  };
  const writing = !current || editing;
  const form = writing
    ? correctionForm({
        completion: exchange.id,
        answers: exchange.answers,
        start: current && startOf(current),
        sent: again,
        cancelled: current && (() => {
          showTeaching(place, exchange, feedback, false);
          place.querySelector("h3").focus();
        }),
      })
    : null;
  place.replaceChildren(
    ...(current ? [fateCard(current, { ...exchange, edit: writing ? undefined : edit, changed: again })] : []),
    ...(form && exchange.answers.length ? [make("section", { class: "writing" }, make("h3", { tabindex: -1 }, current ? "Change your correction" : "Correct it"), form)] : []),
    ...(earlier.length
      ? [make("details", { class: "earlier" }, make("summary", {}, `Earlier corrections (${earlier.length})`), ...earlier.map((one) => fateCard(one, { ...exchange, changed: again })))]
      : []),
  );
}

function startOf({ kind, text, check, choice }) {
  return { kind: kind === "instruction" ? kind : "correction", text: kind === "follow_up" ? "" : text, check, choice };
}

/** A correction, the way it has gone, and what can be done with it. `changed` is called when that was done. */
function fateCard(feedback, { signal, changed, edit, ...exchange }) {
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
  }, signal);
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

/** Let the list beside know that feedback has changed. */
function tellLists() {
  document.dispatchEvent(new Event("feedback"));
}
