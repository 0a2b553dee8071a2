// OpenAI's JavaScript client against a server of mixtures: node client.mjs URL KEY
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.argv[3] });
const model = "a + b > synthesize(c)";
const messages = [{ role: "user", content: "Where?" }];
const whole = await client.chat.completions.create({ model, messages });
let streamed = "";
const stream = await client.chat.completions.create({ model, messages, stream: true });
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
const response = await client.responses.create({ model, input: "Where?" });
const models = [];
for await (const one of client.models.list()) models.push(one.id);
let refused = 0;
try {
  await client.chat.completions.create({ model: "absent", messages });
} catch (error) {
  refused = error.status;
}
console.log(JSON.stringify({
  whole: whole.choices[0].message.content,
  streamed,
  response: response.output_text,
  models,
  refused,
}));
