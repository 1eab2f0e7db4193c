// What the server does now: asked for once a second while somebody looks, and drawn as charts.

import { count, el, seconds, svg } from "./page.js";
import * as server from "./server.js";

const POLL_MS = 1000;
const SPAN = 120;
const WIDE = 600;
const HIGH = 140;

/** Asks the server, tells the subscribers, and remembers the last two minutes. */
export const liveFacts = (onState) => {
  const subscribers = [];
  const requests = new Map(); // ended ones, by number
  const seen = new Map(); // tokens of each request under way when it was last seen
  const batchTokens = new Map(); // of each model, when they were last seen
  const bins = new Map(); // tokens of each second
  const samples = []; // of queues and caches
  let after = 0;
  let timer = 0;
  let asking = null;
  let last = null;
  let bodies = false;

  const spread = (tokens, from, to) => {
    const long = Math.max(to - from, 0.001);
    for (let second = Math.floor(from); second <= Math.floor(to); second += 1) {
      const part = (Math.min(to, second + 1) - Math.max(from, second)) / long;
      bins.set(second, (bins.get(second) ?? 0) + tokens * Math.max(part, 0));
    }
  };
  const take = (facts, now) => {
    const { ended, under_way } = facts.requests ?? { ended: [], under_way: [] };
    const first = last === null; // what ended before this page has its place in time, too
    for (const one of [...ended, ...under_way]) {
      const over = one.number !== undefined;
      const end = first && over ? one.created + one.seconds : now;
      const begun = end - one.seconds + (one.first_token ?? 0);
      const before = seen.get(one.id) ?? { tokens: 0, at: begun };
      if (one.tokens > before.tokens) spread(one.tokens - before.tokens, Math.min(before.at, end), end);
      if (over) seen.delete(one.id);
      else seen.set(one.id, { tokens: one.tokens, at: end });
      one.ended_at = end;
      if (over) requests.set(one.number, one);
    }
    for (const one of facts.models) { // lines of batches are no requests: their sum grows
      const grown = one.batch_tokens - (batchTokens.get(one.id) ?? one.batch_tokens);
      if (grown > 0) spread(grown, samples.at(-1)?.at ?? now, now);
      batchTokens.set(one.id, one.batch_tokens);
    }
    if (facts.requests) after = facts.requests.after;
    for (const number of [...requests.keys()].slice(0, Math.max(0, requests.size - 200))) requests.delete(number);
    samples.push({ at: now, models: facts.models });
    while (samples[0].at < now - SPAN - 5) samples.shift();
    for (const second of bins.keys()) if (second < now - SPAN - 5) bins.delete(second);
  };
  const poll = async (quiet) => {
    clearTimeout(timer);
    try {
      const facts = await server.post("console/live", { after, bodies }, { quiet });
      const now = Date.now() / 1000;
      if (facts.requests && facts.requests.after < after) requests.clear(); // the server was started again
      take(facts, now);
      last = facts;
      onState("good", facts);
      for (const tell of subscribers) tell(facts);
    } catch (error) {
      onState("bad", last, error);
    } finally {
      timer = document.hidden ? 0 : setTimeout(() => now(true), POLL_MS);
    }
  };
  const now = (quiet = false) => (asking ??= poll(quiet).finally(() => { asking = null; }));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) now(true); });
  return {
    now,
    subscribe: (tell) => { subscribers.push(tell); if (last) tell(last); },
    keepBodies: (on) => { bodies = on; now(); },
    get ended() { return [...requests.values()]; },
    bins,
    samples,
  };
};

