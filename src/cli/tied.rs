//! `larder tied PARENT COMMAND…`: becomes a command that the kernel ends (on Linux) when the thread that started it does,
//! also by `kill -9`. Used by `larder dev` and by the Python module `larder.testing`; not shown in the help.
//!
//! The kernel may send SIGTERM several times: once for each thread of the parent that ends after the one before. A command
//! that is at work on the first one, such as Flask's reloader, which ends its own child then, may be stopped in that by the
//! next. `--once` stands between the two, and passes on only one.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// The arguments of `larder tied`.
#[derive(Debug, Args)]
pub(super) struct TiedArgs {
    /// Stays as the command's parent, and sends it one SIGTERM, however many come
    #[arg(long)]
    once: bool,
    /// The process that starts this one, whose end is this one's end
    parent: i32,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Ties this process to the one that started it, and becomes the command, or with `--once` its parent. Returns only if it
/// can't, or when the command has ended.
pub(super) fn exec(args: &TiedArgs) -> Result<ExitCode, String> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getppid, set_parent_process_death_signal};
        let tied = set_parent_process_death_signal(Some(Signal::TERM));
        tied.map_err(|error| format!("this process can't be tied to its parent: {error}"))?;
        // It may have ended before the line above.
        if getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(args.parent) {
            return Ok(ExitCode::FAILURE);
        }
    }
    if args.once {
        return stand_between(args).map_err(|error| format!("the command can't be run: {error}"));
    }
    let Some((program, arguments)) = args.command.split_first() else {
        return Err("there is no command to become".into());
    };
    let error = Command::new(program).args(arguments).exec();
    Err(format!("{} can't be run: {error}", program.display()))
}

/// Runs the command, tied to this process, and passes on one SIGTERM. Has no other thread whose end the kernel would tell
/// the command of.
fn stand_between(args: &TiedArgs) -> std::io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (mut term, mut ended) = (signal(SignalKind::terminate())?, signal(SignalKind::child())?);
        // A terminal sends these to the command as well.
        let _ignored = (signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?, signal(SignalKind::quit())?);
        let own = std::process::id().to_string();
        let mut command = Command::new(std::env::current_exe()?).arg("tied").arg(own).args(&args.command).spawn()?;
        let mut is_told = false;
        loop {
            if let Some(status) = command.try_wait()? {
                return Ok(code(status));
            }
            tokio::select! {
                _ = ended.recv() => {}
                _ = term.recv(), if !is_told => {
                    is_told = true;
                    end(&command);
                }
            }
        }
    })
}

fn end(command: &Child) {
    if let Some(pid) = i32::try_from(command.id()).ok().and_then(Pid::from_raw) {
        // It has not been waited for, so the number is still its own.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Returns the exit code that a shell gives for a command that ended so.
fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
