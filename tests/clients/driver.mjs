// What the drivers for Node.js share; a driver is appended to it.

import assert from "node:assert/strict";
import { readSync, writeSync } from "node:fs";

const URL = process.env.SERVER_URL;
const V1 = `${URL}/v1`;
const MODEL = process.env.SERVER_MODEL;
const EMBEDDER = process.env.SERVER_EMBEDDER;
const QUESTION = process.env.SERVER_QUESTION;
const ANSWER = process.env.SERVER_ANSWER; // empty: nobody knows what this model says
const MESSAGES = [{ role: "user", content: QUESTION }];
const TOO_LONG = "word ".repeat(10_000);
const TIMEOUT_MS = 600_000;
const CATEGORIES = ["billing", "shipping", "technical", "account", "refund", "feature"];
const PRIORITIES = ["low", "normal", "high", "urgent"];

const PARAMETERS = {
  type: "object",
  properties: { category: { enum: CATEGORIES }, priority: { enum: PRIORITIES } },
  required: ["category", "priority"],
  additionalProperties: false,
};
const TOOL = {
  type: "function",
  function: { name: "route", description: "Send a ticket to a team.", parameters: PARAMETERS },
};

const checks = new Map();
console.log = console.info = console.error;

// A check fails if its function throws.
function check(name, run) {
  checks.set(name, run);
}

// The text is the model's answer to the question.
function same(text) {
  if (ANSWER) assert.equal(text, ANSWER);
  else assert.ok(text.trim());
}

// These are arguments of the tool.
function routed(given) {
  assert.deepEqual(Object.keys(given).sort(), ["category", "priority"]);
  assert.ok(CATEGORIES.includes(given.category), given.category);
  assert.ok(PRIORITIES.includes(given.priority), given.priority);
}

// The error that the promise rejects with.
async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  assert.fail("no error");
}

// Runs the checks, with a JSON line for each.
async function run() {
  const wanted = (process.env.SERVER_CHECKS ?? "").split(" ").filter(Boolean);
  for (const name of wanted.length ? wanted : checks.keys()) {
    let line;
    const late = new Promise((_, reject) =>
      setTimeout(reject, TIMEOUT_MS, new Error("no result in time")).unref(),
    );
    try {
      await Promise.race([checks.get(name)(), late]);
      line = { check: name, ok: true };
    } catch (error) {
      line = { check: name, ok: false, error: `${error.stack}\n${error.cause ?? ""}` };
    }
    writeSync(1, `${JSON.stringify(line)}\n`);
    readSync(0, Buffer.alloc(1)); // until it is noted what went over the wire
  }
  process.exit();
}
