// What was learned: rounds with every number of the gate, what they kept and how far they drifted, and policies.

import { make } from "/web/api.js";
import { Chart } from "/web/dashboard-charts.js";
import { NONE, duration, number, percent, plural, render, table, time, whole } from "/web/dashboard-format.js";

const at = (selector) => document.querySelector(selector);
const VERDICTS = { passed: ["good", "✓ passed"], refused: ["bad", "✕ refused"], failed: ["bad", "! failed"] };
const opened = new Set();

const sum = (list, value) => list.reduce((total, one) => total + Number(value(one)), 0);
const share = (part, of) => (of ? part / of : null);

/** A round's evaluation as shares; null where nothing was measured. */
function shares({ lessons = [], kept = [] }) {
  const known = kept.filter((one) => one.parent);
  return {
    asked: [sum(lessons, (one) => one.asked), lessons.length],
    heldOut: [sum(lessons, (one) => one.held_out), sum(lessons, (one) => one.held_out_of)],
    kept: [sum(known, (one) => one.candidate), known.length],
    leaked: [sum(lessons, (one) => one.leaked ?? 0), sum(lessons, (one) => one.leaked_of ?? 0)],
  };
}

const numbered = { label: "Round", format: String, tick: (round) => (Number.isInteger(round) ? String(round) : null) };
const recall = new Chart(
  at("#chart-recall"),
  "Answered by the candidate",
  numbered,
  [
    { label: "its lessons", format: percent, joined: true },
    { label: "in other words", format: percent, joined: true },
    { label: "earlier lessons kept", format: percent, joined: true },
    { label: "the same about others (leaked)", format: percent, joined: true },
  ],
  [0, 1.05],
);
const drift = new Chart(at("#chart-drift"), "Divergence on general prompts, nats per token", numbered, [
  { label: "from base (drift)", format: number, joined: true },
  { label: "from its parent", format: number, joined: true },
]);

export function overTime(rounds) {
  const measured = rounds.filter((one) => Object.keys(one.evaluation).length).reverse();
  const column = (value) => measured.map((one) => value(one.evaluation) ?? null);
  const xs = measured.map((one) => one.round);
  recall.show([xs, ...["asked", "heldOut", "kept", "leaked"].map((name) => column((one) => share(...shares(one)[name])))]);
  drift.show([xs, column((one) => one.drift), column((one) => one.kl_to_parent)]);
  at("#not-measured").hidden = xs.length > 0;
}

// --- rounds --------------------------------------------------------------------------------------------

const HEAD = ["Round", "Verdict", "Its lessons", "In other words", "Leaked", "Earlier kept", "From parent", "Drift", "Degenerate", "Policy", "Ended"];

export function rounds(found) {
  render(at("#rounds-table"), found, () => {
    if (!found.length) return make("p", { class: "muted" }, "No round yet: the learner starts one when enough feedback is accepted.");
    const made = table("Rounds, newest first", HEAD, []);
    made.tBodies[0].append(...found.flatMap(roundRows));
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of rounds" }, made);
  });
}

function roundRows(one) {
  const { evaluation, gate } = one;
  const of = shares(evaluation);
  const judged = Object.keys(evaluation).length > 0;
  const cell = (shown, limit) => {
    const measured = judged && shown !== NONE;
    return make("td", {}, measured ? shown : NONE, measured && limit != null ? make("span", { class: "limit" }, ` / ${limit}`) : "");
  };
  const counted = ([part, total]) => (total ? `${part} of ${total}` : NONE);
  const [tone, word] = VERDICTS[one.verdict] ?? ["", "… running"];
  const id = `round-${one.round}`;
  const detail = make("tr", { class: "detail", id, hidden: !opened.has(one.round) }, make("td", { colspan: HEAD.length }));
  const fill = () => detail.hidden || detail.firstChild.hasChildNodes() || detail.firstChild.append(...roundDetail(one));
  const toggle = make(
    "button",
    {
      type: "button", class: "toggle", "data-key": id, "aria-expanded": String(!detail.hidden), "aria-controls": id,
      "aria-label": `Details of round ${one.round}`,
      onclick: () => {
        detail.hidden = !detail.hidden;
        opened[detail.hidden ? "delete" : "add"](one.round);
        toggle.setAttribute("aria-expanded", String(!detail.hidden));
        fill();
      },
    },
    String(one.round),
  );
  fill();
  const row = make(
    "tr",
    {},
    make("th", { scope: "row" }, toggle),
    make("td", { class: tone }, word),
    cell(counted(of.asked), gate.min_asked && percent(gate.min_asked)),
    cell(counted(of.heldOut), gate.min_held_out && percent(gate.min_held_out)),
    cell(counted(of.leaked)),
    cell(counted(of.kept), gate.min_kept && percent(gate.min_kept)),
    cell(number(evaluation.kl_to_parent), gate.max_kl_to_parent),
    cell(number(evaluation.drift)),
    cell(percent(evaluation.degenerate), gate.max_degenerate != null ? percent(gate.max_degenerate + (evaluation.parent_degenerate ?? 0)) : null),
    make("td", {}, one.policy != null ? String(one.policy) : NONE),
    make("td", {}, one.ended ? time(one.ended) : NONE),
  );
  return [row, detail];
}

