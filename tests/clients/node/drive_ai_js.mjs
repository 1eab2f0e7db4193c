// Vercel's AI SDK, through each of its providers that can be pointed at a server.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const compatible = createOpenAICompatible({
  name: "penstock",
  baseURL: V1,
  apiKey: "none",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: V1, apiKey: "none" });
const anthropic = createAnthropic({ baseURL: V1, apiKey: "none" });
const PROVIDERS = {
  compatible: (name) => compatible(name),
  chat: (name) => openai.chat(name),
  responses: (name) => openai.responses(name),
  anthropic: (name) => anthropic(name),
};
const Ticket = z.object({ category: z.enum(CATEGORIES), priority: z.enum(PRIORITIES) });
const Order = z.object({
  category: z.enum(CATEGORIES),
  item: z.object({ product: z.enum(["printer", "phone"]), count: z.enum(["1", "2", "3"]) }),
});

function asking(provider, more = {}) {
  return {
    model: PROVIDERS[provider](MODEL),
    prompt: QUESTION,
    temperature: 0,
    maxOutputTokens: 200,
    maxRetries: 0,
    ...more,
  };
}

// What streamText met is told to a function, not thrown.
async function streamed(options) {
  let met;
  const result = streamText({ ...options, onError: ({ error }) => (met = error) });
  await result.consumeStream();
  if (met) throw met;
  return result;
}

// Does it for each provider, and says for which one it failed.
async function each(run) {
  for (const provider of Object.keys(PROVIDERS)) {
    try {
      await run(provider);
    } catch (error) {
      error.stack = `with ${provider}: ${error.stack}`;
      throw error;
    }
  }
}

// Two steps, of which only the first must call the tool.
function steps(given) {
  const route = tool({
    description: "Send a ticket to a team.",
    inputSchema: Ticket,
    execute: async (args) => {
      given.push(args);
      return "done";
    },
  });
  return {
    tools: { route },
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
  };
}

check("chat", () =>
  each(async (provider) => {
    const answer = await generateText(asking(provider));
    same(answer.text);
    assert.ok(answer.usage.outputTokens > 0);
  }),
);

// OpenAI's provider refers to the first answer by its id.
check("conversation", () =>
  each(async (provider) => {
    const first = { role: "user", content: QUESTION };
    const { response } = await generateText(asking(provider, { prompt: undefined, messages: [first] }));
    const messages = [first, ...response.messages, first];
    same((await generateText(asking(provider, { prompt: undefined, messages }))).text);
  }),
);

check("stream", () =>
  each(async (provider) => {
    const result = await streamed(asking(provider));
    same(await result.text);
    assert.ok((await result.usage).outputTokens > 0);
  }),
);

check("tools", () =>
  each(async (provider) => {
    const given = [];
    const answer = await generateText(asking(provider, steps(given)));
    assert.equal(given.length, 1);
    routed(given[0]);
    assert.equal(answer.steps.length, 2);
    assert.ok(answer.text);
  }),
);

check("streamed_tools", () =>
  each(async (provider) => {
    const given = [];
    const result = await streamed(asking(provider, steps(given)));
    assert.equal(given.length, 1);
    routed(given[0]);
    assert.equal((await result.steps).length, 2);
  }),
);

check("structured", () =>
  each(async (provider) => {
    for (const schema of [Ticket, Order]) {
      const output = Output.object({ schema });
      schema.parse((await generateText(asking(provider, { output }))).output);
    }
  }),
);

check("streamed_structured", () =>
  each(async (provider) => {
    const output = Output.object({ schema: Order });
    Order.parse(await (await streamed(asking(provider, { output }))).output);
  }),
);

async function refused(provider, more, status, word) {
  const error = await failure(generateText(asking(provider, more)));
  assert.ok(APICallError.isInstance(error), error.stack);
  assert.equal(error.statusCode, status);
  assert.equal(error.isRetryable, false);
  assert.ok(error.message.includes(word), error.message);
}

check("wrong_model", () =>
  each((provider) =>
    refused(provider, { model: PROVIDERS[provider]("none-such") }, 404, "none-such"),
  ),
);

check("wrong_parameter", () =>
  each((provider) => refused(provider, { topP: 3, temperature: undefined }, 400, "top_p")),
);

check("long_prompt", () =>
  each((provider) => refused(provider, { prompt: TOO_LONG }, 400, "context")),
);

check("embeddings", async () => {
  for (const made of [compatible.embeddingModel(EMBEDDER), openai.embeddingModel(EMBEDDER)]) {
    const { embeddings } = await embedMany({ model: made, values: ["red fox", "blue"] });
    assert.equal(embeddings.length, 2);
    assert.ok(embeddings[0].length > 0);
  }
});

await run();
