// @vitest-environment jsdom
import { act, createElement, StrictMode } from "react";
import { createRoot } from "react-dom/client";
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
});
