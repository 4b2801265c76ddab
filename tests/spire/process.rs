//! Other programs in tests: started as any user, watched, and gone when the test is, however it
//! ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A program that runs until it is stopped or dropped. Its output goes to a file, which is shown
/// when the test fails.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Whether its output may be shown.
    quiet: bool,
}

impl Process {
    /// Starts `command` with its output added to `log`.
    pub(crate) fn spawn(name: &str, mut command: Command, log: &Path) -> Self {
        use std::os::unix::process::CommandExt as _;
        let file = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            quiet: false,
        }
    }

    /// Never shows its output: there are tokens in it.
    pub(crate) fn keep_quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Fails the test when the program is no longer running.
    pub(crate) fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            // Its output is shown as it is dropped.
            panic!("{} ended by itself: {status}", self.name);
        }
    }

    /// Waits until the program ends by itself.
    pub(crate) fn wait(mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait_for(&format!("{name} to end"), limit, || {
            self.child
                .try_wait()
                .unwrap()
                .ok_or_else(|| "still running".to_owned())
        })
    }

    /// Asks the program to end (SIGTERM) and waits until it has.
    pub(crate) fn stop(self) -> ExitStatus {
        killpg(self.group(), Signal::SIGTERM).unwrap();
        self.wait(Duration::from_secs(30))
    }

    /// Everything the program has written so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(self.group(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
        if thread::panicking() && !self.quiet {
            let output = self.output();
            let skipped = output.lines().count().saturating_sub(SHOWN_LINES);
            eprintln!("--- the last of {}:", self.name);
            output
                .lines()
                .skip(skipped)
                .for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A command that runs as the test's own user, with an empty environment but for `PATH`.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    with_setpriv(&[], program.as_ref())
}

/// A command that runs as user and group `uid`, without further groups.
pub(crate) fn command_as(uid: u32, program: impl AsRef<Path>) -> Command {
    let id = uid.to_string();
    with_setpriv(
        &["--reuid", &id, "--regid", &id, "--clear-groups"],
        program.as_ref(),
    )
}

/// Runs a command to its end.
pub(crate) fn output(mut command: Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command that must succeed, and returns what it wrote.
pub(crate) fn succeed(command: Command) -> String {
    let shown = format!("{:?}", command.get_program());
    let done = output(command);
    assert!(
        done.status.success(),
        "{shown}: {}\n{}",
        done.status,
        both(&done)
    );
    String::from_utf8(done.stdout).unwrap()
}

/// What a command wrote on either stream.
pub(crate) fn both(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// Asks `probe` until it has an answer; fails the test with its last complaint after `limit`.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> T {
    let begin = Instant::now();
    loop {
        match probe() {
            Ok(answer) => return answer,
            Err(complaint) if begin.elapsed() > limit => {
                panic!("waited {limit:?} for {what}: {complaint}")
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// `setpriv` becomes the program, so pids and process groups are the program's. With the signal,
/// the program does not outlive a test runner that is killed.
fn with_setpriv(arguments: &[&str], program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .args(arguments)
        .arg("--")
        .arg(program);
    command.env_clear().env(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    command.current_dir("/");
    command
}

const SHOWN_LINES: usize = 60;
