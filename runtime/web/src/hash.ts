import { sha256 as streaming } from "@noble/hashes/sha2.js";

const CHUNK = 4 << 20;

/** sha256 of bytes in memory, by the browser. */
export async function sha256(bytes: Uint8Array): Promise<string> {
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>)));
}

/** sha256 of a file of any size, in a few MB of memory; `progress` gets the bytes of each chunk. */
export async function sha256OfFile(file: Blob, progress: (bytes: number) => void = () => undefined): Promise<string> {
  if (file.size <= CHUNK) {
    progress(file.size);
    return sha256(new Uint8Array(await file.arrayBuffer()));
  }
  const hash = streaming.create();
  for (let start = 0; start < file.size; start += CHUNK) {
    const chunk = new Uint8Array(await file.slice(start, start + CHUNK).arrayBuffer());
    hash.update(chunk);
    progress(chunk.length);
  }
  return hex(hash.digest());
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
