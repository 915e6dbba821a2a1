// One run: what it was given and gave, its steps, its events as they happen, and what may be done to it.

import { at, events, get, post } from "./api.js";
import { badge, button, el, link, table, time, value } from "./dom.js";

const ENDED = ["completed", "failed", "cancelled", "dead"];
const MOST_EVENTS = 500;

export function open(root, [id], { signal, attempt }) {
  const head = el("section");
  const steps = el("section");
  const log = el("ol", { class: "events" });
  const name = el("input", { placeholder: "signal", "aria-label": "Signal's name" });
  const payload = el("input", { placeholder: "payload (JSON)", "aria-label": "Signal's payload" });
  const act = (...path) => attempt(() => post(at(["runs", id, ...path]), path[0] === "cancel" ? {} : undefined));
  const send = button("Send a signal", () =>
    attempt(() => post(at(["runs", id, "signal", name.value]), payload.value ? JSON.parse(payload.value) : null)),
  );
  const actions = el(
    "div",
    { class: "row" },
    button("Cancel", () => act("cancel"), "danger"),
    button("Resume", () => act("resume")),
    name,
    payload,
    send,
  );
  root.append(el("h1", {}, `Run ${id}`), head, actions, el("h2", {}, "Steps"), steps, el("h2", {}, "Events"), log);
  attempt(() => follow(id, log, signal));

  return async (now) => {
    const run = await get(at(["runs", id]), now);
    for (const each of actions.querySelectorAll("button, input")) each.disabled = ENDED.includes(run.status);
    actions.children[1].disabled = !["blocked", "needs_review", "dead", "paused", "failed"].includes(run.status);
    head.replaceChildren(
      facts({
        state: badge(run.status),
        agent: run.agent,
        reason: run.reason?.message,
        session: run.session_id,
        parent: run.parent_run_id && link(`#/run/${encodeURIComponent(run.parent_run_id)}`, run.parent_run_id),
        process: run.process_id,
        attempts: run.attempts,
        created: time(run.created_at),
        ended: time(run.finished_at),
        task: value(run.task),
        output: run.output === undefined ? null : value(run.output),
        error: run.error ? value(run.error) : null,
      }),
    );
    const rows = (run.steps ?? []).map((step) => [
      String(step.seq),
      step.name,
      step.kind,
      badge(step.status),
      String(step.attempt),
      time(step.finished_at),
      value(step.error ?? step.result),
      ENDED.includes(run.status) ? button("Fork here", () => attempt(() => fork(id, step.path))) : "",
    ]);
    // An open fold would close under the reader's eyes: what has not changed is not drawn again.
    const drawn = JSON.stringify([run.status, rows.length]);
    if (steps.dataset.drawn === drawn) return;
    steps.dataset.drawn = drawn;
    const headings = ["seq", "step", "kind", "state", "attempt", "ended", "outcome", ""];
    steps.replaceChildren(table(headings, rows, "No step has an outcome yet."));
  };
}

async function fork(id, step) {
  const made = await post(at(["runs", id, "fork"]), { step });
  location.hash = `#/run/${encodeURIComponent(made.run_id)}`;
}

function facts(said) {
  const known = Object.entries(said).filter(([, each]) => each !== null && each !== undefined && each !== "");
  return el("dl", {}, known.flatMap(([name, each]) => [el("dt", {}, name), el("dd", {}, each)]));
}

async function follow(id, log, signal) {
  for await (const { data } of events(at(["runs", id, "events"]), signal)) {
    const text = data.type === "llm.delta" ? (data.data?.text ?? "") : brief(data.data);
    log.append(el("li", {}, el("b", {}, data.type), " ", el("span", {}, text)));
    if (log.children.length > MOST_EVENTS) log.firstChild.remove();
  }
}

function brief(data) {
  const text = JSON.stringify(data ?? {});
  return text === "{}" ? "" : text.slice(0, 300);
}