const nice = (top) => {
  if (!(top > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(top));
  return [1, 2, 2.5, 5, 10].map((one) => one * unit).find((one) => one >= top * 0.999);
};

/** A chart of the last two minutes. `lines` are [name, points]; a point is [seconds ago, value] or null for a gap. */
const chart = (title, told) => {
  const big = el("p", { class: "big" }, "–");
  const legend = el("ul", { class: "legend" });
  const plot = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img" });
  const top = el("span", { class: "axis top" });
  const element = el("article", { class: "card chart", "aria-label": title },
    el("h2", {}, title), big, el("div", { class: "plot" }, top, plot, el("span", { class: "axis left" }, "2 min ago"), el("span", { class: "axis right" }, "now")), legend);
  const draw = (lines, now, most = 0, dots = []) => {
    const values = [...lines.flatMap(([, points]) => points.map((one) => one[1])), ...dots.map((one) => one[1])];
    const high = most || nice(Math.max(0, ...values));
    const x = (ago) => (WIDE * (SPAN - ago)) / SPAN;
    const y = (value) => HIGH - 2 - ((HIGH - 8) * Math.min(value, high)) / high;
    plot.replaceChildren(
      ...[0.5, 1].map((part) => svg("line", { class: "grid", x1: 0, x2: WIDE, y1: y(high * part), y2: y(high * part) })),
      ...lines.flatMap(([, points], number) => {
        if (!points.length) return [];
        const path = points.map(([ago, value], at) => `${at ? "L" : "M"}${x(ago).toFixed(1)} ${y(value).toFixed(1)}`).join("");
        return [
          lines.length === 1 && svg("path", { class: "area", d: `${path}L${x(points.at(-1)[0]).toFixed(1)} ${HIGH}L${x(points[0][0]).toFixed(1)} ${HIGH}Z` }),
          svg("path", { class: `line c${number % 6}`, d: path }),
        ].filter(Boolean);
      }),
      ...dots.map(([ago, value]) => svg("path", { class: "point", d: `M${x(ago).toFixed(1)} ${y(value).toFixed(1)}h0.01` })));
    top.textContent = told(high);
    big.textContent = now === null ? "–" : told(now);
    plot.setAttribute("aria-label", `${title}: now ${now === null ? "nothing" : told(now)}; the most in two minutes ${values.length ? told(Math.max(...values)) : "nothing"}`);
    const names = lines.map(([name]) => name).filter(Boolean);
    if (legend.children.length !== names.length || [...legend.children].some((one, at) => one.textContent !== names[at]))
      legend.replaceChildren(...names.map((name, number) => el("li", { class: `c${number % 6}` }, name)));
  };
  return { element, draw };
};

export const liveView = (live) => {
  const speed = chart("Tokens per second", (value) => `${value >= 100 ? count(Math.round(value)) : value.toFixed(1)} tokens/s`);
  const first = chart("Time to first token", seconds);
  const queue = chart("Requests", (value) => count(Math.round(value)));
  const cache = chart("KV cache in use", (value) => `${value.toFixed(value < 10 ? 1 : 0)} %`);
  const draw = (facts) => {
    if (element.hidden) return;
    const now = Date.now() / 1000;
    const tokens = [];
    for (let second = Math.floor(now) - SPAN; second < Math.floor(now); second += 1) tokens.push([now - second - 0.5, live.bins.get(second) ?? 0]);
    const latest = tokens.slice(-3).reduce((sum, one) => sum + one[1], 0) / 3;
    speed.draw([["", tokens]], latest);
    const answered = live.ended.filter((one) => one.first_token !== null && now - one.ended_at < SPAN);
    const dots = answered.map((one) => [now - one.ended_at + one.seconds - one.first_token, one.first_token]).filter(([ago]) => ago >= 0 && ago < SPAN);
    const middle = dots.map((one) => one[1]).sort((a, b) => a - b)[Math.floor(dots.length / 2)];
    first.draw([], middle ?? null, 0, dots);
    const ago = (one) => Math.max(now - one.at, 0);
    const inside = live.samples.filter((one) => ago(one) < SPAN);
    const sum = (name) => inside.map((one) => [ago(one), one.models.reduce((total, model) => total + model[name], 0)]);
    queue.draw([["running", sum("running")], ["waiting", sum("waiting")]], facts.models.reduce((total, one) => total + one.running + one.waiting, 0));
    const caches = facts.models.filter((one) => one.counters.kv_cache_usage !== undefined).map((one) => [one.id, inside.flatMap((sample) => {
      const value = sample.models.find((model) => model.id === one.id)?.counters.kv_cache_usage;
      return value === undefined ? [] : [[ago(sample), 100 * value]];
    })]);
    cache.draw(caches, caches.length ? Math.max(...caches.map(([, points]) => points.at(-1)?.[1] ?? 0)) : null,
      Math.max(...caches.flatMap(([, points]) => points.map((one) => one[1])), 0) > 10 ? 100 : 10);
  };
  const element = el("section", { "aria-labelledby": "live-title" }, el("h1", { id: "live-title" }, "Live"),
    el("div", { class: "cards charts" }, speed.element, first.element, queue.element, cache.element),
    el("p", { class: "hint" }, "The last two minutes, once a second. Time to first token: a point for each request, the middle one in words. A request that does not stream, and a line of a batch, count when they end."));
  live.subscribe(draw);
  return { element, shown: () => live.now() };
};
