//! Which systemd unit a process belongs to. In goes the text of /proc/PID/cgroup, whose v2 line and v1
//! `name=systemd` line only root can write; out comes a unit that the service manager vouches for, or why there
//! is none (ATT-15, K11). A process cannot enter another unit's cgroup without write permission on the common
//! ancestor, so membership is identity; below a delegated cgroup that is no longer true, and nothing counts.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::Missing;

/// A unit and the slices above it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unit {
    /// The unit's name, as `systemctl` writes it.
    pub name: String,
    /// Whose service manager runs it.
    pub manager: Manager,
    /// The slices above it, outermost first.
    pub slices: Vec<String>,
    /// systemd's id of this run of the unit.
    pub invocation: Option<String>,
}

/// Which service manager.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Manager {
    /// The host's: its cgroups are root's.
    System,
    /// A user's: its cgroups are delegated to that user, who can name a unit anything.
    User(u32),
}

/// Where the kernel and the service manager publish what we cross-check. An argument, so that tests can lay it out.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Where cgroups are mounted.
    pub cgroup: PathBuf,
    /// systemd's runtime directory.
    pub systemd: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self { cgroup: "/sys/fs/cgroup".into(), systemd: "/run/systemd".into() }
    }
}

impl Sources {
    /// The unit that a cgroup text names, cross-checked.
    pub(super) fn unit(&self, cgroup: &str) -> Result<Unit, Missing> {
        let place = Place::of(cgroup)?;
        let parsed = Parsed::of(&place.path)?;
        if !self.systemd.join("system").is_dir() {
            return Err(Missing::NoServiceManager);
        }
        match parsed.manager {
            Manager::System => {
                let invocation = self.invocation(&parsed.name)?;
                self.refuse_delegated(&place, &parsed)?;
                Ok(Unit {
                    name: parsed.name,
                    manager: Manager::System,
                    slices: parsed.slices,
                    invocation: Some(invocation),
                })
            }
            // What a user's manager says of its units is the user's word; no more is claimed for it.
            Manager::User(uid) => {
                self.invocation(&format!("user@{uid}.service"))?;
                Ok(Unit {
                    name: parsed.name,
                    manager: parsed.manager,
                    slices: parsed.slices,
                    invocation: None,
                })
            }
        }
    }

    /// systemd publishes the invocation id of each running unit as a link in a directory that only root writes.
    fn invocation(&self, unit: &str) -> Result<String, Missing> {
        let link = self.systemd.join("units").join(format!("invocation:{unit}"));
        let target = fs::read_link(link).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Missing::UnitUnknown,
            _ => Missing::of(&error),
        })?;
        let id = target.to_string_lossy().into_owned();
        if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(id)
        } else {
            Err(Missing::UnitUnknown)
        }
    }

    /// Every cgroup from the top down to the unit must be root's, and none above the process delegated: whoever
    /// owns a subtree moves processes in it as he likes and names cgroups as he likes (E23).
    fn refuse_delegated(&self, place: &Place, parsed: &Parsed) -> Result<(), Missing> {
        let root = self.root(place.hierarchy);
        let mut directory = root;
        for (depth, component) in place.path.split('/').filter(|part| !part.is_empty()).enumerate() {
            let nested = depth > parsed.depth;
            if nested && delegated(&directory) {
                return Err(Missing::Delegated);
            }
            directory.push(component);
            let meta = fs::metadata(&directory).map_err(|error| Missing::of(&error))?;
            let above_process = depth < parsed.depth;
            if (above_process && delegated(&directory)) || (depth <= parsed.depth && meta.uid() != 0) {
                return Err(Missing::Delegated);
            }
        }
        Ok(())
    }

    fn root(&self, hierarchy: Hierarchy) -> PathBuf {
        match hierarchy {
            Hierarchy::Named => self.cgroup.join("systemd"),
            Hierarchy::Unified => {
                let hybrid = self.cgroup.join("unified");
                if hybrid.is_dir() { hybrid } else { self.cgroup.clone() }
            }
        }
    }
}

/// The slices that a unit in `slice` has above it, outermost first: `a-b.slice` is in `a.slice` (systemd.slice(5)).
pub(super) fn slices_down_to(slice: &str) -> Vec<String> {
    let name = slice.strip_suffix(".slice").unwrap_or(slice);
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    ends.filter(|end| *end > 0)
        .map(|end| format!("{}.slice", &name[..end]))
        .filter(|slice| slice != "-.slice")
        .collect()
}

/// Whether a cgroup text places the process somewhere in the v2 hierarchy, so that its id there tells a move.
pub(super) fn is_in_unified(cgroup: &str) -> bool {
    cgroup.lines().any(|line| line.strip_prefix("0::/").is_some_and(|below| !below.is_empty()))
}

