//! Signals: what ends Larder, what is only told, and what is left to the system.
//!
//! SIGTERM and SIGINT stop it in order, under `larder dev` SIGHUP as well. Otherwise SIGHUP reads certificates again. Another signal ends it at once if one of its
//! own kind came at least a second before: a terminal, a container's runtime and a supervisor may each send theirs for
//! one stop, both kinds or one of them twice. Other signals that would kill by default, but have no meaning yet, are
//! logged and have no effect. SIGPIPE is ignored by the standard library.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::base::{Stopwatch, log};

/// A second signal of a kind that comes sooner belongs to the first.
const PATIENCE: Duration = Duration::from_secs(1);

/// Exit status when a second signal ends the process.
const EXIT_AT_ONCE: i32 = 1;

/// Names the signals that end Larder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Terminate,
    Interrupt,
    /// Only where Larder belongs to a terminal, which was closed.
    HangUp,
}

impl Ending {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::HangUp => "SIGHUP",
        }
    }
}

/// Says how to react to such a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Stop in order.
    Stop,
    /// Nothing: that is under way.
    GoOn,
    /// End at once.
    Now,
}

/// Remembers when the first of each kind came.
#[derive(Debug, Default)]
struct Seen {
    terminate: Option<Duration>,
    interrupt: Option<Duration>,
    hang_up: Option<Duration>,
}

impl Seen {
    fn note(&mut self, ending: Ending, now: Duration) -> Step {
        let is_first = self.terminate.is_none() && self.interrupt.is_none() && self.hang_up.is_none();
        let same = match ending {
            Ending::Terminate => &mut self.terminate,
            Ending::Interrupt => &mut self.interrupt,
            Ending::HangUp => &mut self.hang_up,
        };
        match *same {
            Some(first) if now.saturating_sub(first) >= PATIENCE => Step::Now,
            Some(_) => Step::GoOn,
            None => {
                *same = Some(now);
                if is_first { Step::Stop } else { Step::GoOn }
            }
        }
    }
}

/// Says whether Larder starts, runs or stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is nothing to be stopped in order.
    Starting,
    Up,
}

/// The signals of this process, waited for on a thread of their own.
pub struct Signals {
    stop: mpsc::Receiver<()>,
    /// The other end of `stop`.
    stopper: mpsc::Sender<()>,
    /// The lock decides between a start that is done and a signal that ends it.
    phase: Arc<Mutex<Phase>>,
    reload: Reload,
}

/// Called on SIGHUP, once there are files to read again.
type Reload = Arc<Mutex<Option<Box<dyn Fn() + Send>>>>;

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl Signals {
    /// Takes them over. Until [`Signals::is_up`] the first that stops ends the process, with word of it.
    pub fn install() -> io::Result<Self> {
        Self::take_over(HangUp::IsTold)
    }

    /// Like [`Signals::install`], but a terminal that is closed stops Larder.
    pub(super) fn of_a_terminal() -> io::Result<Self> {
        Self::take_over(HangUp::Ends)
    }

    fn take_over(on_hang_up: HangUp) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let sources = {
            let _guard = runtime.enter();
            Sources {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hangup: signal(SignalKind::hangup())?,
                on_hang_up,
                user1: signal(SignalKind::user_defined1())?,
                user2: signal(SignalKind::user_defined2())?,
            }
        };
        let (sender, stop) = mpsc::channel();
        let phase = Arc::new(Mutex::new(Phase::Starting));
        let (known, stopper) = (Arc::clone(&phase), sender.clone());
        let reload = Reload::default();
        let reloads = Arc::clone(&reload);
        std::thread::Builder::new()
            .name("larder-signals".into())
            .spawn(move || runtime.block_on(sources.heed(&known, &sender, &reloads)))?;
        Ok(Self { stop, stopper, phase, reload })
    }

    /// From now on there is something to be stopped in order.
    pub fn is_up(&self) {
        *self.phase.lock() = Phase::Up;
    }

    /// From now on SIGHUP begins `reload`, which must not wait.
    pub(super) fn on_hang_up(&self, reload: Box<dyn Fn() + Send>) {
        *self.reload.lock() = Some(reload);
    }

    /// Returns what ends [`Signals::wait`] as a signal does.
    pub(super) fn stopper(&self) -> mpsc::Sender<()> {
        self.stopper.clone()
    }

    /// Waits until Larder is to stop.
    pub fn wait(&self) {
        // The other end is never closed: this has one.
        let _ = self.stop.recv();
    }
}

