// Which view is shown, and what every view shares: the key, the trouble line, the timer that looks again.

import { key, Refused } from "./api.js";
import { el, link } from "./dom.js";
import * as agents from "./agents.js";
import * as approvals from "./approvals.js";
import * as chat from "./chat.js";
import * as config from "./config.js";
import * as run from "./run.js";
import * as runs from "./runs.js";

const VIEWS = { agents, runs, run, approvals, config, chat };
const IN_MENU = { agents: "Agents", runs: "Runs", approvals: "Approvals", config: "Configuration", chat: "Chat" };
const LOOK_AGAIN = 2000; // ms

const view = document.getElementById("view");
const trouble = document.getElementById("trouble");
const field = document.getElementById("key");
let leave = new AbortController();

// What an action met stays until the next action; what looking again met goes when looking works again.
const troubles = { action: null, look: null };

function tell(source, error) {
  troubles[source] = error;
  const shown = troubles.action ?? troubles.look;
  trouble.hidden = shown === null;
  if (shown === null) return;
  const needsKey = shown instanceof Refused && shown.status === 401;
  trouble.textContent = needsKey ? "This gateway wants a key: paste one above (perdure key create NAME)." : shown.message;
}

/** Do `work` and tell how it went, as long as its view is shown. */
async function attempt(source, work, signal) {
  let met = null;
  try {
    await work();
  } catch (error) {
    met = error;
  }
  if (!signal.aborted) tell(source, met);
}

/** A part of the address; one that somebody mistyped is taken as it stands. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function show() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const [name, ...rest] = location.hash.replace(/^#\//, "").split("/").map(decoded);
  const chosen = Object.hasOwn(VIEWS, name) ? name : "agents";
  const menu = Object.entries(IN_MENU).map(([each, title]) => {
    const made = link(`#/${each}`, title);
    if (each === chosen || (chosen === "run" && each === "runs")) made.setAttribute("aria-current", "page");
    return made;
  });
  document.getElementById("nav").replaceChildren(...menu);
  tell("action", null);
  tell("look", null);
  const root = el("div");
  view.replaceChildren(root);
  // A view gives what draws it anew; it is called at once, then again while the page is looked at.
  const look = VIEWS[chosen].open(root, rest, { signal, attempt: (work) => attempt("action", work, signal) });
  while (!signal.aborted) {
    if (!document.hidden) await attempt("look", () => look(signal), signal);
    await new Promise((wake) => setTimeout(wake, LOOK_AGAIN));
  }
}

field.value = key.get();
document.getElementById("key-form").addEventListener("submit", (event) => event.preventDefault());
field.addEventListener("change", () => {
  key.set(field.value.trim());
  show();
});
window.addEventListener("hashchange", show);
show();
