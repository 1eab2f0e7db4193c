// Batches in the forms of OpenAI and Anthropic: how far they are, beginning one, pausing and
// cancelling one, its files.

import { KIND, arrange, badge, button, confirmed, count, day, doing, el, empty, field, note } from "./page.js";
import { contentOf, download, filesPart, upload } from "./files.js";
import * as server from "./server.js";

const PAGE = 20;
const POLL_MS = 2000;
const OVER = ["completed", "failed", "expired", "cancelled"];
const ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/decisions", "/v1/systemone", "/v1/score", "/v1/rerank", "/classify", "/v1/audio/transcriptions", "/v1/audio/translations"];

const unix = (time) => time && Date.parse(time) / 1000;
/** One of Anthropic's batches in the form of OpenAI's. */
const ofMessages = (one) => {
  const { processing, succeeded, errored, canceled, expired } = one.request_counts;
  const ended = expired ? "expired" : canceled ? "cancelled" : "completed";
  return {
    id: one.id, endpoint: "/v1/messages", created_at: unix(one.created_at), expires_at: unix(one.expires_at),
    status: one.processing_status === "ended" ? ended : one.processing_status === "canceling" ? "cancelling" : "in_progress",
    request_counts: { total: processing + succeeded + errored + canceled + expired, completed: succeeded, failed: errored },
    results: one.processing_status === "ended",
  };
};
const FORMS = [
  { path: "v1/batches", after: "after", read: (one) => one },
  { path: "v1/messages/batches", after: "after_id", read: ofMessages },
];

