import { afterAll, beforeAll, describe, expect, it } from "vitest";

import { type ChannelEvent, emptyView, hasEnded, type RunEvent, seeEvent, Stepwell, StepwellError } from "../src/index.js";
import { Proxy } from "./proxy.js";
import { eventually, Server } from "./server.js";

let server: Server;

beforeAll(async () => {
  server = await Server.start();
  server.deploy("probe", "stepwell_probe");
  server.deploy("waits", "stepwell_waits");
});
afterAll(() => server.close());

async function collect(events: AsyncIterable<RunEvent>): Promise<RunEvent[]> {
  const seen = [];
  for await (const event of events) seen.push(event);
  return seen;
}

/** All of a run's events, from the journal. */
async function journal(id: string): Promise<readonly RunEvent[]> {
  const all: RunEvent[] = [];
  for (;;) {
    const page = await server.client.events(id, { after: all.at(-1)?.seq ?? 0, limit: 1000 });
    all.push(...page.data);
    if (!page.page.has_more) return all;
  }
}

const slow = { busy_ms: 400, updates: 40, fail_node: "left", fail_first: 1 };

describe("a subscription", () => {
  it("sees every event once, in order, whenever it begins", async () => {
    const run = await server.client.start("probe", { updates: 5 });
    const live = await collect(server.client.subscribe(run.id));
    const late = await collect(server.client.subscribe(run.id));
    const rest = await collect(server.client.subscribe(run.id, { after: 4 }));
    expect(live).toEqual(await journal(run.id));
    expect(late).toEqual(live);
    expect(rest).toEqual(live.slice(4));
    expect(await collect(server.client.subscribe(run.id, { after: live.length }))).toEqual([]);
  });

  it("sees them through a proxy that cuts every connection, and one that collects", async () => {
    for (const torture of [{ cutAfterMs: 250 }, { bufferMs: 700 }]) {
      const proxy = await Proxy.start(() => server.url, torture);
      const run = await server.client.start("probe", slow);
      const token = await server.client.runToken(run.id);
      const through = new Stepwell({ url: proxy.url, credential: token.token });
      const seen = await collect(through.subscribe(run.id, { backoffMaxMs: 50 }));
      expect(seen).toEqual(await journal(run.id));
      if (torture.cutAfterMs !== undefined) expect(proxy.connections).toBeGreaterThan(2);
      proxy.close();
    }
  });

  it("comes to the same steps as the API, however a run ends", async () => {
    const runs = [
      await server.client.start("probe", { ...slow, updates: 3 }),
      await server.client.start("probe", { ...slow, updates: 3, permanent: true }),
      await server.client.start("waits", [{ publish: 1 }, { signal: { name: "go" } }]),
    ];
    for (const run of runs) {
      let view = emptyView;
      for await (const event of server.client.subscribe(run.id)) {
        view = seeEvent(view, event);
        if (view.waitsFor === "signal") await server.client.cancel(run.id);
      }
      // A view has no steps that have not begun.
      const steps = (await server.client.steps(run.id)).data.filter(({ attempts }) => attempts.length > 0);
      expect([...view.steps.values()].map(({ node, status, attempt }) => ({ node, status, attempt }))).toEqual(
        steps.map(({ node, status, attempts }) => ({ node, status, attempt: attempts.length })),
      );
    }
  });

  it("goes on where it was when the server is killed and comes back", async () => {
    const run = await server.client.start("probe", slow);
    const seen: RunEvent[] = [];
    for await (const event of server.client.subscribe(run.id, { backoffMaxMs: 200 })) {
      seen.push(event);
      if (event.seq === 20) {
        await server.kill();
        await server.up();
      }
    }
    const expected = await journal(run.id);
    expect(seen).toEqual(expected);
    expect(hasEnded(seen.reduce(seeEvent, emptyView))).toBe(true);
  });

  it("gets a new token when the old one's time is over", async () => {
    const run = await server.client.start("waits", [{ sleep: 1_500 }, { publish: 1 }]);
    let given = 0;
    const credential = async (why: "first" | "expired"): Promise<string> => {
      expect(why).toBe(given === 0 ? "first" : "expired");
      given += 1;
      return (await server.client.runToken(run.id, { ttlSeconds: given === 1 ? 1 : 60 })).token;
    };
    const proxy = await Proxy.start(() => server.url, { cutAfterMs: 1_200 });
    const seen = await collect(new Stepwell({ url: proxy.url, credential }).subscribe(run.id));
    proxy.close();
    expect(seen).toEqual(await journal(run.id));
    expect(given).toBe(2);
  });

  it("is shown what its token shows, and no more", async () => {
    const run = await server.client.start("waits", [{ publish: "shown" }]);
    const bodies = async (options: { topics?: string[]; outputs?: boolean }): Promise<[boolean, boolean]> => {
      const { token } = await server.client.runToken(run.id, options);
      const events = await collect(new Stepwell({ url: server.url, credential: token }).subscribe(run.id));
      return [events.some((event) => event.output !== undefined), events.some((event) => event.payload === "shown")];
    };
    expect(await bodies({})).toEqual([true, true]);
    expect(await bodies({ topics: ["update"] })).toEqual([false, true]);
    expect(await bodies({ topics: ["update"], outputs: true })).toEqual([true, true]);
    expect(await bodies({ outputs: false })).toEqual([false, true]);

    const other = await server.client.start("waits", []);
    const { token } = await server.client.channelToken("waits", { run: run.id, workflow: "waits" });
    const seen = new Set<string>();
    const stop = new AbortController();
    for await (const entry of new Stepwell({ url: server.url, credential: token }).subscribeChannel("waits", { after: 0, signal: stop.signal })) {
      seen.add(entry.run);
      if (entry.kind === "run.completed") break;
    }
    expect([...seen]).toEqual([run.id]);
    expect(seen.has(other.id)).toBe(false);
  });

  it("ends with what will not go away, and when it is told to", async () => {
    const refused = async (events: AsyncIterable<unknown>): Promise<string> => {
      try {
        for await (const _ of events);
        return "ended";
      } catch (error) {
        return error instanceof StepwellError ? error.code : String(error);
      }
    };
    const unknown = "01890000-0000-7000-8000-000000000000";
    expect(await refused(server.client.subscribe(unknown))).toBe("unknown_run");
    const run = await server.client.start("waits", [{ signal: { name: "go" } }]);
    expect(await refused(server.client.subscribe(run.id, { topics: ["nothing"] }))).toBe("unknown_topic");
    const stranger = new Stepwell({ url: server.url, credential: "sws_nonsense" });
    expect(await refused(stranger.subscribe(run.id))).toBe("invalid_token");
    const stop = new AbortController();
    const following = refused(server.client.subscribe(run.id, { signal: stop.signal }));
    stop.abort();
    expect(await following).toBe("ended");
    await server.client.cancel(run.id, "enough");
  });

  it("notices a connection on which nothing is heard", async () => {
    const run = await server.client.start("waits", [{ signal: { name: "go" } }]);
    const states: boolean[] = [];
    const seen = collect(
      server.client.subscribe(run.id, { silenceMs: 300, backoffMaxMs: 20, onConnection: ({ connected }) => states.push(connected) }),
    );
    await eventually("it to come back", () => (states.filter((connected) => connected).length >= 2 ? true : undefined));
    await server.client.signal(run.id, "go", { n: 1 });
    expect(await seen).toEqual(await journal(run.id));
  });

  it("follows many runs by their channel", async () => {
    const correlation = `task-${Date.now()}`;
    const started = await Promise.all([1, 2].map(() => server.client.start("waits", [{ publish: 1 }], { correlation })));
    const ended = new Set<string>();
    const cursors: number[] = [];
    for await (const event of server.client.subscribeChannel("waits", { correlation })) {
      expect(event.correlation).toBe(correlation);
      cursors.push(event.cursor);
      if (event.kind === "run.completed") ended.add(event.run);
      if (ended.size === 2) break;
    }
    expect(ended).toEqual(new Set(started.map((run) => run.id)));
    expect(cursors).toEqual([...cursors].sort((a, b) => a - b));
  });
});

