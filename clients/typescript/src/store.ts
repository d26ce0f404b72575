import type { RunEvent } from "./events.js";
import type { SubscribeOptions } from "./subscribe.js";
import { emptyView, hasEnded, type RunView, seeEvent } from "./view.js";

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

const nothing: Snapshot = { view: emptyView, connected: false };
const stores = new WeakMap<Source, Map<string, RunStore>>();

/**
 * One subscription to a run, however many listen and however often they come and go. What was seen is kept, so whoever
 * comes back sees it at once and nothing is read twice.
 */
export class RunStore {
  private snapshot: Snapshot = nothing;
  private readonly listeners = new Set<() => void>();
  private following: AbortController | undefined;
  private lingering: ReturnType<typeof setTimeout> | undefined;

  private constructor(
    private readonly source: Source,
    private readonly id: string,
    private readonly forget: () => void,
  ) {}

  /** The store of a run. The same source and id have the same one. */
  static of(source: Source, id: string): RunStore {
    let runs = stores.get(source);
    if (runs === undefined) stores.set(source, (runs = new Map()));
    let store = runs.get(id);
    if (store === undefined) {
      const all = runs;
      store = new RunStore(source, id, () => all.delete(id));
      runs.set(id, store);
    }
    return store;
  }

  readonly get = (): Snapshot => this.snapshot;

  readonly listen = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    clearTimeout(this.lingering);
    if (this.following === undefined && !hasEnded(this.snapshot.view)) void this.follow();
    return () => {
      this.listeners.delete(listener);
      if (this.listeners.size > 0) return;
      clearTimeout(this.lingering);
      this.lingering = setTimeout(() => {
        this.following?.abort();
        this.following = undefined;
        this.forget();
      }, LINGER_MS);
    };
  };

  private set(change: Partial<Snapshot>): void {
    this.snapshot = { ...this.snapshot, ...change };
    for (const listener of this.listeners) listener();
  }

  private async follow(): Promise<void> {
    const following = (this.following = new AbortController());
    try {
      const events = this.source.subscribe(this.id, {
        after: this.snapshot.view.seq,
        signal: following.signal,
        onConnection: ({ connected }) => this.set({ connected }),
      });
      for await (const event of events) this.set({ view: seeEvent(this.snapshot.view, event) });
      this.set({ connected: false });
    } catch (error) {
      this.set({ connected: false, error });
    } finally {
      if (this.following === following) this.following = undefined;
    }
  }
}