const yes = (right) => make("span", { class: right ? "good" : "bad" }, right ? "✓ yes" : "✕ no");
const said = (words) => make("div", { class: "said" }, words || NONE); // empty where it is not for this reader
const SHOWN = ["lessons", "kept", "drift", "kl_to_parent", "degenerate"];
const TITLES = {
  parent_drift: "parent's drift", parent_degenerate: "parent's degenerate answers", loss_first: "loss at the first step",
  loss_last: "loss at the last step", seconds: "seconds", rows: "rows", left_out: "rows left out",
};

function roundDetail({ round, parent, lessons, replay, started, ended, reasons, evaluation }) {
  const parts = [
    make("p", {}, `On policy ${parent}: ${plural(lessons, "lesson")}, ${whole(replay)} rehearsed; ${ended ? `took ${duration(ended - started)}` : "still running"}.`),
  ];
  if (reasons.length) parts.push(make("h3", {}, "Why it was not served"), make("ul", {}, ...reasons.map((one) => make("li", { class: "said" }, one))));
  if (evaluation.lessons?.length) {
    const rows = evaluation.lessons.map((one) => [
      make("code", {}, one.feedback_id), yes(one.asked), `${one.held_out} of ${one.held_out_of}`, `${one.leaked ?? 0} of ${one.leaked_of ?? 0}`, said(one.before), said(one.answer),
    ]);
    parts.push(make("h3", {}, "Lessons"), table(`Lessons of round ${round}`, ["Feedback", "Answered", "In other words", "Leaked", "Before", "After"], rows));
  }
  if (evaluation.kept?.length) {
    const rows = evaluation.kept.map((one) => [make("code", {}, one.feedback_id), yes(one.parent), yes(one.candidate)]);
    parts.push(make("h3", {}, "Earlier lessons"), table(`Earlier lessons in round ${round}`, ["Feedback", "By its parent", "By the candidate"], rows));
  }
  const others = Object.entries(evaluation).filter(([name]) => !SHOWN.includes(name));
  if (others.length) {
    const facts = others.flatMap(([name, value]) => [make("dt", {}, TITLES[name] ?? name), make("dd", {}, plain(value))]);
    parts.push(make("h3", {}, "All else that was measured"), make("dl", { class: "facts" }, ...facts));
  }
  return parts;
}

function plain(value) {
  if (value !== null && typeof value === "object") {
    return Object.entries(value).map(([name, one]) => `${name} ${plain(one)}`).join(", ") || NONE;
  }
  return typeof value === "number" && !Number.isInteger(value) ? number(value) : String(value);
}

// --- policies ------------------------------------------------------------------------------------------

/** Newest first. `promote(policy)` is what their buttons do, where the caller may. */
export function policies(found, mayAct, promote) {
  render(at("#policy-list"), [found, mayAct], () => {
    const moves = found.flatMap((one) => one.moves).sort((a, b) => a.epoch - b.epoch);
    at("#rollback").disabled = moves.length === 0;
    return [...found].reverse().map((one) => {
      const waits = one.waits_for ? badge("warn", "not here yet") : one.rejected ? badge("bad", "rejected") : null;
      return make(
        "li",
        { class: one.live ? "live" : null },
        make(
          "div",
          { class: "what" },
          make("strong", {}, one.id),
          one.live ? badge("good", "live") : null,
          one.resident ? badge("muted", "loaded") : null,
          waits,
          make("p", {}, one.version === 0 ? "The base model." : `Grown from policy ${one.parent} by round ${one.round}: ${plural(one.lessons, "lesson")}, ${whole(one.replay)} rehearsed.`),
          ...one.moves.map((move) => lived(move, moves)),
          one.waits_for || one.rejected ? make("p", { class: "said muted" }, one.waits_for ?? one.rejected) : null,
        ),
        mayAct && !one.live
          ? make("button", { type: "button", class: "quiet", "data-key": `promote-${one.version}`, "aria-label": `Promote ${one.id} …`, onclick: () => promote(one) }, "Promote …")
          : null,
      );
    });
  });
}

const badge = (tone, word) => make("span", { class: `badge ${tone}` }, word);

/** From when to when a move made it live, and whose it was. */
function lived(move, moves) {
  const next = moves[moves.indexOf(move) + 1];
  const whose = ` (${move.why} by ${move.by})`;
  return make("p", { class: "muted" }, next ? "Live " : "Live since ", time(move.at), next ? " to " : "", next ? time(next.at) : "", whose);
}
