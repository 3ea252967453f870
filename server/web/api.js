// What both pages share: the key, the calls, and making elements. Nothing here ever parses text as HTML.

const KEY = "apprentice-key";
let token = null;

/** An error reply of the server: `code` is stable, `hint` is the next step. */
export class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.hint = error.hint;
  }
}

/** From here on call with a token for one exchange, whatever the reader's key is. */
export function actAs(given) {
  token = given;
}

/** Call the API as the reader. Returns the JSON; throws Refused, or TypeError when nothing answers. */
export async function call(method, path, body, more = {}) {
  const headers = { ...more };
  const key = token ?? sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const reply = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const found = await reply.json();
  if (!reply.ok) throw new Refused(reply.status, found.error);
  return found;
}

/** An element: `make("p", { class: "why" }, "text", child)`. Strings become text, never markup. */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/**
 * Run `start` once the server takes the reader's key. Without keys configured, that is at once; otherwise
 * a dialog asks for one, which is kept for this tab alone.
 */
export async function signedIn(start) {
  const problem = make("p", { role: "alert", class: "bad" });
  const dialog = make(
    "dialog",
    { "aria-labelledby": "sign-in-title" },
    make(
      "form",
      {},
      make("h2", { id: "sign-in-title" }, "Your key"),
      make("p", {}, "This server has keys. Yours stays in this tab."),
      make("label", {}, "Key ", make("input", { type: "password", autocomplete: "off", required: true })),
      " ",
      make("button", {}, "Sign in"),
      problem,
    ),
  );
  document.body.append(dialog);
  for (;;) {
    try {
      await call("GET", "/v1/models");
      break;
    } catch (error) {
      if (error.status !== 401 && error.status !== 403) throw error;
      problem.textContent = sessionStorage.getItem(KEY) ? `${error.message}. ${error.hint ?? ""}` : "";
    }
    dialog.showModal();
    const key = await new Promise((resolve) => {
      dialog.querySelector("form").onsubmit = (event) => {
        event.preventDefault();
        resolve(dialog.querySelector("input").value.trim());
      };
    });
    sessionStorage.setItem(KEY, key);
    dialog.close();
  }
  return start();
}

/** Forget the key and ask again. */
export function signOut() {
  sessionStorage.removeItem(KEY);
  location.reload();
}
