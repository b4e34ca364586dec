//! Finds the Python that runs the application, what is installed for it, and the command line of the server.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{DevArgs, Server, ServerCommand};

/// Prints a line each for gunicorn, Flask and the module: `yes`, or what is missing or went wrong.
const PROBE: &str = r#"
import importlib.util, sys
def find(name):
    try:
        return "yes" if importlib.util.find_spec(name) else "missing " + name
    except ModuleNotFoundError as error:
        return "missing " + str(error.name)
    except Exception as error:
        return "broken " + type(error).__name__ + ": " + str(error).replace("\n", " ")
sys.path.insert(0, "")
print(find("gunicorn"), find("flask"), find(sys.argv[1]) if sys.argv[1] else "yes", sep="\n")
"#;

/// The name of gunicorn's configuration file, beside the socket.
pub(super) const GUNICORN_CONFIG: &str = "gunicorn.conf.py";
/// Its content: opens no socket in the home directory. Versions that have none pass over the setting.
pub(super) const GUNICORN_SETTINGS: &str = "control_socket_disable = True\n";

/// The application as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct App<'a> {
    module: &'a str,
    /// The part behind the colon.
    name: Option<&'a str>,
}

impl<'a> App<'a> {
    pub(super) fn read(text: &'a str) -> Result<Self, String> {
        let (module, name) = match text.split_once(':') {
            Some((module, name)) => (module, Some(name)),
            None => (text, None),
        };
        if module.is_empty() || name == Some("") || module.starts_with('-') {
            return Err(format!("\"{text}\" names no application; write it as MODULE:NAME, such as app:app"));
        }
        Ok(Self { module, name })
    }

    /// Returns whether the module is named as a file, which Flask's server alone takes.
    fn is_file(self) -> bool {
        self.module.contains('/') || Path::new(self.module).extension().is_some_and(|extension| extension == "py")
    }
}

/// Returns the Python that the arguments or the surroundings name.
pub(super) fn find(args: &DevArgs) -> PathBuf {
    let in_environment = |directory: &Path| {
        let python = directory.join("bin/python");
        (directory.join("pyvenv.cfg").is_file() && python.exists()).then_some(python)
    };
    let active = || std::env::var_os("VIRTUAL_ENV").and_then(|directory| in_environment(Path::new(&directory)));
    let beside = || {
        let binary = std::env::current_exe().ok()?;
        in_environment(binary.parent()?.parent()?)
    };
    let in_directory = || {
        let directory = std::env::current_dir().ok()?;
        [".venv", "venv"].iter().find_map(|name| in_environment(&directory.join(name)))
    };
    let named = args.python.clone();
    named.or_else(active).or_else(beside).or_else(in_directory).unwrap_or_else(|| PathBuf::from("python3"))
}

/// Returns the server for `app`, after a look at what `python` has. An error is a sentence that says what to do.
pub(super) fn choose(python: &Path, app: App<'_>, wanted: Option<Server>) -> Result<Server, String> {
    let shown = python.display();
    let module = if app.is_file() { "" } else { app.module };
    let probed = Command::new(python).args(["-c", PROBE, module]).stdin(Stdio::null()).output().map_err(|error| {
        format!("{shown} can't be run: {error}; name a Python with --python, or activate its environment")
    })?;
    let text = String::from_utf8_lossy(&probed.stdout);
    let [gunicorn, flask, found] = text.lines().collect::<Vec<_>>()[..] else {
        let error = String::from_utf8_lossy(&probed.stderr);
        let why = error.lines().last().unwrap_or("it printed nothing");
        return Err(format!("{shown} is no Python that works: {why}; name another with --python"));
    };
    let (has_gunicorn, has_flask) = (gunicorn == "yes", flask == "yes");
    let server = match wanted {
        Some(Server::Gunicorn) if !has_gunicorn => {
            return Err(format!("{shown} has no gunicorn; install it with: {shown} -m pip install gunicorn"));
        }
        Some(Server::Flask) if !has_flask => {
            return Err(format!("{shown} has no Flask; install it with: {shown} -m pip install flask"));
        }
        Some(server) => server,
        None if has_flask && (!has_gunicorn || app.name.is_none() || app.is_file()) => Server::Flask,
        None if has_gunicorn => Server::Gunicorn,
        None => {
            return Err(format!(
                "{shown} has neither gunicorn nor Flask; install one with: {shown} -m pip install flask; or name another Python with --python"
            ));
        }
    };
    if server == Server::Gunicorn && (app.name.is_none() || app.is_file()) {
        return Err(format!(
            "gunicorn needs the application as MODULE:NAME, such as app:app, and not \"{}\"",
            app.module
        ));
    }
    if app.is_file() && !Path::new(app.module).is_file() {
        return Err(format!("there is no file {}; name the application from its own directory", app.module));
    }
    match found.split_once(' ') {
        Some(("missing", name)) if name == app.module || app.module.starts_with(&format!("{name}.")) => Err(format!(
            "there is no module {name} in this directory, nor in {shown}; start larder dev in the directory that holds {name}, or name another Python with --python"
        )),
        Some(("missing", name)) => Err(format!("the module {} needs {name}, which {shown} does not have", app.module)),
        Some(("broken", why)) => Err(format!("the package of {} can't be imported: {why}", app.module)),
        _ => Ok(server),
    }
}

/// Returns the command that serves `app` on `socket`, and reloads it when its code changes.
pub(super) fn command(
    python: PathBuf,
    app: &str,
    server: Server,
    socket: PathBuf,
    environment: Vec<(&'static str, OsString)>,
) -> ServerCommand {
    let path = socket.as_os_str();
    let address = |scheme: &str| {
        let mut address = OsString::from(scheme);
        address.push(path);
        address
    };
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let arguments = match server {
        Server::Flask => {
            let mut all = words(&["-m", "flask", "--app", app, "run", "--debug", "--host"]);
            all.push(address("unix://"));
            all
        }
        Server::Gunicorn => {
            // One worker: its end and its successor are one restart. Threads: a slow page holds up no other.
            let mut all = words(&["-m", "gunicorn", "--reload", "--worker-class", "gthread", "--threads", "8"]);
            all.extend(words(&["--workers", "1", "--timeout", "0", "--graceful-timeout", "1", "--keep-alive", "75"]));
            // A file of its own: the one for production may load the application before the workers, which never reloads.
            all.extend(words(&["--log-level", "warning", "--config"]));
            all.push(socket.with_file_name(GUNICORN_CONFIG).into());
            all.push("--bind".into());
            all.push(address("unix:"));
            all.push(app.into());
            all
        }
    };
    ServerCommand { server, python, arguments, environment: environment.into(), socket }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_is_a_module_and_a_name() {
        for (text, module, name, is_file) in [
            ("app:app", "app", Some("app"), false),
            ("shop.web:create_app()", "shop.web", Some("create_app()"), false),
            ("app", "app", None, false),
            ("src/app.py", "src/app.py", None, true),
        ] {
            let app = App::read(text).expect("it is one");
            assert_eq!((app.module, app.name, app.is_file()), (module, name, is_file), "{text}");
        }
        for text in ["", ":app", "app:", "-m:app"] {
            assert!(App::read(text).is_err(), "{text}");
        }
    }
}
