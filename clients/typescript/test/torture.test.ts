import { getEventListeners } from "node:events";
import { createServer, type IncomingMessage, type Server as HttpServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, it, vi } from "vitest";

import { type Credential, type RunEvent, Stepwell, type SubscribeOptions } from "../src/index.js";

// What a real server does not do, and what stands between it and a client does.

type Answer = (answer: ServerResponse, request: IncomingMessage) => void;

let server: HttpServer | undefined;
afterEach(() => {
  vi.unstubAllGlobals();
  server?.closeAllConnections();
  server?.close();
});

/** A server that answers the first request with the first answer, and so on; the last one is for all that follow. */
async function scripted(...answers: Answer[]): Promise<{ url: string; asked: IncomingMessage[]; at: number[] }> {
  const asked: IncomingMessage[] = [];
  const at: number[] = [];
  const listening = (server = createServer((request, answer) => {
    at.push(performance.now());
    asked.push(request);
    answers[Math.min(asked.length, answers.length) - 1]?.(answer, request);
  }));
  await new Promise<void>((done) => listening.listen(0, "127.0.0.1", done));
  return { url: `http://127.0.0.1:${(listening.address() as AddressInfo).port}`, asked, at };
}

const text = "größer 😀 水";
const event = (seq: number, more: Record<string, unknown> = {}): RunEvent => ({
  seq,
  at: "2026-01-01T00:00:00.000Z",
  kind: "step.update",
  node: "a",
  attempt: 1,
  topic: "text",
  payload: { delta: text },
  ...more,
});
const end = (seq: number): RunEvent => ({ seq, at: "2026-01-01T00:00:00.000Z", kind: "run.completed", output: null });
const frame = (event: RunEvent): string => `id: ${event.seq}\nevent: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`;
const stream = (answer: ServerResponse): ServerResponse => answer.writeHead(200, { "content-type": "text/event-stream" });
const says = (...events: RunEvent[]): Answer => (answer) => void stream(answer).end("retry: 1\n\n" + events.map(frame).join(""));
const refuses = (status: number, code: string, headers: Record<string, string> = {}): Answer => (answer) =>
  void answer.writeHead(status, { "content-type": "application/problem+json", ...headers }).end(JSON.stringify({ code, detail: `${code}.` }));

async function follow(url: string, credential: Credential = "k", options: SubscribeOptions = {}): Promise<RunEvent[]> {
  const seen: RunEvent[] = [];
  for await (const event of new Stepwell({ url, credential }).subscribe("r", { backoffMaxMs: 20, ...options })) seen.push(event);
  return seen;
}

/** What a request asked to begin behind. */
const after = (request: IncomingMessage | undefined): string | null => new URL(request?.url ?? "", "http://x").searchParams.get("after");

