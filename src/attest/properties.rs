//! What must hold of any text of /proc, whatever a process calls itself or its cgroup.

use super::{
    Errand, Manager, Sources, process,
    unit::{Parsed, Place},
};

/// No status without the lines it is made of, no start time without the fields before it, no unit that its cgroup's path does
/// not name, and none without a service manager. The same bytes are tried as a process's own name, which changes nothing.
pub fn proc(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(status) = process::Status::parse(&text) {
        for name in ["Uid:", "Gid:", "Groups:", "TracerPid:", "NoNewPrivs:"] {
            assert_eq!(text.lines().filter(|line| line.starts_with(name)).count(), 1, "{name}");
        }
        assert!(status.groups.is_sorted());
        assert!(text.contains(&status.uids[1].to_string()) && text.contains(&status.gids[1].to_string()));
    }
    if process::parse_origin(bytes).is_some() {
        let after = bytes.rsplit(|byte| *byte == b')').next().unwrap_or_default();
        assert!(after.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count() >= 20);
    }
    let nowhere = Sources { cgroup: "/nonexistent".into(), systemd: "/nonexistent".into() };
    assert!(nowhere.unit(&text).is_err());
    if let Ok(place) = Place::of(&text) {
        assert!(text.contains(&place.path));
        if let Ok(unit) = Parsed::of(&place.path) {
            is_named_by(&place.path, &unit);
        }
    }
    called(bytes);
}

/// An errand is said in one way only: the address can be made again from what was read of it, and names a unit that has programs.
pub fn errand(bytes: &[u8]) {
    let Some(read) = Errand::parse(bytes) else { return };
    let text = std::str::from_utf8(bytes).expect("an errand is text");
    let random = text.split('/').next().unwrap_or_default();
    assert!(u64::from_str_radix(random, 16).is_ok(), "{text:?}");
    assert_eq!(text, format!("{random}/unit/{}/{}", read.unit, read.credential));
    assert!(
        !read.unit.contains('/') && !read.credential.contains('/') && text.chars().all(|c| !c.is_control())
    );
    assert!(![".", ".."].contains(&read.credential.as_str()) && !read.unit.starts_with(".service"));
}

/// The unit is what the path says: the first component that is no slice, below a user's manager if that comes first.
fn is_named_by(path: &str, unit: &Parsed) {
    assert!(path.split('/').skip(1).all(|part| !["", ".", ".."].contains(&part)), "{path}");
    let plain = |part: &str| part.strip_prefix('_').unwrap_or(part).to_owned();
    let parts: Vec<String> = path.split('/').skip(1).map(plain).collect();
    let first = parts.iter().position(|part| !part.ends_with(".slice")).expect("a unit is no slice");
    match unit.manager {
        Manager::System => {
            assert_eq!((&unit.name, &unit.slices[..]), (&parts[first], &parts[..first]), "{path}");
            assert!(parts[0] != "user.slice", "{path}: a login is no service");
        }
        Manager::User(uid) => {
            assert!(parts[first].starts_with("user@") && parts[first].contains(&uid.to_string()), "{path}");
            let below = &parts[first + 1..];
            assert!(below.starts_with(&unit.slices) && below[unit.slices.len()] == unit.name, "{path}");
        }
    }
    assert!(unit.slices.iter().all(|slice| slice.ends_with(".slice")));
    assert!(!unit.name.ends_with(".slice") && unit.name.bytes().all(|byte| byte.is_ascii_graphic()));
}

/// A process chooses its name (`PR_SET_NAME`): as `stat` quotes it, and as `status` escapes it.
fn called(name: &[u8]) {
    let fields = (4..=52).map(|field| (field * 10).to_string()).collect::<Vec<_>>().join(" ");
    let stat = [b"7 (", name, b") S ", fields.as_bytes()].concat();
    assert_eq!(process::parse_origin(&stat).map(|origin| origin.start), Some(220));
    let escaped = String::from_utf8_lossy(name).replace('\\', "\\\\").replace('\n', "\\n");
    let rest =
        "Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 \nTracerPid:\t0\nNoNewPrivs:\t0\nSeccomp:\t0\n";
    let status = process::Status::parse(&format!("Name:\t{escaped}\nState:\tS\n{rest}"));
    assert_eq!(status.map(|status| (status.uids, status.gids)), Ok(([1, 2, 3, 4], [5, 6, 7, 8])));
}
