import { readFileSync } from "node:fs";
import { createServer, request, type Server as HttpServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { resolve } from "node:path";

/** The page as it is in this repository. The program holds the one that it was built with. */
const livePage = resolve(import.meta.dirname, "../../../examples/live/index.html");

/** What a proxy does to the streams that pass it. */
export interface Torture {
  /** Cuts every connection after so many milliseconds. */
  readonly cutAfterMs?: number;
  /** Collects what a server says, and passes it on so often, or when the server ends. */
  readonly bufferMs?: number;
  /** Holds an answer back until the server has ended it: all of it, or what follows the head. */
  readonly holds?: "answer" | "body";
}

/** A proxy that is not good to streams. */
export class Proxy {
  connections = 0;
  /** Those of them that asked for a stream of events, and for a page of them. */
  streams = 0;
  pages = 0;
  /**
   * Of both, those that the other side left or the proxy cut before the server ended them, or that were not let through. A
   * browser asks first whether it may ask (CORS), for each page again: when the server goes between two pages, that is what dies.
   */
  died = 0;
  /** Lets nobody through. */
  private isDown = false;
  private readonly open = new Set<ServerResponse>();

  private constructor(
    private readonly server: HttpServer,
    readonly url: string,
  ) {}

  static async start(target: () => string, torture: Torture = {}): Promise<Proxy> {
    const server = createServer((incoming, answer) => {
      proxy.connections += 1;
      const isStream = incoming.headers.accept?.includes("text/event-stream") === true;
      const isEvents = /\/events(\?|$)/.test(incoming.url ?? "");
      if (isStream) proxy.streams += 1;
      else if (isEvents && incoming.method === "GET") proxy.pages += 1;
      if (proxy.isDown) {
        if (isEvents) proxy.died += 1;
        return void answer.destroy();
      }
      proxy.open.add(answer);
      const forward = request(target() + incoming.url, { method: incoming.method, headers: incoming.headers }, (response) => {
        const isLive = incoming.url?.startsWith("/live/") === true;
        const headers = { ...response.headers };
        if (isLive) delete headers["content-length"];
        const head = (): unknown => answer.headersSent || answer.writeHead(response.statusCode ?? 502, headers);
        if (torture.holds === "body") answer.writeHead(response.statusCode ?? 502, headers).flushHeaders();
        else if (torture.holds === undefined) head();
        const held: Buffer[] = [];
        const pass = (): void => void held.splice(0).forEach((bytes) => answer.write(bytes));
        const timer = torture.bufferMs === undefined ? undefined : setInterval(pass, torture.bufferMs);
        const holds = timer !== undefined || torture.holds !== undefined;
        response.on("data", (bytes: Buffer) => (isLive ? undefined : holds ? held.push(bytes) : answer.write(bytes)));
        response.on("end", () => {
          clearInterval(timer);
          head();
          if (isLive) held.push(readFileSync(livePage));
          pass();
          answer.end();
        });
        response.on("error", () => answer.destroy());
        answer.on("close", () => {
          clearInterval(timer);
          response.destroy();
        });
      });
      answer.on("close", () => {
        proxy.open.delete(answer);
        if (isEvents && !answer.writableFinished) proxy.died += 1;
        forward.destroy();
      });
      forward.on("error", () => answer.destroy());
      incoming.pipe(forward);
      if (torture.cutAfterMs !== undefined) setTimeout(() => answer.destroy(), torture.cutAfterMs).unref();
    });
    await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
    const proxy = new Proxy(server, `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    return proxy;
  }

  /** Cuts what is open. */
  cut(): void {
    for (const answer of this.open) answer.destroy();
  }

  /** Cuts what is open and lets nobody through, until `up`. */
  down(): void {
    this.isDown = true;
    this.cut();
  }

  up(): void {
    this.isDown = false;
  }

  close(): void {
    this.server.closeAllConnections();
    this.server.close();
  }
}