/// systemd marks a delegated cgroup so.
fn delegated(directory: &Path) -> bool {
    let mut value = [0; 8];
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        matches!(rustix::fs::getxattr(directory, *name, &mut value[..]), Ok(length) if value[..length] == *b"1")
    })
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Hierarchy {
    Named,
    Unified,
}

/// The cgroup a process is in, of the one hierarchy that systemd manages.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Place {
    hierarchy: Hierarchy,
    pub(super) path: String,
}

impl Place {
    pub(super) fn of(text: &str) -> Result<Self, Missing> {
        let mut unified = None;
        let mut named = None;
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                return Err(Missing::CgroupForm);
            };
            let slot = match (id, controllers) {
                ("0", "") => &mut unified,
                (_, "name=systemd") => &mut named,
                _ => continue,
            };
            if slot.replace(path).is_some() {
                return Err(Missing::CgroupForm);
            }
        }
        // On a hybrid host both lines tell the same; where one tree is empty its line is "/".
        let (hierarchy, path) = match (unified.filter(|path| *path != "/"), named.filter(|path| *path != "/"))
        {
            (Some(unified), Some(named)) if unified != named => return Err(Missing::CgroupsDisagree),
            (Some(unified), _) => (Hierarchy::Unified, unified),
            (None, Some(named)) => (Hierarchy::Named, named),
            (None, None) => return Err(Missing::NoUnit),
        };
        Ok(Self { hierarchy, path: path.into() })
    }
}

/// A cgroup path, read the way systemd lays them out.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Parsed {
    pub(super) name: String,
    pub(super) manager: Manager,
    pub(super) slices: Vec<String>,
    /// The index of the unit's own component in the path.
    depth: usize,
}

impl Parsed {
    pub(super) fn of(path: &str) -> Result<Self, Missing> {
        let components: Vec<&str> = path.strip_prefix('/').ok_or(Missing::CgroupForm)?.split('/').collect();
        // A path that leaves our cgroup namespace says nothing about this host's units.
        if components.iter().any(|part| matches!(*part, "" | "." | "..") || part.ends_with(" (deleted)")) {
            return Err(Missing::CgroupForm);
        }
        let (slices, depth, name) = unit_from(&components, 0)?;
        let user = name.strip_prefix("user@").and_then(|rest| rest.strip_suffix(".service"));
        if let Some(uid) = user.and_then(|uid| uid.parse().ok()) {
            let (slices, depth, name) = unit_from(&components, depth + 1)?;
            return Ok(Self { name, manager: Manager::User(uid), slices, depth });
        }
        if slices.first().is_some_and(|slice| slice == "user.slice") {
            // A login session: a person's processes, not a service's.
            return Err(Missing::NoUnit);
        }
        Ok(Self { name, manager: Manager::System, slices, depth })
    }
}

/// Slices come first; the first component that is none is the unit.
fn unit_from(components: &[&str], from: usize) -> Result<(Vec<String>, usize, String), Missing> {
    let mut slices = Vec::new();
    for (depth, component) in components.iter().enumerate().skip(from) {
        // systemd puts a `_` before a name that would otherwise look like a file of the kernel's.
        let name = component.strip_prefix('_').unwrap_or(component);
        if !plausible(name) {
            return Err(Missing::CgroupForm);
        }
        if name.ends_with(".slice") {
            slices.push(name.to_owned());
        } else if [".service", ".scope", ".socket", ".mount", ".swap"].iter().any(|kind| name.ends_with(kind))
        {
            return Ok((slices, depth, name.to_owned()));
        } else {
            return Err(Missing::NoUnit);
        }
    }
    Err(Missing::NoUnit)
}

