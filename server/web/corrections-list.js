// The two lists: answers, searched and filtered by the server, and one's corrections with their fate.

import { call, make } from "/web/api.js";
import { pill } from "/web/corrections-fate.js";
import { announce, policyName, problem, roughly } from "/web/corrections-parts.js";

const PAGE = 20;
const MARKED = 1000; // the newest corrections, which mark the answers in the list
const LESSONS = { correction: "", instruction: "How to change it: ", follow_up: "In the next turn: ", demonstration: "" };

const items = document.querySelector("#items");
const none = document.querySelector("#none");
const more = document.querySelector("#more");
const search = document.querySelector("#search");
const [words, corrected, policy] = ["#words", "#corrected", "#policy"].map((id) => search.querySelector(id));

let list = null;
let opened = null;
let last = null;
let turn = 0; // of what is asked for: a reply to anything earlier comes too late

search.addEventListener("submit", (event) => event.preventDefault());
search.addEventListener("input", later(() => fill(false)));
more.addEventListener("click", () => fill(true));
document.addEventListener("feedback", () => (list === "corrections" ? fill(false, true) : mark()));

/** Show a list, with the exchange (or the feedback) `open` as the one that is open. */
export function showLists(which, open) {
  opened = open;
  if (which !== list) {
    if (list === null) offerPolicies();
    list = which;
    for (const link of document.querySelectorAll(".tabs a")) {
      const here = link.hash === (which === "corrections" ? "#list=corrections" : "");
      here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    }
    search.hidden = which === "corrections";
    fill(false);
  }
  for (const link of items.querySelectorAll("a")) current(link);
}

/** The link to what was open, for the focus to return to. */
export function openedItem(id) {
  return items.querySelector(`a[data-id="${CSS.escape(id)}"]`);
}

function current(link) {
  link.dataset.id === opened ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
}

async function fill(further, quietly = false) {
  const mine = ++turn;
  const asked = new URLSearchParams({ mine: true, order: "desc", limit: PAGE });
  if (further) asked.set("after", last);
  const path = list === "answers" ? "/v1/chat/completions" : "/v1/feedback";
  if (list === "answers") {
    if (words.value.trim()) asked.set("search", words.value);
    if (corrected.value) asked.set("corrected", corrected.value);
    if (policy.value) asked.set("policy", policy.value);
  }
  items.setAttribute("aria-busy", "true");
  try {
    const { data, has_more } = await call("GET", `${path}?${asked}`);
    if (mine !== turn) return;
    const made = data.map(list === "answers" ? answer : correction);
    further ? items.append(...made) : items.replaceChildren(...made);
    last = data.at(-1)?.id ?? last;
    more.hidden = !has_more;
    none.hidden = items.children.length > 0;
    none.replaceChildren(nothing());
    if (further) made[0]?.querySelector("a").focus();
    if (!quietly) announce(items.children.length ? `${items.children.length} shown${has_more ? ", and there are more" : ""}.` : none.textContent);
    if (list === "answers") mark();
  } catch (error) {
    if (mine !== turn) return;
    none.hidden = false;
    none.replaceChildren(problem(error));
  } finally {
    if (mine === turn) items.removeAttribute("aria-busy");
  }
}

function nothing() {
  if (list === "corrections") return "You have corrected nothing yet.";
  const all = !words.value.trim() && !corrected.value && !policy.value;
  return all ? "Nothing has been asked with your key yet, or it was not stored." : "Nothing like that was found.";
}

function answer(completion) {
  const [first] = completion.choices;
  return item(`#completion=${completion.id}`, completion.id, [
    make("span", { class: "asked" }, brief(completion.asked) || "(no text)"),
    make("span", { class: "answered muted" }, brief(first?.message?.content ?? "")),
    make("span", { class: "meta muted" }, roughly(completion.created), ` · ${policyName(completion.policy)}`, make("span", { class: "mark" })),
  ]);
}

function correction(feedback) {
  const { id, completion_id, kind, text, value, created } = feedback;
  const said = kind === "rating" ? `Rated as a ${value > 0 ? "good" : "bad"} answer` : text === null ? "(erased)" : LESSONS[kind] + text;
  const [name, at] = completion_id ? ["completion", completion_id] : ["feedback", id];
  const mark = kind === "rating" && ["received", "skipped", "accepted"].includes(feedback.status) ? null : pill(feedback);
  return item(`#list=corrections&${name}=${at}`, at, [
    make("span", { class: "asked" }, brief(said)),
    make("span", { class: "meta muted" }, roughly(created), make("span", { class: "mark" }, ...(mark ? [mark] : []))),
  ]);
}

function item(href, id, parts) {
  const link = make("a", { class: "item", href, "data-id": id }, ...parts);
  current(link);
  return make("li", {}, link);
}

function brief(text) {
  return typeof text === "string" ? text.trim().slice(0, 300) : "";
}

/** Mark the answers in the list that were corrected with what has become of that. */
async function mark() {
  const mine = turn;
  const { data } = await call("GET", `/v1/feedback?mine=true&order=desc&limit=${MARKED}`).catch(() => ({ data: [] }));
  if (mine !== turn || list !== "answers") return;
  const latest = new Map();
  for (const one of data) {
    const counts = one.kind !== "rating" && !["withdrawn", "erased"].includes(one.status);
    if (counts && !latest.has(one.completion_id)) latest.set(one.completion_id, one);
  }
  for (const link of items.querySelectorAll("a")) {
    const one = latest.get(link.dataset.id);
    link.querySelector(".mark").replaceChildren(...(one ? [pill(one)] : []));
  }
}

async function offerPolicies() {
  const { data } = await call("GET", "/v1/policies").catch(() => ({ data: [] }));
  for (const { version, live } of data.toReversed()) {
    policy.append(make("option", { value: version }, `${policyName(version)}${live ? " (live)" : ""}`));
  }
  policy.hidden = data.length < 2;
}

/** Call `what` when a quarter of a second has passed without another call. */
function later(what) {
  let waiting;
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(what, 250);
  };
}
