import { describe, expect, it } from "vitest";

import { emptyView, hasEnded, type RunEvent, type RunView, seeEvent, seeEvents, textOf, waitsForPerson } from "../src/index.js";

function view(...events: (Partial<RunEvent> & { kind: string })[]): RunView {
  return events.reduce<RunView>(
    (view, event, index) => seeEvent(view, { seq: index + 1, at: "2026-01-01T00:00:00.000Z", ...event }),
    emptyView,
  );
}

const update = (node: string, delta: string, items?: number[]): Partial<RunEvent> & { kind: string } => ({
  kind: "step.update",
  node,
  ...(items === undefined ? {} : { items }),
  attempt: 1,
  topic: "tokens",
  payload: { delta },
});

describe("a run's view", () => {
  it("drops exactly the updates that were rolled back", () => {
    const run = view(
      update("a", "1"),
      update("b", "2"),
      update("a", "3", [0]),
      update("a", "4"),
      { kind: "step.rolled_back", node: "a", attempt: 1, first_seq: 1, last_seq: 4 },
      update("a", "5"),
    );
    expect(run.updates.map((update) => update.seq)).toEqual([2, 3, 6]);
    expect(textOf(run)).toBe("235");
    expect(textOf(run, { step: "a[0]" })).toBe("3");
    expect(textOf(run, { topic: "other" })).toBe("");
  });

  it("takes an event once, however often it comes", () => {
    const once = view(update("a", "1"));
    expect(seeEvent(once, { seq: 1, at: "", kind: "run.failed" })).toBe(once);
  });

  it("has not ended while it waits, and says whose turn it is", () => {
    const started = [{ kind: "run.queued" }, { kind: "run.started" }];
    for (const [reason, person] of [["timer", false], ["retry", false], ["child", false], ["signal", true], ["operator", true]] as const) {
      const run = view(...started, { kind: "run.suspended", reason });
      expect([run.status, run.waitsFor, hasEnded(run), waitsForPerson(run)]).toEqual(["suspended", reason, false, person]);
      const resumed = view(...started, { kind: "run.suspended", reason }, { kind: "run.resumed" });
      expect([resumed.status, resumed.waitsFor]).toEqual(["running", undefined]);
    }
    const paused = view(...started, { kind: "run.paused", reason: "lunch" });
    expect([paused.status, hasEnded(paused), waitsForPerson(paused)]).toEqual(["paused", false, true]);
    expect(hasEnded(view(...started, { kind: "run.completed", output: 1 }))).toBe(true);
  });

  it("does not say of one wait until when another was to last", () => {
    // As who asks for `run.suspended` alone sees it.
    const run = view({ kind: "run.suspended", reason: "timer", until: "2030-01-01T00:00:00Z" }, { kind: "run.suspended", reason: "signal" });
    expect([run.waitsFor, run.waitsUntil]).toEqual(["signal", undefined]);
  });

  it("follows steps through attempts, waits and ends", () => {
    const run = view(
      { kind: "step.started", node: "a", attempt: 1 },
      { kind: "step.failed", node: "a", attempt: 1, will_retry: true },
      { kind: "step.suspended", node: "a", reason: "retry" },
    );
    expect(run.steps.get("a")).toMatchObject({ status: "suspended", attempt: 1, waitsFor: "retry" });
    const asks = seeEvent(run, { seq: 4, at: "", kind: "step.suspended", node: "b", reason: "signal", signal: "go" });
    expect(asks.steps.get("b")).toMatchObject({ status: "suspended", waitsFor: "signal", signal: "go" });
    const again = [{ kind: "step.resumed", node: "a" }, { kind: "step.started", node: "a", attempt: 2 }];
    const later = again.reduce((run, event) => seeEvent(run, { seq: run.seq + 1, at: "", ...event }), run);
    expect(later.steps.get("a")).toEqual({ node: "a", items: [], status: "running", attempt: 2 });
  });

  // The API said so of them, and a view left them running for ever.
  it("ends the steps that were under way with the run", () => {
    const begun = [
      { kind: "step.started", node: "a", attempt: 2 },
      { kind: "step.started", node: "b", attempt: 1 },
      { kind: "step.suspended", node: "b", reason: "signal", signal: "go" },
      { kind: "step.started", node: "c", attempt: 1 },
      { kind: "step.completed", node: "c" },
    ];
    for (const kind of ["run.cancelled", "run.failed"]) {
      const before = view(...begun);
      const run = seeEvent(before, { seq: 6, at: "", kind });
      expect([...run.steps.values()]).toEqual([
        { node: "a", items: [], status: "cancelled", attempt: 2 },
        { node: "b", items: [], status: "cancelled", attempt: 1 },
        { node: "c", items: [], status: "completed", attempt: 1 },
      ]);
      expect(before.steps.get("a")?.status).toBe("running");
    }
  });

  it("comes to the same by many events at once as by one after the other, and changes no view that was given out", () => {
    const kinds = [
      { kind: "run.queued" },
      { kind: "step.started", node: "a", attempt: 1 },
      update("a", "1"),
      update("b", "2"),
      { kind: "step.failed", node: "a", attempt: 1, will_retry: true },
      { kind: "step.rolled_back", node: "a", attempt: 1, first_seq: 3, last_seq: 3 },
      { kind: "run.suspended", reason: "retry" },
      { kind: "run.completed", output: 1 },
    ];
    const events = kinds.map((event, index): RunEvent => ({ seq: index + 1, at: "2026-01-01T00:00:00.000Z", ...event }));
    const whole = events.reduce(seeEvent, emptyView);
    for (let cut = 0; cut <= events.length; cut += 1) {
      const first = seeEvents(emptyView, events.slice(0, cut));
      const kept = structuredClone(first);
      expect(seeEvents(first, events)).toEqual(whole);
      expect(first).toEqual(kept);
    }
    expect(emptyView).toEqual({ seq: 0, status: "queued", steps: new Map(), updates: [] });
  });

  it("can go on in two ways from one view, and neither sees the other's updates", () => {
    const next = (run: RunView, node: string): RunView => seeEvent(run, { ...update(node, node), seq: run.seq + 1, at: "" });
    const common = next(next(emptyView, "a"), "b");
    const [left, right] = [next(next(common, "c"), "d"), next(next(common, "e"), "f")];
    const copy = next({ ...common }, "g");
    expect([common, left, right, copy, next(left, "h")].map((run) => textOf(run))).toEqual(["ab", "abcd", "abef", "abg", "abcdh"]);
    expect(left.updates).toBe(left.updates);
    expect(JSON.parse(JSON.stringify(left))).toMatchObject({ seq: 4, updates: [{ node: "a" }, { node: "b" }, { node: "c" }, { node: "d" }] });
  });

  // Each event once copied all updates before it: 50,000 of them took half a minute.
  it("takes in one event after the other in a time that grows with their number, not with its square", () => {
    const begun = performance.now();
    let run = emptyView;
    for (let seq = 1; seq <= 50_000; seq += 1) run = seeEvent(run, { ...update("a", "x"), seq, at: "" });
    expect(textOf(run)).toHaveLength(50_000);
    expect(performance.now() - begun).toBeLessThan(10_000);
  });
});
