//! `larder tied PARENT COMMAND…`: becomes a command that the kernel ends (on Linux) when the thread that started it does,
//! also by `kill -9`. Used by `larder dev` and by the Python module `larder.testing`; not shown in the help.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Args;

/// The arguments of `larder tied`.
#[derive(Debug, Args)]
pub(super) struct TiedArgs {
    /// The process that starts this one, whose end is this one's end
    parent: i32,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Ties this process to the one that started it, and becomes the command. Returns only if it can't.
pub(super) fn exec(args: &TiedArgs) -> Result<ExitCode, String> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, getppid, set_parent_process_death_signal};
        let tied = set_parent_process_death_signal(Some(Signal::TERM));
        tied.map_err(|error| format!("this process can't be tied to its parent: {error}"))?;
        // It may have ended before the line above.
        if getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(args.parent) {
            return Ok(ExitCode::FAILURE);
        }
    }
    let Some((program, arguments)) = args.command.split_first() else {
        return Err("there is no command to become".into());
    };
    let error = Command::new(program).args(arguments).exec();
    Err(format!("{} can't be run: {error}", program.display()))
}
