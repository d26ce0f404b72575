import { describe, expect, it } from "vitest";

import { FrameParser } from "../src/sse.js";

const stream = 'retry: 1000\n\n: keepalive\n\nid: 1\nevent: run.queued\ndata: {"ü":"😀"}\n\ndata: a\ndata:b\r\n\r\nid: 2\n\ndata: cut';

describe("frames", () => {
  it("come apart wherever the network cuts them, in the middle of a character too", () => {
    const bytes = new TextEncoder().encode(stream);
    for (let size = 1; size <= bytes.length; size++) {
      const parser = new FrameParser();
      const frames = [];
      for (let at = 0; at < bytes.length; at += size) frames.push(...parser.push(bytes.subarray(at, at + size)));
      expect(frames, `in pieces of ${size}`).toEqual([
        { retry: 1000 },
        { id: "1", event: "run.queued", data: '{"ü":"😀"}' },
        { data: "a\nb" },
        { id: "2" },
      ]);
    }
  });

  // An event has up to 4 MiB, and a page of them is more: each piece was once looked through with all before it.
  it("are put together from many pieces in a time that grows with their size, not with its square", () => {
    const piece = new TextEncoder().encode("x".repeat(4 << 10));
    const parser = new FrameParser();
    parser.push(new TextEncoder().encode("data: "));
    const begun = performance.now();
    for (let pieces = 0; pieces < 2_048; pieces += 1) expect(parser.push(piece)).toEqual([]);
    expect(parser.push(new TextEncoder().encode("\n"))).toEqual([]);
    const [frame] = parser.push(new TextEncoder().encode("\n"));
    expect(frame?.data?.length).toBe(8 << 20);
    expect(performance.now() - begun).toBeLessThan(5_000);
  });
});
