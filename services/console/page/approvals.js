// Tool calls that wait for a person. A decision is bound to the hash of exactly the arguments that are shown.

import { at, get, post } from "./api.js";
import { button, el, link, value } from "./dom.js";

export function open(root, _rest, { attempt }) {
  const list = el("section");
  root.append(el("h1", {}, "Approvals"), list);

  return async (signal) => {
    const { approvals } = await get(at(["approvals"], { status: "pending", limit: 100 }), signal);
    const drawn = approvals.map((each) => `${each.run_id}/${each.call_id}`).join();
    if (list.dataset.drawn === drawn) return; // a reason that is being typed stays
    list.dataset.drawn = drawn;
    if (approvals.length === 0) list.replaceChildren(el("p", { class: "none" }, "Nothing waits for a person."));
    else list.replaceChildren(...approvals.map((each) => card(each, attempt, list)));
  };
}

function card(call, attempt, list) {
  const reason = el("input", { placeholder: "reason (optional)", "aria-label": "Reason" });
  const decide = (decision) => () =>
    attempt(async () => {
      const body = { arguments_hash: call.arguments_hash, decision, reason: reason.value || null };
      await post(at(["runs", call.run_id, "approvals", call.call_id]), body);
      list.dataset.drawn = "?";
    });
  return el(
    "article",
    {},
    el("h2", {}, call.tool),
    el("p", {}, call.agent, " · ", link(`#/run/${encodeURIComponent(call.run_id)}`, call.run_id)),
    value(call.arguments),
    el("div", { class: "row" }, reason, button("Approve", decide("approve")), button("Deny", decide("deny"), "danger")),
  );
}
