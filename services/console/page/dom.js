// Elements from data. Text is only ever set as text: what agents, users and models say is shown, never run.

/** An element with attributes (a function is a listener, `true` a bare attribute) and children (text or nodes). */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export const link = (href, text) => el("a", { href }, text);

/** A run's state as a coloured word. */
export const badge = (status) => el("span", { class: `badge ${status}` }, status);

/** Any JSON value, readable; long ones fold. */
export function value(data) {
  if (data === undefined || data === null) return el("span", { class: "none" }, "none");
  const text = typeof data === "string" ? data : JSON.stringify(data, null, 2);
  const shown = el("pre", {}, text);
  if (text.length < 400 && text.split("\n").length < 12) return shown;
  return el("details", {}, el("summary", {}, `${text.slice(0, 80).replaceAll("\n", " ")}…`), shown);
}

/** A table; `rows` are lists of cells. */
export function table(headings, rows, empty) {
  if (rows.length === 0) return el("p", { class: "none" }, empty);
  const head = el("tr", {}, headings.map((each) => el("th", { scope: "col" }, each)));
  const body = rows.map((cells) => el("tr", {}, cells.map((cell) => el("td", {}, cell ?? ""))));
  return el("div", { class: "wide" }, el("table", {}, el("thead", {}, head), el("tbody", {}, body)));
}

/** A moment as the reader's clock has it, with the exact one on hover. */
export function time(iso) {
  if (!iso) return "";
  return el("time", { datetime: iso, title: iso }, new Date(iso).toLocaleString());
}

/** A button that cannot be pressed twice while its work is under way. */
export function button(text, work, kind = "") {
  const made = el("button", { type: "button", class: kind }, text);
  made.addEventListener("click", async () => {
    made.disabled = true;
    try {
      await work();
    } finally {
      made.disabled = false;
    }
  });
  return made;
}
