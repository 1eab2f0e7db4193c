// Markdown of models as DOM nodes. It reads each character a bounded number of times, makes elements of a fixed
// list, and takes addresses of http, https and mailto only. Pictures are named, not loaded.

import { button, copy, el } from "./page.js";

const DEEPEST = 8;
const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

/** The address if a click on it does no harm, else null. */
const safeAddress = (text) => {
  try {
    const address = new URL(text);
    return ["http:", "https:", "mailto:"].includes(address.protocol) ? address.href : null;
  } catch {
    return null;
  }
};

const link = (address, children) => {
  const safe = safeAddress(address);
  return safe === null ? el("span", {}, children)
    : el("a", { href: safe, target: "_blank", rel: "noopener noreferrer nofollow", title: safe }, children);
};

const isWord = (text) => text !== undefined && /[\p{L}\p{N}]/u.test(text);

const inline = (text, depth = 0) => {
  if (depth > DEEPEST) return [text];
  const nodes = [];
  const missing = new Set(); // marks that do not come again: looked for once
  let plain = "";
  const flush = () => { if (plain) nodes.push(plain); plain = ""; };
  const find = (mark, from) => {
    if (missing.has(mark)) return -1;
    const at = text.indexOf(mark, from);
    if (at < 0) missing.add(mark);
    return at;
  };
  let at = 0;
  scan: while (at < text.length) {
    const here = text[at];
    if (here === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
      continue;
    }
    if (here === "`") {
      let wide = 1;
      while (text[at + wide] === "`") wide += 1;
      const fence = "`".repeat(wide);
      const end = find(fence, at + wide);
      if (end > 0) {
        flush();
        nodes.push(el("code", {}, text.slice(at + wide, end).replace(/^ (.+) $/, "$1")));
        at = end + wide;
      } else {
        plain += fence;
        at += wide;
      }
      continue;
    }
    if (here === "[" || (here === "!" && text[at + 1] === "[")) {
      const start = at + (here === "!" ? 2 : 1);
      const offset = text.slice(start, start + 1000).indexOf("](");
      const middle = start + offset;
      const end = offset < 0 ? -1 : find(")", middle + 2);
      if (end > 0) {
        flush();
        const label = text.slice(start, middle);
        const address = text.slice(middle + 2, end).trim().split(/\s/)[0];
        nodes.push(here === "!" ? el("span", { class: "picture" }, "Picture: ", link(address, [label || address]))
          : link(address, inline(label, depth + 1)));
        at = end + 1;
        continue;
      }
    }
    if (here === "h" && !isWord(text[at - 1]) && /^https?:\/\//.test(text.slice(at, at + 8))) {
      let end = at;
      while (end < text.length && !/[\s<>"'`]/.test(text[end])) end += 1;
      while (/[.,:;!?)\]*_]/.test(text[end - 1])) end -= 1;
      flush();
      const address = text.slice(at, end);
      nodes.push(link(address, [address]));
      at = end;
      continue;
    }
    for (const [mark, tag] of MARKS) {
      if (!text.startsWith(mark, at)) continue;
      if (mark[0] === "_" && isWord(text[at - 1])) break;
      const from = at + mark.length;
      if (/\s/.test(text[from] ?? " ")) break;
      const end = find(mark, from + 1);
      if (end < 0 || /\s/.test(text[end - 1])) break;
      flush();
      nodes.push(el(tag, {}, inline(text.slice(from, end), depth + 1)));
      at = end + mark.length;
      continue scan;
    }
    plain += here;
    at += 1;
  }
  flush();
  return nodes;
};

const lines = (text) => text.split("\n").flatMap((one, number) => (number ? [el("br"), ...inline(one)] : inline(one)));
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)]) +(.*)$/;
const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((one) => one.trim());

const code = (language, text) => el("figure", { class: "code" },
  el("figcaption", {}, language || "text", button("Copy", () => copy(text), { class: "plain small", "aria-label": "Copy the code" })),
  el("pre", { tabindex: "0" }, el("code", {}, text)));

