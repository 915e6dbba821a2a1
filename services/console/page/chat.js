// A conversation with an agent.

import { at, get, post } from "./api.js";
import { button, el } from "./dom.js";

export function open(root, [agent = "", session = ""], { attempt }) {
  const who = el("select", { "aria-label": "Agent" });
  const log = el("section", { class: "talk", "aria-live": "polite" });
  const text = el("textarea", { rows: 3, placeholder: "Say something", "aria-label": "Prompt" });
  let current = session;
  const say = (role, content) => log.append(el("p", { class: role }, el("b", {}, role), " ", content ?? ""));
  const send = button("Send", () =>
    attempt(async () => {
      const prompt = text.value.trim();
      if (!prompt) throw new Error("there is nothing to send: write something");
      say("user", prompt);
      text.value = "";
      const asked = { agent: who.value, prompt, ...(current ? { session_id: current } : {}) };
      const answer = await post("/chat", asked);
      current = answer.session_id;
      const reply = typeof answer.response === "string" ? answer.response : JSON.stringify(answer.response, null, 2);
      say("assistant", answer.response === null ? `(${answer.status}; run ${answer.run_id} goes on)` : reply);
    }),
  );
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    send.click();
  });
  root.append(el("h1", {}, "Chat"), el("div", { class: "row" }, who), log, el("div", { class: "row" }, text, send));
  if (session) attempt(() => past(session, agent, say));

  return async (signal) => {
    const { agents } = await get("/agents", signal);
    const names = agents.map((each) => each.name);
    if (names.join() === [...who.options].map((each) => each.value).join()) return;
    who.replaceChildren(...names.map((each) => el("option", { selected: each === agent }, each)));
  };
}

async function past(session, agent, say) {
  const { history } = await get(at(["history", session], { agent }));
  for (const each of history) say(each.role, each.content);
}
