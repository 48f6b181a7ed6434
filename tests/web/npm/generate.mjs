// What @huggingface/transformers makes of a model folder: one JSON line on standard output.
// node generate.mjs FOLDER MODEL DTYPE REQUESTS, where REQUESTS is JSON: [{"messages": [...], "tokens": n}, ...]
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

const [folder, name, dtype, requests] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = folder;

const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype });
const answers = [];
for (const { messages, tokens } of JSON.parse(requests)) {
  const text = tokenizer.apply_chat_template(messages, { add_generation_prompt: true, tokenize: false });
  const inputs = tokenizer(text, { add_special_tokens: false });
  const output = await model.generate({ ...inputs, max_new_tokens: tokens, do_sample: false, repetition_penalty: 1 });
  const ids = Array.from(output.data, Number);
  const prompt = inputs.input_ids.dims[1];
  answers.push({ text, prompt: ids.slice(0, prompt), ids: ids.slice(prompt) });
}
console.log(JSON.stringify(answers));
