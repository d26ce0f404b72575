/** One frame of a stream of server-sent events. */
export interface Frame {
  readonly id?: string;
  readonly event?: string;
  readonly data?: string;
  /** What the server wants a client to wait before it comes back, in milliseconds. */
  readonly retry?: number;
}

/** What ends a frame. A CR at the very end may be half of a CRLF. */
const EMPTY_LINE = /\r\n\r\n|\n\n|\r\r(?!$)|\n\r\n/;
const EMPTY_LINE_MAX = 4;

/**
 * Takes a stream apart into frames, however the network cuts it. Follows the HTML standard's rules for lines (LF, CR or
 * CRLF), comments and fields. A frame that the stream ends within is not one.
 */
export class FrameParser {
  private readonly decoder = new TextDecoder();
  /** What no empty line has ended yet, and the end of it: an empty line may be cut, too. */
  private pieces: string[] = [];
  private tail = "";

  /** The frames that end within these bytes. */
  push(bytes: Uint8Array): Frame[] {
    const piece = this.decoder.decode(bytes, { stream: true });
    this.pieces.push(piece);
    const seam = this.tail + piece;
    this.tail = seam.slice(-(EMPTY_LINE_MAX - 1));
    // A frame of many pieces is looked through once, and not once for each of them.
    if (!EMPTY_LINE.test(seam)) return [];
    let rest = this.pieces.join("");
    const frames: Frame[] = [];
    for (;;) {
      const end = EMPTY_LINE.exec(rest);
      if (end === null) break;
      const frame = parse(rest.slice(0, end.index));
      if (frame !== undefined) frames.push(frame);
      rest = rest.slice(end.index + end[0].length);
    }
    this.pieces = [rest];
    this.tail = rest.slice(-(EMPTY_LINE_MAX - 1));
    return frames;
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
