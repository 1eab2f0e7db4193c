// The editor of an answer's JSON Schema: fields for the simple ones, text for all.

import { button, check, el, field } from "./page.js";

const TYPES = { string: "text", integer: "whole number", number: "number", boolean: "yes or no", choice: "one of", list: "list of texts" };
const START = {
  type: "object",
  properties: { category: { enum: ["billing", "shipping", "technical"] }, urgent: { type: "boolean" } },
  required: ["category", "urgent"],
  additionalProperties: false,
};

const schemaOf = (row) => {
  if (row.type === "choice") return { enum: row.options.split(",").map((one) => one.trim()).filter(Boolean) };
  return row.type === "list" ? { type: "array", items: { type: "string" } } : { type: row.type };
};

const rowOf = (name, schema, required) => {
  const keys = Object.keys(schema).join();
  const row = { name, required, options: "", type: "" };
  if (keys === "enum" && schema.enum.every((one) => typeof one === "string")) Object.assign(row, { type: "choice", options: schema.enum.join(", ") });
  else if (keys === "type" && schema.type in TYPES && !["choice", "list"].includes(schema.type)) row.type = schema.type;
  else if (keys === "type,items" && JSON.stringify(schema.items) === '{"type":"string"}') row.type = "list";
  return row.type ? row : null;
};

/** The rows that say all of a schema, or null if it says more than rows can. */
const rowsOf = (schema) => {
  const known = ["type", "properties", "required", "additionalProperties"];
  if (schema?.type !== "object" || !Object.keys(schema).every((one) => known.includes(one))) return null;
  const rows = Object.entries(schema.properties ?? {}).map(([name, one]) => rowOf(name, one ?? {}, (schema.required ?? []).includes(name)));
  return rows.includes(null) ? null : rows;
};

/** An editor: `element`, and `value()`, which gives the schema and raises where the text is none. */
export const schemaEditor = () => {
  const text = el("textarea", { class: "mono", rows: "9", spellcheck: "false", value: JSON.stringify(START, null, 2) });
  const fault = el("p", { class: "hint bad", role: "status" });
  const table = el("div", { class: "schema-rows" });
  const parsed = () => {
    const schema = JSON.parse(text.value);
    if (typeof schema !== "object" || schema === null || Array.isArray(schema)) throw new Error("a schema is a JSON object");
    return schema;
  };
  let rows = [];
  const write = () => {
    text.value = JSON.stringify({
      type: "object",
      properties: Object.fromEntries(rows.filter((row) => row.name).map((row) => [row.name, schemaOf(row)])),
      required: rows.filter((row) => row.name && row.required).map((row) => row.name),
      additionalProperties: false,
    }, null, 2);
    fault.textContent = "";
  };
  const show = () => {
    table.replaceChildren(...rows.map((row, number) => {
      const options = el("input", { "aria-label": "Options, with commas", placeholder: "a, b, c", value: row.options, oninput: (event) => { row.options = event.target.value; write(); } });
      options.hidden = row.type !== "choice";
      return el("div", { class: "schema-row", role: "group", "aria-label": `Field ${row.name || number + 1}` },
        el("input", { "aria-label": "Name", placeholder: "name", value: row.name, oninput: (event) => { row.name = event.target.value; write(); } }),
        el("select", { "aria-label": "Type", onchange: (event) => { row.type = event.target.value; options.hidden = row.type !== "choice"; write(); } },
          Object.entries(TYPES).map(([type, name]) => el("option", { value: type, selected: row.type === type }, name))),
        options,
        check("needed", (on) => { row.required = on; write(); }, { checked: row.required }),
        button("Remove", () => { rows.splice(number, 1); write(); show(); }, { class: "plain small", "aria-label": `Remove the field ${row.name || number + 1}` }));
    }), button("Add a field", () => {
      rows.push({ name: "", type: "string", required: true, options: "" });
      show();
      table.querySelectorAll(".schema-row").item(rows.length - 1).querySelector("input").focus();
    }, { class: "small" }));
  };
  const read = () => {
    try {
      const found = rowsOf(parsed());
      fault.textContent = "";
      if (found) { rows = found; show(); }
      else table.replaceChildren(el("p", { class: "hint" }, "This schema says more than fields can: edit it as JSON."));
    } catch (error) {
      fault.textContent = `No schema: ${error.message}`;
    }
  };
  text.addEventListener("input", read);
  read();
  return {
    element: el("div", { class: "schema" }, table, el("details", {}, el("summary", {}, "As JSON"), field("JSON Schema", text), fault)),
    value: () => {
      try {
        return parsed();
      } catch (error) {
        throw new Error(`the schema is no JSON: ${error.message}`);
      }
    },
  };
};