describe("a subscription survives", () => {
  it("a cut at any byte, in the middle of a character too", async () => {
    const whole = Buffer.from([event(1), event(2), end(3)].map(frame).join(""));
    const complete = (bytes: number): number => whole.subarray(0, bytes).toString("utf8").split("\n\n").length - 1;
    for (let cut = 0; cut < whole.length; cut += 1) {
      const { url, asked } = await scripted(
        (answer) => void stream(answer).write("retry: 1\n\n", () => answer.write(whole.subarray(0, cut), () => answer.destroy())),
        (answer, request) => says(...[event(1), event(2), end(3)].filter(({ seq }) => seq > Number(after(request))))(answer, request),
      );
      expect(await follow(url, "k", { backoffMaxMs: 1 }), `cut at byte ${cut}`).toEqual([event(1), event(2), end(3)]);
      expect(Number(after(asked[1]))).toBe(complete(cut));
      server?.close();
    }
  });

  it("somebody who repeats what was said before", async () => {
    const { url } = await scripted(says(event(1), event(2)), says(event(1), event(2), event(3)), says(event(2), event(3), end(4)));
    expect((await follow(url)).map(({ seq }) => seq)).toEqual([1, 2, 3, 4]);
  });

  // Where a filter leaves out much, the server says now and then how far it has looked.
  it("a cut after a place that came without an event, and goes on from there", async () => {
    const { url, asked } = await scripted(
      (answer) => void stream(answer).end(`retry: 1\n\n${frame(event(1))}id: 7\n\n`),
      says(end(8)),
    );
    expect((await follow(url)).map(({ seq }) => seq)).toEqual([1, 8]);
    expect(after(asked[1])).toBe("7");
  });

  it("a page in the stream's place", async () => {
    const portal: Answer = (answer) => void answer.writeHead(200, { "content-type": "text/html" }).end("<h1>Log in</h1>");
    const states: boolean[] = [];
    const { url } = await scripted(portal, says(event(1), end(2)));
    expect(await follow(url, "k", { backoffMaxMs: 1, onConnection: ({ connected }) => states.push(connected) })).toHaveLength(2);
    expect(states).toEqual([false, true]);
  });

  it("a server that is on its way up or down, and waits as long as it asks for", async () => {
    const { url, asked, at } = await scripted(
      refuses(503, "starting"), refuses(502, "bad_gateway"), refuses(429, "too_many_streams", { "retry-after": "1" }), says(event(1), end(2)),
    );
    expect(await follow(url)).toHaveLength(2);
    expect(asked).toHaveLength(4);
    expect((at[3] ?? 0) - (at[2] ?? 0)).toBeGreaterThanOrEqual(990);
  });

  it("an end that was seen before the connection was cut", async () => {
    const { url } = await scripted((answer) => void answer.writeHead(204).end());
    expect(await follow(url, "k", { after: 7 })).toEqual([]);
  });

  it("a subscriber that thinks for longer than a connection may be silent", async () => {
    const { url, asked } = await scripted((answer) => {
      stream(answer).write(frame(event(1)));
      setTimeout(() => answer.end(frame(event(2)) + frame(end(3))), 20); // a piece of its own, read after the thinking
    });
    const seen: number[] = [];
    for await (const { seq } of new Stepwell({ url, credential: "k" }).subscribe("r", { silenceMs: 60 })) {
      seen.push(seq);
      await new Promise((done) => setTimeout(done, 90)); // thinking is what is tested
    }
    expect([seen, asked.length]).toEqual([[1, 2, 3], 1]);
  });
});

