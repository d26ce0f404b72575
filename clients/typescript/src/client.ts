import { errorOf, StepwellError } from "./errors.js";
import type { ChannelEvent, Json, Run, RunEvent, RunStatus } from "./events.js";
import type { components } from "./openapi.js";
import { type Credential, followChannel, followRun, type SubscribeOptions } from "./subscribe.js";

/** A server, and what opens it. */
export interface ClientOptions {
  /** Where the server is, such as `https://stepwell.example`. In a page that the server itself serves, `""`. */
  readonly url: string;
  /** An API key, or in a browser a stream token, which opens the events of one run or channel and nothing else. */
  readonly credential: Credential;
  /** Another `fetch`. */
  readonly fetch?: typeof fetch;
}

/** A list, or a part of one. */
export interface Page<T> {
  readonly data: readonly T[];
  readonly page: { readonly cursor: string | null; readonly has_more: boolean; readonly limit: number };
}

/** How to start a run. */
export interface StartOptions {
  /** The version to run; the latest when it is left out. */
  readonly version?: string;
  /** The same key starts the same run, for 24 hours. */
  readonly idempotencyKey?: string;
  /** What you know the run by. */
  readonly correlation?: string;
}

/** How to repeat a run. */
export interface RerunOptions {
  /** The node to begin at: results of what does not come after it are taken over. */
  readonly fromStep?: string;
  /** Another input. */
  readonly input?: Json;
  /** Another version, or `latest`. */
  readonly version?: string;
  /** The same key starts the same run, for 24 hours. */
  readonly idempotencyKey?: string;
}

/** A stream token. */
export type StreamToken = components["schemas"]["TokenBody"];

/** A workflow, and its latest version. */
export type Workflow = components["schemas"]["WorkflowBody"];

/** A version of a workflow. */
export type WorkflowVersion = components["schemas"]["VersionBody"];

/** A step of a run. */
export type Step = components["schemas"]["StepBody"];

const part = encodeURIComponent;

/** What a token shows, and for how long. */
export interface TokenOptions {
  /** The only topics whose updates it shows, 1 to 64; else everything. */
  readonly topics?: readonly string[];
  /** Whether it shows inputs, outputs and details of failures: by default, only without `topics`. */
  readonly outputs?: boolean;
  /** 1 to 3,600; 600 by default. */
  readonly ttlSeconds?: number;
}

/** The same for a channel, of which it may show some runs only: those that fit all of these. */
export interface ChannelTokenOptions extends TokenOptions {
  readonly run?: string;
  readonly workflow?: string;
  readonly correlation?: string;
}

/** The API of a Stepwell server. */
export class Stepwell {
  private readonly base: string;
  private readonly fetch: typeof fetch;

  constructor(private readonly options: ClientOptions) {
    this.base = options.url.replace(/\/+$/, "");
    // `fetch` is a method of the window and wants to be called as one.
    this.fetch = options.fetch ?? ((input, init) => globalThis.fetch(input, init));
  }

  /** Starts a run. When this answers, the run is on disk. */
  start(workflow: string, input: Json = null, options: StartOptions = {}): Promise<Run> {
    const headers: Record<string, string> = {};
    if (options.idempotencyKey !== undefined) headers["idempotency-key"] = options.idempotencyKey;
    if (options.correlation !== undefined) headers["stepwell-correlation"] = options.correlation;
    const body = options.version === undefined ? { input } : { input, version: options.version };
    return this.request("POST", `/v1/workflows/${part(workflow)}/runs`, body, headers);
  }

  /** A run, with its input and its output or failure. */
  run(id: string): Promise<Run> {
    return this.request("GET", `/v1/runs/${part(id)}`);
  }

  /** Runs, newest first. */
  runs(filter: { workflow?: string; status?: RunStatus; correlation?: string; cursor?: string; limit?: number } = {}): Promise<Page<Run>> {
    return this.request("GET", `/v1/runs${queryOf(filter)}`);
  }

  /** The steps of a run. */
  steps(id: string, page: { cursor?: string; limit?: number } = {}): Promise<Page<Step>> {
    return this.request("GET", `/v1/runs/${part(id)}/steps${queryOf(page)}`);
  }

  /** The workflows that can be started. */
  workflows(page: { cursor?: string; limit?: number } = {}): Promise<Page<Workflow>> {
    return this.request("GET", `/v1/workflows${queryOf(page)}`);
  }

  /** The versions of a workflow. */
  versions(workflow: string, page: { cursor?: string; limit?: number } = {}): Promise<Page<WorkflowVersion>> {
    return this.request("GET", `/v1/workflows/${part(workflow)}/versions${queryOf(page)}`);
  }

  /** Cancels a run. */
  cancel(id: string, reason?: string): Promise<Run> {
    return this.request("POST", `/v1/runs/${part(id)}/cancel`, reason === undefined ? {} : { reason });
  }

