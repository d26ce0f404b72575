import { errorOf, StepwellError } from "./errors.js";
import { type ChannelEvent, isTerminal, type RunEvent } from "./events.js";
import { FrameParser } from "./sse.js";

/**
 * What opens a stream: the text of a token or key, or something that gets one, again as the old one expires. What it throws
 * ends the stream, unless it is the network's (`TypeError`) or a server's that is busy.
 */
export type Credential = string | ((why: "first" | "expired") => string | Promise<string>);

/** How to follow. */
export interface SubscribeOptions {
  /** Begin behind this position (`seq` of a run, `cursor` of a channel); 0 begins with the first. */
  readonly after?: number;
  /** Only updates on these topics. Events that are no updates are not affected. */
  readonly topics?: readonly string[];
  /** Only events of these kinds; the run's end always comes. For runs. */
  readonly kinds?: readonly string[];
  /** Only what happens in this run. For channels. */
  readonly run?: string;
  /** Only what happens in runs of this workflow. For channels. */
  readonly workflow?: string;
  /** Only what happens in runs that were started with this. For channels. */
  readonly correlation?: string;
  /** Ends the iteration. */
  readonly signal?: AbortSignal;
  /** Told when the connection is there, and when it is lost and why. For a mark in a corner, not for decisions. */
  readonly onConnection?: (state: { readonly connected: boolean; readonly error?: unknown }) => void;
  /** A connection that says nothing for so long is dead: the server says something every 15 s. Milliseconds, 45,000. */
  readonly silenceMs?: number;
  /** The longest wait before coming back. Milliseconds, 15,000. */
  readonly backoffMaxMs?: number;
}

/** What a stream needs to know of its surroundings. */
export interface StreamTarget {
  readonly url: string;
  readonly credential: Credential;
  readonly fetch: typeof fetch;
}

/** What the server asks for, until it says otherwise. */
const RETRY_MS = 1_000;
const SILENCE_MS = 45_000;
const BACKOFF_MAX_MS = 15_000;
/** After so many attempts in a row without an answer a new token is asked for. */
const UNANSWERED = 3;
/** So many new tokens in a row that are refused are enough to know that the next will be too. */
const STALE_TOKENS = 3;

type Position<E> = (event: E) => number;

/**
 * Follows a run: every event once, in order, through cut connections, restarts of the server and tokens that expire. Ends
 * after the run's terminal event, and at no other time but by its signal or by an error that will not go away.
 */
export function followRun(target: StreamTarget, options: SubscribeOptions): AsyncGenerator<RunEvent, void, undefined> {
  return follow<RunEvent>(target, options, (event) => event.seq, isTerminal);
}

/** Follows a channel, which has no end. */
export function followChannel(
  target: StreamTarget,
  options: SubscribeOptions,
): AsyncGenerator<ChannelEvent, void, undefined> {
  return follow<ChannelEvent>(target, options, (event) => event.cursor, () => false);
}

async function* follow<E>(
  target: StreamTarget,
  options: SubscribeOptions,
  position: Position<E>,
  isLast: (event: E) => boolean,
): AsyncGenerator<E, void, undefined> {
  const { signal } = options;
  let last = options.after ?? 0;
  let retryMs = RETRY_MS;
  // Attempts since something was heard, and those of them that got no answer at all.
  let failures = 0;
  let unanswered = 0;
  // New tokens that were refused too.
  let stale = 0;
  let token: string | undefined;
  let why: "first" | "expired" = "first";
  const isOver = (): boolean => signal?.aborted === true;
  while (!isOver()) {
    const connection = new AbortController();
    const stop = (): void => connection.abort();
    signal?.addEventListener("abort", stop, { once: true });
    let error: unknown;
    try {
      token ??= await credential(target, why);
      const heard = (): void => {
        failures = 0;
        unanswered = 0;
        stale = 0;
      };
      for await (const event of connect<E>(target, token, last, options, connection, heard, (ms) => (retryMs = ms))) {
        // The server repeats nothing; a proxy that does must not be able to.
        if (position(event) <= last) continue;
        last = position(event);
        yield event;
        if (isLast(event)) return;
      }
    } catch (caught) {
      error = caught;
      if (caught instanceof NothingFollows) return;
      if (caught instanceof Refused) throw caught.cause;
      if (caught instanceof StepwellError && !caught.isTransient) {
        if (!isStale(caught) || typeof target.credential === "string" || stale >= STALE_TOKENS) throw caught;
        [token, why] = [undefined, "expired"];
        // A new token is tried at once, but not again and again.
        if (stale++ === 0) continue;
      } else if (!(caught instanceof StepwellError)) {
        unanswered += 1;
      }
    } finally {
      signal?.removeEventListener("abort", stop);
      // Whoever leaves the loop leaves the connection.
      connection.abort();
    }
    if (isOver()) return;
    // In a page of another origin, a token whose key was replaced looks like a network that is not there.
    if (unanswered >= UNANSWERED && typeof target.credential !== "string") [token, why, unanswered] = [undefined, "expired", 0];
    options.onConnection?.(error === undefined ? { connected: false } : { connected: false, error });
    const backoff = Math.min(retryMs * 2 ** Math.min(failures++, 10), options.backoffMaxMs ?? BACKOFF_MAX_MS);
    const asked = error instanceof StepwellError ? (error.retryAfterMs ?? 0) : 0;
    // Half of it at random, so that all who were cut off at once do not come back at once.
    await pause(Math.max(backoff * (0.5 + Math.random() / 2), asked), signal);
  }
}

