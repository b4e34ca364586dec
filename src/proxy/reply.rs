//! The reply to a request: a hit is ready at once, and what has to wait does so on the heap.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;

use tracing::{Instrument as _, Span, debug};

use super::client::Client;
use crate::base::WorkerMetrics;
use crate::proxy::access::AccessLine;
use crate::respond::{Answer, Refusal, ResponseBody};

/// The reply to a request, as a future.
pub struct Reply<'a> {
    worker: &'a WorkerMetrics,
    client: &'a dyn Client,
    access: Option<Box<AccessLine>>,
    step: Step<'a>,
}

/// The progress of an answer.
pub(super) enum Step<'a> {
    /// The answer, until it is taken.
    Answered(Option<Answer>),
    /// A future that waits for the durable tier or the origin.
    Waits(Pin<Box<dyn Future<Output = Answer> + Send + 'a>>),
}

impl<'a> Step<'a> {
    /// Returns the answer once it is there.
    pub(super) async fn taken(self) -> Answer {
        match self {
            Self::Waits(answer) => answer.await,
            // A step is taken once, so that its answer is there.
            Self::Answered(answer) => answer.unwrap_or_else(|| Refusal::ResponseLost.answer()),
        }
    }

    /// Makes a step of an answer that is ready.
    pub(super) fn answered(answer: Answer) -> Self {
        Self::Answered(Some(answer))
    }

    /// Makes a step that waits, on the heap and within the request's span. Adds nothing to the future where the span
    /// is disabled.
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
        access: Option<Box<AccessLine>>,
        step: Step<'a>,
    ) -> Self {
        Self { worker, client, access, step }
    }
}

impl Future for Reply<'_> {
    type Output = Response<ResponseBody>;

    #[inline]
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
        // A future is not polled again after it was ready.
        let Some((status, response)) = answer else { return Poll::Pending };
        this.worker.record(&status);
        Poll::Ready(match this.access.take() {
            Some(line) => line.finish(response, &status),
            None => response,
        })
    }
}
