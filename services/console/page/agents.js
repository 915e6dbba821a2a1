// The agents that are there, what they stand on, and what of their configuration is held back.

import { at, get, post } from "./api.js";
import { button, el, link, table, time } from "./dom.js";

export function open(root, _rest, { attempt }) {
  const list = el("section");
  const task = el("textarea", { rows: 3, "aria-label": "Task", placeholder: "A task: text, or JSON" });
  const agent = el("select", { "aria-label": "Agent" });
  const start = button("Start a run", () =>
    attempt(async () => {
      const started = await post(at(["agents", agent.value, "run"]), { task: read(task.value) });
      location.hash = `#/run/${encodeURIComponent(started.run_id)}`;
    }),
  );
  root.append(el("h1", {}, "Agents"), list, el("h2", {}, "Start a run"), el("div", { class: "row" }, agent, task, start));

  return async (signal) => {
    const { agents } = await get("/agents", signal);
    const found = await Promise.all(agents.map((each) => get(at(["config", each.name]), signal)));
    const rows = agents.map((each, at_) => {
      const held = Object.entries(found[at_].held ?? {});
      return [
        link(`#/config/${encodeURIComponent(each.name)}`, each.name),
        String(each.replicas),
        time(each.since),
        String(found[at_].revision),
        held.length ? el("span", { class: "warn" }, held.map(([key, why]) => `${key}: ${why.why}`).join("; ")) : "",
        link(`#/runs/${encodeURIComponent(each.name)}`, "runs"),
      ];
    });
    const headings = ["agent", "replicas", "since", "revision", "held back", ""];
    list.replaceChildren(table(headings, rows, "No agent is running. Start one: perdure agent FILE"));
    const names = agents.map((each) => each.name);
    if (names.join() !== [...agent.options].map((each) => each.value).join()) {
      agent.replaceChildren(...names.map((each) => el("option", {}, each)));
    }
  };
}

/** JSON where it is an object or a list, else the text itself. */
function read(text) {
  if (!/^\s*[[{]/.test(text)) return text;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`the task looks like JSON and is none: ${error.message}`);
  }
}
