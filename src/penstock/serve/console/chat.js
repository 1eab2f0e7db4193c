// Talking to a model: streamed answers, thoughts, tool calls, pictures, a schema, token probabilities.

import { badge, button, check, copy, count, doing, el, empty, field, note, pretty, seconds } from "./page.js";
import { rendered } from "./markdown.js";
import { schemaEditor } from "./schema.js";
import * as server from "./server.js";

const DRAW_MS = 60;
const IMAGE_BYTES = 8 * 2 ** 20;
const TOOLS = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];

const dataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
  reader.readAsDataURL(file);
});

/** Adds what a chunk brings to a message. */
const grow = (message, chunk) => {
  if (chunk.usage) message.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const delta = choice.delta ?? {};
  message.reasoning += delta.reasoning ?? delta.reasoning_content ?? "";
  message.content += delta.content ?? "";
  message.refusal = delta.refusal ?? message.refusal;
  for (const part of delta.tool_calls ?? []) {
    const call = (message.tool_calls[part.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    call.id ||= part.id ?? "";
    call.function.name += part.function?.name ?? "";
    call.function.arguments += part.function?.arguments ?? "";
  }
  if (choice.logprobs?.content) message.tokens.push(...choice.logprobs.content);
  if (choice.finish_reason) message.finish = choice.finish_reason;
};

/** The message as the API takes it. */
const sent = (message) => {
  if (message.role === "user" && message.images.length)
    return { role: "user", content: [
      ...message.images.map((one) => ({ type: "image_url", image_url: { url: one.url } })),
      ...(message.content ? [{ type: "text", text: message.content }] : []),
    ] };
  const { role, content, tool_call_id } = message;
  if (message.tool_calls?.length) return { role, content: content || null, tool_calls: message.tool_calls };
  return tool_call_id ? { role, content, tool_call_id } : { role, content };
};

/** Tokens coloured by their probability; arrow keys walk through them, and the alternatives are told below. */
const probabilities = (tokens) => {
  const told = el("div", { class: "alternatives", role: "status" }, "Choose a token: arrow keys, or a click.");
  let at = -1;
  const spans = tokens.map((token, number) => {
    const share = Math.exp(token.logprob);
    const level = share > 0.9 ? 0 : share > 0.6 ? 1 : share > 0.3 ? 2 : 3;
    return el("span", { class: `token p${level}`, onclick: () => choose(number) }, token.token.replaceAll("\n", "↵\n"));
  });
  const choose = (number) => {
    spans[at]?.classList.remove("chosen");
    at = Math.max(0, Math.min(tokens.length - 1, number));
    spans[at].classList.add("chosen");
    const all = [tokens[at], ...(tokens[at].top_logprobs ?? []).filter((one) => one.token !== tokens[at].token)];
    told.replaceChildren(el("ul", {}, all.map((one, place) => el("li", { class: place ? "" : "taken" },
      el("code", {}, JSON.stringify(one.token)), el("meter", { value: Math.exp(one.logprob), "aria-hidden": "true" }),
      `${(100 * Math.exp(one.logprob)).toFixed(1)} %`))));
  };
  const keys = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(at + step);
  };
  return el("details", { class: "probabilities" }, el("summary", {}, `Probabilities of ${count(tokens.length)} tokens`),
    el("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": "Tokens: arrow keys choose one", onkeydown: keys }, spans), told);
};

