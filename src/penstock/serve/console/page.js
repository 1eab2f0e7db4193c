// Building blocks of the page. Text becomes text nodes only, so nothing in it can become markup.

const SVG = "http://www.w3.org/2000/svg";

const fill = (made, props, children) => {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") made[name] = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat(9).filter((one) => one !== null && one !== undefined && one !== false));
  return made;
};

/** An element with attributes, listeners ("onclick") and children; null and false are left out. */
export const el = (tag, props = {}, ...children) => fill(document.createElement(tag), props, children);

/** The same in SVG. */
export const svg = (tag, props = {}, ...children) => fill(document.createElementNS(SVG, tag), props, children);

export const button = (text, onclick, props = {}) => el("button", { type: "button", onclick, ...props }, text);

let labels = 0;
/** A control with its label. `hint` says more below it. */
export const field = (text, control, hint = "") => {
  const id = control.id || `field-${++labels}`;
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return el("div", { class: "field" }, el("label", { for: id }, text), control,
    hint && el("p", { class: "hint", id: `${id}-hint` }, hint));
};

export const check = (text, onchange, props = {}) => {
  const box = el("input", { type: "checkbox", onchange: () => onchange(box.checked), ...props });
  return el("label", { class: "check" }, box, el("span", {}, text));
};

/** What a place shows that has nothing yet: what it is for, and how to fill it. */
export const empty = (title, text, ...more) =>
  el("div", { class: "empty" }, el("p", { class: "empty-title" }, title), el("p", {}, text), more);

export const badge = (text, kind = "") => el("span", { class: `badge ${kind}` }, text);

export const KIND = {
  ready: "good", completed: "good", loading: "busy", in_progress: "busy", finalizing: "busy", validating: "busy",
  draining: "busy", cancelling: "busy", asleep: "idle", paused: "warn", cold: "idle", failed: "bad", expired: "bad",
  cancelled: "idle",
};

/** Tell something that passes, at the foot of the page and to screen readers. */
export const note = (text, kind = "") => {
  const one = el("p", { class: `note ${kind}` }, text);
  document.querySelector("#notes").append(one);
  setTimeout(() => one.remove(), kind === "bad" ? 9000 : 4000);
};

/** Run what a button asks for: it is off meanwhile, and a failure is told. */
export const doing = async (control, work) => {
  control.disabled = true;
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") note(error.message, "bad");
    return undefined;
  } finally {
    control.disabled = false;
  }
};

/** A modal dialog; resolves to what `done` is called with, or null when it is left. */
export const ask = (title, make) => new Promise((resolve) => {
  const back = document.activeElement;
  let answer = null;
  const box = el("dialog", { "aria-labelledby": "dialog-title" });
  const done = (value) => { answer = value; box.close(); };
  box.append(el("h2", { id: "dialog-title" }, title), ...[make(done)].flat());
  box.addEventListener("close", () => { box.remove(); back?.focus(); resolve(answer); });
  document.body.append(box);
  box.showModal();
});

export const confirmed = (title, text, yes) => ask(title, (done) => [
  el("p", {}, text),
  el("div", { class: "row end" }, button("Cancel", () => done(false), { autofocus: true }),
    button(yes, () => done(true), { class: "danger" })),
]);

/** JSON with its lines; any other text as it is. */
export const pretty = (json) => {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
};

/** Let a box have these elements, in this order. Those that are there already stay, and with them the focus. */
export const arrange = (box, elements) => {
  for (const old of [...box.children]) if (!elements.includes(old)) old.remove();
  elements.forEach((one, at) => { if (box.children[at] !== one) box.insertBefore(one, box.children[at] ?? null); });
};

export const copy = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    note("Copied");
  } catch {
    note("This page may not copy here (it needs https or localhost)", "bad");
  }
};

// Numbers and times as people read them.
const plain = new Intl.NumberFormat("en");
export const count = (value) => (value === null || value === undefined ? "–" : plain.format(value));
export const seconds = (value) => {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 60 ? `${value.toFixed(value < 10 ? 2 : 1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
};
export const bytes = (value) => {
  let unit = 0;
  while (value >= 1024 && unit < 4) { value /= 1024; unit += 1; }
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
};
export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");
export const day = (unix) => (unix ? new Date(unix * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }) : "–");
