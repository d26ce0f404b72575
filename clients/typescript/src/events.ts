import type { components } from "./openapi.js";

/** A JSON value. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** Where a run stands. */
export type RunStatus = "queued" | "running" | "suspended" | "paused" | "completed" | "failed" | "cancelled";

/** What a suspended run waits for. Only `signal` and `operator` are waits for a person. */
export type WaitReason = "signal" | "child" | "timer" | "retry" | "operator";

/** A run as the API shows it. */
export type Run = Omit<components["schemas"]["RunBody"], "input" | "output" | "status"> & {
  readonly status: RunStatus;
  readonly input?: Json;
  readonly output?: Json;
};

/** What every event has. */
export interface RunEvent {
  /** Its number in the run, from 1, without gaps. */
  readonly seq: number;
  /** When it was decided (RFC 3339). */
  readonly at: string;
  /** What happened, such as `step.update`. Later versions of the server may have kinds that this one does not know. */
  readonly kind: string;
  /** The step's node. */
  readonly node?: string;
  /** Inside fan-outs and loops: the numbers of the item or iteration, outermost first. */
  readonly items?: readonly number[];
  /** The step's attempt. */
  readonly attempt?: number;
  /** `step.update`: the topic. */
  readonly topic?: string;
  /** `step.update`, `signal.received`: what was said. */
  readonly payload?: Json;
  /** `run.completed`, `step.completed`: the result. */
  readonly output?: Json;
  /** `run.failed`, `step.failed`: why. */
  readonly failure?: { readonly code: string; readonly message: string; readonly kind: string; readonly source: string; readonly details?: Json };
  /** `step.failed`: whether another attempt follows. */
  readonly will_retry?: boolean;
  /** `run.suspended`, `step.suspended`: what is waited for. `run.cancelled`, `run.paused`: what was said. */
  readonly reason?: string | null;
  /** `run.suspended`, `step.suspended`: when the wait ends at the latest. */
  readonly until?: string;
  /** `step.rolled_back`: the first update that does not count any more. */
  readonly first_seq?: number;
  /** `step.rolled_back`: the last one. */
  readonly last_seq?: number;
  /** Whatever else belongs to the kind: see the API's description. */
  readonly [field: string]: unknown;
}

/** An event in a channel: whose it is, and where it stands there. */
export interface ChannelEvent extends RunEvent {
  /** Its number in the channel. */
  readonly cursor: number;
  /** The run. */
  readonly run: string;
  /** The run's workflow. */
  readonly workflow: string;
  /** What whoever started the run knows it by. */
  readonly correlation?: string;
}

/** Whether nothing of the run follows. */
export function isTerminal(event: Pick<RunEvent, "kind">): boolean {
  return event.kind === "run.completed" || event.kind === "run.failed" || event.kind === "run.cancelled";
}
