// The newest runs, by agent and state.

import { at, get } from "./api.js";
import { badge, el, link, table, time } from "./dom.js";

const STATES = [
  ...["pending", "running", "waiting", "paused", "blocked", "needs_review"],
  ...["completed", "failed", "cancelled", "dead"],
];

export function open(root, [agent = ""]) {
  const named = el("input", { value: agent, placeholder: "any agent", "aria-label": "Agent" });
  const state = el("select", { "aria-label": "State" }, el("option", { value: "" }, "any state"));
  state.append(...STATES.map((each) => el("option", {}, each)));
  const list = el("section");
  let pages = 1;
  const more = el("button", { type: "button", hidden: true }, "Older");
  more.addEventListener("click", () => (pages += 1));
  for (const each of [named, state]) each.addEventListener("change", () => (pages = 1));
  root.append(el("h1", {}, "Runs"), el("div", { class: "row" }, named, state), list, more);

  return async (signal) => {
    const runs = [];
    let cursor = "";
    for (let page = 0; page < pages; page += 1) {
      const asked = { agent: named.value.trim(), status: state.value, limit: 50, cursor };
      const found = await get(at(["runs"], asked), signal);
      runs.push(...found.runs);
      cursor = found.next_cursor;
      if (!cursor) break;
    }
    more.hidden = !cursor;
    const rows = runs.map((each) => [
      link(`#/run/${encodeURIComponent(each.run_id)}`, each.run_id),
      each.agent,
      badge(each.status),
      each.reason?.message ?? "",
      time(each.created_at),
      time(each.finished_at),
    ]);
    list.replaceChildren(table(["run", "agent", "state", "reason", "created", "ended"], rows, "No such run."));
  };
}
