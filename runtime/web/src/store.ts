import { AppError } from "./errors";
import { parseSite, type Site } from "./site";

const ROOT = "models";
// The last file written: a folder without it is not whole.
const MARK = "installed.json";
const WRITTEN_BY_ANOTHER = "Another tab is using the model's files. Close the other tabs of this page and try again.";

/** A file that is open for writing in a worker, as browsers give it (File System Standard). */
export interface SyncFile {
  read(into: Uint8Array, options: { at: number }): number;
  write(from: Uint8Array, options: { at: number }): number;
  truncate(size: number): void;
  getSize(): number;
  flush(): void;
  close(): void;
}

/** The models that this browser holds, in its origin-private file system: models/DIGEST/NAME. */
export class Store {
  private constructor(private readonly root: FileSystemDirectoryHandle) {}

  static async open(): Promise<Store> {
    try {
      const top = await navigator.storage.getDirectory();
      return new Store(await top.getDirectoryHandle(ROOT, { create: true }));
    } catch (cause) {
      throw new AppError(
        `This browser does not let the page keep files (${(cause as Error).message}).`,
        "Leave private browsing, allow site data for this page, or use a newer browser.",
      );
    }
  }

  /** The site of the model that is installed whole; null where there is none. */
  async installed(): Promise<Site | null> {
    for await (const digest of this.digests()) {
      const folder = await this.root.getDirectoryHandle(digest);
      try {
        const file = await (await folder.getFileHandle(MARK)).getFile();
        const site = parseSite(await file.text());
        if (site.digest === digest) return site;
      } catch {
        continue; // not whole: a download that was cut, or a mark that was
      }
    }
    return null;
  }

  /** Bytes on the disk of the files of a site. */
  async storedBytes(site: Site): Promise<number> {
    let sum = 0;
    for (const file of site.files) sum += Math.min((await this.find(site.digest, file.name))?.size ?? 0, file.size);
    return sum;
  }

  /** A file's content, null where it is not there. */
  async find(digest: string, name: string): Promise<File | null> {
    try {
      return await (await this.handle(digest, name, false)).getFile();
    } catch {
      return null;
    }
  }

  async file(digest: string, name: string): Promise<File> {
    const found = await this.find(digest, name);
    if (!found) throw new AppError(`${name} is not on this device.`, "Remove the model and install it again.");
    return found;
  }

  async text(digest: string, name: string): Promise<string> {
    return (await this.file(digest, name)).text();
  }

  /** Open a file for writing; no other tab can while it is open. */
  write(digest: string, name: string): Promise<SyncFile> {
    return this.open(digest, name, "readwrite");
  }

  /** Open a file for reading at any place. */
  read(digest: string, name: string): Promise<SyncFile> {
    return this.open(digest, name, "read-only");
  }

  private async open(digest: string, name: string, mode: "readwrite" | "read-only"): Promise<SyncFile> {
    const handle = (await this.handle(digest, name, mode === "readwrite")) as FileSystemFileHandle & {
      createSyncAccessHandle?: (options: { mode: string }) => Promise<SyncFile>;
    };
    if (!handle.createSyncAccessHandle)
      throw new AppError("This browser cannot write large files.", "Use a newer browser.");
    try {
      return await handle.createSyncAccessHandle({ mode });
    } catch (cause) {
      if ((cause as DOMException).name === "NoModificationAllowedError")
        throw new AppError(`${name} is in use.`, WRITTEN_BY_ANOTHER);
      throw cause;
    }
  }

  /** Say that every file of the site is there, and let go of all other models. */
  async finish(site: Site, json: string): Promise<void> {
    const file = await this.write(site.digest, MARK);
    file.truncate(0);
    file.write(new TextEncoder().encode(json), { at: 0 });
    file.flush();
    file.close();
    for await (const digest of this.digests()) if (digest !== site.digest) await this.drop(digest);
  }

  /** Remove every model and what is left of downloads. */
  async clear(): Promise<void> {
    for await (const digest of this.digests()) await this.drop(digest);
  }

  private async drop(digest: string): Promise<void> {
    try {
      const folder = await this.root.getDirectoryHandle(digest);
      await folder.removeEntry(MARK).catch(() => undefined); // first: what is half removed is not installed
      await this.root.removeEntry(digest, { recursive: true });
    } catch (cause) {
      throw new AppError(`The model's files cannot be removed (${(cause as Error).message}).`, WRITTEN_BY_ANOTHER);
    }
  }

  private async *digests(): AsyncGenerator<string> {
    const names: string[] = [];
    for await (const [name, handle] of this.root.entries()) if (handle.kind === "directory") names.push(name);
    yield* names.sort();
  }

  private async handle(digest: string, name: string, create: boolean): Promise<FileSystemFileHandle> {
    const parts = name.split("/");
    let folder = await this.root.getDirectoryHandle(digest, { create });
    for (const part of parts.slice(0, -1)) folder = await folder.getDirectoryHandle(part, { create });
    return folder.getFileHandle(parts.at(-1)!, { create });
  }
}
