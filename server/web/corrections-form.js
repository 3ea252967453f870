// Writing a correction: its form, what it would do (the preview), and sending it once.

import { call, make } from "/web/api.js";
import { sideBySide } from "/web/corrections-diff.js";
import { announce, problem } from "/web/corrections-parts.js";

const KINDS = {
  correction: ["Write the right answer", "The right answer", "As the model should have given it"],
  instruction: ["Say how to change it", "How to change the answer", "“Shorter, and name the street”, say"],
};

/** What was typed about an exchange and not sent. It survives a reload, in this tab. */
class Draft {
  constructor(completion) {
    this.name = `apprentice-draft-${completion}`;
  }

  read() {
    return JSON.parse(sessionStorage.getItem(this.name));
  }

  keep(body) {
    sessionStorage.setItem(this.name, JSON.stringify({ ...this.read(), body }));
  }

  /** The Idempotency-Key for this body: the same one for as long as the body is, so that it is taken once. */
  key(body) {
    const { key, of } = this.read() ?? {};
    if (of === JSON.stringify(body)) return key;
    const made = Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem(this.name, JSON.stringify({ body, key: made, of: JSON.stringify(body) }));
    return made;
  }

  forget() {
    sessionStorage.removeItem(this.name);
  }
}

export function hasDraft(completion) {
  return Boolean(new Draft(completion).read()?.body?.text);
}

/**
 * The form for one exchange. `answers` are its texts by choice, `start` what it begins with (an earlier
 * correction); `sent` is called with the new feedback's id, `cancelled` when it is closed instead.
 */
export function correctionForm({ completion, answers, start, sent, cancelled }) {
  const draft = new Draft(completion);
  const begin = { kind: "correction", choice: 0, ...start, ...draft.read()?.body };

  const kinds = Object.entries(KINDS).map(([kind, [label]]) =>
    make("label", {}, make("input", { type: "radio", name: "kind", value: kind, checked: kind === begin.kind }), label),
  );
  const choices = answers.map((_, i) =>
    make("label", {}, make("input", { type: "radio", name: "choice", value: i, checked: i === begin.choice }), `Answer ${i + 1}`),
  );
  const text = make("textarea", { id: "text", rows: 4, required: true, spellcheck: "true" });
  const label = make("label", { for: "text" });
  const contains = make("input", { id: "contains", autocomplete: "off", "aria-describedby": "contains-why" });
  const copy = make("button", { class: "quiet", type: "button", onclick: startFromAnswer }, "Start from the answer");
  const look = make("button", { class: "quiet", type: "button", onclick: preview }, "Preview");
  const send = make("button", {}, start ? "Send the new correction" : "Send");
  const close = cancelled && make("button", { class: "quiet", type: "button", onclick: cancel }, "Cancel");
  const outcome = make("div", { class: "outcome" });
  const shown = make("div", { class: "preview" });
  text.value = begin.text ?? "";
  contains.value = begin.check?.contains ?? "";

  const form = make(
    "form",
    { class: "correct", onsubmit: submit, oninput: typed },
    make("fieldset", { class: "pick" }, make("legend", { class: "unseen" }, "What you will write"), ...kinds),
    answers.length > 1 ? make("fieldset", { class: "pick" }, make("legend", {}, "About"), ...choices) : null,
    make("div", { class: "labelled" }, label, copy),
    text,
    make("label", { for: "contains" }, "A right answer contains", make("span", { class: "muted" }, " (optional)")),
    contains,
    make("p", { id: "contains-why", class: "muted hint" }, "A name or a number, say. It tests whether the model has learned this."),
    start ? make("p", { class: "muted hint" }, "You have corrected this question before. This takes the earlier correction's place.") : null,
    make("div", { class: "actions" }, send, look, close),
    outcome,
    shown,
  );
  relabel();
  return form;

  function body() {
    const written = { completion_id: completion, kind: form.elements.kind.value, text: text.value.trim() };
    if (answers.length > 1) written.choice = Number(form.elements.choice.value);
    if (contains.value.trim()) written.check = { contains: contains.value.trim() };
    return written;
  }

  function relabel() {
    const kind = form.elements.kind.value;
    [label.textContent, text.placeholder] = KINDS[kind].slice(1);
    copy.hidden = kind !== "correction" || text.value !== "";
  }

  function typed() {
    relabel();
    draft.keep(body());
    if (shown.firstChild) shown.classList.add("stale");
  }

  function startFromAnswer() {
    text.value = answers[body().choice ?? 0];
    typed();
    text.focus();
  }

  function cancel() {
    draft.forget();
    cancelled();
  }

  /** Run one call with the buttons out of reach; what goes wrong is shown and nothing typed is lost. */
  async function attempt(doing, work) {
    if (!form.reportValidity()) return;
    for (const button of [send, look]) button.disabled = true;
    outcome.replaceChildren(make("p", { class: "muted" }, doing));
    announce(doing);
    try {
      await work();
      outcome.replaceChildren();
    } catch (error) {
      outcome.replaceChildren(problem(error));
    } finally {
      for (const button of [send, look]) button.disabled = false;
    }
  }

  function preview() {
    return attempt("The model answers with your correction at hand…", async () => {
      const asked = body();
      const found = await call("POST", "/v1/feedback/preview", asked);
      const heading = make("h3", { tabindex: -1 }, "Preview");
      const why = "This is what the model says with your correction at hand, and what it will be trained to say without. If it is not right, use other words.";
      shown.replaceChildren(
        heading,
        make("p", { class: "muted hint" }, why),
        make("p", { class: "muted hint old" }, "You have changed the correction since."),
        sideBySide("It said", answers[asked.choice ?? 0] ?? "", "With your correction", found.text),
        checked(asked, found.check_passed),
      );
      shown.classList.remove("stale");
      heading.focus();
      announce("The preview is there.");
    });
  }

  function submit(event) {
    event.preventDefault();
    const given = body();
    return attempt("Sending…", async () => {
      const { id } = await call("POST", "/v1/feedback", given, { "idempotency-key": draft.key(given) });
      draft.forget();
      await sent(id);
    });
  }
}

function checked(asked, passed) {
  if (passed === null) return null;
  const quoted = `“${asked.check.contains}”`;
  return passed
    ? make("p", { class: "good" }, `✓ It contains ${quoted}.`)
    : make("p", { class: "bad" }, `✗ It does not contain ${quoted}.`);
}