describe("a subscription whose streams are held back", () => {
  const holds: Answer = () => undefined;
  const page = (cursor: number, ...data: RunEvent[]): Answer => (answer) =>
    void answer.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ data, page: { cursor: `${cursor}`, has_more: false, limit: 1000 } }));
  const asksFor = (asked: IncomingMessage[]): string[] =>
    asked.map(({ headers, url }) => `${headers.accept === "text/event-stream" ? "stream" : "page"} after ${new URL(url ?? "", "http://x").searchParams.get("after") ?? 0}`);

  it("goes on behind what pages have left out, and gets new tokens as it would", async () => {
    const { url, asked } = await scripted(says(event(1)), holds, page(5, event(3), event(3)), refuses(401, "expired_token"), page(9), page(12, event(11), end(12)));
    const given: string[] = [];
    expect((await follow(url, (why) => `${given.push(why)}`, { firstByteMs: 100 })).map(({ seq }) => seq)).toEqual([1, 3, 11, 12]);
    expect(asksFor(asked)).toEqual(["stream after 0", "stream after 1", "page after 1", "page after 5", "page after 5", "page after 9"]);
    expect(given).toEqual(["first", "expired"]);
  });

  it("ends where a run has ended before", async () => {
    const { url, asked } = await scripted(holds, page(7), page(7), (answer) => void answer.writeHead(204).end());
    expect(await follow(url, "k", { after: 7, firstByteMs: 100 })).toEqual([]);
    // The second page came at once, though it should have waited: so a stream is asked for, which says whether something follows.
    expect(asksFor(asked)).toEqual(["stream after 7", "page after 7", "page after 7", "stream after 7"]);
  });

  it("reads pages when a gateway has waited in vain for the end of streams", async () => {
    const late = refuses(504, "http_504");
    const { url, asked } = await scripted(says(event(1)), late, late, page(1), late, page(3, event(2), end(3)));
    expect((await follow(url)).map(({ seq }) => seq)).toEqual([1, 2, 3]);
    expect(asksFor(asked)).toEqual(["stream after 0", "stream after 1", "stream after 1", "page after 1", "page after 1", "page after 1"]);
  });

  it("tries a stream again when the network was away", async () => {
    const gone: Answer = (answer) => void answer.destroy();
    const { url, asked } = await scripted(holds, page(1, event(1)), gone, gone, gone, says(event(2), end(3)));
    expect((await follow(url, "k", { firstByteMs: 100 })).map(({ seq }) => seq)).toEqual([1, 2, 3]);
    expect(asksFor(asked).map((what) => what.split(" ")[0])).toEqual(["stream", "page", "page", "page", "page", "stream"]);
  });

  it("does not take a network that lets nothing through for one that holds streams back", async () => {
    const { url, asked } = await scripted(holds, (answer) => void answer.destroy(), says(event(1), end(2)));
    expect(await follow(url, "k", { firstByteMs: 100 })).toHaveLength(2);
    expect(asksFor(asked).map((what) => what.split(" ")[0])).toEqual(["stream", "page", "stream"]);
  });

  it("tries a stream again when the browser says that the network is back", async () => {
    const network = new EventTarget();
    vi.stubGlobal("addEventListener", network.addEventListener.bind(network));
    vi.stubGlobal("removeEventListener", network.removeEventListener.bind(network));
    const { url, asked } = await scripted(holds, page(1, event(1)), (answer) => void answer.destroy(), says(event(2), end(3)));
    const onConnection = ({ connected }: { connected: boolean }): void => void (connected || setTimeout(() => network.dispatchEvent(new Event("online"))));
    expect(await follow(url, "k", { firstByteMs: 100, backoffMaxMs: 30_000, onConnection })).toHaveLength(3);
    expect(asksFor(asked).map((what) => what.split(" ")[0])).toEqual(["stream", "page", "page", "stream"]);
  });

  it("goes back to streams when they come through, without a gap and without a word", async () => {
    let streamsPass = false;
    const cut = new AbortController();
    const { url, asked } = await scripted((answer, request) => {
      const from = Number(after(request));
      if (request.headers.accept !== "text/event-stream") {
        // One page has something; the others wait until they are cut, or for as long as this takes.
        if (from === 0) page(1, event(1))(answer, request);
        else cut.signal.addEventListener("abort", () => page(2, event(2))(answer, request));
      } else if (streamsPass) says(...[event(2), event(3), end(4)].filter(({ seq }) => seq > from))(answer, request);
    });
    const states: boolean[] = [];
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
    try {
      const following = follow(url, "k", { firstByteMs: 100, onConnection: ({ connected }) => states.push(connected) });
      await vi.waitUntil(() => asked.length === 3);
      vi.advanceTimersByTime(600_000);
      await vi.waitUntil(() => asked.length === 4);
      await new Promise((done) => setTimeout(done, 200)); // this one is held back still
      streamsPass = true;
      vi.advanceTimersByTime(600_000);
      await vi.waitUntil(() => asked.length === 5);
      await new Promise((done) => setTimeout(done, 50)); // what the stream says has arrived
      cut.abort();
      expect((await following).map(({ seq }) => seq)).toEqual([1, 2, 3, 4]);
    } finally {
      vi.useRealTimers();
    }
    expect(asksFor(asked)).toEqual(["stream after 0", "page after 0", "page after 1", "stream after 1", "stream after 1", "stream after 2"]);
    expect(states).toEqual([true, true]);
  });

  it("reads pages after two streams that had a head and nothing else, and not after one", async () => {
    const head: Answer = (answer) => stream(answer).flushHeaders();
    const once = await scripted(head, says(event(1), end(2)));
    expect(await follow(once.url, "k", { firstByteMs: 100 })).toHaveLength(2);
    expect(asksFor(once.asked)).toEqual(["stream after 0", "stream after 0"]);
    server?.close();
    const twice = await scripted(head, head, page(2, event(1), end(2)));
    expect(await follow(twice.url, "k", { firstByteMs: 100 })).toHaveLength(2);
    expect(asksFor(twice.asked)).toEqual(["stream after 0", "stream after 0", "page after 0"]);
  });
});

