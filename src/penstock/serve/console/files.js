// Files: what is there, sending one, fetching one, deleting one. Names are text, whatever they contain.

import { badge, button, bytes, confirmed, day, doing, el, empty, field, note } from "./page.js";
import * as server from "./server.js";

const PAGE = 20;

/** Where the content of a file is. */
export const contentOf = (id) => `v1/files/${encodeURIComponent(id)}/content`;

/** Have the browser keep what is at a path of the server. */
export const download = (path, name) => server.blob(path).then((content) => {
  const address = URL.createObjectURL(content);
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
});

/** Send a file to the server; resolves to what is known of it then. */
export const upload = (file) => {
  const form = new FormData();
  form.append("purpose", "batch");
  form.append("file", file);
  return server.post("v1/files", form);
};

export const filesPart = () => {
  const list = el("div");
  const more = button("More", () => doing(more, () => load(true)));
  const picked = el("input", { type: "file", accept: ".jsonl,application/jsonl" });
  let files = [];
  const form = el("form", { class: "row", onsubmit: (event) => {
    event.preventDefault();
    if (!picked.files.length) { note("Choose a file first", "bad"); return; }
    doing(event.submitter, async () => {
      const made = await upload(picked.files[0]);
      note(`${made.filename} is there`);
      picked.value = "";
      await load();
    });
  } }, field("A file of lines (JSONL)", picked), el("button", { type: "submit" }, "Upload"));
  const drop = async (event, one) => {
    if (!(await confirmed(`Delete ${one.filename}?`, "The file is gone then, for everybody with your key.", "Delete"))) return;
    await doing(event.target, async () => {
      await server.remove(`v1/files/${encodeURIComponent(one.id)}`);
      await load();
    });
  };
  const draw = () => {
    list.replaceChildren(files.length ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of files" }, el("table", {},
      el("thead", {}, el("tr", {}, ["Name", "Purpose", "Size", "Made", "Expires", ""].map((name, at) => el("th", { scope: "col", class: at === 2 ? "number" : "" }, name || el("span", { class: "unseen" }, "Actions"))))),
      el("tbody", {}, files.map((one) => el("tr", {}, el("td", { class: "name", title: one.id }, one.filename), el("td", {}, badge(one.purpose.replaceAll("_", " "))),
        el("td", { class: "number" }, bytes(one.bytes)), el("td", {}, day(one.created_at)), el("td", {}, day(one.expires_at)),
        el("td", { class: "actions" }, button("Download", (event) => doing(event.target, () => download(contentOf(one.id), one.filename)), { class: "plain small", "aria-label": `Download ${one.filename}` }),
          button("Delete", (event) => drop(event, one), { class: "plain small", "aria-label": `Delete ${one.filename}` })))))))
      : empty("No files", "Files of lines for batches, and the answers of batches, are listed here."));
  };
  const load = async (further = false) => {
    const after = further && files.length ? `&after=${encodeURIComponent(files.at(-1).id)}` : "";
    const page = await server.getJson(`v1/files?limit=${PAGE}${after}`);
    files = further ? [...files, ...page.data] : page.data;
    more.hidden = !page.has_more;
    draw();
  };
  more.hidden = true;
  return { element: el("section", { "aria-labelledby": "files-title" }, el("h2", { id: "files-title" }, "Files"), form, list, more), load };
};
