//! The purpose of what a task asks of the place, for the count of its requests.
//!
//! Most names of objects tell what a request is for. A pack and a listing may serve several purposes: the task that asks
//! says which. A task that says nothing looks responses up and writes them.

use crate::base::RequestPurpose;

tokio::task_local! {
    static PURPOSE: RequestPurpose;
}

/// Runs `work`, whose requests are for `purpose`. Tasks that it spawns have to say so themselves.
pub(super) fn asking_for<F: Future>(purpose: RequestPurpose, work: F) -> impl Future<Output = F::Output> {
    PURPOSE.scope(purpose, work)
}

/// Returns what the current task said.
pub(super) fn stated() -> Option<RequestPurpose> {
    PURPOSE.try_with(|purpose| *purpose).ok()
}