describe("a token", () => {
  const expired = refuses(401, "expired_token");

  it("is asked for again when its time is over, and the place is kept", async () => {
    const { url, asked } = await scripted(says(event(1)), expired, says(event(2), end(3)));
    const given: string[] = [];
    const seen = await follow(url, (why) => `${given.push(why)}`);
    expect(seen.map(({ seq }) => seq)).toEqual([1, 2, 3]);
    expect(given).toEqual(["first", "expired"]);
    expect(asked.map((request) => request.headers.authorization)).toEqual(["Bearer 1", "Bearer 1", "Bearer 2"]);
    expect(after(asked[2])).toBe("1");
  });

  it("is asked for again when whoever gives them cannot be reached", async () => {
    const { url } = await scripted(expired, says(event(1), end(2)));
    let asked = 0;
    const credential = async (): Promise<string> => {
      asked += 1;
      if (asked === 2 || asked === 3) throw new TypeError("fetch failed");
      return `${asked}`;
    };
    expect(await follow(url, credential)).toHaveLength(2);
    expect(asked).toBe(4);
  });

  it("is not asked for again by whom it was denied", async () => {
    const { url, asked } = await scripted(says(end(1)));
    const denied = new Error("not yours");
    await expect(follow(url, () => Promise.reject(denied))).rejects.toBe(denied);
    expect(asked).toHaveLength(0);
  });

  it("is given up when new ones are refused too", async () => {
    const { url } = await scripted(expired);
    let asked = 0;
    await expect(follow(url, () => `${++asked}`)).rejects.toMatchObject({ status: 401, code: "expired_token" });
    expect(asked).toBe(4);
    await expect(follow(url, "fixed")).rejects.toMatchObject({ code: "expired_token" });
  });

  // In a page of another origin the answer to a token whose key was replaced belongs to nobody, and `fetch` sees no answer.
  it("is asked for again when there is no answer for a while", async () => {
    const { url } = await scripted((answer, request) =>
      request.headers.authorization === "Bearer first" ? answer.destroy() : says(event(1), end(2))(answer, request),
    );
    expect(await follow(url, (why) => why)).toHaveLength(2);
  });
});

it("what was deleted is an error that says where to go on", async () => {
  const { url } = await scripted((answer) =>
    void answer.writeHead(410, { "content-type": "application/problem+json" }).end(JSON.stringify({ code: "history_truncated", detail: "Gone.", first_seq: 40 })),
  );
  await expect(follow(url)).rejects.toMatchObject({ status: 410, code: "history_truncated", problem: { first_seq: 40 } });
});

it("a subscription that is left closes its connection", async () => {
  let closed: Promise<void> | undefined;
  const { url } = await scripted((answer) => {
    closed = new Promise((done) => answer.on("close", done));
    stream(answer).write(frame(event(1)));
  });
  for await (const _ of new Stepwell({ url, credential: "k" }).subscribe("r")) break;
  await closed;
});

describe("whoever has had enough", () => {
  const live = (...events: RunEvent[]): Answer => (answer) => void stream(answer).write(`retry: 1\n\n${events.map(frame).join("")}`);
  const ended = async (following: Promise<unknown>): Promise<unknown> =>
    Promise.race([following, new Promise((late) => setTimeout(late, 2_000, "goes on"))]);

  it("is brought nothing after that, though more has arrived", async () => {
    const { url } = await scripted(live(event(1), event(2), event(3)));
    const stop = new AbortController();
    const seen: number[] = [];
    for await (const { seq } of new Stepwell({ url, credential: "k" }).subscribe("r", { signal: stop.signal })) {
      seen.push(seq);
      stop.abort();
    }
    expect(seen).toEqual([1]);
  });

  it("does not wait for a token, nor hears that there is none", async () => {
    const { url, asked } = await scripted(live());
    for (const credential of [() => new Promise<string>(() => undefined), () => new Promise<string>((_, no) => setTimeout(no, 40, new Error("too late")))]) {
      const stop = new AbortController();
      setTimeout(() => stop.abort(), 20);
      expect(await ended(follow(url, credential, { signal: stop.signal }))).toEqual([]);
    }
    expect(asked).toHaveLength(0);
  });

  it("does not wait until the next attempt, whenever it says so", async () => {
    for (const answer of [refuses(503, "starting"), refuses(503, "starting", { "retry-after": "60" })]) {
      const { url } = await scripted(answer);
      const stop = new AbortController();
      const onConnection = (): void => stop.abort();
      expect(await ended(follow(url, "k", { signal: stop.signal, backoffMaxMs: 30_000, onConnection }))).toEqual([]);
      server?.close();
    }
  });

  // `return` on a generator waits for what it does: a quiet stream kept its connection until something happened.
  it("closes a connection on which it waits for the next event", async () => {
    let closed: Promise<void> | undefined;
    const { url } = await scripted((answer, request) => {
      closed = new Promise((done) => answer.on("close", done));
      live(event(1))(answer, request);
    });
    const events = new Stepwell({ url, credential: "k" }).subscribe("r");
    expect(await events.next()).toMatchObject({ done: false });
    const next = events.next();
    expect(await ended(events.return(undefined))).toEqual({ done: true, value: undefined });
    expect(await next).toEqual({ done: true, value: undefined });
    await closed;
    expect(await events.next()).toEqual({ done: true, value: undefined });
  });

  it("gets an error back that it throws into the subscription", async () => {
    const { url, asked } = await scripted(live(event(1)), says(end(2)));
    const events = new Stepwell({ url, credential: "k" }).subscribe("r");
    await events.next();
    const enough = new Error("enough");
    await expect(events.throw(enough)).rejects.toBe(enough);
    expect(await events.next()).toEqual({ done: true, value: undefined });
    expect(asked).toHaveLength(1);
  });

  it("leaves nothing behind at a signal that outlives many subscriptions", async () => {
    const { url } = await scripted(live(event(1)));
    const { signal } = new AbortController();
    for (let times = 0; times < 3; times += 1) {
      for await (const _ of new Stepwell({ url, credential: "k" }).subscribe("r", { signal })) break;
      const events = new Stepwell({ url, credential: "k" }).subscribe("r", { signal });
      await events.next();
      void events.next();
      await events.return(undefined);
    }
    expect(getEventListeners(signal, "abort")).toHaveLength(0);
  });
});

