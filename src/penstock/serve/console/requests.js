// Requests as they pass. What they say is shown only if somebody asks for it.

import { arrange, ask, badge, button, check, clock, count, el, empty, pretty, seconds } from "./page.js";

export const requestsView = (live) => {
  let failures = false;
  let held = false;
  let facts = null;
  const body = el("tbody");
  const nothing = empty("No requests yet", "Requests to models appear here as they come: what they were, not what they said.");
  const table = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of requests" }, el("table", {},
    el("thead", {}, el("tr", {}, ["Time", "Request", "Model", "Status", "Queued", "First token", "Took", "Tokens in", "out", ""].map((name, at) =>
      el("th", { scope: "col", class: at > 3 ? "number" : "" }, name || el("span", { class: "unseen" }, "Details"))))), body));
  const hold = button("Hold", () => { held = !held; hold.textContent = held ? "Go on" : "Hold"; hold.setAttribute("aria-pressed", held); if (!held) draw(); },
    { "aria-pressed": "false", title: "Stop the list to read it" });
  const bodies = check("Keep what requests say", (on) => live.keepBodies(on));
  const rows = new Map();

  const details = (one) => ask(`${one.method} ${one.endpoint}`, (done) => [
    el("dl", { class: "facts" }, [["Id", one.id], ["Model", one.model || "–"], ["Status", one.status ?? "under way"], ["Error", one.error ?? "none"], ["Came", clock(one.created)],
      ["Queued", seconds(one.queued)], ["First token", seconds(one.first_token)], ["Took", seconds(one.seconds)], ["Tokens in", count(one.prompt_tokens)], ["Tokens out", count(one.tokens)],
    ].map(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])),
    one.body === undefined ? el("p", { class: "hint" }, "What it said was not kept. “Keep what requests say” keeps it for requests from then on, in the server's memory, while this page asks.")
      : el("pre", { tabindex: "0", class: "body" }, pretty(one.body)),
    el("div", { class: "row end" }, button("Close", () => done(null), { autofocus: true })),
  ]);
  const row = (one) => {
    const over = one.number !== undefined;
    const status = !over ? badge("under way", "busy") : one.error || one.status >= 400
      ? badge(`${one.status}${one.error ? ` ${one.error.replaceAll("_", " ")}` : ""}`, one.status === 499 ? "idle" : "bad") : badge(String(one.status), "good");
    return el("tr", {}, el("td", {}, clock(one.created)), el("td", { class: "mono" }, `${one.method} ${one.endpoint}`), el("td", {}, one.model || "–"), el("td", {}, status),
      [seconds(one.queued), seconds(one.first_token), seconds(one.seconds), over ? count(one.prompt_tokens) : "–", count(one.tokens)].map((text) => el("td", { class: "number" }, text)),
      el("td", {}, over && button("Details", () => details(one), { class: "plain small", "aria-label": `Details of ${one.method} ${one.endpoint} at ${clock(one.created)}` })));
  };
  const draw = () => {
    if (!facts || element.hidden || held) return;
    const failed = (one) => one.error || one.status >= 400;
    const list = [...(failures ? [] : facts.requests?.under_way ?? []).toReversed(), ...live.ended.toReversed().filter((one) => !failures || failed(one))].slice(0, 100);
    const made = list.map((one) => {
      const known = rows.get(one.number);
      if (known) return known;
      const fresh = row(one);
      if (one.number !== undefined) rows.set(one.number, fresh);
      return fresh;
    });
    for (const number of rows.keys()) if (!live.ended.some((one) => one.number === number)) rows.delete(number);
    arrange(body, made);
    nothing.hidden = made.length > 0;
    table.hidden = made.length === 0;
    nothing.firstChild.textContent = failures ? "No failures" : "No requests yet";
  };
  const element = el("section", { "aria-labelledby": "requests-title" }, el("h1", { id: "requests-title" }, "Requests"),
    el("div", { class: "row tools" }, check("Only failures", (on) => { failures = on; draw(); }), bodies, el("span", { class: "push" }), hold),
    el("p", { class: "hint", id: "whose" }), table, nothing);
  live.subscribe((now) => {
    facts = now;
    const whose = element.querySelector("#whose");
    whose.textContent = now.operator ? "" : "These are the requests with your key. An admin key shows all.";
    whose.hidden = now.operator;
    draw();
  });
  return { element, shown: () => live.now() };
};
