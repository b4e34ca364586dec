//! The log: lines on standard error. Logging a line never blocks, fails or panics.
//!
//! Each line goes into a bounded queue, which a separate thread writes to standard error. While standard error takes
//! nothing (a full disk, a pipe that nobody reads), lines are lost and counted. The number is logged once it takes lines
//! again. After [`start`], nothing in this program writes to standard error in another way.

mod limit;
mod line;
mod queue;
mod short;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::field::Visit;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Scope};
use tracing_subscriber::util::SubscriberInitExt;

pub use self::limit::{OncePerMinute, Turn};
pub(crate) use self::line::cut;
pub use self::line::escape;
use self::line::{Fields, begin};
use self::queue::Queue;

/// The `[log]` settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The format of a line.
    pub format: LogFormat,
    /// The least important level that is logged: error, warn, info, debug or trace.
    pub level: String,
    /// True if every request is logged, whatever the level.
    pub access: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into(), access: false }
    }
}

/// The format in `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// Text for people, with little of each request.
    Short,
    /// One JSON object a line.
    Json,
}

/// The target of the lines that `log.access` turns on.
pub const ACCESS: &str = "larder::access";

/// The longest wait for the last lines to be written at the end of the process.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The lines that wait to be written.
static QUEUE: Queue = Queue::new();
/// The format, once it is configured.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Returns the configured format, or text before there is one.
fn format() -> LogFormat {
    FORMAT.get().copied().unwrap_or(LogFormat::Text)
}

/// Starts the thread that writes the log, and logs the panics of all threads. A second call does nothing.
///
/// Until [`configure`] is called, only the lines of [`tell`] and those of panics are written.
pub fn start() -> io::Result<()> {
    static STARTED: OnceLock<()> = OnceLock::new();
    if STARTED.set(()).is_err() {
        return Ok(());
    }
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        // Bypasses `tracing`, which may itself have panicked.
        notice(Level::ERROR, &format!("the thread {} {panic}", thread.name().unwrap_or("without a name")));
    }));
    let mut out = standard_error()?;
    std::thread::Builder::new().name("larder-log".into()).spawn(move || QUEUE.write_to(&mut out))?;
    Ok(())
}

/// Sets the format and the level. From now on, the events of `tracing` are written.
pub fn configure(config: &Config) {
    // Only the first call has an effect, as with the subscriber.
    let _ = FORMAT.set(config.format);
    let level = config.level.parse().unwrap_or(LevelFilter::INFO);
    let access = if config.access { LevelFilter::INFO } else { LevelFilter::OFF };
    let targets = Targets::new().with_target("larder", level).with_target(ACCESS, access);
    // Fails, and changes nothing, if there is a subscriber already (as in tests).
    let _ = Registry::default().with(targets).with(ToQueue).try_init();
}

/// Writes a line without time and level, such as the reason why a command can't run.
pub fn tell(line: &str) {
    let mut text = String::with_capacity(line.len() + 1);
    escape(line, &mut text);
    text.push('\n');
    QUEUE.push(text.as_bytes());
}

/// Waits until every line is written, at most [`FLUSH_TIMEOUT`].
pub fn flush() {
    QUEUE.flush(FLUSH_TIMEOUT);
}

/// Returns the number of lines lost so far.
pub fn lost() -> u64 {
    QUEUE.lost()
}

/// Writes a line that is not an event of `tracing`.
fn notice(level: Level, message: &str) {
    QUEUE.push(notice_line(level, message).as_bytes());
}

/// Returns a line that is not an event of `tracing`.
fn notice_line(level: Level, message: &str) -> String {
    let mut line = String::new();
    begin(format(), level, &mut line);
    Fields::new(format(), &mut line).message(message);
    line::end(format(), &mut line);
    line
}

/// Returns standard error with a new descriptor. The standard library's handle has a lock, which a blocked write would
/// hold.
fn standard_error() -> io::Result<File> {
    io::stderr().as_fd().try_clone_to_owned().map(File::from)
}

/// Queues a line for each event, with the fields of the spans around it.
struct ToQueue;

thread_local! {
    /// The line that this thread is formatting.
    static LINE: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// The most bytes of memory that a thread keeps for its next line.
const KEPT: usize = 4 << 10;

/// The fields of a span, formatted for its lines.
struct SpanFields(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ToQueue {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut text = String::new();
        attributes.record(&mut Fields::of_span(span.name(), format(), &mut text) as &mut dyn Visit);
        span.extensions_mut().insert(SpanFields(text));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(text)) = span.extensions_mut().get_mut() {
            values.record(&mut Fields::of_span(span.name(), format(), text) as &mut dyn Visit);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let write = |line: &mut String| {
            line.clear();
            let format = format();
            if format == LogFormat::Short && event.metadata().target() == ACCESS {
                short::request(event, line);
                QUEUE.push(line.as_bytes());
                return;
            }
            begin(format, *event.metadata().level(), line);
            let mut fields = Fields::new(format, line);
            event.record(&mut fields as &mut dyn Visit);
            for span in context.event_scope(event).into_iter().flat_map(Scope::from_root) {
                if let Some(SpanFields(text)) = span.extensions().get() {
                    line.push_str(text);
                }
            }
            line::end(format, line);
            QUEUE.push(line.as_bytes());
            if line.capacity() > KEPT {
                line.clear();
                line.shrink_to(KEPT);
            }
        };
        LINE.with(|line| match line.try_borrow_mut() {
            Ok(mut line) => write(&mut line),
            // The value that is being formatted logs a line itself.
            Err(_) => write(&mut String::new()),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const CHILD: &str = "LARDER_TEST_PANICS";

    /// Runs itself in a new process, since the log belongs to the whole process.
    #[test]
    fn a_panic_is_one_line_of_the_log_and_never_another_panic() {
        if std::env::var_os(CHILD).is_some() {
            start().expect("a thread");
            configure(&Config::default());
            let panicked =
                std::thread::Builder::new().name("larder-x".into()).spawn(|| panic!("a\nb")).expect("a thread");
            assert!(panicked.join().is_err());
            tracing::info!("it goes on");
            flush();
            std::process::exit(7);
        }
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        for stderr in [Stdio::piped(), full().into()] {
            let child = Command::new(std::env::current_exe().expect("this"))
                .args([
                    "--exact",
                    "base::log::tests::a_panic_is_one_line_of_the_log_and_never_another_panic",
                    "--nocapture",
                ])
                .env(CHILD, "1")
                .stdout(Stdio::null())
                .stderr(stderr)
                .spawn()
                .expect("it starts");
            let ended = child.wait_with_output().expect("it ends");
            assert_eq!(ended.status.code(), Some(7));
            let told = String::from_utf8_lossy(&ended.stderr).into_owned();
            let lines: Vec<&str> = told.lines().collect();
            if !lines.is_empty() {
                assert_eq!(lines.len(), 2, "{told}");
                assert!(
                    lines[0].contains(" ERROR the thread larder-x panicked at ") && lines[0].ends_with(":\\na\\nb"),
                    "{told}"
                );
                assert!(lines[1].ends_with(" INFO it goes on"), "{told}");
            }
        }
    }
}