describe("a mistake", () => {
  it("of who is told about the connection ends the subscription, as one in the loop would", async () => {
    const { url, asked } = await scripted(says(event(1)), says(event(1)), says(event(2), end(3)));
    const mistake = new TypeError("no such element");
    for (const of of [true, false]) {
      const onConnection = ({ connected }: { connected: boolean }): void => {
        if (connected === of) throw mistake;
      };
      await expect(follow(url, "k", { onConnection })).rejects.toBe(mistake);
    }
    expect(asked).toHaveLength(2);
  });

  it("of a proxy, an event without a position, does not lose the place", async () => {
    const odd = { at: "", kind: "proxy.hello" } as unknown as RunEvent;
    const { url, asked } = await scripted(says(event(1), odd), says(odd, event(2), end(3)));
    expect((await follow(url)).map(({ seq }) => seq)).toEqual([1, 2, 3]);
    expect(after(asked[1])).toBe("1");
  });

  // A timer of more than 2^31 ms fires at once, so who wanted to wait for long did not wait at all.
  it("of a second too many does not turn a long wait into none", async () => {
    const { url, asked } = await scripted(refuses(429, "too_many_streams", { "retry-after": "9999999" }));
    const stop = new AbortController();
    setTimeout(() => stop.abort(), 300);
    await follow(url, "k", { signal: stop.signal });
    expect(asked).toHaveLength(1);
    server?.close();
    const slow = await scripted((answer) => void setTimeout(() => says(event(1), end(2))(answer, slow.asked[0] as IncomingMessage), 100));
    expect(await follow(slow.url, "k", { silenceMs: Number.POSITIVE_INFINITY, firstByteMs: Number.POSITIVE_INFINITY })).toHaveLength(2);
    expect(slow.asked).toHaveLength(1);
  });
});

// Safari before 17: filters and the position were left out.
it("a browser whose queries do not know their size asks for the same", async () => {
  const size = Object.getOwnPropertyDescriptor(URLSearchParams.prototype, "size");
  delete (URLSearchParams.prototype as { size?: number }).size;
  try {
    const { url, asked } = await scripted(says(event(4), end(5)));
    await follow(url, "k", { after: 3, topics: ["text"] });
    expect(asked[0]?.url).toBe("/v1/runs/r/events?after=3&topics=text");
  } finally {
    if (size !== undefined) Object.defineProperty(URLSearchParams.prototype, "size", size);
  }
});

it("a request gets a new token when the old one's time is over, once", async () => {
  const expired = refuses(401, "expired_token");
  const { url, asked } = await scripted(expired, (answer) => void answer.writeHead(200, { "content-type": "application/json" }).end("{}"), expired);
  const given: string[] = [];
  const client = new Stepwell({ url, credential: (why) => `${given.push(why)}` });
  await client.run("r");
  await expect(client.run("r")).rejects.toMatchObject({ code: "expired_token" });
  expect(given).toEqual(["first", "expired", "first", "expired"]);
  expect(asked.map(({ headers }) => headers.authorization)).toEqual(["Bearer 1", "Bearer 2", "Bearer 3", "Bearer 4"]);
});