  /** Holds a run: what is under way comes to its end, and nothing else begins. */
  pause(id: string, reason?: string): Promise<Run> {
    return this.request("POST", `/v1/runs/${part(id)}/pause`, reason === undefined ? {} : { reason });
  }

  /** Lets a paused run go on. */
  resume(id: string): Promise<Run> {
    return this.request("POST", `/v1/runs/${part(id)}/resume`, {});
  }

  /** Starts a new run that repeats this one. */
  rerun(id: string, options: RerunOptions = {}): Promise<Run> {
    const headers: Record<string, string> = {};
    if (options.idempotencyKey !== undefined) headers["idempotency-key"] = options.idempotencyKey;
    const body: Record<string, Json> = {};
    if (options.fromStep !== undefined) body["from_step"] = options.fromStep;
    if (options.input !== undefined) body["input"] = options.input;
    if (options.version !== undefined) body["version"] = options.version;
    return this.request("POST", `/v1/runs/${part(id)}/rerun`, body, headers);
  }

  /** Sends a signal to a run. The same idempotency key brings it once. */
  signal(id: string, name: string, payload: Json = null, idempotencyKey?: string): Promise<{ readonly seq: number }> {
    const headers: Record<string, string> = idempotencyKey === undefined ? {} : { "idempotency-key": idempotencyKey };
    return this.request("POST", `/v1/runs/${part(id)}/signals/${part(name)}`, payload, headers);
  }

  /** A page of a run's events. */
  events(id: string, options: { after?: number; limit?: number; topics?: readonly string[]; kinds?: readonly string[]; waitSeconds?: number } = {}): Promise<Page<RunEvent>> {
    const { after, limit, topics, kinds, waitSeconds: wait } = options;
    const query = queryOf({ after, limit, topics: topics?.join(","), kinds: kinds?.join(","), wait });
    return this.request("GET", `/v1/runs/${part(id)}/events${query}`);
  }

  /** A token that opens the events of a run, for a page. */
  runToken(id: string, options: TokenOptions = {}): Promise<StreamToken> {
    return this.request("POST", `/v1/runs/${part(id)}/stream-tokens`, tokenBody(options));
  }

  /** A token that opens a channel, for a page. */
  channelToken(name: string, options: ChannelTokenOptions = {}): Promise<StreamToken> {
    return this.request("POST", `/v1/channels/${part(name)}/stream-tokens`, tokenBody(options));
  }

  /**
   * Follows a run: every event once, in order, to its end, through cut connections and restarts.
   *
   * ```ts
   * for await (const event of stepwell.subscribe(run.id)) console.log(event.kind);
   * ```
   */
  subscribe(id: string, options: SubscribeOptions = {}): AsyncGenerator<RunEvent, void, undefined> {
    return followRun(this.target(`/v1/runs/${part(id)}/events`), options);
  }

  /** Follows a channel: what happens in all runs whose workflow names it. It has no end. */
  subscribeChannel(name: string, options: SubscribeOptions = {}): AsyncGenerator<ChannelEvent, void, undefined> {
    return followChannel(this.target(`/v1/channels/${part(name)}/events`), options);
  }

  private target(path: string): { url: string; credential: Credential; fetch: typeof fetch } {
    return { url: this.base + path, credential: this.options.credential, fetch: this.fetch };
  }

  private async request<T>(method: string, path: string, body?: Json, headers: Record<string, string> = {}): Promise<T> {
    const { credential } = this.options;
    const attempt = async (why: "first" | "expired"): Promise<T> => {
      const key = typeof credential === "string" ? credential : await credential(why);
      const init: RequestInit = { method, headers: { ...headers, authorization: `Bearer ${key}` } };
      if (body !== undefined) {
        init.body = JSON.stringify(body);
        init.headers = { ...init.headers, "content-type": "application/json" };
      }
      const response = await this.fetch(this.base + path, init);
      if (!response.ok) throw await errorOf(response);
      return (response.status === 204 ? undefined : await response.json()) as T;
    };
    try {
      return await attempt("first");
    } catch (error) {
      // Whoever was not let in has changed nothing.
      if (typeof credential === "string" || !(error instanceof StepwellError && error.isStale)) throw error;
      return await attempt("expired");
    }
  }
}

/** `?…`, or nothing. */
function queryOf(values: Readonly<Record<string, string | number | undefined>>): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) if (value !== undefined) query.set(name, String(value));
  const text = String(query);
  return text === "" ? "" : `?${text}`;
}

function tokenBody({ topics, ttlSeconds, ...rest }: ChannelTokenOptions): Json {
  const body: Record<string, Json> = {};
  for (const [field, value] of Object.entries(rest)) if (value !== undefined) body[field] = value as Json;
  if (topics !== undefined) body["topics"] = [...topics];
  if (ttlSeconds !== undefined) body["ttl_seconds"] = ttlSeconds;
  return body;
}
