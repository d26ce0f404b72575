/** One frame of a stream of server-sent events. */
export interface Frame {
  readonly id?: string;
  readonly event?: string;
  readonly data?: string;
  /** What the server wants a client to wait before it comes back, in milliseconds. */
  readonly retry?: number;
}

/**
 * Takes a stream apart into frames, however the network cuts it. Follows the HTML standard's rules for lines (LF, CR or
 * CRLF), comments and fields. A frame that the stream ends within is not one.
 */
export class FrameParser {
  private readonly decoder = new TextDecoder();
  private rest = "";

  /** The frames that end within these bytes. */
  push(bytes: Uint8Array): Frame[] {
    this.rest += this.decoder.decode(bytes, { stream: true });
    const frames: Frame[] = [];
    for (;;) {
      // An empty line ends a frame. A CR at the very end may be half of a CRLF.
      const end = /\r\n\r\n|\n\n|\r\r(?!$)|\n\r\n/.exec(this.rest);
      if (end === null) return frames;
      const frame = parse(this.rest.slice(0, end.index));
      if (frame !== undefined) frames.push(frame);
      this.rest = this.rest.slice(end.index + end[0].length);
    }
  }
}

function parse(text: string): Frame | undefined {
  const data: string[] = [];
  const frame: { -readonly [K in keyof Frame]: Frame[K] } = {};
  for (const line of text.split(/\r\n|\n|\r/)) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") data.push(value);
    else if (name === "event") frame.event = value;
    else if (name === "id" && !value.includes("\0")) frame.id = value;
    else if (name === "retry" && /^\d+$/.test(value)) frame.retry = Number(value);
  }
  if (data.length > 0) frame.data = data.join("\n");
  return Object.keys(frame).length > 0 ? frame : undefined;
}
