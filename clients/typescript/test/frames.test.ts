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
});
