import type { RunEvent } from "./events.js";
import type { SubscribeOptions } from "./subscribe.js";
import { emptyView, hasEnded, type RunView, seeEvents } from "./view.js";

/** What follows a run: a client, or anything like it. */
export interface Source {
  subscribe(id: string, options: SubscribeOptions): AsyncIterable<RunEvent>;
}

/** What is known of a run, and of the connection. */
export interface Snapshot {
  readonly view: RunView;
  readonly connected: boolean;
  /** Why nothing follows any more, where an error ended it. */
  readonly error?: unknown;
}

/** How long a subscription outlives its last listener. Long enough for a page that mounts a component again. */
const LINGER_MS = 5_000;

/** Listeners are told this often at most: a page draws no faster, and a step can publish thousands of updates a second. */
const FRAME_MS = 16;

const nothing: Snapshot = { view: emptyView, connected: false };
const stores = new WeakMap<Source, Map<string, RunStore>>();

/** As the browser does it with what a listener of its own throws. */
function report(error: unknown): void {
  if (typeof reportError === "function") reportError(error);
  else
    queueMicrotask(() => {
      throw error;
    });
}

/**
 * One subscription to a run, however many listen and however often they come and go. What was seen is kept, so whoever
 * comes back sees it at once and nothing is read twice.
 */
export class RunStore {
  private snapshot: Snapshot = nothing;
  private readonly listeners = new Set<() => void>();
  private following: AbortController | undefined;
  private lingering: ReturnType<typeof setTimeout> | undefined;
  private seen: RunEvent[] = [];
  private toldAt = Number.NEGATIVE_INFINITY;
  private telling: ReturnType<typeof setTimeout> | undefined;

  private constructor(
    private readonly source: Source,
    private readonly id: string,
    private readonly runs: Map<string, RunStore>,
  ) {}

  /** The store of a run. The same source and id have the same one. */
  static of(source: Source, id: string): RunStore {
    let runs = stores.get(source);
    if (runs === undefined) stores.set(source, (runs = new Map()));
    let store = runs.get(id);
    if (store === undefined) {
      store = new RunStore(source, id, runs);
      runs.set(id, store);
      // A server renders and never listens.
      store.linger();
    }
    return store;
  }

  readonly get = (): Snapshot => this.snapshot;

  readonly listen = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    clearTimeout(this.lingering);
    // It may have been away for long, in a part of the page that was hidden.
    if (!this.runs.has(this.id)) this.runs.set(this.id, this);
    if (this.following === undefined && !hasEnded(this.snapshot.view)) void this.follow();
    return () => {
      this.listeners.delete(listener);
      if (this.listeners.size === 0) this.linger();
    };
  };

  private linger(): void {
    clearTimeout(this.lingering);
    this.lingering = setTimeout(() => {
      this.following?.abort();
      this.following = undefined;
      this.set({ connected: false });
      if (this.runs.get(this.id) === this) this.runs.delete(this.id);
    }, LINGER_MS);
    // In Node.js, nothing stays awake for it.
    if (typeof this.lingering === "object") this.lingering.unref?.();
  }

  private set(change: Partial<Snapshot>): void {
    this.snapshot = { ...this.snapshot, ...change };
    for (const listener of this.listeners) {
      try {
        listener();
      } catch (error) {
        // One that fails must not keep what happens from the others.
        report(error);
      }
    }
  }

  private see(event: RunEvent): void {
    this.seen.push(event);
    if (this.telling !== undefined) return;
    this.telling = setTimeout(() => this.tell(), Math.max(0, this.toldAt + FRAME_MS - performance.now()));
  }

  private tell(): void {
    clearTimeout(this.telling);
    this.telling = undefined;
    this.toldAt = performance.now();
    const view = seeEvents(this.snapshot.view, this.seen.splice(0));
    if (view !== this.snapshot.view) this.set({ view });
  }

  private async follow(): Promise<void> {
    const following = (this.following = new AbortController());
    if (this.snapshot.error !== undefined) this.set({ error: undefined });
    let end: Partial<Snapshot> = {};
    try {
      const events = this.source.subscribe(this.id, {
        after: this.snapshot.view.seq,
        signal: following.signal,
        onConnection: ({ connected }) => {
          if (this.following === following) this.set({ connected });
        },
      });
      for await (const event of events) this.see(event);
    } catch (error) {
      end = { error };
    }
    this.tell();
    // Another one may follow by now.
    if (this.following !== following && this.following !== undefined) return;
    this.following = undefined;
    this.set({ ...end, connected: false });
  }
}
