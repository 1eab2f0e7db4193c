// The server that gave this page. The key is in this module's memory alone: a reload forgets it.

const root = new URL(".", document.baseURI);
let key = "";
let askForKey = async () => false;

export const setKey = (given) => { key = given.trim(); };
/** `asks` shows the dialog for the key, and resolves to whether one was given. */
export const onKeyNeeded = (asks) => { askForKey = asks; };

class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const send = async (path, { method = "GET", body, signal } = {}) => {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  let sent = body;
  if (body !== undefined && !(body instanceof FormData)) {
    headers["content-type"] = "application/json";
    sent = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(new URL(path, root), { method, headers, body: sent, signal, credentials: "omit", cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("the server does not answer");
  }
  if (answer.ok) return answer;
  let told = {};
  try {
    told = (await answer.json()).error ?? {};
  } catch { /* no JSON: the status says it */ }
  throw new ServerError(told.message || `the server answered ${answer.status}`, answer.status);
};

/** Ask, and ask for the key where it is missing or wrong, unless the page asks by itself (`quiet`). */
const asked = async (path, options) => {
  for (;;) {
    try {
      return await send(path, options);
    } catch (error) {
      if (error.status !== 401 || options?.quiet || !(await askForKey(error.message))) throw error;
    }
  }
};

export const getJson = async (path, options) => (await asked(path, options)).json();
export const post = async (path, body, options) => {
  const answer = await asked(path, { method: "POST", body, ...options });
  return answer.headers.get("content-type")?.includes("json") ? answer.json() : answer.text();
};
export const remove = async (path) => (await asked(path, { method: "DELETE" })).json();
export const blob = async (path) => (await asked(path)).blob();

/** The events of a streamed answer, as they come. Raises what the server tells in one. */
export async function* stream(path, body, signal) {
  const answer = await asked(path, { method: "POST", body, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message);
      yield event;
    }
  }
}
