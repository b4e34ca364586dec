//! A request that is being answered: a hit is there at once, and what has to wait does so on the heap.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;

use tracing::{Instrument as _, Span, debug};

use super::client::Client;
use crate::base::WorkerMetrics;
use crate::proxy::access::Line;
use crate::respond::{Answer, ResponseBody};

/// A request that is being answered.
pub struct Reply<'a> {
    worker: &'a WorkerMetrics,
    client: &'a dyn Client,
    access: Option<Box<Line>>,
    step: Step<'a>,
}

/// How far its answer is.
pub(super) enum Step<'a> {
    /// It is there, until it is given.
    Answered(Option<Answer>),
    /// The durable tier or the origin is waited for.
    Waits(Pin<Box<dyn Future<Output = Answer> + Send + 'a>>),
}

impl<'a> Step<'a> {
    /// A step that is the answer.
    pub(super) fn answered(answer: Answer) -> Self {
        Self::Answered(Some(answer))
    }

    /// One that is waited for, on the heap, within the request's span. Costs nothing more where the level is off.
    pub(super) fn waits(span: Span, answer: impl Future<Output = Answer> + Send + 'a) -> Self {
        if span.is_disabled() {
            return Self::Waits(Box::pin(answer));
        }
        let record = span.clone();
        let answered = async move {
            let answer = answer.await;
            record.record("cache_status", answer.0.to_value(None).to_str().unwrap_or_default());
            debug!(status = answer.1.status().as_u16(), "answered");
            answer
        };
        Self::Waits(Box::pin(answered.instrument(span)))
    }
}

impl<'a> Reply<'a> {
    pub(super) fn new(
        worker: &'a WorkerMetrics,
        client: &'a dyn Client,
        access: Option<Box<Line>>,
        step: Step<'a>,
    ) -> Self {
        Self { worker, client, access, step }
    }
}

impl Future for Reply<'_> {
    type Output = Response<ResponseBody>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<ResponseBody>> {
        let this = self.get_mut();
        let answer = match &mut this.step {
            Step::Answered(answer) => answer.take(),
            Step::Waits(waits) => {
                let answer = waits.as_mut().poll(cx);
                if answer.is_pending() {
                    this.client.wake_on_informational(cx.waker());
                }
                Some(ready!(answer))
            }
        };
        // It is not polled again once it was given.
        let Some((status, response)) = answer else { return Poll::Pending };
        this.worker.record(&status);
        Poll::Ready(match this.access.take() {
            Some(line) => line.finish(response, &status),
            None => response,
        })
    }
}
