// An agent's configuration: what it gets, what is held and why, what was before; a change goes out under its revision.

import { at, get, patch, post } from "./api.js";
import { button, el, link, table, time, value } from "./dom.js";

export function open(root, [agent], { attempt }) {
  if (!agent) return choose(root);
  const now = el("section");
  const past = el("section");
  const key = el("input", { placeholder: "key", "aria-label": "Key" });
  const text = el("textarea", { rows: 2, placeholder: "value", "aria-label": "Value" });
  let revision = 0;
  const set = (name, given) =>
    attempt(() => patch(at(["config", agent]), { configurations: { [name]: given }, expected_revision: revision }));
  const save = button("Set", () => set(key.value.trim(), text.value));
  const change = el("div", { class: "row" }, key, text, save);
  root.append(el("h1", {}, `Configuration of ${agent === "*" ? "all agents" : agent}`), now, change);
  root.append(el("h2", {}, "History"), past);

  return async (signal) => {
    const [found, before] = await Promise.all([
      get(at(["config", agent]), signal),
      get(at(["config", agent, "history"], { limit: 30 }), signal),
    ]);
    const held = found.held ?? {};
    const drawn = JSON.stringify([found, before.history.length]);
    if (now.dataset.drawn === drawn) return;
    now.dataset.drawn = drawn;
    revision = found.revision;
    const names = [...new Set([...Object.keys(found.configurations), ...Object.keys(held)])].sort();
    const rows = names.map((name) => [
      button(name, async () => {
        key.value = name;
        text.value = found.configurations[name] ?? "";
        text.focus();
      }, "plain"),
      value(found.configurations[name]),
      held[name] ? el("span", { class: "warn" }, `held since revision ${held[name].revision}: ${held[name].why}`) : "",
      button("Unset", () => set(name, null), "danger"),
    ]);
    now.replaceChildren(
      el("p", {}, `Revision ${found.revision}${found.stale ? ", from a copy: Postgres is away" : ""}`),
      table(["key", "value", "", ""], rows, "Nothing is set."),
    );
    const changes = before.history.map((each) => [
      String(each.revision),
      each.config_key,
      value(each.old_value),
      value(each.new_value),
      each.changed_by ?? each.sql_user,
      time(each.changed_at),
      button("Roll back to here", () => attempt(() => post(at(["config", agent, "rollback"]), { revision: each.revision }))),
    ]);
    const headings = ["revision", "key", "before", "after", "by", "at", ""];
    past.replaceChildren(table(headings, changes, "No change yet."));
  };
}

function choose(root) {
  const list = el("section");
  root.append(el("h1", {}, "Configuration"), list);
  return async (signal) => {
    const { agents } = await get("/agents", signal);
    const rows = ["*", ...agents.map((each) => each.name)].map((name) => [
      link(`#/config/${encodeURIComponent(name)}`, name === "*" ? "* (all agents)" : name),
    ]);
    list.replaceChildren(table(["agent"], rows, ""));
  };
}
