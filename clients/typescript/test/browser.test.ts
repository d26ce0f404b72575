import { existsSync, mkdtempSync } from "node:fs";
import { createServer, type Server as HttpServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { build } from "esbuild";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";

import { emptyView, type Json, type RunEvent, seeEvent } from "../src/index.js";
import { Proxy } from "./proxy.js";
import { eventually, Server } from "./server.js";

const executablePath = process.env["CHROMIUM"] ?? "/usr/bin/chromium";

let server: Server;
/** Stands before the server: it shows the page as it is in this repository, and can take the network away. */
let network: Proxy;
let browser: Browser;
let bundle: string;
let context: BrowserContext | undefined;

beforeAll(async () => {
  server = await Server.start();
  network = await Proxy.start(() => server.url);
  server.deploy("probe", "stepwell_probe");
  server.deploy("waits", "stepwell_waits");
  const built = await build({
    entryPoints: [resolve(import.meta.dirname, "../src/index.ts")],
    bundle: true,
    format: "iife",
    globalName: "stepwell",
    write: false,
  });
  bundle = built.outputFiles[0]?.text ?? "";
  browser = await chromium.launch({
    executablePath,
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync",
    ],
  });
});
afterAll(async () => {
  await browser?.close();
  network?.close();
  await server?.close();
});
afterEach(async () => {
  await context?.close();
  context = undefined;
});

async function newPage(): Promise<Page> {
  context = await browser.newContext();
  return context.newPage();
}

/** What a page shows: its last event, how many it was brought, the run's status, and the updates that count. */
interface Shown {
  readonly seq: string;
  readonly seen: string;
  readonly status: string;
  readonly updates: string;
}

/** What the journal says that a page must show, if each of its events was brought once. */
async function truth(id: string): Promise<Shown> {
  const events: RunEvent[] = [];
  for (;;) {
    const page = await server.client.events(id, { after: events.at(-1)?.seq ?? 0, limit: 1000 });
    events.push(...page.data);
    if (!page.page.has_more) break;
  }
  const view = events.reduce(seeEvent, emptyView);
  return { seq: String(view.seq), seen: String(events.length), status: view.status, updates: JSON.stringify(view.updates.map((update) => update.seq)) };
}

/** What `examples/live` shows. */
const shown = (page: Page): Promise<Shown> =>
  page.evaluate(() => {
    const { seq, seen, status, updates } = document.body.dataset;
    return { seq: seq ?? "", seen: seen ?? "", status: status ?? "", updates: updates ?? "" };
  });

/**
 * Takes the network away from a page until it has felt it. Chromium's offline mode refuses new connections and leaves open
 * streams alone, so the proxy cuts those, and lets nobody through. A page that goes on by pages may be between two of them,
 * and then there is nothing to cut.
 */
async function outage(proxy: Proxy, felt: () => Promise<unknown>, hasStream = true): Promise<void> {
  const died = proxy.died;
  await context?.setOffline(true);
  proxy.down();
  await felt();
  if (hasStream) expect(proxy.died).toBeGreaterThan(died);
  proxy.up();
  await context?.setOffline(false);
}

/** A run that goes on: what follows happens in the middle of it. */
async function isUnderWay(id: string): Promise<void> {
  expect((await server.client.run(id)).ended_at ?? null).toBeNull();
}

async function agrees(page: Page, id: string): Promise<void> {
  await eventually("the run to end", async () => {
    const { status } = await server.client.run(id);
    return status === "completed" || status === "failed" ? true : undefined;
  }, 60_000);
  const expected = await truth(id);
  await eventually(`the page to show event ${expected.seq}`, async () => ((await shown(page)).seq === expected.seq ? true : undefined));
  expect(await shown(page)).toEqual(expected);
}

const slow = { busy_ms: 700, updates: 60, fail_node: "left", fail_first: 1 };

