//! A request that is being answered: a hit is there at once, and what has to wait does so on the heap.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;

use crate::base::WorkerMetrics;
use crate::proxy::access::Line;
use crate::respond::{Answer, ResponseBody};
use crate::upstream::Outlet;

/// A request that is being answered.
pub struct Reply<'a> {
    worker: &'a WorkerMetrics,
    outlet: &'a Outlet,
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

    /// One that is waited for, on the heap.
    pub(super) fn waits(answer: impl Future<Output = Answer> + Send + 'a) -> Self {
        Self::Waits(Box::pin(answer))
    }
}

impl<'a> Reply<'a> {
    pub(super) fn new(
        worker: &'a WorkerMetrics,
        outlet: &'a Outlet,
        access: Option<Box<Line>>,
        step: Step<'a>,
    ) -> Self {
        Self { worker, outlet, access, step }
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
                    this.outlet.wake_for_interim(cx.waker());
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
