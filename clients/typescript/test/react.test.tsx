// @vitest-environment jsdom
import { act, createElement, StrictMode } from "react";
import { createRoot, hydrateRoot } from "react-dom/client";
import { describe, expect, it, vi } from "vitest";

import { type RunEvent, RunStore, type Source } from "../src/index.js";
import { useRun } from "../src/react.js";

(globalThis as Record<string, unknown>)["IS_REACT_ACT_ENVIRONMENT"] = true;

/** A source whose events a test sends, and that counts who follows. */
class Scripted implements Source {
  subscriptions = 0;
  readonly begun: number[] = [];
  private send: ((event: RunEvent | undefined) => void) | undefined;

  async *subscribe(_: string, options: { after?: number; signal?: AbortSignal }): AsyncGenerator<RunEvent> {
    this.subscriptions += 1;
    this.begun.push(options.after ?? 0);
    for (;;) {
      const event = await new Promise<RunEvent | undefined>((told) => {
        this.send = told;
        options.signal?.addEventListener("abort", () => told(undefined));
      });
      if (event === undefined) return;
      yield event;
    }
  }

  /** Sends an event. Whether somebody takes it. */
  say(event: Partial<RunEvent> & { seq: number; kind: string }): boolean {
    const { send } = this;
    this.send = undefined;
    send?.({ at: "", ...event });
    return send !== undefined;
  }

  /** Sends an event, and waits until those who follow have been told. */
  async tell(id: string, event: Partial<RunEvent> & { seq: number; kind: string }): Promise<void> {
    await act(async () => {
      this.send?.({ at: "", ...event });
      await vi.waitUntil(() => RunStore.of(this, id).get().view.seq === event.seq, { interval: 1 });
    });
  }
}

function mounted(source: Source, id: string): { text: () => string; unmount: () => void } {
  const place = document.createElement("div");
  const root = createRoot(place);
  const Shown = (): ReturnType<typeof createElement> => {
    const { view } = useRun(source, id);
    return createElement("p", null, `${view.seq} ${view.status} ${view.waitsFor ?? ""} ${view.endedAt === undefined ? "on" : "over"}`);
  };
  act(() => root.render(createElement(StrictMode, null, createElement(Shown))));
  return { text: () => place.textContent ?? "", unmount: () => act(() => root.unmount()) };
}

