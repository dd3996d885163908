//! What must hold of any text of /proc, whatever a process calls itself or its cgroup.

use super::{Sources, process};

/// No status without the lines it is made of, no start time without the fields before it, no unit without a service manager.
pub fn proc(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(status) = process::Status::parse(&text) {
        for name in ["Uid:", "Gid:", "Groups:", "TracerPid:", "NoNewPrivs:"] {
            assert_eq!(text.lines().filter(|line| line.starts_with(name)).count(), 1, "{name}");
        }
        assert!(status.groups.is_sorted());
        assert!(text.contains(&status.uids[1].to_string()) && text.contains(&status.gids[1].to_string()));
    }
    if process::parse_start_time(bytes).is_some() {
        let after = bytes.rsplit(|byte| *byte == b')').next().unwrap_or_default();
        assert!(after.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count() >= 20);
    }
    let nowhere = Sources { cgroup: "/nonexistent".into(), systemd: "/nonexistent".into() };
    assert!(nowhere.unit(&text).is_err());
}
