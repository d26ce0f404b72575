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
  /**
   * A stream of which nothing arrives for so long is held back on its way, and pages that wait take its place: the server
   * says something at once. Milliseconds, 10,000.
   */
  readonly firstByteMs?: number;
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
const FIRST_BYTE_MS = 10_000;
/** So many streams in a row that have a head and nothing else are enough to know that somebody holds them back. */
const HELD_STREAMS = 2;
/** Whoever reads pages tries so often, beside them, whether streams come through by now. */
const STREAM_AGAIN_MS = 600_000;
/** How long a page waits for its first event. Gateways that hold answers back give up on them after 29 s and more. */
const PAGE_WAIT_S = 20;
/** Timers of more than that fire at once. 24 days. */
const TIMER_MAX_MS = 2 ** 31 - 1;
/** The most that the server puts on a page. */
const PAGE_LIMIT = 1_000;
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
  return leavable(options, (left) => follow<RunEvent>(target, options, left, (event) => event.seq, isTerminal));
}

/** Follows a channel, which has no end. */
export function followChannel(
  target: StreamTarget,
  options: SubscribeOptions,
): AsyncGenerator<ChannelEvent, void, undefined> {
  return leavable(options, (left) => follow<ChannelEvent>(target, options, left, (event) => event.cursor, () => false));
}

/**
 * An iteration that can be left while it waits for the next event. A generator's own `return` would wait with it, and keep
 * the connection until something happens.
 */
function leavable<E>(
  { signal }: SubscribeOptions,
  begin: (left: AbortSignal) => AsyncGenerator<E, void, undefined>,
): AsyncGenerator<E, void, undefined> {
  const leaving = new AbortController();
  const leave = (): void => leaving.abort();
  const iterate = async function* (): AsyncGenerator<E, void, undefined> {
    signal?.addEventListener("abort", leave);
    if (signal?.aborted === true) leave();
    try {
      yield* begin(leaving.signal);
    } finally {
      signal?.removeEventListener("abort", leave);
    }
  };
  const events = iterate();
  const end = events.return.bind(events);
  events.return = (value) => {
    leave();
    return end(value);
  };
  events.throw = async (error) => {
    leave();
    await end();
    throw error;
  };
  return events;
}

async function* follow<E>(
  target: StreamTarget,
  options: SubscribeOptions,
  left: AbortSignal,
  position: Position<E>,
  isLast: (event: E) => boolean,
): AsyncGenerator<E, void, undefined> {
  let last = options.after ?? 0;
  let retryMs = RETRY_MS;
  // Attempts since something was heard, and those of them that got no answer at all.
  let failures = 0;
  let unanswered = 0;
  // New tokens that were refused too.
  let stale = 0;
  // Streams of which nothing came; from HELD_STREAMS on, pages are read instead.
  let held = 0;
  // Whether pages have come through since then. If not, it is the network that does not let anything through.
  let isHolding = false;
  let token: string | undefined;
  let why: "first" | "expired" = "first";
  const isOver = (): boolean => left.aborted;
  while (!isOver()) {
    const connection = new AbortController();
    const stop = (): void => connection.abort();
    left.addEventListener("abort", stop, { once: true });
    const isPaged = held >= HELD_STREAMS;
    let error: unknown;
    try {
      token ??= await Promise.race([credential(target, why), aborted(connection.signal)]);
      const heard = (): void => {
        failures = 0;
        unanswered = 0;
        stale = 0;
      };
      const attempt: Attempt = { target, token, after: last, options, connection, onHeard: heard, onRetry: (ms) => (retryMs = ms) };
      for await (const item of isPaged ? pages<E>(attempt) : stream<E>(attempt)) {
        if (!isPaged) held = 0;
        isHolding = isPaged;
        if (!("event" in item)) {
          // What a filter has left out has its position too.
          last = Math.max(last, item.position ?? 0);
          continue;
        }
        // The server repeats nothing, and each event has its position; a proxy must not be able to change that.
        if (!(position(item.event) > last)) continue;
        last = position(item.event);
        yield item.event;
        if (isOver() || isLast(item.event)) return;
      }
    } catch (caught) {
      // What fails because it was to end is no error.
      if (isOver()) return;
      error = caught;
      if (caught instanceof NothingFollows) return;
      if (caught instanceof Final) throw caught.cause;
      if (caught instanceof Held) {
        held = caught.hadHead ? held + 1 : HELD_STREAMS;
        // It was waited for already.
        if (held >= HELD_STREAMS) continue;
      }
      // A gateway that has waited in vain for a stream's end holds it back, too.
      if (!isPaged && caught instanceof StepwellError && caught.status === 504) held += 1;
      if (caught instanceof StreamsPass) {
        held = 0;
        continue;
      }
      // Whether the run has ended without that its end was asked for, only a stream says.
      if (caught instanceof NothingNew) held = 0;
      if (caught instanceof StepwellError && !caught.isTransient) {
        if (!caught.isStale || typeof target.credential === "string" || stale >= STALE_TOKENS) throw caught;
        [token, why] = [undefined, "expired"];
        // A new token is tried at once, but not again and again.
        if (stale++ === 0) continue;
      } else if (!(caught instanceof StepwellError || caught instanceof Held || caught instanceof NothingNew)) {
        unanswered += 1;
        if (isPaged && !isHolding) held = 0;
      }
    } finally {
      left.removeEventListener("abort", stop);
      // Whoever leaves the loop leaves the connection.
      connection.abort();
    }
    if (isOver()) return;
    if (unanswered >= UNANSWERED) {
      // In a page of another origin, a token whose key was replaced looks like a network that is not there.
      if (typeof target.credential !== "string") [token, why] = [undefined, "expired"];
      // The network that is back may be another one, through which streams pass.
      [unanswered, held] = [0, 0];
    }
    options.onConnection?.(error === undefined ? { connected: false } : { connected: false, error });
    const backoff = Math.min(retryMs * 2 ** Math.min(failures++, 10), options.backoffMaxMs ?? BACKOFF_MAX_MS);
    const asked = error instanceof StepwellError ? (error.retryAfterMs ?? 0) : 0;
    // Half of it at random, so that all who were cut off at once do not come back at once.
    const isElsewhere = await pause(Math.max(backoff * (0.5 + Math.random() / 2), asked), left);
    if (isElsewhere) held = 0;
  }
}

