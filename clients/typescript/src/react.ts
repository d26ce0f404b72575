import { useCallback, useSyncExternalStore } from "react";

import { RunStore, type Snapshot, type Source } from "./store.js";
import { emptyView } from "./view.js";

const nothing: Snapshot = { view: emptyView, connected: false };
const getNothing = (): Snapshot => nothing;
const listenToNothing = (): (() => void) => () => {};

/**
 * A run, live. Any number of components may ask for the same run: they share one subscription, which outlives re-mounts
 * (and StrictMode's double mount), so nothing is read twice and nothing is missed in between.
 *
 * The run has ended when `view.endedAt` is there. A suspended run has not: `view.waitsFor` says what it waits for, and only
 * `signal` is a person's turn.
 */
export function useRun(source: Source, id: string | undefined): Snapshot {
  const store = id === undefined ? undefined : RunStore.of(source, id);
  const get = useCallback(() => store?.get() ?? nothing, [store]);
  return useSyncExternalStore(store?.listen ?? listenToNothing, get, getNothing);
}
