import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { Stepwell } from "../src/index.js";

/** The program and the guests: `make guests` builds both. */
const root = resolve(import.meta.dirname, "../../..");
const program = process.env["STEPWELL_SERVER"] ?? join(root, "target/release/stepwell");
const guests = join(root, "target/guests/wasm32-unknown-unknown/release");

/** A real server with a data directory of its own. */
export class Server {
  private child: ChildProcess | undefined;
  private readonly data = mkdtempSync(join(tmpdir(), "stepwell-client-"));
  private port = 0;

  static async start(): Promise<Server> {
    const server = new Server();
    await server.up();
    return server;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  get client(): Stepwell {
    return new Stepwell({ url: this.url, credential: "dev" });
  }

  /** Starts the program, at the same address as before. */
  async up(): Promise<void> {
    const child = spawn(program, ["serve", "--dev", "--listen", `127.0.0.1:${this.port}`, "--data-dir", this.data], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    this.child = child;
    const line = await new Promise<string>((told, failed) => {
      let said = "";
      child.stdout?.on("data", (bytes: Buffer) => {
        said += bytes.toString();
        if (said.includes("\n")) told(said);
      });
      child.once("error", failed);
      child.once("exit", (code) => failed(new Error(`the server ended with ${code}`)));
    });
    this.port = Number(/:(\d+)\s*$/.exec(line)?.[1]);
  }

  /** Kills it as a power cut would. */
  async kill(): Promise<void> {
    const { child } = this;
    if (child === undefined) return;
    if (child.exitCode === null && child.signalCode === null) {
      const gone = new Promise((done) => child.once("exit", done));
      child.kill("SIGKILL");
      await gone;
    }
    this.child = undefined;
  }

  async close(): Promise<void> {
    await this.kill();
    rmSync(this.data, { recursive: true, force: true });
  }

  deploy(name: string, guest: string): void {
    this.cli("deploy", name, join(guests, `${guest}.component.wasm`));
  }

  deployGraph(name: string, graph: unknown): void {
    const path = join(this.data, `${name}.json`);
    writeFileSync(path, JSON.stringify(graph));
    this.cli("deploy", name, path);
  }

  private cli(...words: string[]): void {
    execFileSync(program, words, { env: { ...process.env, STEPWELL_URL: this.url, STEPWELL_API_KEY: "dev" }, stdio: "pipe" });
  }
}

/** Waits for a value, for a while. */
export async function eventually<T>(what: string, look: () => Promise<T | undefined> | T | undefined, ms = 30_000): Promise<T> {
  const until = Date.now() + ms;
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    if (Date.now() > until) throw new Error(`waited in vain for ${what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}
