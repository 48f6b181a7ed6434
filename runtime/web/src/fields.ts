import { AppError } from "./errors";

/** Typed reads from JSON; whatever is not as expected is an AppError that names the file and the member. */
export class Fields {
  private readonly members: Record<string, unknown>;
  readonly where: string;

  constructor(value: unknown, where: string) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw damaged(`${where}: expected an object, found ${kind(value)}`);
    }
    this.members = value as Record<string, unknown>;
    this.where = where;
  }

  /** The raw value; undefined where there is none. */
  value(name: string): unknown {
    return Object.hasOwn(this.members, name) ? this.members[name] : undefined;
  }

  text(name: string): string {
    const value = this.value(name);
    return typeof value === "string" ? value : this.fail(name, "text", value);
  }

  /** Text, or null where the member is null or absent. */
  textOrNull(name: string): string | null {
    return this.value(name) == null ? null : this.text(name);
  }

  whole(name: string, least = 0): number {
    const value = this.value(name);
    if (typeof value === "number" && Number.isSafeInteger(value) && value >= least) return value;
    return this.fail(name, `a whole number of at least ${least}`, value);
  }

  number(name: string): number {
    const value = this.value(name);
    return typeof value === "number" && Number.isFinite(value) ? value : this.fail(name, "a number", value);
  }

  flag(name: string): boolean {
    const value = this.value(name);
    return typeof value === "boolean" ? value : this.fail(name, "true or false", value);
  }

  list(name: string): unknown[] {
    const value = this.value(name);
    return Array.isArray(value) ? value : this.fail(name, "a list", value);
  }

  wholes(name: string): number[] {
    const list = this.list(name);
    return list.every((each) => Number.isSafeInteger(each) && (each as number) >= 0)
      ? (list as number[])
      : this.fail(name, "whole numbers", list);
  }

  numbers(name: string): number[] {
    const list = this.list(name);
    return list.every((each) => typeof each === "number" && Number.isFinite(each))
      ? (list as number[])
      : this.fail(name, "numbers", list);
  }

  inner(name: string): Fields {
    return new Fields(this.value(name), `${this.where}: ${name}`);
  }

  /** The objects of a list. */
  items(name: string): Fields[] {
    return this.list(name).map((each, place) => new Fields(each, `${this.where}: ${name}[${place}]`));
  }

  names(): string[] {
    return Object.keys(this.members);
  }

  fail(name: string, expected: string, found: unknown): never {
    throw damaged(`${this.where}: ${name}: expected ${expected}, found ${kind(found)}`);
  }
}

/** Parse JSON text; `where` names it in errors. */
export function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw damaged(`${where}: not JSON (${(cause as Error).message})`);
  }
}

function damaged(message: string): AppError {
  return new AppError(
    message,
    "The site is damaged: make the bundle again, or remove the model here and install it again.",
  );
}

function kind(value: unknown): string {
  if (value === undefined) return "nothing";
  if (typeof value === "object" && value !== null) return Array.isArray(value) ? "a list" : "an object";
  return JSON.stringify(value).slice(0, 60);
}