/** The run has ended, and everything up to its end was seen before. */
class NothingFollows extends Error {}

/** Whoever gives tokens says no, or whoever is told about the connection makes a mistake: `cause` ends the subscription. */
class Final extends Error {}

/** Nothing of a stream came through, or its head and nothing else. */
class Held extends Error {
  constructor(readonly hadHead: boolean) {
    super("nothing of the stream came through");
  }
}

/** A page that should have waited was empty at once: the run has ended, or the server is about to. */
class NothingNew extends Error {}

/** Streams come through by now. */
class StreamsPass extends Error {}

/** One connection, or one page after the other. */
interface Attempt {
  readonly target: StreamTarget;
  readonly token: string;
  readonly after: number;
  readonly options: SubscribeOptions;
  readonly connection: AbortController;
  readonly onHeard: () => void;
  readonly onRetry: (ms: number) => void;
}

/** What comes: an event, or a position up to which there is none that is wanted. */
type Item<E> = { readonly event: E } | { readonly position?: number };

/** Where to ask, for what, from a position on. */
function urlOf({ target, options }: Attempt, after: number, more: Readonly<Record<string, string>> = {}): string {
  const query = new URLSearchParams(more);
  if (after > 0) query.set("after", String(after));
  if (options.topics !== undefined) query.set("topics", options.topics.join(","));
  if (options.kinds !== undefined) query.set("kinds", options.kinds.join(","));
  for (const name of ["run", "workflow", "correlation"] as const) {
    const value = options[name];
    if (value !== undefined) query.set(name, value);
  }
  // Safari before 17 does not know `query.size`.
  const text = String(query);
  return text === "" ? target.url : `${target.url}?${text}`;
}

/** The answer, if it is one. */
async function ask({ target, token, connection }: Attempt, url: string, type: string): Promise<ReadableStreamDefaultReader<Uint8Array>> {
  const response = await target.fetch(url, {
    headers: { accept: type, authorization: `Bearer ${token}` },
    cache: "no-store",
    signal: connection.signal,
  });
  if (response.status === 204) throw new NothingFollows();
  if (!response.ok) throw await errorOf(response);
  const given = response.headers.get("content-type") ?? "";
  // Such as the page on which a hotel wants its guests to log in.
  if (response.body === null || !given.startsWith(type)) throw new TypeError(`the answer is ${given || "nothing"}, not ${type}`);
  return response.body.getReader();
}

/** Tells that the connection is there. A mistake in that is not the network's. */
function connected(options: SubscribeOptions): void {
  try {
    options.onConnection?.({ connected: true });
  } catch (error) {
    throw new Final("onConnection failed", { cause: error });
  }
}

