import { AppError } from "./errors";

/** An element of index.html by its id. */
export function at<Kind extends HTMLElement = HTMLElement>(id: string): Kind {
  const found = document.getElementById(id);
  if (!found) throw new AppError(`index.html has no #${id}`);
  return found as Kind;
}

export function show(id: string, visible: boolean): void {
  at(id).hidden = !visible;
}

/** Say what went wrong and what to do; an empty message takes it away. */
export function say(message: string, hint = ""): void {
  at("message-text").textContent = message;
  at("message-hint").textContent = hint;
  show("message", message !== "");
}

/** Do something when a button is pressed; whatever goes wrong is said. */
export function onPress(id: string, act: () => Promise<void> | void): void {
  at(id).addEventListener("click", () => void attempt(act));
}

export async function attempt(act: () => Promise<void> | void): Promise<void> {
  say("");
  try {
    await act();
  } catch (cause) {
    const { message, hint = "" } = cause as Partial<AppError> & Error;
    say(message, hint);
  }
}

export function bar(id: string, share: number | null): void {
  const progress = at<HTMLProgressElement>(id);
  progress.hidden = share === null;
  if (share !== null) progress.value = share;
}

export const mb = (bytes: number): string =>
  bytes < 1e8 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.round(bytes / 1e6)} MB`;
