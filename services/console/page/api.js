// The gateway's HTTP API, through this page's own origin.

const KEY = "perdure.key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

/** What the API refused: its code, and what it says to do. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `the gateway answered ${status}`);
    this.status = status;
    this.code = problem.code ?? "internal";
  }
}

function headers(more = {}) {
  const bearer = key.get();
  return bearer ? { ...more, Authorization: `Bearer ${bearer}` } : more;
}

async function refusal(answer) {
  const problem = await answer.json().catch(() => ({}));
  return new Refused(answer.status, problem);
}

async function call(method, path, body, signal) {
  const said = body === undefined ? {} : { body: JSON.stringify(body) };
  const kind = body === undefined ? {} : { "Content-Type": "application/json" };
  const answer = await fetch(`/api${path}`, { method, headers: headers(kind), signal, ...said });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

export const get = (path, signal) => call("GET", path, undefined, signal);
export const post = (path, body) => call("POST", path, body);
export const patch = (path, body) => call("PATCH", path, body);

/** Path segments and a query, encoded. */
export function at(segments, query = {}) {
  const path = segments.map((each) => `/${encodeURIComponent(each)}`).join("");
  const said = new URLSearchParams(Object.entries(query).filter(([, given]) => given));
  return said.size ? `${path}?${said}` : path;
}

/** Events of a stream, as they come: `fetch` and not `EventSource`, which cannot send a key. Resumes where it was cut. */
export async function* events(path, signal) {
  let last = null;
  while (!signal.aborted) {
    try {
      const more = last === null ? {} : { "Last-Event-ID": last };
      const answer = await fetch(`/api${path}`, { headers: headers({ Accept: "text/event-stream", ...more }), signal });
      if (!answer.ok) throw await refusal(answer);
      for await (const event of parse(answer.body)) {
        if (event.id !== null) last = event.id;
        yield event;
      }
      return;
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status < 500) throw error;
      await new Promise((wake) => setTimeout(wake, 1000));
    }
  }
}

async function* parse(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = { id: null, type: "message", data: null };
      for (const line of block.split("\n")) {
        if (line.startsWith("id: ")) event.id = line.slice(4);
        else if (line.startsWith("event: ")) event.type = line.slice(7);
        else if (line.startsWith("data: ")) event.data = JSON.parse(line.slice(6));
      }
      if (event.data !== null) yield event;
    }
  }
}