export const batchesView = () => {
  const list = el("div", { class: "cards" });
  const nothing = empty("No batches", "A batch answers the lines of a file while nobody else needs the model. Begin one below.");
  const more = button("More", () => doing(more, () => load(true)));
  const files = filesPart();
  const cards = new Map();
  const pages = FORMS.map(() => ({ batches: [], has_more: false }));
  let batches = [];
  let timer = 0;

  const act = (event, batch, what, did) => doing(event.target, async () => {
    await server.post(`${batch.path}/${what}`);
    note(did);
    await load();
  });
  const card = (batch) => {
    const { total, completed, failed } = batch.request_counts ?? { total: 0, completed: 0, failed: 0 };
    const over = OVER.includes(batch.status);
    const share = total ? (completed + failed) / total : 0;
    const file = (path, name, text) => path && button(text, (event) => doing(event.target, () => download(path, name)), { class: "small", "aria-label": `${text} of ${batch.id}` });
    const faults = batch.errors?.data ?? [];
    const id = `progress-${batch.id}`;
    return el("article", { class: "card", "aria-label": `Batch ${batch.id}` },
      el("div", { class: "row" }, el("h3", { class: "mono" }, batch.id), badge(batch.paused && !over ? "paused" : batch.status.replaceAll("_", " "), batch.paused && !over ? "warn" : KIND[batch.status])),
      el("p", { class: "quiet" }, [batch.model, batch.endpoint, `begun ${day(batch.created_at)}`, !over && `ends by ${day(batch.expires_at)}`].filter(Boolean).join(" · ")),
      el("label", { for: id, class: "row" }, el("span", {}, `${count(completed)} of ${count(total)} lines answered`), failed > 0 && el("span", { class: "fault" }, `${count(failed)} failed`), el("span", { class: "push" }), `${Math.floor(100 * share)} %`),
      el("progress", { id, max: 1, value: over && !total ? 0 : share }),
      batch.usage && el("p", { class: "quiet" }, `${count(batch.usage.input_tokens)} tokens in, ${count(batch.usage.output_tokens)} out`),
      faults.length > 0 && el("details", {}, el("summary", {}, `${count(faults.length)} faults`), el("ul", {}, faults.slice(0, 100).map((one) => el("li", {}, one.line ? `Line ${one.line}: ` : "", one.message)))),
      el("div", { class: "row" }, file(batch.output_file_id && contentOf(batch.output_file_id), `${batch.id}-output.jsonl`, "Answers"),
        file(batch.error_file_id && contentOf(batch.error_file_id), `${batch.id}-errors.jsonl`, "Errors"),
        file(batch.results && `${batch.path}/results`, `${batch.id}-results.jsonl`, "Results"),
        !over && batch.paused !== undefined && batch.status !== "cancelling" && (batch.paused ? button("Go on", (event) => act(event, batch, "resume", "The batch goes on"), { "aria-label": `Go on with ${batch.id}` })
          : button("Pause", (event) => act(event, batch, "pause", "The batch is paused"), { "aria-label": `Pause ${batch.id}` })),
        !over && batch.status !== "cancelling" && button("Cancel", async (event) => {
          if (await confirmed("Cancel this batch?", "What was answered stays. The other lines are not answered.", "Cancel the batch")) await act(event, batch, "cancel", "The batch ends");
        }, { "aria-label": `Cancel ${batch.id}` })));
  };
  const draw = () => {
    nothing.hidden = batches.length > 0;
    const made = batches.map((batch) => {
      const key = JSON.stringify(batch);
      const known = cards.get(batch.id);
      if (known?.key === key) return known.element;
      const fresh = { key, element: card(batch) };
      const label = known?.element.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
      cards.set(batch.id, fresh);
      if (known) known.element.replaceWith(fresh.element);
      if (label) (fresh.element.querySelector(`[aria-label="${CSS.escape(label)}"]`) ?? fresh.element.querySelector("button"))?.focus();
      return fresh.element;
    });
    arrange(list, made);
  };
  const loadForm = async ({ path, after, read }, page, further, quiet) => {
    if (further && !page.has_more) return;
    const from = further ? `&${after}=${encodeURIComponent(page.batches.at(-1).id)}` : "";
    const limit = further ? PAGE : Math.min(Math.max(page.batches.length, PAGE), 100);
    const { data, has_more } = await server.getJson(`${path}?limit=${limit}${from}`, { quiet });
    const found = data.map((one) => ({ ...read(one), path: `${path}/${encodeURIComponent(one.id)}` }));
    page.batches = further ? [...page.batches, ...found] : found;
    page.has_more = has_more;
  };
  const load = async (further = false, quiet = false) => {
    await Promise.all(FORMS.map((form, at) => loadForm(form, pages[at], further, quiet)));
    const before = batches;
    batches = pages.flatMap((page) => page.batches).sort((one, other) => other.created_at - one.created_at);
    more.hidden = !pages.some((page) => page.has_more);
    draw();
    if (batches.some((one) => OVER.includes(one.status) && before.some((old) => old.id === one.id && !OVER.includes(old.status)))) await files.load();
  };
  const watch = async (quiet = false) => {
    clearTimeout(timer);
    if (element.hidden || document.hidden) return;
    try {
      await load(false, quiet);
    } catch { /* the state in the head tells it */ }
    timer = setTimeout(() => watch(true), POLL_MS);
  };
  document.addEventListener("visibilitychange", () => watch(true));

  const picked = el("input", { type: "file", accept: ".jsonl,application/jsonl", required: true });
  const endpoint = el("select", {}, ENDPOINTS.map((one) => el("option", { value: one }, one)));
  const window = el("input", { value: "24h", required: true, pattern: "[0-9]+[smhd]" });
  const form = el("form", { class: "card", onsubmit: (event) => {
    event.preventDefault();
    doing(event.submitter, async () => {
      const file = await upload(picked.files[0]);
      await server.post("v1/batches", { input_file_id: file.id, endpoint: endpoint.value, completion_window: window.value });
      note("The batch is begun");
      picked.value = "";
      await load();
      await files.load();
    });
  } }, el("h2", {}, "Begin a batch"), el("div", { class: "three" }, field("Lines (JSONL)", picked, "Each line: custom_id, method, url, body"),
    field("Endpoint", endpoint), field("Time it has", window, "such as 90m, 24h, 7d")), el("div", { class: "row" }, el("button", { type: "submit", class: "main" }, "Begin")));
  more.hidden = true;
  const element = el("section", { "aria-labelledby": "batches-title" }, el("h1", { id: "batches-title" }, "Batches"), nothing, list, more, form, files.element);
  return { element, shown: () => { watch(); files.load().catch(() => {}); } };
};
