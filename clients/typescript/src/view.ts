import { isTerminal, type Json, type RunEvent, type RunStatus, type WaitReason } from "./events.js";

/** A step as its events tell. */
export interface StepView {
  readonly node: string;
  readonly items: readonly number[];
  readonly status: "running" | "suspended" | "completed" | "failed" | "skipped" | "cancelled";
  readonly attempt: number;
  /** What a suspended step waits for. */
  readonly waitsFor?: WaitReason;
  /** The signal that it waits for. */
  readonly signal?: string;
}

/** An update that counts. */
export interface Update {
  readonly seq: number;
  readonly at: string;
  readonly node: string;
  readonly items: readonly number[];
  readonly attempt: number;
  readonly topic: string;
  readonly payload: Json;
}

/** What a run looks like after the events that were seen. Never changed: each event makes a new one. */
export interface RunView {
  /** The last event that was seen; 0 before the first. */
  readonly seq: number;
  readonly status: RunStatus;
  /** What a suspended run waits for. A turn of a person is `signal`; everything else goes on by itself. */
  readonly waitsFor?: WaitReason;
  /** Until when, where a timer ends the wait. */
  readonly waitsUntil?: string;
  /** By `node`, or `node[item][item]` inside fan-outs and loops. */
  readonly steps: ReadonlyMap<string, StepView>;
  /** The updates that count, in order: those of failed attempts are not among them. */
  readonly updates: readonly Update[];
  readonly output?: Json;
  readonly failure?: NonNullable<RunEvent["failure"]>;
  readonly endedAt?: string;
}

/** A run of which nothing was seen. */
export const emptyView: RunView = { seq: 0, status: "queued", steps: new Map(), updates: [] };

/** The name of a step. */
export function stepName(event: Pick<RunEvent, "node" | "items">): string {
  return (event.node ?? "") + (event.items ?? []).map((item) => `[${item}]`).join("");
}

/** Takes in the next event. One that was seen before changes nothing. */
export function seeEvent(view: RunView, event: RunEvent): RunView {
  return seeEvents(view, [event]);
}

/** Takes in the next events, for the price of one new view: use it where many come at once. */
export function seeEvents(view: RunView, events: Iterable<RunEvent>): RunView {
  let next: Draft | undefined;
  for (const event of events) {
    if (event.seq <= (next?.view ?? view).seq) continue;
    next ??= draftOf(view);
    see(next, event);
  }
  return next === undefined ? view : viewOf(next);
}

/** Updates, the first so many of a list. A list only grows, so views share it: a copy for each event would cost its square. */
interface Updates {
  readonly all: Update[];
  readonly count: number;
}

const updatesOf = new WeakMap<RunView, Updates>();

/** A view that nobody has seen yet. */
interface Draft {
  readonly view: { -readonly [K in keyof RunView]: RunView[K] };
  steps: Map<string, StepView> | undefined;
  updates: Updates;
}

function draftOf(view: RunView): Draft {
  const { seq, status, steps } = view;
  const draft: Draft["view"] = { seq, status, steps, updates: [] };
  if (view.waitsFor !== undefined) draft.waitsFor = view.waitsFor;
  if (view.waitsUntil !== undefined) draft.waitsUntil = view.waitsUntil;
  if (view.output !== undefined) draft.output = view.output;
  if (view.failure !== undefined) draft.failure = view.failure;
  if (view.endedAt !== undefined) draft.endedAt = view.endedAt;
  const updates = updatesOf.get(view) ?? { all: [...view.updates], count: view.updates.length };
  return { view: draft, steps: undefined, updates };
}

function viewOf({ view, steps, updates }: Draft): RunView {
  if (steps !== undefined) view.steps = steps;
  updatesOf.set(view, updates);
  let shown: readonly Update[] | undefined;
  const get = (): readonly Update[] => (shown ??= updates.all.slice(0, updates.count));
  return Object.defineProperty(view, "updates", { get, enumerable: true, configurable: true });
}

/** One more: at the end of the list, unless another view has gone on differently there. */
function withUpdate({ all, count }: Updates, update: Update): Updates {
  const own = all.length === count ? all : all.slice(0, count);
  own.push(update);
  return { all: own, count: count + 1 };
}

