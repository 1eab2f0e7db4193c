// OpenAI's client for JavaScript.

import OpenAI, { toFile } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: V1, apiKey: "none", maxRetries: 0 });
const ASK = { model: MODEL, messages: MESSAGES, temperature: 0, max_tokens: 200 };
const FORCED = { type: "function", function: { name: "route" } };
const Ticket = z.object({ category: z.enum(CATEGORIES), priority: z.enum(PRIORITIES) });
const Order = z.object({
  category: z.enum(CATEGORIES),
  item: z.object({ product: z.enum(["printer", "phone"]), count: z.int().min(1).max(3) }),
});

check("models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes(MODEL));
});

check("chat", async () => {
  const answer = await client.chat.completions.create(ASK);
  same(answer.choices[0].message.content);
  assert.ok(answer.usage.completion_tokens > 0);
  assert.ok(answer._request_id);
});

check("stream", async () => {
  let text = "";
  const options = { include_usage: true };
  const chunks = client.chat.completions.stream({ ...ASK, stream_options: options });
  for await (const chunk of chunks) text += chunk.choices[0]?.delta.content ?? "";
  same(text);
  assert.equal(await chunks.finalContent(), text);
  assert.ok((await chunks.totalUsage()).completion_tokens > 0);
});

async function told(message) {
  assert.equal(message.tool_calls.length, 1);
  const [call] = message.tool_calls;
  assert.equal(call.function.name, "route");
  routed(JSON.parse(call.function.arguments));
  const result = { role: "tool", tool_call_id: call.id, content: "done" };
  const answer = await client.chat.completions.create({
    ...ASK,
    messages: [...MESSAGES, message, result],
    tools: [TOOL],
    tool_choice: "none",
  });
  assert.ok(answer.choices[0].message.content);
}

check("tools", async () => {
  const ask = { ...ASK, tools: [TOOL], tool_choice: FORCED };
  const answer = await client.chat.completions.create(ask);
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  await told(answer.choices[0].message);
});

check("streamed_tools", async () => {
  const ask = { ...ASK, tools: [TOOL], tool_choice: "required" };
  const answer = await client.chat.completions.stream(ask).finalChatCompletion();
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  await told(answer.choices[0].message);
});

check("tool_runner", async () => {
  let given;
  const run = (args) => {
    given = args;
    return "done";
  };
  const tool = { ...TOOL, function: { ...TOOL.function, function: run, parse: JSON.parse } };
  const ask = { ...ASK, tools: [tool], tool_choice: FORCED };
  await client.chat.completions.runTools(ask).done();
  routed(given);
});

check("structured", async () => {
  for (const [name, kind] of Object.entries({ Ticket, Order })) {
    const ask = { ...ASK, response_format: zodResponseFormat(kind, name) };
    const answer = await client.chat.completions.parse(ask);
    kind.parse(answer.choices[0].message.parsed);
  }
});

check("responses", async () => {
  const ask = { model: MODEL, input: QUESTION, temperature: 0, max_output_tokens: 100 };
  same((await client.responses.create(ask)).output_text);
  let text = "";
  const events = client.responses.stream(ask);
  for await (const event of events) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  same(text);
  assert.equal((await events.finalResponse()).output_text, text);
});

check("responses_tools", async () => {
  const tool = { type: "function", name: "route", parameters: PARAMETERS, strict: true };
  const ask = { model: MODEL, temperature: 0, max_output_tokens: 100, tools: [tool] };
  const events = client.responses.stream({ ...ask, input: QUESTION, tool_choice: "required" });
  const [call] = (await events.finalResponse()).output;
  routed(JSON.parse(call.arguments));
  const result = { type: "function_call_output", call_id: call.call_id, output: "done" };
  const { parsed_arguments: _, ...said } = call;
  const again = { ...ask, input: [...MESSAGES, said, result], tool_choice: "none" };
  assert.ok((await client.responses.create(again)).output_text);
});

