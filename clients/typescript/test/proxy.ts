import { createServer, request, type Server as HttpServer } from "node:http";
import type { AddressInfo } from "node:net";

/** What a proxy does to the streams that pass it. */
export interface Torture {
  /** Cuts every connection after so many milliseconds. */
  readonly cutAfterMs?: number;
  /** Collects what a server says, and passes it on so often, or when the server ends. */
  readonly bufferMs?: number;
}

/** A proxy that is not good to streams. */
export class Proxy {
  connections = 0;
  /** Those of them that asked for events. */
  streams = 0;

  private constructor(
    private readonly server: HttpServer,
    readonly url: string,
  ) {}

  static async start(target: () => string, torture: Torture): Promise<Proxy> {
    const server = createServer((incoming, answer) => {
      proxy.connections += 1;
      if (incoming.url?.includes("/events") === true && incoming.method === "GET") proxy.streams += 1;
      const forward = request(target() + incoming.url, { method: incoming.method, headers: incoming.headers }, (response) => {
        answer.writeHead(response.statusCode ?? 502, response.headers);
        const held: Buffer[] = [];
        const pass = (): void => void held.splice(0).forEach((bytes) => answer.write(bytes));
        const timer = torture.bufferMs === undefined ? undefined : setInterval(pass, torture.bufferMs);
        response.on("data", (bytes: Buffer) => (timer === undefined ? answer.write(bytes) : held.push(bytes)));
        response.on("end", () => {
          clearInterval(timer);
          pass();
          answer.end();
        });
        response.on("error", () => answer.destroy());
        answer.on("close", () => {
          clearInterval(timer);
          response.destroy();
        });
      });
      forward.on("error", () => answer.destroy());
      incoming.pipe(forward);
      if (torture.cutAfterMs !== undefined) setTimeout(() => answer.destroy(), torture.cutAfterMs).unref();
    });
    await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
    const proxy = new Proxy(server, `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    return proxy;
  }

  close(): void {
    this.server.closeAllConnections();
    this.server.close();
  }
}