const list = (items, depth) => {
  const ordered = /\d/.test(items[0].mark);
  return el(ordered ? "ol" : "ul", ordered ? { start: parseInt(items[0].mark, 10) } : {},
    items.map((item) => {
      const task = /^\[([ xX])\] /.exec(item.lines[0]);
      const head = task ? [task[1] === " " ? "☐ " : "☑ ", inline(item.lines[0].slice(4))] : inline(item.lines[0]);
      return el("li", {}, head, item.lines.length > 1 ? blocks(item.lines.slice(1), depth + 1) : null);
    }));
};

const blocks = (all, depth) => {
  const made = [];
  if (depth > DEEPEST) return [el("p", {}, all.join("\n"))];
  let at = 0;
  while (at < all.length) {
    const line = all[at];
    let found;
    if (!line.trim()) {
      at += 1;
    } else if ((found = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]{0,30})/.exec(line))) {
      const body = [];
      at += 1;
      while (at < all.length && !all[at].trim().startsWith(found[1])) body.push(all[at++]);
      at += 1;
      made.push(code(found[2], body.join("\n")));
    } else if ((found = /^(#{1,6}) +(.*)$/.exec(line))) {
      made.push(el("p", { class: `heading h${found[1].length}` }, inline(found[2].replace(/ +#+ *$/, ""))));
      at += 1;
    } else if (/^ {0,3}([-*_])( *\1){2,} *$/.test(line)) {
      made.push(el("hr"));
      at += 1;
    } else if (line.startsWith(">")) {
      const quoted = [];
      while (at < all.length && all[at].startsWith(">")) quoted.push(all[at++].replace(/^> ?/, ""));
      made.push(el("blockquote", {}, blocks(quoted, depth + 1)));
    } else if (line.includes("|") && /^[\s|:-]*-[\s|:-]*$/.test(all[at + 1] ?? "") && all[at + 1].includes("|")) {
      const head = cells(line);
      const rows = [];
      at += 2;
      while (at < all.length && all[at].includes("|")) rows.push(cells(all[at++]));
      made.push(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, el("table", {},
        el("thead", {}, el("tr", {}, head.map((one) => el("th", { scope: "col" }, inline(one))))),
        el("tbody", {}, rows.map((row) => el("tr", {}, head.map((_, number) => el("td", {}, inline(row[number] ?? "")))))))));
    } else if ((found = ITEM.exec(line))) {
      const indent = found[1].length;
      const ordered = /\d/.test(found[2]);
      const items = [];
      while (at < all.length) {
        const item = ITEM.exec(all[at]);
        if (item && item[1].length <= indent + 1) {
          if (item[1].length < indent || /\d/.test(item[2]) !== ordered) break;
          items.push({ mark: item[2], lines: [item[3]] });
        } else if (all[at].trim() && (all[at].startsWith(" ".repeat(indent + 2)) || item)) {
          items.at(-1).lines.push(all[at].slice(indent + 2));
        } else if (all[at].trim() || !/^ *([-*+]|\d+[.)]|  )/.test(all[at + 1] ?? "")) {
          break;
        } else {
          items.at(-1).lines.push("");
        }
        at += 1;
      }
      made.push(list(items, depth));
    } else {
      const text = [];
      while (at < all.length && all[at].trim() && !/^( {0,3}(```|~~~)|#{1,6} |>)/.test(all[at]) && !(text.length && ITEM.test(all[at])))
        text.push(all[at++].trimStart());
      if (!text.length) text.push(all[at++]);
      made.push(el("p", {}, lines(text.join("\n"))));
    }
  }
  return made;
};

/** The text of a model as elements. */
export const rendered = (text) => {
  const made = document.createDocumentFragment();
  made.append(...blocks(text.replaceAll("\r\n", "\n").split("\n"), 0));
  return made;
};
