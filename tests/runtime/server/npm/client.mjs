// Asks a server through the openai package, streaming and not, and prints what came back as one JSON object.
// node client.mjs BASE_URL
import { createRequire } from "node:module";

// The package is installed in the folder this runs in, not beside this file.
const OpenAI = createRequire(`${process.cwd()}/`)("openai");

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0, timeout: 30_000 });
const messages = [{ role: "user", content: "What is the opposite of hot?" }];
const asked = { model: "tiny", messages, temperature: 0 };
const parameters = {
  type: "object",
  properties: { city: { enum: ["Ulm", "Bonn"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters } }];

async function collect(stream) {
  const found = [];
  for await (const item of await stream) found.push(item);
  return found;
}

async function refused(ask) {
  try {
    await ask();
    return null;
  } catch (error) {
    return { type: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}

// Ends with the first token: the server has to stop, and the next answer has to be right.
async function left() {
  const stream = await client.chat.completions.create({ ...asked, stream: true });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  return (await client.chat.completions.create(asked)).choices[0].message.content;
}

const format = { type: "json_schema", json_schema: { name: "it", schema: parameters } };
const completion = { model: "tiny", prompt: "Once upon a time", temperature: 0, max_tokens: 3, echo: true, logprobs: 2 };
const found = {
  models: (await collect(client.models.list())).map((model) => model.id),
  model: await client.models.retrieve("tiny"),
  chat: await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 }),
  chatStream: await collect(
    client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } }),
  ),
  chatHelper: await client.chat.completions.stream(asked).finalContent(),
  tool: await client.chat.completions.create({ ...asked, tools, tool_choice: "required", max_tokens: 80 }),
  toolStream: await client.chat.completions
    .stream({ ...asked, tools, tool_choice: "required", max_tokens: 80 })
    .finalChatCompletion(),
  json: await client.chat.completions.create({ ...asked, response_format: format, max_tokens: 60 }),
  jsonStream: await client.chat.completions
    .stream({ ...asked, response_format: format, max_tokens: 60 })
    .finalContent(),
  completion: await client.completions.create(completion),
  completionStream: await collect(client.completions.create({ ...completion, stream: true })),
  response: await client.responses.create({ model: "tiny", input: messages[0].content, temperature: 0 }),
  responseStream: await collect(
    client.responses.create({ model: "tiny", input: messages[0].content, temperature: 0, stream: true }),
  ),
  left: await left(),
  unknownModel: await refused(() => client.chat.completions.create({ ...asked, model: "large" })),
  wrongValue: await refused(() => client.chat.completions.create({ ...asked, temperature: 7 })),
  tooLong: await refused(() =>
    client.chat.completions.create({ ...asked, messages: [{ role: "user", content: "hot ".repeat(3000) }], stream: true }),
  ),
  embeddings: await client.embeddings.create({ model: "encoder", input: ["one text", "and another"] }),
  noEmbedding: await refused(() => client.embeddings.create({ model: "tiny", input: "a" })),
};
console.log(JSON.stringify(found));
