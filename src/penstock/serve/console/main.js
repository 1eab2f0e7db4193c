// The frame of the page: its views, the key, the theme, and whether the server answers.

import { ask, button, el, field } from "./page.js";
import { batchesView } from "./batches.js";
import { chatView } from "./chat.js";
import { liveFacts, liveView } from "./live.js";
import { modelsView } from "./models.js";
import { requestsView } from "./requests.js";
import * as server from "./server.js";

const THEME = "penstock-console-theme"; // all that this page leaves in the browser
const find = (id) => document.getElementById(id);

// The key
let asking = null;
const askKey = (why = "") => (asking ??= ask("API key", (done) => {
  const input = el("input", { type: "password", autocomplete: "off", required: true, autofocus: true, spellcheck: "false" });
  return [el("form", { onsubmit: (event) => { event.preventDefault(); done(input.value); } },
    why && el("p", { class: "fault" }, why),
    field("Key", input, "It stays in this page's memory: a reload forgets it. An admin key shows more."),
    el("div", { class: "row end" }, button("Cancel", () => done(null)), el("button", { type: "submit", class: "main" }, "Use it")))];
}).then((given) => {
  asking = null;
  if (given === null) return false;
  server.setKey(given);
  find("key").textContent = "Key ✓";
  return true;
}));
server.onKeyNeeded(askKey);
find("key").addEventListener("click", async () => { if (await askKey()) begin(); });

// The theme
const scheme = matchMedia("(prefers-color-scheme: dark)");
const themed = (theme) => {
  if (theme) document.documentElement.dataset.theme = theme;
  const dark = theme ? theme === "dark" : scheme.matches;
  find("theme").textContent = dark ? "Light" : "Dark";
  find("theme").setAttribute("aria-label", dark ? "Use light colours" : "Use dark colours");
  return dark;
};
let theme = null;
try { theme = localStorage.getItem(THEME); } catch { /* the browser keeps nothing */ }
if (!["dark", "light"].includes(theme)) theme = null;
themed(theme);
scheme.addEventListener("change", () => themed(theme));
find("theme").addEventListener("click", () => {
  theme = themed(theme) ? "light" : "dark";
  themed(theme);
  try { localStorage.setItem(THEME, theme); } catch { /* then for this visit */ }
});

// The state of the server
const live = liveFacts((kind, facts, error) => {
  const state = find("state");
  state.className = `state ${kind}`;
  const busy = facts?.models.reduce((sum, one) => sum + one.running, 0);
  const text = error ? `Not connected: ${error.message}` : busy ? `${busy} running` : "Idle";
  if (find("state-text").textContent !== text) find("state-text").textContent = text;
  if (facts) find("version").textContent = facts.version;
  if (facts) links.get("batches").parentElement.hidden = !facts.batches;
});

// The views
const NAMES = { chat: "Chat", models: "Models", live: "Live", requests: "Requests", batches: "Batches" };
const links = new Map(Object.entries(NAMES).map(([id, name]) => [id, el("a", { href: `#${id}` }, name)]));
find("views").append(...[...links.values()].map((one) => el("li", {}, one)));
links.get("batches").parentElement.hidden = true;
const views = { chat: chatView(live), models: modelsView(live), live: liveView(live), requests: requestsView(live), batches: batchesView() };
find("main").replaceChildren(...Object.values(views).map((one) => one.element));
let ready = false; // nothing is asked of the server before there is a key, if it needs one
const show = (moves = true) => {
  const id = location.hash.slice(1) in views ? location.hash.slice(1) : "chat";
  for (const [name, view] of Object.entries(views)) view.element.hidden = name !== id;
  for (const [name, link] of links) {
    if (name === id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${NAMES[id]} – Penstock console`;
  document.body.dataset.view = id;
  if (ready) views[id].shown?.();
  if (moves) (views[id].focus ?? (() => find("main").focus()))();
};
addEventListener("hashchange", () => show());
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); find("main").focus(); });
show(false);
const begin = () => { live.now(); show(false); };
const may = document.documentElement.dataset.keys !== "needed" || await askKey();
ready = true;
if (may) begin();
else live.now(true);
