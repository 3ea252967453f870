// Two answers side by side, with the words that differ marked.

import { make } from "/web/api.js";

const MOST = 1500; // words; above, marking would take longer than reading

/** The old and the new answer as a pair of figures. */
export function sideBySide(oldTitle, old, newTitle, fresh) {
  const [gone, come] = marked(old, fresh);
  return make(
    "div",
    { class: "pair" },
    make("section", {}, make("h4", {}, oldTitle), make("p", { class: "said" }, ...gone)),
    make("section", {}, make("h4", {}, newTitle), make("p", { class: "said" }, ...come)),
  );
}

/** Both texts as nodes: what only the old one has in <del>, what only the new one has in <ins>. */
export function marked(old, fresh) {
  const [a, b] = [old, fresh].map((text) => text.split(/(\s+)/).filter(Boolean));
  if (Math.max(a.length, b.length) > 2 * MOST) return [[old], [fresh]];
  const [inA, inB] = common(a, b);
  return [runs(a, inA, "del"), runs(b, inB, "ins")];
}

/** Which tokens of each text belong to their longest common subsequence. */
function common(a, b) {
  const width = b.length + 1;
  const longest = new Uint16Array((a.length + 1) * width); // of a[i:] and b[j:]
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const at = i * width + j;
      longest[at] = a[i] === b[j] ? longest[at + width + 1] + 1 : Math.max(longest[at + width], longest[at + 1]);
    }
  }
  const [inA, inB] = [new Set(), new Set()];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    const at = i * width + j;
    if (a[i] === b[j]) [inA.add(i++), inB.add(j++)];
    else if (longest[at + width] >= longest[at + 1]) i++;
    else j++;
  }
  return [inA, inB];
}

/** Tokens as nodes, neighbours that differ in one element. White space between two of them belongs to them. */
function runs(tokens, same, tag) {
  const differs = (i) => i >= 0 && i < tokens.length && !same.has(i);
  const nodes = [];
  let run = "", marking = false;
  const flush = () => run && nodes.push(marking ? make(tag, {}, run) : run);
  tokens.forEach((token, i) => {
    const mark = /\S/.test(token) ? differs(i) : differs(i - 1) && differs(i + 1);
    if (mark !== marking) [flush(), (run = ""), (marking = mark)];
    run += token;
  });
  flush();
  return nodes;
}
