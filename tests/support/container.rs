//! This machine's own system, booted in a container over a layer that is thrown away: packages can be installed there, units
//! enabled and users made, and nothing of it is left. In go commands; out comes what they say.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Why there can be none here.
pub fn can_boot() -> Result<(), &'static str> {
    if !super::support::is_root() {
        return Err("only root can boot a container");
    }
    let found = Command::new("systemd-nspawn").arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        return Err("systemd-nspawn is not here; the package is called systemd-container");
    }
    if !Path::new("/lib/systemd/systemd").exists() {
        return Err("systemd is not installed here");
    }
    Ok(())
}

/// A system that runs in a container, which ends with the test.
pub struct Booted {
    nspawn: Child,
    leader: u32,
}

impl Booted {
    /// Boots the system that systemd-nspawn makes of `arguments`; what it says goes to a file in `dir`.
    pub fn start(arguments: &[String], dir: &Path) -> Self {
        let log = dir.join("boot.log");
        let out = fs::File::create(&log).unwrap();
        let nspawn = Command::new("systemd-nspawn")
            .args(["--boot", "--register=no", "--keep-unit", "--quiet", "--console=pipe"])
            .args(arguments)
            .args(["systemd.unit=basic.target", "systemd.firstboot=off"])
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let mut booted = Self { nspawn, leader: 0 };
        let is_up = until(Duration::from_secs(60), || {
            booted.leader = child_of(booted.nspawn.id()).unwrap_or(0);
            let state = booted.run(&["systemctl", "is-system-running"]);
            ["running", "degraded"].contains(&text(&state).trim())
        });
        assert!(is_up, "systemd did not come up: {}", fs::read_to_string(log).unwrap());
        booted
    }

    /// A command in it, outside every unit, to be run.
    pub fn command(&self, command: &[&str]) -> Command {
        let mut line = Command::new("nsenter");
        line.args(["--target", &self.leader.to_string(), "--all", "--wdns=/"])
            .args([
                "env",
                "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG=C",
                "DEBIAN_FRONTEND=noninteractive",
            ])
            .args(command)
            .stdin(Stdio::null());
        line
    }

    /// Runs a command in it, outside every unit.
    pub fn run(&self, command: &[&str]) -> Output {
        self.command(command).output().unwrap()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // The end of its init is the end of the container, and then what it ran on can go. 0 would be ourselves.
        match self.leader {
            0 => drop(self.nspawn.kill()),
            leader => drop(Command::new("kill").args(["-KILL", &leader.to_string()]).status()),
        }
        let _ = self.nspawn.wait();
    }
}

/// This machine's system, over a layer.
pub struct Container {
    booted: Booted,
    /// Dropped last.
    _layer: Layer,
}

/// All of `/`, with what is written to it in memory.
struct Layer(PathBuf);

impl Layer {
    fn over_root(at: &Path) -> Option<Self> {
        let mount = |arguments: &[&str]| Command::new("mount").args(arguments).status().unwrap().success();
        let at = at.to_owned();
        fs::create_dir(&at).unwrap();
        if !mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", at.to_str().unwrap()]) {
            return None;
        }
        let layer = Self(at);
        for name in ["upper", "work", "root"] {
            fs::create_dir(layer.0.join(name)).unwrap();
        }
        let place = layer.0.display();
        let options = format!("lowerdir=/,upperdir={place}/upper,workdir={place}/work");
        mount(&["-t", "overlay", "overlay", "-o", &options, layer.root().to_str().unwrap()]).then_some(layer)
    }

    fn root(&self) -> PathBuf {
        self.0.join("root")
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        for mounted in [self.root(), self.0.clone()] {
            let _ = Command::new("umount").arg(mounted).stderr(Stdio::null()).status();
        }
    }
}

impl Container {
    /// Boots with `dir` in it, writable, at the same place. None if there can be no layer over `/` here.
    pub fn boot(dir: &Path) -> Option<Self> {
        let layer = Layer::over_root(&dir.join("layer"))?;
        let root = layer.root();
        // Nothing that this machine starts is started there, and packages may start what they like.
        for forbids in ["etc/systemd/system", "usr/sbin/policy-rc.d", "etc/machine-id"] {
            let path = root.join(forbids);
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        let over = format!("--directory={}", root.display());
        let booted = Booted::start(&[over, format!("--bind={}", dir.display())], dir);
        Some(Self { booted, _layer: layer })
    }

    /// A command in the container, outside every unit, to be run.
    pub fn command(&self, command: &[&str]) -> Command {
        self.booted.command(command)
    }

    /// Runs a command in the container, outside every unit.
    pub fn run(&self, command: &[&str]) -> Output {
        self.booted.run(command)
    }

    /// The same for a command that has to succeed; what it says.
    pub fn must(&self, command: &[&str]) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "{command:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command as a unit of that name.
    pub fn unit(&self, name: &str, properties: &[&str], command: &[&str]) -> Output {
        let named = format!("--unit={name}");
        let start = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", &named];
        let properties: Vec<String> = properties.iter().map(|it| format!("--property={it}")).collect();
        let properties: Vec<&str> = properties.iter().map(String::as_str).collect();
        self.run(&[&start, &properties[..], command].concat())
    }

    /// Writes a file in the container.
    pub fn write(&self, path: &str, text: &str) {
        // Through its own mounts: /run and others are not of the layer.
        let path = format!("/proc/{}/root{path}", self.booted.leader);
        fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What is at a path there, to be looked at from outside.
    pub fn at(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.booted.leader).into()
    }
}

/// Waits until something is so, for as long as `limit`.
pub fn until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    #[allow(clippy::disallowed_methods, reason = "what a service manager does is waited for in real time")]
    let start = Instant::now();
    while start.elapsed() < limit {
        if done() {
            return true;
        }
        // There is no event to wait for: the container has no way to tell us.
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// All that a command said.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The first child of a process: of systemd-nspawn, the first process of its container.
fn child_of(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
