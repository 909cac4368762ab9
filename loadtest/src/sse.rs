//! A parser of server-sent events for arbitrary borders between reads. It knows the line grammar
//! and nothing of what the events mean; comments and fields other than `data` and `event` vanish.

/// The longest event that is kept, in bytes. A stream that exceeds it is not an event stream.
pub const MAX_EVENT_BYTES: usize = 8 << 20;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// The value of the last `event:` line, empty without one.
    pub name: &'a [u8],
    /// The `data:` lines joined by newlines.
    pub data: &'a [u8],
}

/// The event exceeds [`MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTooLong;

/// The state between two reads.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The unfinished line.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return, so a line feed right after it belongs to it.
    after_return: bool,
    /// A line has ended, so a byte order mark can no longer come.
    started: bool,
}

impl SseParser {
    /// Takes the next bytes and hands every event that they complete to `on_event`.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(SseEvent<'_>),
    ) -> Result<(), EventTooLong> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_return) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|b| matches!(b, b'\n' | b'\r')) else {
                self.line.extend_from_slice(bytes);
                return self.check_length();
            };
            self.line.extend_from_slice(&bytes[..end]);
            self.after_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            self.end_line(&mut on_event);
            self.check_length()?;
        }
        Ok(())
    }

    fn check_length(&self) -> Result<(), EventTooLong> {
        if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
            Err(EventTooLong)
        } else {
            Ok(())
        }
    }

    fn end_line(&mut self, on_event: &mut impl FnMut(SseEvent<'_>)) {
        let mut line: &[u8] = &self.line;
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                on_event(SseEvent {
                    name: &self.name,
                    data: &self.data,
                });
            }
            self.name.clear();
            self.data.clear();
        } else {
            let colon = line.iter().position(|b| *b == b':');
            let (field, value) = colon.map_or((line, &line[line.len()..]), |at| {
                (&line[..at], &line[at + 1..])
            });
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match field {
                b"data" => {
                    if std::mem::replace(&mut self.has_data, true) {
                        self.data.push(b'\n');
                    }
                    self.data.extend_from_slice(value);
                }
                b"event" => {
                    self.name.clear();
                    self.name.extend_from_slice(value);
                }
                _ => {}
            }
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<(String, String)> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        for piece in pieces {
            parser
                .feed(piece, |e| events.push((text(e.name), text(e.data))))
                .unwrap();
        }
        events
    }

    fn data(stream: &str) -> Vec<String> {
        parse([stream.as_bytes()])
            .into_iter()
            .map(|(_, data)| data)
            .collect()
    }

    #[test]
    fn the_grammar() {
        let cases: [(&str, &[&str]); 10] = [
            ("data: a\n\ndata: b\n\n", &["a", "b"]),
            ("data:a\r\n\r\ndata:b\r\r", &["a", "b"]),
            ("data:  a\n\n", &[" a"]),
            ("data: a\ndata: b\n\n", &["a\nb"]),
            (": ping\n\n:\n\ndata: a\n\n", &["a"]),
            ("id: 3\nretry: 5\ndata: a\n\n", &["a"]),
            ("data\n\n", &[""]),
            ("event: x\n\ndata: a\n\n", &["a"]),
            ("data: a\n", &[]),
            ("\u{feff}data: a\n\n", &["a"]),
        ];
        for (stream, expected) in cases {
            assert_eq!(data(stream), expected, "{stream:?}");
        }
        assert_eq!(
            parse([&b"event: error\ndata: {}\n\ndata: 1\n\n"[..]]),
            [("error".into(), "{}".into()), (String::new(), "1".into())]
        );
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = SseParser::default();
        let block = vec![b'x'; 1 << 20];
        let results: Vec<_> = (0..9).map(|_| parser.feed(&block, |_| ())).collect();
        assert_eq!(results[7], Ok(()));
        assert_eq!(results[8], Err(EventTooLong));
    }

    proptest! {
        /// Where the reads fall makes no difference.
        #[test]
        fn borders_do_not_matter(
            lines in prop::collection::vec("(data: ?|event: ?|: |x)?[a-zé ]{0,6}(\n|\r|\r\n|\n\n|\r\n\r\n)", 0..30),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream = lines.concat().into_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let pieces = at.windows(2).map(|w| &stream[w[0]..w[1]]);
            prop_assert_eq!(parse(pieces), parse([&stream[..]]));
        }
    }
}