function see(draft: Draft, event: RunEvent): void {
  const next = draft.view;
  next.seq = event.seq;
  const step = (changes: Partial<StepView> & Pick<StepView, "status">): void => {
    const name = stepName(event);
    const steps = (draft.steps ??= new Map(next.steps));
    const { waitsFor: _, signal: __, ...rest } = steps.get(name) ?? { node: event.node ?? "", items: event.items ?? [], attempt: 0 };
    steps.set(name, { ...rest, ...changes });
  };
  switch (event.kind) {
    case "run.started":
    case "run.resumed":
      next.status = "running";
      delete next.waitsFor;
      delete next.waitsUntil;
      break;
    case "run.suspended":
      next.status = "suspended";
      next.waitsFor = event.reason as WaitReason;
      delete next.waitsUntil;
      if (event.until !== undefined) next.waitsUntil = event.until;
      break;
    case "run.paused":
      next.status = "paused";
      delete next.waitsFor;
      delete next.waitsUntil;
      break;
    case "run.completed":
      next.status = "completed";
      next.output = event.output ?? null;
      break;
    case "run.failed":
      next.status = "failed";
      if (event.failure !== undefined) next.failure = event.failure;
      break;
    case "run.cancelled":
      next.status = "cancelled";
      break;
    case "step.started":
      step({ status: "running", attempt: event.attempt ?? 1 });
      break;
    case "step.resumed":
      step({ status: "running" });
      break;
    case "step.suspended":
      step({
        status: "suspended",
        waitsFor: event.reason as WaitReason,
        ...(typeof event["signal"] === "string" ? { signal: event["signal"] } : {}),
      });
      break;
    case "step.completed":
    case "step.taken_over":
      step({ status: "completed" });
      break;
    case "step.failed":
      step({ status: event.will_retry === true || event["pauses"] === true ? "suspended" : "failed" });
      break;
    case "step.skipped":
      step({ status: "skipped" });
      break;
    case "step.cancelled":
      step({ status: "cancelled" });
      break;
    case "step.update":
      draft.updates = withUpdate(draft.updates, {
        seq: event.seq,
        at: event.at,
        node: event.node ?? "",
        items: event.items ?? [],
        attempt: event.attempt ?? 1,
        topic: event.topic ?? "",
        payload: event.payload ?? null,
      });
      break;
    case "step.rolled_back": {
      const name = stepName(event);
      const [first, last] = [event.first_seq ?? 0, event.last_seq ?? 0];
      const counts = (update: Update): boolean =>
        stepName(update) !== name || update.seq < first || update.seq > last;
      const { all, count } = draft.updates;
      const left = all.slice(0, count).filter(counts);
      draft.updates = { all: left, count: left.length };
      break;
    }
  }
  if (isTerminal(event)) {
    delete next.waitsFor;
    delete next.waitsUntil;
    next.endedAt = event.at;
    // What was under way has no end of its own: the run's is its end.
    for (const [name, { node, items, status, attempt }] of draft.steps ?? next.steps) {
      if (status !== "running" && status !== "suspended") continue;
      (draft.steps ??= new Map(next.steps)).set(name, { node, items, status: "cancelled", attempt });
    }
  }
}

/** Whether the run has ended. A suspended run has not, whatever it waits for. */
export function hasEnded(view: RunView): boolean {
  return view.endedAt !== undefined;
}

/** Whether it is a person's turn: the run waits for a signal, or for an operator. */
export function waitsForPerson(view: RunView): boolean {
  return view.status === "paused" || view.waitsFor === "signal" || view.waitsFor === "operator";
}

/** The text that updates `{"delta": "…"}` make, of all steps or of one, on all topics or on one. */
export function textOf(view: RunView, of: { readonly topic?: string; readonly step?: string } = {}): string {
  let text = "";
  for (const update of view.updates) {
    if (of.topic !== undefined && update.topic !== of.topic) continue;
    if (of.step !== undefined && stepName(update) !== of.step) continue;
    const { payload } = update;
    if (typeof payload === "object" && payload !== null && !Array.isArray(payload) && typeof payload["delta"] === "string") {
      text += payload["delta"];
    }
  }
  return text;
}
