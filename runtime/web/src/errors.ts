/** What went wrong and, in `hint`, what to do about it; every failure that a person sees is one of these. */
export class AppError extends Error {
  readonly hint: string;

  constructor(message: string, hint = "") {
    super(message);
    this.name = "AppError";
    this.hint = hint;
  }
}

/** Whatever was thrown, as an AppError. */
export function asAppError(cause: unknown): AppError {
  if (cause instanceof AppError) return cause;
  if ((cause as Partial<Error> | null)?.name === "QuotaExceededError") return noRoom();
  const text = cause instanceof Error ? cause.message || cause.name : String(cause);
  return ranOut(text) ? outOfMemory(text) : new AppError(text.slice(0, 400), "Reload the page and try again.");
}

/** Browsers say how much room there is, some of them more than there is: writing may fail all the same. */
export function noRoom(): AppError {
  return new AppError(
    "The browser gives this page no more room for the model's files.",
    "Free space on the device, leave private browsing, or choose a smaller model. What has arrived is kept: press Resume then.",
  );
}

/** Words with which browsers and engines say that memory ran out. */
export function ranOut(text: string): boolean {
  return /out of memory|bad_alloc|allocation failed|cannot allocate|could not allocate|failed to allocate|cannot enlarge|\boom\b/i.test(
    text,
  );
}

/** An error that says what to choose instead. */
export function outOfMemory(text: string): AppError {
  return new AppError(
    `The browser has not enough memory for this model (${text.slice(0, 160)}).`,
    "Close other tabs, choose a smaller context or the WASM backend in Settings, or use a smaller model.",
  );
}