describe("examples/live, with the browser's own EventSource", () => {
  it("shows a run live, through a reload in the middle", async () => {
    const run = await server.client.start("probe", slow);
    const page = await newPage();
    await page.goto(`${network.url}/live/?run=${run.id}`);
    await eventually("some events", async () => (Number((await shown(page)).seq) > 10 ? true : undefined));
    await isUnderWay(run.id);
    await page.reload();
    await agrees(page, run.id);
  });

  it("goes on when the network is gone for a while, and when the server is killed", async () => {
    const run = await server.client.start("probe", slow);
    const page = await newPage();
    await page.goto(`${network.url}/live/?run=${run.id}`);
    await eventually("some events", async () => (Number((await shown(page)).seq) > 5 ? true : undefined));
    await outage(network, () => page.getByText("connecting again").waitFor());
    await page.getByText("live", { exact: true }).waitFor();
    await isUnderWay(run.id);
    await server.kill();
    try {
      await page.getByText("connecting again").waitFor();
    } finally {
      await server.up(); // the tests that follow need it
    }
    await agrees(page, run.id);
  });

  it("shows a run by token alone, through proxies that cut and that collect", async () => {
    for (const torture of [{ cutAfterMs: 2_000 }, { bufferMs: 1_000 }]) {
      const proxy = await Proxy.start(() => server.url, torture);
      const run = await server.client.start("probe", slow);
      const { token } = await server.client.runToken(run.id);
      const page = await newPage();
      await page.goto(`${proxy.url}/live/?run=${run.id}&token=${encodeURIComponent(token)}`);
      await agrees(page, run.id);
      if (torture.cutAfterMs !== undefined) expect(proxy.streams).toBeGreaterThan(1);
      await context?.close();
      proxy.close();
    }
  });

  it("counts what it is brought twice, and shows it once", async () => {
    const page = await newPage();
    const frame = (seq: number, kind: string): string => `id: ${seq}\nevent: ${kind}\ndata: ${JSON.stringify({ seq, at: "", kind, node: "a", topic: "t", payload: seq })}\n\n`;
    const body = frame(1, "run.started") + frame(2, "step.update") + frame(2, "step.update") + frame(3, "run.cancelled");
    await page.route("**/events?*", (route) => route.fulfill({ contentType: "text/event-stream", body }));
    await page.goto(`${network.url}/live/?run=r&token=t`);
    await eventually("the end", async () => ((await shown(page)).status === "cancelled" ? true : undefined));
    expect(await shown(page)).toEqual({ seq: "3", seen: "4", status: "cancelled", updates: "[2]" });
  });

  it("follows a run once that is chosen, left and chosen again at once", async () => {
    const wait = [{ signal: { name: "go" } }];
    const runs = await Promise.all([1, 2].map(() => server.client.start("waits", wait)));
    const page = await newPage();
    await page.addInitScript(() => {
      const opened: EventSource[] = [];
      const Given = EventSource;
      Object.assign(globalThis, { opened, EventSource: class extends Given { constructor(url: string) { super(url); opened.push(this); } } });
    });
    await page.goto(`${network.url}/live/`);
    await page.locator(`[data-run="${runs[0]?.id}"]`).waitFor();
    await page.evaluate(([first, second]) => {
      for (const id of [first, second, first]) document.querySelector<HTMLElement>(`[data-run="${id}"]`)?.click();
    }, runs.map(({ id }) => id));
    await page.getByText("waits for somebody").waitFor();
    const open = (): Promise<string[]> =>
      page.evaluate(() => (globalThis as unknown as { opened: EventSource[] }).opened.filter(({ readyState }) => readyState !== 2).map(({ url }) => url));
    expect(await open()).toEqual([expect.stringContaining(runs[0]?.id ?? "?")]);
    for (const run of runs) await server.client.cancel(run.id);
  });

  it("says that a run is paused and why, and lets it go on", async () => {
    const run = await server.client.start("waits", [{ signal: { name: "go" } }]);
    const page = await newPage();
    await page.goto(`${network.url}/live/?run=${run.id}`);
    await page.getByText("waits for somebody").waitFor();
    await server.client.pause(run.id, "over lunch");
    await page.getByText("The run is paused: over lunch").waitFor();
    await page.getByRole("button", { name: "Resume" }).click();
    await eventually("it to go on", async () => ((await server.client.run(run.id)).status === "paused" ? undefined : true));
    await eventually("the page to say so", async () => ((await page.locator("#resume").isHidden()) ? true : undefined));
    await server.client.signal(run.id, "go", 1);
    await agrees(page, run.id);
  });

  it("says that there is no such run, and does not ask again and again", async () => {
    const page = await newPage();
    let asked = 0;
    page.on("request", (request) => void (asked += request.url().includes("stream-tokens") ? 1 : 0));
    await page.goto(`${network.url}/live/?run=01890000-0000-7000-8000-000000000000`);
    await page.locator("#connection", { hasText: "no such run" }).waitFor({ timeout: 5_000 });
    await new Promise((done) => setTimeout(done, 1_500)); // longer than it would wait to ask again
    expect(asked).toBe(1);
  });

  it("keeps the keyboard's place in the list when a run is added to it", async () => {
    const run = await server.client.start("waits", []);
    const page = await newPage();
    await page.goto(`${network.url}/live/`);
    await page.locator(`[data-run="${run.id}"]`).focus();
    const added = await server.client.start("waits", []);
    await page.locator(`[data-run="${added.id}"]`).waitFor();
    expect(await page.evaluate(() => (document.activeElement as HTMLElement).dataset["run"])).toBe(run.id);
  });

  it("follows the run of a token that is handed to it", async () => {
    const run = await server.client.start("probe", { updates: 3 });
    const { token } = await server.client.runToken(run.id);
    const page = await newPage();
    await page.goto(`${network.url}/live/`);
    await page.getByText("by its token").click();
    await page.getByLabel("Run", { exact: true }).fill(run.id);
    await page.getByLabel("Token").fill(token);
    await page.getByRole("button", { name: "Follow" }).click();
    await agrees(page, run.id);
  });

  it("says that it is a person's turn, and sends what the person says", async () => {
    const run = await server.client.start("waits", [{ signal: { name: "go" } }, { publish: "thanks" }]);
    const page = await newPage();
    await page.goto(`${network.url}/live/?run=${run.id}`);
    await page.getByText("waits for somebody").waitFor();
    expect(await page.getByLabel("Signal").inputValue()).toBe("go");
    await page.getByLabel("Payload").fill('{"by": "Ada"}');
    await page.getByRole("button", { name: "Send" }).click();
    await agrees(page, run.id);
    expect((await server.client.run(run.id)).output).toMatchObject([{ by: "Ada" }, expect.anything()]);
  });
});

