//! Takes a `text/event-stream` apart, byte by byte if need be.
//!
//! It follows the HTML standard (section "Server-sent events") in lines, comments and fields, and differs on purpose in
//! three points: `id` and `retry` are ignored, because an answer of a model cannot be resumed; bytes that are not UTF-8
//! are an error, because an answer with holes is none; and what a stream may make us keep is limited.
//!
//! The invariant: the events are the same wherever the network cuts the stream.

/// Of a line, and of the data of an event. A server that does not stream may send a whole answer of 4 MiB in one event,
/// with escapes in it.
const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// What a server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// What the field `event` says, and `message` without one.
    pub(super) kind: String,
    /// The lines of the fields `data`.
    pub(super) data: String,
}

/// Why this is no event stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SseError {
    #[error("an event is too long")]
    TooLong,
    #[error("an event is not UTF-8")]
    NotUtf8,
}

/// The state between two pieces of a stream.
#[derive(Debug)]
pub(super) struct Parser {
    /// The line that has begun.
    line: Vec<u8>,
    /// The event that has begun. Each line of its data ends in LF.
    kind: String,
    data: String,
    /// The last byte was CR: an LF would belong to it.
    after_cr: bool,
    /// No line has ended yet.
    at_start: bool,
    bytes_max: usize,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new(EVENT_BYTES_MAX)
    }
}

impl Parser {
    fn new(bytes_max: usize) -> Self {
        Self { line: Vec::new(), kind: String::new(), data: String::new(), after_cr: false, at_start: true, bytes_max }
    }

    /// The events that end within these bytes. An event whose blank line never comes was cut off and is none.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, SseError> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let [first, after_first @ ..] = rest {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                rest = after_first;
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (piece, ended) = rest.split_at(end.unwrap_or(rest.len()));
            if self.line.len() + piece.len() > self.bytes_max {
                return Err(SseError::TooLong);
            }
            self.line.extend_from_slice(piece);
            let [ending, after_line @ ..] = ended else { break };
            self.after_cr = *ending == b'\r';
            let line = std::mem::take(&mut self.line);
            events.extend(self.take_line(&line)?);
            // Give the room back to the next line.
            self.line = line;
            self.line.clear();
            rest = after_line;
        }
        Ok(events)
    }

    fn take_line(&mut self, line: &[u8]) -> Result<Option<Event>, SseError> {
        let at_start = std::mem::take(&mut self.at_start);
        let line = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| at_start).unwrap_or(line);
        let line = str::from_utf8(line).map_err(|_| SseError::NotUtf8)?;
        if line.is_empty() {
            return Ok(self.take_event());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" if self.data.len() + value.len() + 1 > self.bytes_max => return Err(SseError::TooLong),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            // A comment has an empty field name.
            _ => {}
        }
        Ok(None)
    }

    fn take_event(&mut self) -> Option<Event> {
        let (kind, mut data) = (std::mem::take(&mut self.kind), std::mem::take(&mut self.data));
        data.pop()?;
        Some(Event { kind: if kind.is_empty() { "message".to_owned() } else { kind }, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, data: &str) -> Event {
        Event { kind: kind.to_owned(), data: data.to_owned() }
    }

    fn events(stream: &[u8], sizes: usize) -> Result<Vec<Event>, SseError> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in stream.chunks(sizes) {
            events.extend(parser.push(piece)?);
        }
        Ok(events)
    }

    /// In every way to cut it into two pieces, and in pieces of every size.
    fn check(stream: &[u8], expected: &[Event]) {
        for at in 0..=stream.len() {
            let (one, two) = stream.split_at(at);
            let mut parser = Parser::default();
            let mut events = parser.push(one).unwrap();
            assert_eq!(parser.push(b""), Ok(Vec::new()));
            events.extend(parser.push(two).unwrap());
            assert_eq!(events, expected, "cut at {at}: {:?}", String::from_utf8_lossy(stream));
        }
        for size in 1..=stream.len().max(1) {
            assert_eq!(events(stream, size).unwrap(), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn streams_come_apart_wherever_the_network_cuts_them() {
        let message = |data: &str| event("message", data);
        let table: &[(&str, &[Event])] = &[
            ("", &[]),
            ("\n\n\n", &[]),
            ("data: a\n\n", &[message("a")]),
            ("data:a\r\n\r\n", &[message("a")]),
            ("data: a\r\rdata: b\r\r", &[message("a"), message("b")]),
            ("data: a\r\n\ndata: b\n\r\n", &[message("a"), message("b")]),
            ("data:  a\n\n", &[message(" a")]),
            ("data: one\ndata: two\ndata:\ndata: four\n\n", &[message("one\ntwo\n\nfour")]),
            ("data\n\n", &[message("")]),
            ("data\ndata\n\n", &[message("\n")]),
            ("event: ping\ndata: {}\n\n", &[event("ping", "{}")]),
            ("event: one\nevent: two\ndata: a\n\ndata: b\n\n", &[event("two", "a"), message("b")]),
            ("event: forgotten\n\ndata: a\n\n", &[message("a")]),
            (": a comment\n:\n\ndata: a\n: another\n\n", &[message("a")]),
            ("id: 7\nretry: 10\nunknown: x\nnocolon\ndata: a\n\n", &[message("a")]),
            ("Data: a\n data: b\n\n", &[]),
            ("data: {\"a\": \"b:c\"}\n\n", &[message("{\"a\": \"b:c\"}")]),
            ("\u{feff}data: a\n\ndata: b\n\n", &[message("a"), message("b")]),
            ("data: a\n\n\u{feff}data: b\n\n", &[message("a")]),
            ("data: üñ→🦀\n\n", &[message("üñ→🦀")]),
            ("data: never ended\n", &[]),
            ("data: a\n\ndata: cut o", &[message("a")]),
        ];
        for (stream, expected) in table {
            check(stream.as_bytes(), expected);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_an_error() {
        for size in 1..12 {
            assert_eq!(events(b"data: \xff\n\n", size), Err(SseError::NotUtf8));
            assert_eq!(events(b"data: \xf0\x9f\xa6\n\n", size), Err(SseError::NotUtf8));
        }
    }

    #[test]
    fn a_line_that_does_not_end_is_an_error() {
        let mut parser = Parser::new(10);
        assert_eq!(parser.push(b"data: 4567"), Ok(Vec::new()));
        assert_eq!(parser.push(b"8"), Err(SseError::TooLong));
    }

    #[test]
    fn an_event_that_does_not_end_is_an_error() {
        let mut parser = Parser::new(10);
        assert_eq!(parser.push(b"data: 123\ndata: 5\ndata: 789\n"), Ok(Vec::new()));
        assert_eq!(parser.push(b"data\n"), Err(SseError::TooLong));
        // The limit is for one event, not for the stream.
        let mut parser = Parser::new(10);
        for _ in 0..100 {
            assert_eq!(parser.push(b"data: 123\n\n").map(|events| events.len()), Ok(1));
        }
    }
}