/** A stream of server-sent events. */
async function* stream<E>(attempt: Attempt): AsyncGenerator<Item<E>, void, undefined> {
  const { options, connection, onHeard, onRetry } = attempt;
  const silenceMs = options.silenceMs ?? SILENCE_MS;
  const silent = watchdog(Math.min(options.firstByteMs ?? FIRST_BYTE_MS, silenceMs), connection);
  let hadHead = false;
  let hadBytes = false;
  try {
    const reader = await ask(attempt, urlOf(attempt, attempt.after), "text/event-stream");
    hadHead = true;
    const parser = new FrameParser();
    for (;;) {
      if (hadBytes) silent.listen(silenceMs);
      const { done, value } = await reader.read();
      // The silence of whoever takes the events is not the connection's.
      silent.stop();
      if (done) return; // cut, or the server stops: the run's end is an event
      onHeard();
      if (!hadBytes) {
        hadBytes = true;
        connected(options);
        yield {};
      }
      for (const frame of parser.push(value)) {
        if (frame.retry !== undefined) onRetry(frame.retry);
        if (frame.data !== undefined) yield { event: JSON.parse(frame.data) as E };
        // How far the server has looked without finding anything that is wanted.
        else if (frame.id !== undefined && /^\d+$/.test(frame.id)) yield { position: Number(frame.id) };
      }
    }
  } catch (error) {
    throw silent.hasBarked() && !hadBytes ? new Held(hadHead) : error;
  } finally {
    silent.stop();
  }
}

/** Pages that wait, one after the other, for where streams do not pass: what holds answers back passes those that end. */
async function* pages<E>(attempt: Attempt): AsyncGenerator<Item<E>, void, undefined> {
  const { options, connection, onHeard } = attempt;
  const silenceMs = options.silenceMs ?? SILENCE_MS;
  let streamsPass = false;
  let { after } = attempt;
  const again = setInterval(() => void passes({ ...attempt, after }).then((passed) => (streamsPass ||= passed)), STREAM_AGAIN_MS);
  try {
    // The first does not wait: it says that the connection is there.
    for (let wait = 0; ; wait = PAGE_WAIT_S) {
      const silent = watchdog(wait * 1_000 + silenceMs, connection);
      const asked = performance.now();
      let text = "";
      try {
        const reader = await ask(attempt, urlOf(attempt, after, { limit: String(PAGE_LIMIT), wait: String(wait) }), "application/json");
        const decoder = new TextDecoder();
        for (;;) {
          const { done, value } = await reader.read();
          if (done) break;
          silent.listen(silenceMs);
          text += decoder.decode(value, { stream: true });
        }
      } finally {
        silent.stop();
      }
      const { data, page } = JSON.parse(text) as { data: E[]; page: { cursor: string | null; has_more: boolean } };
      onHeard();
      if (wait === 0) connected(options);
      for (const event of data) yield { event };
      const position = Number(page.cursor) || after;
      yield { position };
      if (streamsPass) throw new StreamsPass();
      if (wait > 0 && data.length === 0 && !page.has_more && performance.now() - asked < wait * 500) throw new NothingNew();
      after = Math.max(after, position);
    }
  } finally {
    clearInterval(again);
  }
}

/** Whether anything of a stream comes through. */
async function passes(attempt: Attempt): Promise<boolean> {
  const { options, connection } = attempt;
  const own = new AbortController();
  const stop = (): void => own.abort();
  connection.signal.addEventListener("abort", stop);
  const silent = watchdog(options.firstByteMs ?? FIRST_BYTE_MS, own);
  try {
    const reader = await ask({ ...attempt, connection: own }, urlOf(attempt, attempt.after), "text/event-stream");
    return !(await reader.read()).done;
  } catch {
    return false;
  } finally {
    silent.stop();
    connection.signal.removeEventListener("abort", stop);
    stop();
  }
}

/** Cuts a connection on which nothing is heard while it is listened to. */
function watchdog(ms: number, connection: AbortController): { listen(ms: number): void; stop(): void; hasBarked(): boolean } {
  let barked = false;
  const listen = (ms: number): ReturnType<typeof setTimeout> =>
    setTimeout(() => {
      barked = true;
      connection.abort(new Error(`nothing was heard for ${ms} ms`));
    }, Math.min(ms, TIMER_MAX_MS));
  let timer = listen(ms);
  return {
    listen(ms) {
      clearTimeout(timer);
      timer = listen(ms);
    },
    stop: () => clearTimeout(timer),
    hasBarked: () => barked,
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
    throw passes ? error : new Final("no token", { cause: error });
  }
}

/** Fails when it is told to. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, fail) => {
    if (signal.aborted) fail(signal.reason as Error);
    else signal.addEventListener("abort", () => fail(signal.reason as Error), { once: true });
  });
}

/** Waits, but not longer than until the browser says that the network is back. Whether it does: it may be another one. */
function pause(ms: number, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve) => {
    const network = globalThis as Partial<Pick<EventTarget, "addEventListener" | "removeEventListener">>;
    const end = (isElsewhere: boolean): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", over);
      network.removeEventListener?.("online", back);
      resolve(isElsewhere);
    };
    const over = (): void => end(false);
    const back = (): void => end(true);
    const timer = setTimeout(over, Math.min(ms, TIMER_MAX_MS));
    signal.addEventListener("abort", over, { once: true });
    network.addEventListener?.("online", back);
    // Whoever is told that the connection is lost may have had enough.
    if (signal.aborted) over();
  });
}