describe("the client, in a browser of another origin", () => {
  let app: HttpServer;
  let origin: string;
  beforeAll(async () => {
    app = createServer((_, answer) => answer.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><body></body>"));
    await new Promise<void>((listening) => app.listen(0, "127.0.0.1", listening));
    origin = `http://127.0.0.1:${(app.address() as AddressInfo).port}`;
    const put = await fetch(`${server.url}/v1/settings/cors`, {
      method: "PUT",
      headers: { authorization: "Bearer dev", "content-type": "application/json" },
      body: JSON.stringify({ origins: [origin] }),
    });
    expect(put.ok).toBe(true);
  });
  afterAll(() => void app?.close());

  /** Follows a run in the page, from where the tab was when it was reloaded. What was seen is in the tab's storage. */
  const followed = (page: Page, url: string, credential: string, id: string): Promise<void> =>
    page.evaluate(
      async ([url, credential, id]) => {
        const { Stepwell } = (globalThis as unknown as { stepwell: typeof import("../src/index.js") }).stepwell;
        const seen: RunEvent[] = JSON.parse(sessionStorage.getItem("seen") ?? "[]") as RunEvent[];
        addEventListener("pagehide", () => sessionStorage.setItem("seen", JSON.stringify(seen)));
        const states: boolean[] = [];
        Object.assign(globalThis, { seen, states });
        const client = new Stepwell({ url: url ?? "", credential: credential ?? "" });
        const onConnection = ({ connected }: { connected: boolean }): void => void states.push(connected);
        for await (const event of client.subscribe(id ?? "", { after: seen.at(-1)?.seq ?? 0, backoffMaxMs: 300, firstByteMs: 1_500, onConnection })) seen.push(event);
      },
      [url, credential, id],
    );
  const seenBy = (page: Page): Promise<RunEvent[]> =>
    page.evaluate(() => (globalThis as unknown as { seen?: RunEvent[] }).seen ?? []);
  /** How often the page was told that its connection is there, or that it is lost. */
  const told = (page: Page, connected: boolean): Promise<number> =>
    page.evaluate((of) => (globalThis as unknown as { states: boolean[] }).states.filter((state) => state === of).length, connected);

  for (const [name, torture] of [["cuts every connection after 2 s", { cutAfterMs: 2_000 }], ["collects for a second", { bufferMs: 1_000 }], ["holds answers back until they end", { holds: "answer" }]] as const) {
    it(`sees every event once, in order, through a reload, an outage, a killed server and a proxy that ${name}`, async () => {
      const proxy = await Proxy.start(() => server.url, torture);
      const run = await server.client.start("probe", { ...slow, busy_ms: 2_500 });
      const { token } = await server.client.runToken(run.id);
      const page = await newPage();
      await page.goto(origin);
      await page.addScriptTag({ content: bundle });
      const before = followed(page, proxy.url, token, run.id).catch(() => undefined); // the reload ends it
      await eventually("some events", async () => ((await seenBy(page)).length > 5 ? true : undefined));
      await page.reload();
      await before;
      const kept = await page.evaluate(() => (JSON.parse(sessionStorage.getItem("seen") ?? "[]") as unknown[]).length);
      expect(kept).toBeGreaterThan(5);
      await page.addScriptTag({ content: bundle });
      const following = followed(page, proxy.url, token, run.id);
      following.catch(() => undefined); // awaited below; when something else fails first, that is what is told
      const more = async (): Promise<void> => {
        const { length } = await seenBy(page);
        await eventually("more events", async () => ((await seenBy(page)).length > Math.max(length, kept) ? true : undefined));
      };
      await more();
      const lost = await told(page, false);
      await outage(proxy, () => eventually("the outage to be felt", async () => ((await told(page, false)) > lost ? true : undefined)), !("holds" in torture));
      await more();
      await isUnderWay(run.id);
      const died = proxy.died;
      await server.kill();
      try {
        await eventually("the stream to die", () => (proxy.died > died ? true : undefined));
      } finally {
        await server.up(); // the tests that follow need it
      }
      await following;
      const seen = await seenBy(page);
      proxy.close();
      // How many there are depends on how quick the machine is; without any there would be no events.
      if ("holds" in torture) expect(proxy.pages).toBeGreaterThan(0);
      const expected = await truth(run.id);
      expect(seen.map(({ seq }) => seq)).toEqual(Array.from({ length: Number(expected.seen) }, (_, index) => index + 1));
      const { status, updates } = seen.reduce(seeEvent, emptyView);
      expect({ status, updates: JSON.stringify(updates.map(({ seq }) => seq)) }).toEqual({ status: expected.status, updates: expected.updates });
    });
  }

  it("is not let in from an origin that the tenant has not named", async () => {
    const stranger = createServer((_, answer) => answer.writeHead(200, { "content-type": "text/html" }).end("<!doctype html>"));
    await new Promise<void>((listening) => stranger.listen(0, "127.0.0.1", listening));
    const page = await newPage();
    await page.goto(`http://127.0.0.1:${(stranger.address() as AddressInfo).port}`);
    const run = await server.client.start("waits", []);
    const { token } = await server.client.runToken(run.id);
    const answer = await page.evaluate(
      ([url, id, token]) => fetch(`${url}/v1/runs/${id}/events?token=${token}`).then(() => "let in", () => "refused"),
      [server.url, run.id, token],
    );
    stranger.close();
    expect(answer).toBe("refused");
  });
});

describe("the page looks as it should", () => {
  const folder = process.env["SCREENSHOTS"] ?? mkdtempSync(join(tmpdir(), "stepwell-live-"));
  const says = (...words: string[]): Json[] => words.map((word) => ({ publish: { delta: `${word} ` } }));
  const answer = "A stepwell is a well with steps down to the water. The oldest were cut into rock in the second century.".split(" ");

  async function shows(name: string, run: string, until: (page: Page) => Promise<unknown>): Promise<void> {
    for (const [kind, width, colorScheme] of [["wide", 1200, "light"], ["narrow", 400, "light"], ["dark", 1200, "dark"], ["narrow-dark", 400, "dark"]] as const) {
      await context?.close();
      context = await browser.newContext({ viewport: { width, height: 800 }, colorScheme });
      const page = await context.newPage();
      const broken: string[] = [];
      page.on("pageerror", (error) => broken.push(error.message));
      await page.goto(`${network.url}/live/?run=${run}`);
      await until(page);
      await page.locator("nav button").first().waitFor();
      const path = join(folder, `${name}-${kind}.png`);
      await page.screenshot({ path, fullPage: true });
      expect(existsSync(path)).toBe(true);
      expect(broken).toEqual([]);
      // Nothing is wider than the page.
      expect([kind, await page.evaluate(() => document.documentElement.scrollWidth)]).toEqual([kind, width]);
    }
  }
  const has = (status: string) => (page: Page): Promise<unknown> => page.locator("#status", { hasText: status }).waitFor();

  it("completed", async () => {
    const run = await server.client.start("probe", { updates: 3 });
    await shows("completed", run.id, async (page) => {
      await agrees(page, run.id);
      expect(await page.locator("#status").textContent()).toBe("completed");
      expect(await page.locator("#steps tr").count()).toBe(5);
    });
  });

  it("running", async () => {
    const run = await server.client.start("waits", [...says(...answer), { publish: { stage: "reading", files: ["wells.pdf", "a-rather-long-name-of-a-file-that-goes-on-and-on.pdf"] } }, { busy_ms: 20_000 }]);
    await shows("running", run.id, async (page) => {
      await has("running")(page);
      await page.getByText("second century").waitFor();
    });
    await server.client.cancel(run.id);
  });

  it("waiting for a person", async () => {
    const run = await server.client.start("waits", [...says(...answer), { signal: { name: "go", within_ms: 86_400_000 } }]);
    await shows("waiting", run.id, async (page) => {
      await has("suspended")(page);
      await page.getByRole("button", { name: "Send" }).waitFor();
    });
    await server.client.pause(run.id, "over lunch");
    await shows("paused", run.id, (page) => page.getByText("paused: over lunch").waitFor());
    await server.client.cancel(run.id, "not needed any more");
    await shows("cancelled", run.id, async (page) => {
      await page.getByText("not needed any more").waitFor();
      expect(await page.locator("#steps .badge").allTextContents()).toEqual(["cancelled"]);
    });
  });

  it("failed", async () => {
    const run = await server.client.start("waits", [...says(...answer), { fail: { attempts: 9, code: "no_answer", permanent: true } }]);
    await shows("failed", run.id, has("failed"));
    const retried = await server.client.start("probe", { updates: 4, fail_node: "left", fail_first: 9 });
    await shows("failed-late", retried.id, async (page) => {
      await agrees(page, retried.id);
      await has("failed")(page);
    });
  });
});
