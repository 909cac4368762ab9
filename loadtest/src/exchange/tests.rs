use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::transport::Protocol;

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
const TOKEN: &str = "data: {\"choices\":[{\"index\":0,\"text\":\"x\"}]}\n\n";
const COMMENT: &str = ": ping\n\n";
const END: &str = "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

/// One step of a server: wait for so many milliseconds, then send a text.
type Step = (u64, &'static str);

fn timeouts() -> Timeouts {
    let [connect, head, first, gap, total] = [1, 10, 20, 5, 60].map(Duration::from_secs);
    Timeouts {
        connect,
        head,
        first,
        gap,
        total,
    }
}

async fn read_head(stream: &mut DuplexStream) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.expect("a request comes");
        seen.push(byte);
    }
}

/// An exchange with a server that plays `steps` and then closes, or holds the stream open for ever.
async fn play(steps: &'static [Step], closes: bool) -> Exchange {
    let clock = Clock::start();
    let (near, mut far) = tokio::io::duplex(4096);
    let server = tokio::spawn(async move {
        read_head(&mut far).await;
        for (wait, text) in steps {
            tokio::time::sleep(Duration::from_millis(*wait)).await;
            // The client may have given up by now.
            let _ = far.write_all(text.as_bytes()).await;
        }
        if !closes {
            std::future::pending::<()>().await;
        }
    });
    let mut connection = Connection::over(near, Protocol::Http1, clock)
        .await
        .unwrap();
    let request = Request::get("/")
        .header("host", "h")
        .body(Full::default())
        .unwrap();
    let result = exchange(
        &mut connection,
        request,
        &timeouts(),
        clock,
        &Window::default(),
        false,
    )
    .await;
    server.abort();
    result
}

#[tokio::test(start_paused = true)]
async fn times_are_those_of_the_socket() {
    let result = play(
        &[(2000, HEAD), (3000, TOKEN), (1000, TOKEN), (500, END)],
        true,
    )
    .await;
    assert_eq!(result.end, End::Complete);
    // The paused clock moves in whole milliseconds.
    let near = |t: Option<Nanos>, millis: u64| {
        t.is_some_and(|t| t.abs_diff(millis * 1_000_000) <= 4_000_000)
    };
    assert!(near(result.t_send, 0), "{:?}", result.t_send);
    assert!(near(result.t_head, 2000), "{:?}", result.t_head);
    assert!(near(result.stream.t_first, 5000), "{:?}", result.stream);
    assert!(near(result.stream.t_last, 6000), "{:?}", result.stream);
    assert!(near(result.stream.t_done, 6500), "{:?}", result.stream);
}

#[tokio::test(start_paused = true)]
async fn each_phase_has_its_time_limit() {
    let cases: [(&'static [Step], TimeoutPhase, Option<u16>); 5] = [
        (&[(10_001, HEAD)], TimeoutPhase::Head, None),
        (
            &[(9_000, HEAD), (11_500, TOKEN)],
            TimeoutPhase::First,
            Some(200),
        ),
        // A comment keeps a proxy awake, not the reader.
        (
            &[(1_000, HEAD), (10_000, COMMENT), (10_000, TOKEN)],
            TimeoutPhase::First,
            Some(200),
        ),
        (
            &[(1, HEAD), (1, TOKEN), (4_000, COMMENT), (1_500, TOKEN)],
            TimeoutPhase::Gap,
            Some(200),
        ),
        (
            &[(1, HEAD), (1, TOKEN), (1, END)],
            TimeoutPhase::Gap,
            Some(200),
        ),
    ];
    for (steps, phase, status) in cases {
        let result = play(steps, false).await;
        assert_eq!(
            (&result.end, result.status),
            (&End::TimedOut(phase), status),
            "{steps:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_stops_meets_the_total_limit() {
    const SLOW: [Step; 20] = [(4_500, TOKEN); 20];
    const STEPS: [Step; 21] = {
        let mut steps = [(1, HEAD); 21];
        let mut i = 0;
        while i < SLOW.len() {
            steps[i + 1] = SLOW[i];
            i += 1;
        }
        steps
    };
    let result = play(&STEPS, false).await;
    assert_eq!(result.end, End::TimedOut(TimeoutPhase::Total));
    assert_eq!(result.stream.events, 13, "as many as fit into a minute");
}

#[tokio::test(start_paused = true)]
async fn broken_answers() {
    for (steps, has_head) in [
        (&[][..], false),
        (&[(1, "HTTP/1.1 200 OK\r\ncontent-le")][..], false),
        (
            &[
                (
                    1,
                    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 500\r\n\r\n",
                ),
                (1, TOKEN),
            ][..],
            true,
        ),
    ] {
        let result = play(steps, true).await;
        assert!(
            matches!(result.end, End::Broken(_)),
            "{steps:?}: {:?}",
            result.end
        );
        assert_eq!(result.status.is_some(), has_head);
        assert!(
            !result.stale_connection,
            "a fresh connection is never stale"
        );
    }
    let result = play(&[(1, "220 mail ready\r\n\r\n")], true).await;
    assert!(matches!(result.end, End::BadHttp(_)), "{:?}", result.end);
}

#[tokio::test(start_paused = true)]
async fn only_a_reused_connection_without_any_answer_is_stale() {
    const ANSWER: &str = "HTTP/1.1 500 X\r\ncontent-length: 2\r\n\r\n{}";
    for (second, is_stale) in [("", true), ("HTTP/1.1 2", false)] {
        let clock = Clock::start();
        let (near, mut far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            for text in [ANSWER, second] {
                read_head(&mut far).await;
                far.write_all(text.as_bytes()).await.unwrap();
            }
        });
        let mut connection = Connection::over(near, Protocol::Http1, clock)
            .await
            .unwrap();
        let mut results = Vec::new();
        for _ in 0..2 {
            assert!(connection.is_ready().await);
            let request = Request::get("/")
                .header("host", "h")
                .body(Full::default())
                .unwrap();
            results.push(
                exchange(
                    &mut connection,
                    request,
                    &timeouts(),
                    clock,
                    &Window::default(),
                    false,
                )
                .await,
            );
        }
        assert_eq!(
            (&results[0].end, &*results[0].error_body),
            (&End::Complete, &b"{}"[..])
        );
        assert_eq!(
            results[1].stale_connection, is_stale,
            "{second:?}: {:?}",
            results[1].end
        );
    }
}