// Gateways and virus scanners that pass an answer on when it has ended: a stream never gets through them.
describe("a proxy that holds answers back until they end", () => {
  const through = async (holds: "answer" | "body", credential = "dev"): Promise<{ proxy: Proxy; client: Stepwell }> => {
    const proxy = await Proxy.start(() => server.url, { holds });
    return { proxy, client: new Stepwell({ url: proxy.url, credential }) };
  };

  it("brings a run's events once and in order, while the run goes on", async () => {
    for (const holds of ["answer", "body"] as const) {
      const run = await server.client.start("waits", [{ publish: 1 }, { signal: { name: "go" } }, { publish: 2 }, { signal: { name: "go" } }]);
      const { token } = await server.client.runToken(run.id);
      const { proxy, client } = await through(holds, token);
      const seen: RunEvent[] = [];
      const states: boolean[] = [];
      for await (const event of client.subscribe(run.id, { firstByteMs: 300, backoffMaxMs: 50, onConnection: ({ connected }) => states.push(connected) })) {
        seen.push(event);
        // Only who sees the run wait brings it to its end.
        if (event.kind === "run.suspended") await server.client.signal(run.id, "go");
      }
      expect(seen).toEqual(await journal(run.id));
      // Where a head comes through, it takes a second stream to be sure.
      expect([holds, proxy.streams]).toEqual([holds, holds === "answer" ? 1 : 2]);
      expect(proxy.pages).toBeGreaterThan(2);
      expect(states.filter((connected) => connected)).toHaveLength(1);
      proxy.close();
    }
  });

  it("brings what was rolled back, and the server's return, too", async () => {
    const { proxy, client } = await through("answer");
    const run = await server.client.start("probe", { ...slow, busy_ms: 800 });
    const seen: RunEvent[] = [];
    for await (const event of client.subscribe(run.id, { firstByteMs: 300, backoffMaxMs: 50 })) {
      seen.push(event);
      if (event.seq === 20) {
        await server.kill();
        await server.up();
      }
    }
    expect(seen).toEqual(await journal(run.id));
    expect(seen.map(({ kind }) => kind)).toContain("step.rolled_back");
    expect(proxy.pages).toBeGreaterThan(3);
    proxy.close();
  });

  it("brings a channel's events once and in order, from where a subscription begins, without being told when to give up", async () => {
    const correlation = `held-${Date.now()}`;
    const start = (): Promise<{ id: string }> => server.client.start("waits", [{ publish: 1 }, { publish: 2 }], { correlation });
    const first = await start();
    await collect(server.client.subscribe(first.id));
    const all = async (): Promise<ChannelEvent[]> => {
      const answer = await fetch(`${server.url}/v1/channels/waits/events?limit=1000&correlation=${correlation}`, { headers: { authorization: "Bearer dev" } });
      return ((await answer.json()) as { data: ChannelEvent[] }).data;
    };
    const after = (await all())[0]?.cursor ?? 0;
    const { proxy, client } = await through("answer");
    const seen: ChannelEvent[] = [];
    const begun = performance.now();
    let firstMs = 0;
    let started = 1;
    for await (const event of client.subscribeChannel("waits", { correlation, after })) {
      firstMs ||= performance.now() - begun;
      seen.push(event);
      if (event.kind !== "run.completed") continue;
      // What comes while a page waits, and behind what others have in the channel.
      if (started++ === 3) break;
      await collect(server.client.subscribe((await server.client.start("waits", [{ publish: 0 }])).id));
      await start();
    }
    expect(seen).toEqual((await all()).slice(1));
    expect(new Set(seen.map(({ run }) => run)).size).toBe(3);
    expect(firstMs).toBeGreaterThan(9_900);
    expect(firstMs).toBeLessThan(13_000);
    expect(proxy.streams).toBe(1);
    proxy.close();
  });
});

