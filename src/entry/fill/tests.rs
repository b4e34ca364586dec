//! Tests of fills: what readers get, what is kept, and who is expelled.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use super::*;

async fn next(reader: &mut FillReader) -> Option<Result<Bytes, Incomplete>> {
    poll_fn(|cx| Pin::new(&mut *reader).poll_chunk(cx)).await
}

fn is_pending(reader: &mut FillReader) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(reader).poll_chunk(&mut cx).is_pending()
}

#[tokio::test]
async fn every_reader_sees_every_byte_whenever_it_joins() {
    let budget = Budget::new(1000);
    let mut writer = Fill::start(100, Unread::Finite, Arc::clone(&budget));
    let mut early = writer.fill().reader().expect("nothing dropped");
    assert!(is_pending(&mut early));
    assert!(writer.push(Bytes::from_static(b"one")).await);
    let mut late = writer.fill().reader().expect("nothing dropped");
    assert_eq!(next(&mut early).await, Some(Ok(Bytes::from_static(b"one"))));
    assert!(writer.push(Bytes::from_static(b"two")).await);
    assert_eq!(budget.used(), 6);
    let fill = Arc::clone(writer.fill());
    let last = Bytes::from_static(b"three");
    let body = writer.whole(&last).expect("kept whole");
    assert_eq!(body.segments(), [Bytes::from_static(b"onetwothree")]);
    writer.complete(last, Some(body));
    assert_eq!(budget.used(), 0, "what is stored is not kept twice");
    assert_eq!(budget.held(), 11, "and counted as long as it is read");
    let mut after = fill.reader().expect("nothing dropped");
    for (reader, rest) in [(&mut early, &b"twothree"[..]), (&mut late, b"onetwothree"), (&mut after, b"onetwothree")] {
        assert_eq!(next(reader).await, Some(Ok(Bytes::copy_from_slice(rest))));
        assert_eq!(next(reader).await, None);
        assert!(reader.is_end());
    }
    drop((early, late, after, fill));
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn a_dropped_writer_is_a_failure_never_an_end() {
    let mut writer = Fill::start(100, Unread::Finite, Budget::new(1000));
    let mut reader = writer.fill().reader().expect("nothing dropped");
    writer.push(Bytes::from_static(b"half")).await;
    let fill = Arc::clone(writer.fill());
    drop(writer);
    assert!(fill.reader().is_none(), "nobody begins what has failed");
    assert_eq!(next(&mut reader).await, Some(Ok(Bytes::from_static(b"half"))));
    assert_eq!(next(&mut reader).await, Some(Err(Incomplete)));
}

#[tokio::test]
async fn past_its_limit_it_follows_the_slowest_reader_and_keeps_a_window_only() {
    let budget = Budget::new(usize::MAX);
    let mut writer = Fill::start(WINDOW, Unread::Finite, Arc::clone(&budget));
    let mut slow = writer.fill().reader().expect("nothing dropped");
    let mut quick = writer.fill().reader().expect("nothing dropped");
    let chunk = Bytes::from(vec![7; WINDOW / 2]);
    for _ in 0..3 {
        assert!(writer.push(chunk.clone()).await);
    }
    assert_eq!(budget.used(), 3 * WINDOW / 2, "what is kept is counted, in a window as well");
    for _ in 0..3 {
        assert_eq!(next(&mut quick).await, Some(Ok(chunk.clone())));
    }
    let mut cx = Context::from_waker(Waker::noop());
    assert!(writer.fill().poll_room(&mut cx).is_pending(), "the slow reader holds it back");
    assert_eq!(next(&mut slow).await, Some(Ok(chunk.clone())));
    assert!(writer.fill().reader().is_none(), "the head is gone");
    assert_eq!(next(&mut slow).await, Some(Ok(chunk.clone())));
    assert!(writer.fill().poll_room(&mut cx).is_ready());
    drop(slow);
    assert!(writer.push(chunk.clone()).await);
    drop(quick);
    assert!(!writer.push(chunk).await, "nobody reads, nothing is kept: no use in going on");
    assert!(writer.whole(&Bytes::new()).is_none());
    drop(writer);
    assert_eq!(budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stands_still_is_turned_out_when_others_wait() {
    let mut writer = Fill::start(0, Unread::Finite, Budget::new(usize::MAX));
    let mut stuck = writer.fill().reader().expect("nothing dropped");
    let mut quick = writer.fill().reader().expect("nothing dropped");
    let chunk = Bytes::from(vec![7; WINDOW]);
    assert!(writer.push(chunk.clone()).await);
    assert_eq!(next(&mut quick).await, Some(Ok(chunk.clone())));
    // Time is the test's own: it moves on by itself while nothing else can.
    assert!(writer.push(chunk.clone()).await);
    assert_eq!(next(&mut quick).await, Some(Ok(chunk.clone())));
    assert_eq!(next(&mut stuck).await, Some(Err(Incomplete)));
    drop(stuck);
    writer.complete(Bytes::new(), None);
    assert_eq!(next(&mut quick).await, None);
}

/// Reads one chunk a `pause`, until the end or an error.
async fn read_slowly(mut reader: FillReader, pause: Duration) -> Result<u64, Incomplete> {
    let mut read = 0;
    while let Some(chunk) = next(&mut reader).await {
        read += chunk?.len() as u64;
        tokio::time::sleep(pause).await;
    }
    Ok(read)
}

#[tokio::test(start_paused = true)]
async fn a_reader_sets_the_pace_of_a_window_but_not_any_pace() {
    const CHUNK: usize = 64 * 1024;
    for (pause, is_kept) in [(Duration::from_millis(500), true), (Duration::from_secs(4), false)] {
        let mut writer = Fill::start(0, Unread::Finite, Budget::new(usize::MAX));
        let slow = tokio::spawn(read_slowly(writer.fill().reader().expect("nothing dropped"), pause));
        let quick = tokio::spawn(read_slowly(writer.fill().reader().expect("nothing dropped"), Duration::ZERO));
        for _ in 0..100 {
            assert!(writer.push(Bytes::from(vec![7; CHUNK])).await);
        }
        writer.complete(Bytes::new(), None);
        assert_eq!(quick.await.expect("no panic"), Ok(100 * CHUNK as u64));
        assert_eq!(slow.await.expect("no panic").is_ok(), is_kept, "{pause:?} for {CHUNK} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_in_the_background_is_turned_out_at_the_rate_it_names() {
    const CHUNK: usize = 64 * 1024;
    // 640 KiB a second.
    for (rate, is_kept) in [(512 * 1024, true), (1024 * 1024, false)] {
        let mut writer = Fill::start(0, Unread::Finite, Budget::new(usize::MAX));
        let upload = writer.fill().background_reader(rate).expect("nothing dropped");
        let upload = tokio::spawn(read_slowly(upload, Duration::from_millis(100)));
        let client = tokio::spawn(read_slowly(writer.fill().reader().expect("nothing dropped"), Duration::ZERO));
        for _ in 0..200 {
            assert!(writer.push(Bytes::from(vec![7; CHUNK])).await);
        }
        writer.complete(Bytes::new(), None);
        assert_eq!(client.await.expect("no panic"), Ok(200 * CHUNK as u64));
        assert_eq!(upload.await.expect("no panic").is_ok(), is_kept, "{rate}");
    }
}

#[tokio::test]
async fn what_outgrows_its_limit_is_taken_over_from_its_first_byte() {
    let budget = Budget::new(usize::MAX);
    let mut writer = Fill::start(10, Unread::Finite, Arc::clone(&budget));
    let (taken, mut take) = tokio::sync::oneshot::channel();
    writer.on_overflow(1, move |reader| drop(taken.send(reader)));
    assert!(writer.push(Bytes::from_static(b"12345678")).await);
    assert!(take.try_recv().is_err(), "within its limit");
    assert!(writer.push(Bytes::from_static(b"90123")).await);
    let mut reader = take.await.expect("it outgrew it");
    assert!(writer.fill().reader().is_some(), "nothing was read yet");
    writer.complete(Bytes::from_static(b"4"), None);
    for part in [&b"12345678"[..], b"90123", b"4"] {
        assert_eq!(next(&mut reader).await, Some(Ok(Bytes::copy_from_slice(part))));
    }
    assert_eq!(next(&mut reader).await, None);
    drop(reader);
    assert_eq!(budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_reads_is_taken_in_for_a_while_only() {
    let mut writer = Fill::start(1000, Unread::Finite, Budget::new(usize::MAX));
    let mut pushed = 0;
    while writer.push(Bytes::from_static(b"x")).await {
        pushed += 1;
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    assert_eq!(pushed, 21, "for ten minutes");
}

#[tokio::test]
async fn the_budget_bounds_all_fills_together() {
    let budget = Budget::new(10);
    let mut a = Fill::start(100, Unread::Finite, Arc::clone(&budget));
    let mut b = Fill::start(100, Unread::Finite, Arc::clone(&budget));
    let reader = b.fill().reader();
    assert!(a.push(Bytes::from_static(b"12345678")).await);
    assert!(b.push(Bytes::from_static(b"12345678")).await);
    assert_eq!(budget.used(), 16, "over it by a window");
    assert!(a.whole(&Bytes::new()).is_some());
    assert!(b.whole(&Bytes::new()).is_none(), "over budget: streamed, not stored");
    drop(a.whole(&Bytes::new()));
    a.complete(Bytes::new(), None);
    b.complete(Bytes::new(), None);
    drop(reader);
    assert_eq!(budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_may_be_endless_ends_soon_after_its_last_client() {
    for (unread, patience) in [(Unread::PerhapsEndless, 30), (Unread::Finite, 600)] {
        let mut writer = Fill::start(1 << 20, unread, Budget::new(1 << 20));
        let reader = writer.fill().reader();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(writer.push(Bytes::from_static(b"event")).await, "somebody listens");
        }
        drop(reader);
        assert!(writer.push(Bytes::from_static(b"event")).await);
        tokio::time::sleep(Duration::from_secs(patience - 1)).await;
        assert!(writer.push(Bytes::from_static(b"event")).await, "{unread:?}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!writer.push(Bytes::from_static(b"event")).await, "{unread:?}");
    }
}