describe("useRun", () => {
  // A page that was mounted again once subscribed a second time, and missed what had come in between.
  it("keeps one subscription through re-mounts and a double mount", async () => {
    const source = new Scripted();
    const first = mounted(source, "r1");
    await source.tell("r1", { seq: 1, kind: "run.queued" });
    first.unmount();
    await source.tell("r1", { seq: 2, kind: "run.started" });
    const second = mounted(source, "r1");
    expect(second.text()).toBe("2 running  on");
    await source.tell("r1", { seq: 3, kind: "run.suspended", reason: "timer" });
    expect([second.text(), source.subscriptions, source.begun]).toEqual(["3 suspended timer on", 1, [0]]);
    second.unmount();
  });

  // An agent's turn once ended on screen whenever it waited for something of its own.
  it("does not take an inner wait for an end", async () => {
    const source = new Scripted();
    const page = mounted(source, "r2");
    await source.tell("r2", { seq: 1, kind: "run.started" });
    for (const reason of ["timer", "child", "retry"]) {
      await source.tell("r2", { seq: RunStore.of(source, "r2").get().view.seq + 1, kind: "run.suspended", reason });
      expect(page.text()).toMatch(new RegExp(`suspended ${reason} on`));
      await source.tell("r2", { seq: RunStore.of(source, "r2").get().view.seq + 1, kind: "run.resumed" });
      expect(page.text()).toMatch(/running {2}on/);
    }
    await source.tell("r2", { seq: 99, kind: "run.completed", output: 1 });
    expect(page.text()).toBe("99 completed  over");
    page.unmount();
  });

  it("is one subscription for all components that show a run, and tells what has ended it", async () => {
    const refusal = new Error("gone");
    let subscriptions = 0;
    let refuse = (): void => undefined;
    const source: Source = {
      async *subscribe() {
        subscriptions += 1;
        await new Promise<void>((_, no) => (refuse = () => no(refusal)));
        yield { seq: 1, at: "", kind: "run.queued" };
      },
    };
    const pages = [mounted(source, "r3"), mounted(source, "r3")];
    await act(async () => {
      refuse();
      await vi.waitUntil(() => RunStore.of(source, "r3").get().error !== undefined, { interval: 1 });
    });
    expect([subscriptions, RunStore.of(source, "r3").get().error]).toEqual([1, refusal]);
    expect(pages.map((page) => page.text())).toEqual(["0 queued  on", "0 queued  on"]);
    for (const page of pages) page.unmount();
  });

  it("draws a flood of events in few frames, and ends with the last of them", async () => {
    const count = 5_000;
    const source: Source = {
      async *subscribe() {
        for (let seq = 1; seq < count; seq += 1) {
          yield { seq, at: "", kind: "step.update", node: "a", attempt: 1, topic: "t", payload: { delta: "x" } };
        }
        yield { seq: count, at: "", kind: "run.completed", output: null };
      },
    };
    const page = mounted(source, "r4");
    let told = 0;
    const store = RunStore.of(source, "r4");
    const stop = store.listen(() => (told += 1));
    await act(() => vi.waitUntil(() => store.get().view.endedAt !== undefined, { interval: 1 }));
    stop();
    expect([page.text(), store.get().view.updates.length]).toEqual([`${count} completed  over`, count - 1]);
    expect(told).toBeLessThan(count / 10);
    page.unmount();
  });

  it("is hydrated with what the server has drawn, and shows what is known after that", async () => {
    const source = new Scripted();
    const first = mounted(source, "r5");
    await source.tell("r5", { seq: 1, kind: "run.started" });
    const Shown = (): ReturnType<typeof createElement> => createElement("p", null, useRun(source, "r5").view.status);
    const place = document.createElement("div");
    place.innerHTML = "<p>queued</p>"; // a server has seen nothing of the run
    const errors: unknown[] = [];
    const root = await act(async () => hydrateRoot(place, createElement(Shown), { onRecoverableError: (error) => errors.push(error) }));
    expect([place.textContent, errors]).toEqual(["running", []]);
    act(() => root.unmount());
    first.unmount();
  });

  it("goes on drawing when the clock is set back", async () => {
    const source = new Scripted();
    const page = mounted(source, "r6");
    await source.tell("r6", { seq: 1, kind: "run.queued" });
    const clock = vi.spyOn(Date, "now").mockReturnValue(Date.now() - 3_600_000);
    try {
      await act(async () => {
        source.say({ seq: 2, kind: "run.started" });
        await new Promise((done) => setTimeout(done, 100));
      });
      expect(page.text()).toBe("2 running  on");
    } finally {
      clock.mockRestore();
    }
    page.unmount();
  });
});

describe("a store", () => {
  it("tells all who listen, though one of them fails, and goes on", async () => {
    const source = new Scripted();
    const store = RunStore.of(source, "r7");
    const mistakes: unknown[] = [];
    vi.stubGlobal("reportError", (error: unknown) => mistakes.push(error));
    const seen: number[] = [];
    const stops = [store.listen(() => { throw new Error("mine"); }), store.listen(() => seen.push(store.get().view.seq))];
    for (const seq of [1, 2]) {
      await vi.waitUntil(() => source.say({ seq, kind: "run.started" }), { interval: 1 });
      await vi.waitUntil(() => seen.at(-1) === seq, { interval: 1 });
    }
    expect(mistakes.length).toBeGreaterThanOrEqual(2);
    for (const stop of stops) stop();
    vi.unstubAllGlobals();
  });

  it("does not say that it is connected when it is not any more", async () => {
    vi.useFakeTimers();
    try {
      const source: Source = {
        async *subscribe(_, { onConnection, signal }) {
          onConnection?.({ connected: true });
          // One that takes its time to notice.
          await new Promise((over) => signal?.addEventListener("abort", () => setTimeout(over, 1_000)));
        },
      };
      const store = RunStore.of(source, "r8");
      store.listen(() => undefined)();
      await vi.advanceTimersByTimeAsync(1);
      expect(store.get().connected).toBe(true);
      await vi.advanceTimersByTimeAsync(5_000);
      expect(store.get().connected).toBe(false);
    } finally {
      vi.useRealTimers();
    }
  });
});
