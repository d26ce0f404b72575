/** What the server says when it refuses: `application/problem+json`. */
export class StepwellError extends Error {
  override readonly name = "StepwellError";

  constructor(
    /** The HTTP status. */
    readonly status: number,
    /** A stable identifier, such as `run_ended`. */
    readonly code: string,
    /** A sentence for people. */
    detail: string,
    /** Everything that came with it, such as `problems` or `first_seq`. */
    readonly problem: Readonly<Record<string, unknown>>,
    /** How long the server wants to be left alone, in milliseconds (`Retry-After`). */
    readonly retryAfterMs?: number,
  ) {
    super(detail);
  }

  /** Whether asking again later can help: the server is busy, on its way up or on its way down. */
  get isTransient(): boolean {
    return this.status >= 500 || this.status === 429 || this.status === 408;
  }

  /** Whether a new token can help. */
  get isStale(): boolean {
    return this.code === "expired_token" || this.code === "invalid_token";
  }
}

/** A refusal as an error. What is no problem document still has a status. */
export async function errorOf(response: Response): Promise<StepwellError> {
  const text = await response.text().catch(() => "");
  let problem: Record<string, unknown> = {};
  try {
    const parsed: unknown = JSON.parse(text);
    if (typeof parsed === "object" && parsed !== null) problem = parsed as Record<string, unknown>;
  } catch {
    // A proxy's page, or nothing.
  }
  const word = (name: string): string | undefined => {
    const value = problem[name];
    return typeof value === "string" ? value : undefined;
  };
  const code = word("code") ?? "http_" + response.status;
  const seconds = Number(response.headers.get("retry-after") ?? Number.NaN);
  const retryAfterMs = Number.isFinite(seconds) && seconds >= 0 ? seconds * 1_000 : undefined;
  return new StepwellError(response.status, code, word("detail") ?? `HTTP ${response.status}`, problem, retryAfterMs);
}