/// The characters of unit names (systemd.unit(5)).
pub(super) fn plausible(name: &str) -> bool {
    name.len() <= 255 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn parsed(path: &str) -> Result<(String, Manager, Vec<String>), Missing> {
        Parsed::of(path).map(|parsed| (parsed.name, parsed.manager, parsed.slices))
    }

    #[test]
    fn paths_as_systemd_lays_them_out() {
        // ATT-15
        let slices = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (path, name, manager, above) in [
            ("/system.slice/payments.service", "payments.service", Manager::System, &["system.slice"][..]),
            (
                "/system.slice/system-worker.slice/worker@7.service",
                "worker@7.service",
                Manager::System,
                &["system.slice", "system-worker.slice"],
            ),
            (r"/system.slice/my\x2dapp.service", r"my\x2dapp.service", Manager::System, &["system.slice"]),
            ("/system.slice/app.service/payload", "app.service", Manager::System, &["system.slice"]),
            ("/system.slice/_cpu.service", "cpu.service", Manager::System, &["system.slice"]),
            ("/init.scope", "init.scope", Manager::System, &[]),
            ("/system.slice/run-u7.service", "run-u7.service", Manager::System, &["system.slice"]),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/tool.service",
                "tool.service",
                Manager::User(1000),
                &["app.slice"],
            ),
        ] {
            assert_eq!(parsed(path), Ok((name.to_owned(), manager, slices(above))), "{path}");
        }
    }

    #[test]
    fn paths_that_name_no_unit() {
        // ATT-15
        for (path, why) in [
            ("/../system.slice/payments.service", Missing::CgroupForm),
            ("/system.slice/payments.service (deleted)", Missing::CgroupForm),
            ("/system.slice//payments.service", Missing::CgroupForm),
            ("payments.service", Missing::CgroupForm),
            ("/system.slice/pay\nments.service", Missing::CgroupForm),
            ("/user.slice/user-1000.slice/session-3.scope", Missing::NoUnit),
            ("/docker/0123456789abcdef", Missing::NoUnit),
            ("/system.slice", Missing::NoUnit),
            ("/user.slice/user-1000.slice/user@1000.service/init", Missing::NoUnit),
        ] {
            assert_eq!(parsed(path), Err(why), "{path}");
        }
    }

    #[test]
    fn a_slice_names_those_above_it() {
        assert_eq!(slices_down_to("system.slice"), ["system.slice"]);
        assert_eq!(slices_down_to("a-b-c.slice"), ["a.slice", "a-b.slice", "a-b-c.slice"]);
        assert_eq!(slices_down_to("-.slice"), Vec::<String>::new());
    }

    #[test]
    fn both_hierarchies_are_heard() {
        let v2 = "0::/system.slice/a.service\n";
        assert_eq!(Place::of(v2).unwrap().hierarchy, Hierarchy::Unified);
        let hybrid = "9:name=systemd:/system.slice/a.service\n3:cpu:/x\n0::/\n";
        assert_eq!(
            Place::of(hybrid).unwrap(),
            Place { hierarchy: Hierarchy::Named, path: "/system.slice/a.service".into() }
        );
        let disagree = "9:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n";
        assert_eq!(Place::of(disagree), Err(Missing::CgroupsDisagree));
        assert_eq!(Place::of("0::/\n"), Err(Missing::NoUnit));
        assert_eq!(Place::of("0::/a\n0::/b\n"), Err(Missing::CgroupForm));
        assert_eq!(Place::of("nonsense\n"), Err(Missing::CgroupForm));
    }

    /// A host laid out in a directory: units as links, cgroups as directories.
    fn host(units: &[&str], cgroups: &[&str]) -> (tempfile::TempDir, Sources) {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { cgroup: dir.path().join("cgroup"), systemd: dir.path().join("systemd") };
        fs::create_dir_all(sources.systemd.join("system")).unwrap();
        fs::create_dir_all(sources.systemd.join("units")).unwrap();
        for unit in units {
            symlink(
                "0123456789abcdef0123456789abcdef",
                sources.systemd.join(format!("units/invocation:{unit}")),
            )
            .unwrap();
        }
        for cgroup in cgroups {
            fs::create_dir_all(sources.cgroup.join(cgroup)).unwrap();
        }
        (dir, sources)
    }

    #[test]
    fn a_unit_needs_the_service_managers_word() {
        // ATT-15
        let text = "0::/system.slice/payments.service\n";
        let (_dir, sources) = host(&[], &["system.slice/payments.service"]);
        assert_eq!(sources.unit(text), Err(Missing::UnitUnknown));
        fs::remove_dir(sources.systemd.join("system")).unwrap();
        assert_eq!(sources.unit(text), Err(Missing::NoServiceManager));
    }

    #[test]
    fn a_cgroup_that_is_not_roots_is_delegated() {
        // ATT-15, E23. As root the directories are root's, so they are given away; else they are ours already.
        let text = "0::/system.slice/payments.service\n";
        let (_dir, sources) = host(&["payments.service"], &["system.slice/payments.service"]);
        let root = rustix::process::geteuid().is_root();
        if root {
            let unit = sources.unit(text).unwrap();
            assert_eq!(unit.name, "payments.service");
            assert_eq!(unit.invocation.as_deref(), Some("0123456789abcdef0123456789abcdef"));
            std::os::unix::fs::chown(sources.cgroup.join("system.slice"), Some(1000), None).unwrap();
        }
        assert_eq!(sources.unit(text), Err(Missing::Delegated));
    }

    #[test]
    fn a_lookalike_below_a_users_manager_is_a_users_unit() {
        // ATT-15: a sub-cgroup named payments.service in a delegated tree is never the system's payments.service.
        let path = "user.slice/user-1000.slice/user@1000.service/payments.service";
        let (_dir, sources) = host(&["payments.service", "user@1000.service"], &[path]);
        let unit = sources.unit(&format!("0::/{path}\n")).unwrap();
        assert_eq!(unit.manager, Manager::User(1000));
    }
}