/** Whether a new token can be the answer. */
function isStale(error: StepwellError): boolean {
  return error.code === "expired_token" || error.code === "invalid_token";
}

/** The run has ended, and everything up to its end was seen before. */
class NothingFollows extends Error {}

/** Whoever gives tokens says no, which is `cause`. */
class Refused extends Error {}

async function* connect<E>(
  target: StreamTarget,
  token: string,
  after: number,
  options: SubscribeOptions,
  connection: AbortController,
  onHeard: () => void,
  onRetry: (ms: number) => void,
): AsyncGenerator<E, void, undefined> {
  const query = new URLSearchParams();
  if (after > 0) query.set("after", String(after));
  if (options.topics !== undefined) query.set("topics", options.topics.join(","));
  if (options.kinds !== undefined) query.set("kinds", options.kinds.join(","));
  for (const name of ["run", "workflow", "correlation"] as const) {
    const value = options[name];
    if (value !== undefined) query.set(name, value);
  }
  const url = query.size > 0 ? `${target.url}?${query}` : target.url;
  const silent = watchdog(options.silenceMs ?? SILENCE_MS, connection);
  try {
    const response = await target.fetch(url, {
      headers: { accept: "text/event-stream", authorization: `Bearer ${token}` },
      cache: "no-store",
      signal: connection.signal,
    });
    if (response.status === 204) throw new NothingFollows();
    if (!response.ok) throw await errorOf(response);
    const type = response.headers.get("content-type") ?? "";
    // Such as the page on which a hotel wants its guests to log in.
    if (response.body === null || !type.startsWith("text/event-stream")) throw new TypeError(`the answer is ${type || "nothing"}, not a stream`);
    options.onConnection?.({ connected: true });
    const parser = new FrameParser();
    const reader = response.body.getReader();
    for (;;) {
      silent.listen();
      const { done, value } = await reader.read();
      // The silence of whoever takes the events is not the connection's.
      silent.stop();
      if (done) return; // cut, or the server stops: the run's end is an event
      onHeard();
      for (const frame of parser.push(value)) {
        if (frame.retry !== undefined) onRetry(frame.retry);
        if (frame.data !== undefined) yield JSON.parse(frame.data) as E;
      }
    }
  } finally {
    silent.stop();
  }
}

/** Cuts a connection on which nothing is heard while it is listened to. */
function watchdog(ms: number, connection: AbortController): { listen(): void; stop(): void } {
  const bark = (): void => connection.abort(new Error(`nothing was heard for ${ms} ms`));
  let timer = setTimeout(bark, ms);
  return {
    listen() {
      clearTimeout(timer);
      timer = setTimeout(bark, ms);
    },
    stop: () => clearTimeout(timer),
  };
}

/** The token. One that cannot be got because the network is away is asked for again; a refusal, or a mistake, is final. */
async function credential(target: StreamTarget, why: "first" | "expired"): Promise<string> {
  if (typeof target.credential === "string") return target.credential;
  try {
    return await target.credential(why);
  } catch (error) {
    // `fetch` says TypeError when there is no network.
    const passes = error instanceof TypeError || (error instanceof StepwellError && error.isTransient);
    throw passes ? error : new Refused("no token", { cause: error });
  }
}

/** Waits, but not longer than until the browser says that the network is back. */
function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const network = globalThis as Partial<Pick<EventTarget, "addEventListener" | "removeEventListener">>;
    const done = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      network.removeEventListener?.("online", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done, { once: true });
    network.addEventListener?.("online", done);
  });
}