export const chatView = (live) => {
  const messages = [];
  let cards = [];
  let images = [];
  let running = null;

  const models = el("select", { id: "model" });
  const system = el("textarea", { rows: "3", placeholder: "You are …" });
  const temperature = el("input", { type: "number", min: "0", max: "2", step: "0.1", placeholder: "default" });
  const topP = el("input", { type: "number", min: "0", max: "1", step: "0.05", placeholder: "1" });
  const most = el("input", { type: "number", min: "1", step: "1", value: "512" });
  const schema = schemaEditor();
  const tools = el("textarea", { class: "mono", rows: "8", spellcheck: "false", value: JSON.stringify(TOOLS, null, 2) });
  const option = (text, part) => {
    part.hidden = true;
    const one = check(text, (on) => { part.hidden = !on; });
    return { element: el("div", {}, one, part), get on() { return one.firstChild.checked; } };
  };
  const schemaOption = option("Answer by a schema", schema.element);
  const toolOption = option("Offer tools", field("Tools as JSON", tools, "You give their results yourself."));
  const logprobs = check("Token probabilities", () => {});
  const logprobsHint = el("p", { class: "hint" }, "This engine gives none.");

  const log = el("div", { class: "log", role: "log", "aria-label": "Conversation", tabindex: "0" });
  const said = el("p", { class: "unseen", role: "status" });
  const input = el("textarea", { id: "message", rows: "2", placeholder: "Message", "aria-label": "Message" });
  const send = el("button", { type: "submit", class: "main" }, "Send");
  const stop = button("Stop", () => running?.abort(), { class: "danger" });
  const attached = el("ul", { class: "attached", "aria-label": "Pictures" });
  const files = el("input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => { attach(files.files); files.value = ""; } });
  const attachButton = button("Picture", () => files.click(), { class: "plain", title: "Attach pictures; pasting and dropping work too" });
  const clear = button("New chat", () => { running?.abort(); messages.length = 0; draw(); input.focus(); }, { class: "plain" });
  stop.hidden = attachButton.hidden = true;

  const card = () => cards.find((one) => one.id === models.value);
  const sees = () => card()?.input_modalities?.includes("image") ?? false;
  const adapt = () => {
    const able = card()?.metadata?.capabilities;
    const gives = !able || (able.max_top_logprobs ?? 0) > 0;
    logprobs.firstChild.disabled = !gives;
    if (!gives) logprobs.firstChild.checked = false;
    logprobsHint.hidden = gives;
    attachButton.hidden = !sees();
  };
  models.addEventListener("change", adapt);

  const attach = async (list) => {
    if (!sees()) { note(`${models.value || "This model"} takes no pictures`, "bad"); return; }
    for (const file of [...list]) { // the browser empties its list meanwhile
      if (!file.type.startsWith("image/")) note(`${file.name} is no picture`, "bad");
      else if (file.size > IMAGE_BYTES) note(`${file.name} is larger than 8 MiB`, "bad");
      else images.push({ name: file.name, url: await dataUrl(file) });
    }
    drawAttached();
  };
  const drawAttached = () => attached.replaceChildren(...images.map((one, number) => el("li", {},
    el("img", { src: one.url, alt: one.name }),
    button("×", () => { images.splice(number, 1); drawAttached(); input.focus(); }, { class: "plain", "aria-label": `Remove ${one.name}` }))));

  const called = (message, number) => {
    const call = message.tool_calls[number];
    const done = messages.some((one) => one.tool_call_id === call.id);
    const result = el("textarea", { rows: "2", class: "mono", placeholder: '{"…": "…"}' });
    const give = button("Give the result", () => {
      messages.push({ role: "tool", tool_call_id: call.id, content: result.value, name: call.function.name });
      const open = message.tool_calls.some((one) => !messages.some((given) => given.tool_call_id === one.id));
      if (open) draw();
      else answer();
    }, { class: "small" });
    return el("div", { class: "call" }, el("p", {}, badge("tool call", "busy"), " ", el("strong", {}, call.function.name || "…")),
      el("pre", { tabindex: "0" }, pretty(call.function.arguments)),
      message.done && !done && !running ? [field(`Result of ${call.function.name}`, result), give] : null);
  };

  const statistics = (message) => {
    const parts = [];
    const made = message.usage?.completion_tokens;
    if (made !== undefined) parts.push(`${count(message.usage.prompt_tokens)} tokens in, ${count(made)} out`);
    if (message.first) parts.push(`first token after ${seconds(message.first)}`);
    const time = message.took - message.first;
    if (made > 1 && time > 0) parts.push(`${((made - 1) / time).toFixed(1)} tokens/s`);
    if (message.finish && message.finish !== "stop") parts.push(message.finish === "length" ? "cut at max tokens" : message.finish.replaceAll("_", " "));
    return parts.join(" · ");
  };

  const body = (message) => {
    if (message.role !== "assistant")
      return [message.images?.map((one) => el("img", { class: "sent", src: one.url, alt: one.name })), el("p", { class: "said" }, message.content)];
    const json = message.structured && message.done ? pretty(message.content) : "";
    return [
      message.reasoning && el("details", { class: "thoughts", open: !message.content && !message.done },
        el("summary", {}, message.content || message.done ? "Thoughts" : "Thinking …"), el("div", {}, rendered(message.reasoning))),
      json ? el("pre", { class: "json", tabindex: "0" }, json) : el("div", { class: "text" }, rendered(message.content)),
      message.refusal && el("p", { class: "fault" }, message.refusal),
      message.tool_calls.map((_, number) => called(message, number)),
      !message.done && !message.content && !message.reasoning && el("p", { class: "waiting" }, "Waiting for the first token"),
      message.error && el("p", { class: "fault", role: "alert" }, message.error),
      message.tokens.length > 0 && message.done && probabilities(message.tokens),
      message.done && el("footer", {}, el("span", {}, statistics(message)),
        message.content && button("Copy", () => copy(message.content), { class: "plain small", "aria-label": "Copy the answer" }),
        message === messages.at(-1) && button("Again", () => { messages.pop(); answer(); }, { class: "plain small", "aria-label": "Answer again" })),
    ];
  };
  const WHO = { user: "You", assistant: "Model", tool: "Tool" };
  const drawn = (message) => {
    const who = message.role === "assistant" ? message.model : message.name ? `Result of ${message.name}` : WHO[message.role];
    return el("article", { class: `message ${message.role}`, "aria-label": who }, el("h2", {}, who), body(message));
  };
  const draw = () => {
    log.replaceChildren(...(messages.length ? messages.map(drawn)
      : [empty("Ask the model", "Enter sends, Shift+Enter begins a line, Escape stops an answer. Nothing is kept: a reload forgets the conversation.")]));
    clear.disabled = !messages.length;
    log.scrollTop = log.scrollHeight;
  };
  const drawLast = () => {
    const low = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    const held = log.lastElementChild.contains(document.activeElement);
    log.lastElementChild.replaceWith(drawn(messages.at(-1)));
    if (held) log.focus();
    if (low) log.scrollTop = log.scrollHeight;
  };

  const request = () => {
    const made = { model: models.value, stream: true, stream_options: { include_usage: true }, messages: messages.map(sent) };
    if (system.value.trim()) made.messages.unshift({ role: "system", content: system.value });
    for (const [name, control] of [["temperature", temperature], ["top_p", topP], ["max_tokens", most]])
      if (control.value !== "") made[name] = Number(control.value);
    if (logprobs.firstChild.checked) Object.assign(made, { logprobs: true, top_logprobs: 5 });
    if (schemaOption.on) made.response_format = { type: "json_schema", json_schema: { name: "answer", schema: schema.value() } };
    if (toolOption.on) {
      try {
        made.tools = JSON.parse(tools.value);
      } catch (error) {
        throw new Error(`the tools are no JSON: ${error.message}`);
      }
    }
    return made;
  };

  const answer = async () => {
    let asking;
    try {
      asking = request();
    } catch (error) {
      note(error.message, "bad");
      draw();
      return;
    }
    const message = { role: "assistant", model: models.value, content: "", reasoning: "", tool_calls: [], tokens: [], done: false, structured: schemaOption.on };
    messages.push(message);
    running = new AbortController();
    send.hidden = true;
    stop.hidden = false;
    log.setAttribute("aria-busy", "true");
    draw();
    const began = performance.now();
    let waits = false;
    try {
      for await (const chunk of server.stream("v1/chat/completions", asking, running.signal)) {
        grow(message, chunk);
        if (!message.first && (message.content || message.reasoning || message.tool_calls.length)) message.first = (performance.now() - began) / 1000;
        if (!waits) {
          waits = true;
          setTimeout(() => { waits = false; if (!message.done && messages.at(-1) === message) drawLast(); }, DRAW_MS);
        }
      }
    } catch (error) {
      if (error.name === "AbortError") message.finish = "stopped";
      else message.error = error.message;
    }
    message.took = (performance.now() - began) / 1000;
    message.done = true;
    message.tool_calls = message.tool_calls.filter(Boolean);
    running = null;
    send.hidden = false;
    stop.hidden = true;
    log.setAttribute("aria-busy", "false");
    said.textContent = message.error ? "The answer failed" : "The answer is complete";
    if (messages.at(-1) === message) drawLast();
  };

  const submit = (event) => {
    event?.preventDefault();
    const content = input.value.trim();
    if (running || (!content && !images.length)) return;
    const last = messages.at(-1);
    if (last?.role === "assistant" && last.error) messages.pop();
    messages.push({ role: "user", content, images });
    images = [];
    input.value = "";
    drawAttached();
    answer();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  });
  input.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) { event.preventDefault(); attach(event.clipboardData.files); }
  });

  const composer = el("form", { class: "composer", onsubmit: submit }, attached, input,
    el("div", { class: "row" }, clear, el("span", { class: "push" }), files, attachButton, stop, send));
  const element = el("section", { class: "chat", "aria-labelledby": "chat-title" },
    el("h1", { id: "chat-title", class: "unseen" }, "Chat"),
    el("div", { class: "talk" }, log, said, composer),
    el("aside", { "aria-label": "Settings" },
      field("Model", models),
      el("details", { class: "settings", open: matchMedia("(min-width: 60rem)").matches }, el("summary", {}, "Settings"),
        field("System prompt", system),
        el("div", { class: "three" }, field("Temperature", temperature), field("Top p", topP), field("Max tokens", most)),
        logprobs, logprobsHint, schemaOption.element, toolOption.element)));
  element.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) running.abort(); });
  element.addEventListener("dragover", (event) => event.preventDefault());
  element.addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files.length) attach(event.dataTransfer.files); });

  const load = async () => {
    const chosen = models.value;
    cards = (await server.getJson("v1/models")).data.filter((one) => {
      const tasks = one.metadata?.capabilities?.tasks;
      return !tasks || tasks.includes("chat");
    });
    models.replaceChildren(...cards.map((one) => el("option", { value: one.id, selected: one.id === chosen }, one.id)));
    if (!cards.length) models.append(el("option", { value: "" }, "no model that chats"));
    adapt();
  };
  draw();
  let known = "";
  live.subscribe((facts) => { // a model that was loaded says what it can
    const now = facts.models.map((one) => `${one.id} ${one.loads} ${one.adapters}`).join();
    if (now !== known && facts.models.length) { known = now; doing(models, load); }
  });
  return { element, focus: () => input.focus() };
};
