// The operators' page: asks the server every few seconds while somebody looks, and acts on their word.

import { call, make, signOut, signedIn } from "/web/api.js";
import { moment, say } from "/web/dashboard-format.js";
import * as panels from "/web/dashboard-panels.js";
import * as made from "/web/dashboard-rounds.js";

const EVERY_MS = 5000;
const at = (selector) => document.querySelector(selector);
let timer = null;
let asking = false;
let answered = null;

async function ask() {
  const [overview, learning, policies] = await Promise.all(
    ["/v1/overview", "/v1/learning", "/v1/policies"].map((path) => call("GET", path)),
  );
  answered = overview.at;
  const mayAct = overview.caller.admin;
  panels.health(overview, (action) => (action === "resume" ? resume() : startRound(["held"])));
  panels.traffic(overview.traffic);
  panels.feedback(overview.feedback);
  panels.log(overview.log);
  panels.learner(learning);
  made.overTime(learning.rounds);
  made.rounds(learning.rounds);
  made.policies(policies.data, mayAct, promote);
  for (const one of document.querySelectorAll(".admin")) one.hidden = !mayAct;
  say(at("#updated"), `As of ${new Date(1000 * overview.at).toLocaleTimeString()}, for ${overview.caller.name}${mayAct ? "" : ", who may look but not act"}.`);
}

async function refresh() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    await ask();
    say(at("#connection"), "");
  } catch (error) {
    const since = answered ? ` What is shown is of ${moment(answered)}.` : "";
    say(at("#connection"), error.status ? `${error.message}. ${error.hint ?? ""}` : `The server does not answer; trying again.${since}`);
    if (!error.status && !(error instanceof TypeError)) throw error;
  } finally {
    asking = false;
    if (!document.hidden) timer = setTimeout(refresh, EVERY_MS);
  }
}

// --- acting --------------------------------------------------------------------------------------------

/** Do it and say so; what the server refuses is said with its hint. */
async function act(path, body, done) {
  const found = await call("POST", path, body);
  say(at("#done"), done(found));
  await refresh();
}

/** Ask first. `go` does it; while the server refuses, the question stays. */
function confirm(title, parts, word, go) {
  const dialog = at("#confirm");
  const problem = at("#confirm-problem");
  const button = at("#confirm-go");
  at("#confirm-title").textContent = title;
  at("#confirm-text").replaceChildren(...parts);
  button.textContent = word;
  problem.textContent = "";
  dialog.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await go();
      dialog.close();
    } catch (error) {
      problem.textContent = `${error.message}. ${error.hint ?? ""}`;
    } finally {
      button.disabled = false;
    }
  };
  dialog.showModal();
}

const paragraph = (words) => make("p", {}, words);

async function plainly(work) {
  try {
    await work();
  } catch (error) {
    say(at("#connection"), `${error.message}. ${error.hint ?? ""}`);
  }
}

const pause = () => plainly(() => act("/v1/learning/pause", { why: "dashboard" }, () => "Learning is paused: a round that runs waits, no other starts."));
const resume = () => plainly(() => act("/v1/learning/resume", {}, () => "Learning goes on."));

function startRound(include = []) {
  const boxes = ["held", "refused"].map((status) => make("input", { type: "checkbox", value: status, checked: include.includes(status) }));
  const about = { held: " also what a withdrawn policy had learned (held)", refused: " also what rounds before could not learn (refused)" };
  confirm(
    "Start a round?",
    [paragraph("The learner trains on what is accepted, as soon as it is free."), ...boxes.map((box) => make("label", {}, box, about[box.value]))],
    "Start a round",
    () => act("/v1/learning/rounds", { include: boxes.filter((box) => box.checked).map((box) => box.value) }, () => "A round is asked for."),
  );
}

function promote(policy) {
  confirm(
    `Promote ${policy.id}?`,
    [paragraph("From then on it answers everybody who asks for the alias, on all servers. Lessons that only other policies learned are held.")],
    "Promote",
    () => act(`/v1/policies/${policy.version}/promote`, undefined, () => `${policy.id} is live.`),
  );
}

function rollback() {
  confirm(
    "Roll back?",
    [paragraph("The policy that was live before answers again, on all servers. Nothing is deleted; lessons that only the present one learned are held.")],
    "Roll back",
    () => act("/v1/policies/rollback", undefined, (found) => `Rolled back to policy ${found.version}; ${found.was} was live before.`),
  );
}

at("#sign-out").addEventListener("click", signOut);
at("#pause").addEventListener("click", pause);
at("#resume").addEventListener("click", resume);
at("#start-round").addEventListener("click", () => startRound());
at("#rollback").addEventListener("click", rollback);
at("#confirm-cancel").addEventListener("click", () => at("#confirm").close());

await signedIn(() => {
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
  return refresh();
});