/// Says what SIGHUP does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HangUp {
    /// It is logged, and begins what [`Signals::on_hang_up`] was given.
    IsTold,
    /// It stops Larder in order.
    Ends,
}

struct Sources {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    on_hang_up: HangUp,
    user1: Signal,
    user2: Signal,
}

impl Sources {
    async fn heed(mut self, phase: &Mutex<Phase>, stop: &mpsc::Sender<()>, reload: &Reload) {
        let (mut seen, watch) = (Seen::default(), Stopwatch::start());
        loop {
            let ending = tokio::select! {
                _ = self.terminate.recv() => Ending::Terminate,
                _ = self.interrupt.recv() => Ending::Interrupt,
                _ = self.hangup.recv() => match self.on_hang_up {
                    HangUp::Ends => Ending::HangUp,
                    HangUp::IsTold => {
                        match &*reload.lock() {
                            Some(reload) => {
                                info!("SIGHUP: the files of certificates are read again; restart Larder to change the configuration");
                                reload();
                            }
                            None => warn!("SIGHUP: there is no reload yet; restart Larder to change the configuration"),
                        }
                        continue;
                    }
                },
                _ = self.user1.recv() => {
                    warn!("SIGUSR1: it has no meaning to Larder, and no effect");
                    continue;
                }
                _ = self.user2.recv() => {
                    warn!("SIGUSR2: it has no meaning to Larder, and no effect");
                    continue;
                }
            };
            let name = ending.name();
            match seen.note(ending, watch.elapsed()) {
                Step::Stop => {
                    let phase = phase.lock();
                    if *phase == Phase::Starting {
                        log::tell(&format!("larder: {name}: stopped before it was up"));
                        log::flush();
                        // The lock is kept: nobody is told that Larder is up.
                        std::process::exit(0);
                    }
                    info!(
                        "{name}: stopping: no new connections, requests under way are finished; another {name} ends them at once"
                    );
                    let _ = stop.send(());
                }
                Step::GoOn => info!("{name}: stopping already; another {name} later than that ends it at once"),
                Step::Now => {
                    error!("stopped at once by a second {name}");
                    log::flush();
                    std::process::exit(EXIT_AT_ONCE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_signal_of_the_same_kind_ends_at_once() {
        use Ending::{Interrupt as Int, Terminate as Term};
        for (signals, expected) in [
            (&[(Term, 0)][..], Step::Stop),
            (&[(Term, 0), (Int, 1)], Step::GoOn),
            (&[(Int, 0), (Term, 1)], Step::GoOn),
            (&[(Term, 0), (Term, 999)], Step::GoOn),
            (&[(Term, 0), (Term, 1000)], Step::Now),
            (&[(Term, 0), (Term, 500), (Term, 1200)], Step::Now),
            (&[(Term, 0), (Int, 5000)], Step::GoOn),
            (&[(Term, 0), (Int, 5000), (Int, 5500)], Step::GoOn),
            (&[(Term, 0), (Int, 5000), (Int, 6000)], Step::Now),
        ] {
            let mut seen = Seen::default();
            let steps = signals.iter().map(|(ending, at)| seen.note(*ending, Duration::from_millis(*at)));
            assert_eq!(steps.last(), Some(expected), "{signals:?}");
        }
    }
}