check("responses_structured", async () => {
  const answer = await client.responses.parse({
    model: MODEL,
    input: QUESTION,
    temperature: 0,
    max_output_tokens: 100,
    text: { format: zodTextFormat(Ticket, "ticket") },
  });
  Ticket.parse(answer.output_parsed);
});

check("embeddings", async () => {
  const ask = { model: EMBEDDER, input: ["red fox", "blue"] };
  const packed = await client.embeddings.create(ask); // as base64
  const floats = await client.embeddings.create({ ...ask, encoding_format: "float" });
  assert.ok(packed.data[0].embedding.length > 0);
  for (const [index, item] of floats.data.entries()) {
    const other = packed.data[index].embedding;
    assert.ok(item.embedding.every((value, at) => Math.abs(value - other[at]) < 1e-6));
  }
});

const CHAT = "/v1/chat/completions";

// A file with these requests, by their names.
function lines(bodies) {
  const made = Object.entries(bodies).map(([custom_id, body]) =>
    JSON.stringify({ custom_id, method: "POST", url: CHAT, body }),
  );
  return toFile(Buffer.from(made.join("\n")), "lines.jsonl");
}

async function begun(bodies, more = {}) {
  const file = await client.files.create({ file: await lines(bodies), purpose: "batch" });
  const ask = { input_file_id: file.id, endpoint: CHAT, completion_window: "24h", ...more };
  return client.batches.create(ask);
}

async function ended(batch) {
  while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    batch = await client.batches.retrieve(batch.id);
  }
  return batch;
}

async function read(id) {
  const text = await (await client.files.content(id)).text();
  return text.trim().split("\n").map((line) => JSON.parse(line));
}

check("batches", async () => {
  const bodies = { good: ASK, bad: { ...ASK, temperature: 7 } };
  const batch = await ended(await begun(bodies, { metadata: { run: "1" } }));
  assert.equal(batch.status, "completed");
  assert.deepEqual(batch.metadata, { run: "1" });
  const { total, completed, failed } = batch.request_counts;
  assert.deepEqual([total, completed, failed], [2, 1, 1]);
  const [answer] = await read(batch.output_file_id);
  assert.equal(answer.custom_id, "good");
  same(answer.response.body.choices[0].message.content);
  const [error] = await read(batch.error_file_id);
  assert.deepEqual([error.custom_id, error.response.status_code], ["bad", 400]);
  const listed = [];
  for await (const one of client.batches.list({ limit: 1 })) listed.push(one.id);
  assert.ok(listed.includes(batch.id));
  const names = [];
  for await (const file of client.files.list({ purpose: "batch", limit: 1 })) names.push(file.id);
  assert.ok(names.includes(batch.input_file_id));
  assert.ok((await client.files.delete(batch.input_file_id)).deleted);
});

check("cancelled_batch", async () => {
  const bodies = {};
  for (let number = 0; number < 2000; number += 1) bodies[number] = { ...ASK, seed: number };
  const batch = await begun(bodies);
  assert.equal((await client.batches.cancel(batch.id)).status, "cancelling");
  const { status, error_file_id } = await ended(batch);
  assert.equal(status, "cancelled");
  for (const line of await read(error_file_id)) assert.equal(line.error.code, "batch_cancelled");
});

check("wrong_batch", async () => {
  const batch = await ended(await begun({ one: { ...ASK, model: "none-such" } }));
  assert.equal(batch.status, "failed");
  assert.deepEqual([batch.errors.data[0].line, batch.errors.data[0].param], [1, "body.model"]);
  const error = await failure(client.batches.retrieve("batch_none"));
  assert.ok(error instanceof OpenAI.NotFoundError);
});

check("wrong_model", async () => {
  const error = await failure(client.chat.completions.create({ ...ASK, model: "none-such" }));
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.param, "model");
});

check("wrong_parameter", async () => {
  const error = await failure(client.chat.completions.create({ ...ASK, top_p: 3 }));
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "top_p");
});

check("long_prompt", async () => {
  const messages = [{ role: "user", content: TOO_LONG }];
  const error = await failure(client.chat.completions.create({ ...ASK, messages }));
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.code, "context_length_exceeded");
});

await run();