describe("the API", () => {
  it("starts, steers and repeats runs", async () => {
    const { client } = server;
    const run = await client.start("waits", [{ signal: { name: "go" } }], { idempotencyKey: "k" });
    expect((await client.start("waits", [{ signal: { name: "go" } }], { idempotencyKey: "k" })).id).toBe(run.id);
    await eventually("it to wait", async () => ((await client.run(run.id)).waits_for === "signal" ? true : undefined));
    expect((await client.pause(run.id, "lunch")).status).toBe("paused");
    expect((await client.resume(run.id)).status).not.toBe("paused");
    const first = await client.signal(run.id, "go", 7, "s");
    await eventually("its end", async () => ((await client.run(run.id)).status === "completed" ? true : undefined));
    expect(first.seq).toBeGreaterThan(0);
    expect((await client.run(run.id)).output).toEqual([7]);
    const again = await client.rerun(run.id, { input: [{ sleep: 0 }] });
    expect(again.rerun_of).toBe(run.id);
    await collect(client.subscribe(again.id));
    expect((await client.run(again.id)).status).toBe("completed");
    await expect(client.cancel(run.id)).rejects.toMatchObject({ status: 409, code: "run_ended" });
    expect((await client.runs({ workflow: "waits", limit: 2 })).data).toHaveLength(2);
  });
});
