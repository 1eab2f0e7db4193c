// Models: what they do, what waits for them, their adapters, and what operators may ask of them.

import { KIND, badge, button, confirmed, count, doing, el, empty, field, note } from "./page.js";
import * as server from "./server.js";

const WORDS = { cold: "not loaded", asleep: "asleep", paused: "paused" };

export const modelsView = (live) => {
  const list = el("div", { class: "cards" });
  const hint = el("p", { class: "hint" });
  const shown = new Map();
  let cards = new Map();

  const act = (control, path, model, did, options = {}) => doing(control, async () => {
    const done = await server.post(path, { model, options });
    const wrong = done.replicas?.find((one) => !one.ok);
    if (wrong) throw new Error(wrong.error.message);
    note(did);
    await live.now();
  });

  const made = (id) => {
    const parts = {
      state: el("span"), facts: el("p", { class: "quiet" }), reason: el("p", { class: "fault" }), running: el("strong"),
      waiting: el("strong"), kv: el("strong"), adapters: el("ul", { class: "plain-list" }), buttons: el("div", { class: "row" }),
    };
    const sure = async (title, text, yes, ...rest) => (await confirmed(title, text, yes)) && act(...rest);
    const control = {
      load: button("Load", (event) => act(event.target, "load_model", id, `${id} is loaded`)),
      unload: button("Unload", (event) => sure(`Unload ${id}?`, "Requests under way end first. The next request loads it again.", "Unload", event.target, "unload_model", id, `${id} is unloaded`)),
      sleep: button("Sleep", (event) => sure(`Put ${id} to sleep?`, "Requests under way end first. Others are refused until it is woken.", "Sleep", event.target, "sleep", id, `${id} sleeps`)),
      wake: button("Wake", (event) => act(event.target, "wakeup", id, `${id} is awake`)),
      pause: button("Pause", (event) => act(event.target, "pause", id, `${id} is paused: requests wait`)),
      resume: button("Resume", (event) => act(event.target, "resume", id, `${id} goes on`)),
      clear: button("Empty the prefix cache", (event) => act(event.target, "reset_prefix_cache", id, "The prefix cache is empty"), { class: "plain small" }),
    };
    for (const [name, one] of Object.entries(control)) one.setAttribute("aria-label", `${one.textContent} ${name === "clear" ? "of " : ""}${id}`);
    parts.buttons.append(...Object.values(control));
    const name = el("input", { autocomplete: "off" });
    const path = el("input", { autocomplete: "off", placeholder: "/adapters/name or s3://…" });
    const give = el("form", { class: "adapter-form", onsubmit: (event) => {
      event.preventDefault();
      doing(event.submitter, async () => {
        await server.post("v1/load_lora_adapter", { model: id, lora_name: name.value.trim(), lora_path: path.value.trim() });
        note(`The adapter ${name.value} is loaded`);
        name.value = path.value = "";
        await live.now();
      });
    } }, field("Name", name), field("Directory or URL", path), el("button", { type: "submit" }, "Load the adapter"));
    const more = el("details", {}, el("summary", {}, "Load an adapter"), give);
    const title = el("h2", {}, id);
    const element = el("article", { class: "card", "aria-label": id },
      el("div", { class: "row" }, title, parts.state), parts.facts, parts.reason,
      el("dl", { class: "numbers" }, el("div", {}, el("dt", {}, "running"), el("dd", {}, parts.running)),
        el("div", {}, el("dt", {}, "waiting"), el("dd", {}, parts.waiting)), el("div", {}, el("dt", {}, "KV cache"), el("dd", {}, parts.kv))),
      el("h3", {}, "Adapters"), parts.adapters, more, parts.buttons);
    return { element, parts, control, more, adapters: "" };
  };

  const put = (box, facts, may) => {
    const { parts, control } = box;
    const card = cards.get(facts.id);
    parts.state.replaceChildren(badge(WORDS[facts.state] ?? facts.state, KIND[facts.state]));
    const able = card?.metadata?.capabilities;
    parts.facts.textContent = [facts.engine, card?.max_model_len && `${count(card.max_model_len)} tokens of context`,
      card?.input_modalities && `takes ${card.input_modalities.join(", ")}`, able && able.tasks.join(", "),
      facts.restarts > 0 && `restarted ${facts.restarts} times`].filter(Boolean).join(" · ");
    parts.reason.textContent = facts.reason ?? "";
    parts.reason.hidden = !facts.reason;
    parts.running.textContent = count(facts.running);
    parts.waiting.textContent = count(facts.waiting);
    const kv = facts.counters.kv_cache_usage;
    parts.kv.textContent = kv === undefined ? "–" : `${(100 * kv).toFixed(1)} %`;
    const adapters = JSON.stringify([facts.adapters, facts.loaded_adapters, may]);
    if (adapters !== box.adapters) {
      box.adapters = adapters;
      parts.adapters.replaceChildren(...(facts.adapters.length ? facts.adapters.map((name) => el("li", {}, el("span", {}, name), " ",
        facts.loaded_adapters.includes(name) ? badge("loaded", "good") : badge("on first use"),
        may && button("Unload", async (event) => (await confirmed(`Unload the adapter ${name}?`, "Its requests are refused then, until it is loaded again or the server restarts.", "Unload")) && doing(event.target, async () => {
          await server.post("v1/unload_lora_adapter", { model: facts.id, lora_name: name });
          note(`The adapter ${name} is gone`);
          await live.now();
        }), { class: "plain small", "aria-label": `Unload the adapter ${name}` }))) : [el("li", { class: "quiet" }, "none")]));
    }
    box.more.hidden = parts.buttons.hidden = !may;
    const is = (...states) => states.includes(facts.state);
    const there = is("ready", "paused");
    const visible = { load: is("cold", "failed"), unload: there, sleep: is("ready", "cold"), wake: is("asleep"), pause: is("ready"), resume: is("paused"), clear: there };
    for (const [name, on] of Object.entries(visible)) {
      if (!on && document.activeElement === control[name]) box.element.querySelector("h2").focus();
      control[name].hidden = !on;
    }
  };

  let known = "";
  live.subscribe(async (facts) => {
    if (!facts.models.length) list.replaceChildren(empty("No models", "This server has none."));
    for (const one of facts.models) {
      let box = shown.get(one.id);
      if (!box) {
        shown.set(one.id, (box = made(one.id)));
        list.append(box.element);
      }
      put(box, one, facts.control);
    }
    hint.textContent = facts.control ? "" : facts.operator
      ? "To load, unload and pause models here, start the server with --dev." : "Loading and unloading need an admin key, and a server with --dev.";
    hint.hidden = !hint.textContent;
    const now = facts.models.map((one) => `${one.id} ${one.state} ${one.loads}`).join();
    if (now !== known) {
      known = now;
      try {
        cards = new Map((await server.getJson("v1/models", { quiet: true })).data.map((one) => [one.id, one]));
        for (const one of facts.models) put(shown.get(one.id), one, facts.control);
      } catch { known = ""; }
    }
  });
  return { element: el("section", { "aria-labelledby": "models-title" }, el("h1", { id: "models-title" }, "Models"), hint, list) };
};
