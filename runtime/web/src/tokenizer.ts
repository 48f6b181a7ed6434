import { Tokenizer } from "@huggingface/tokenizers";

import { AppError } from "./errors";

const REPLACEMENT = "\uFFFD";
const SCENE = 4; // pieces of text that a decoder looks back at

/** Text to token ids and back by the checkpoint's `tokenizer.json`. */
export class TextTokens {
  private readonly inner: Tokenizer;
  private readonly byteLevel: boolean;
  private readonly special = new Set<string>();

  constructor(tokenizer: Record<string, unknown>, config: Record<string, unknown>) {
    try {
      // What is cleaned up after decoding is transformers' habit; the runtime's `tokenizers` does not.
      this.inner = new Tokenizer(tokenizer, { ...config, clean_up_tokenization_spaces: false });
    } catch (cause) {
      throw new AppError(`tokenizer.json cannot be read: ${(cause as Error).message}`, "Export the artifact again.");
    }
    this.byteLevel = (tokenizer.decoder as { type?: string } | null)?.type === "ByteLevel";
    for (const token of this.inner.get_added_tokens_decoder().values()) {
      if (token.special) this.special.add(token.content);
    }
  }

  /** Ids of `text` without anything put around it: a rendered template has it. */
  encode(text: string): number[] {
    return this.inner.encode(text, { add_special_tokens: false }).ids;
  }

  /** Text of `ids`, special tokens left out. */
  decode(ids: readonly number[]): string {
    if (!this.byteLevel) return ids.length ? this.inner.decode([...ids], { skip_special_tokens: true }) : "";
    const stream = this.detokenizer();
    return ids.map((id) => stream.push(id)).join("") + stream.flush();
  }

  /** A fresh stream whose joined output equals `decode` of all its tokens. */
  detokenizer(): Detokenizer {
    return this.byteLevel
      ? new ByteDetokenizer((id) => this.bytesOf(id))
      : new WindowDetokenizer((ids) => this.decode(ids));
  }

  private bytesOf(id: number): Uint8Array {
    const token = this.inner.id_to_token(id);
    if (token === undefined || this.special.has(token)) return new Uint8Array();
    const bytes = Array.from(token, (letter) => BYTE_OF.get(letter));
    // An added token is spelled as plain text.
    return bytes.includes(undefined) ? new TextEncoder().encode(token) : Uint8Array.from(bytes as number[]);
  }
}

/** Text of a growing list of tokens: whole characters only. */
export interface Detokenizer {
  push(id: number): string;
  flush(): string;
}

class ByteDetokenizer implements Detokenizer {
  private readonly decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(private readonly bytesOf: (id: number) => Uint8Array) {}

  push(id: number): string {
    return this.decoder.decode(this.bytesOf(id) as Uint8Array<ArrayBuffer>, { stream: true });
  }

  flush(): string {
    return this.decoder.decode();
  }
}

/** As edgeship_runtime.decode.WindowDetokenizer: decodes what is new after a few pieces that set the scene. */
class WindowDetokenizer implements Detokenizer {
  private scene: number[][] = [];
  private fresh: number[] = [];

  constructor(private readonly decode: (ids: readonly number[]) => string) {}

  push(id: number): string {
    this.fresh.push(id);
    const text = this.added();
    return text.endsWith(REPLACEMENT) ? "" : this.emit(text);
  }

  flush(): string {
    return this.emit(this.added());
  }

  private added(): string {
    const scene = this.scene.flat();
    return this.decode([...scene, ...this.fresh]).slice(this.decode(scene).length);
  }

  private emit(text: string): string {
    if (text) {
      this.scene = [...this.scene, this.fresh].slice(-SCENE);
      this.fresh = [];
    }
    return text;
  }
}

/** Letter to byte as GPT-2's encoder.py `bytes_to_unicode` has it: printable Latin-1 is itself, the rest follow. */
const BYTE_OF = new Map<string, number>();
let next = 256;
for (let byte = 0; byte < 256; byte++) {
  const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  BYTE_OF.set(String.fromCharCode(printable ? byte : next++), byte);
}
