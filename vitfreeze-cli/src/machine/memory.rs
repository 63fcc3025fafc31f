//! Memory of this process: its peak, and what it may still take. Known on Linux alone.
use std::fs;
use std::path::Path;

/// Forgets the peak so far; `false` where the system cannot.
pub fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Largest resident set since the last reset, in bytes; `None` where the system does not tell.
pub fn peak_bytes() -> Option<u64> {
    kib_of(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Memory that this process may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub bytes: u64,
    /// What sets the limit.
    pub set_by: &'static str,
}

/// The narrowest of the machine, the control groups of this process and its own limits; `None` where none is known.
pub fn room() -> Option<Room> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let groups = read("/proc/self/cgroup");
    let all = [
        machine(&read("/proc/meminfo")),
        group(Path::new("/sys/fs/cgroup"), &groups),
        limit(
            &read("/proc/self/limits"),
            "Max address space",
            &status,
            "VmSize:",
            "ulimit -v",
        ),
        limit(
            &read("/proc/self/limits"),
            "Max data size",
            &status,
            "VmData:",
            "ulimit -d",
        ),
    ];
    all.into_iter().flatten().min_by_key(|room| room.bytes)
}

/// A line `KEY  N kB`, in bytes.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn machine(meminfo: &str) -> Option<Room> {
    let swap = kib_of(meminfo, "SwapFree:").unwrap_or(0);
    Some(Room {
        bytes: kib_of(meminfo, "MemAvailable:")? + swap,
        set_by: "this machine",
    })
}

/// A line `NAME  SOFT  HARD  bytes` of /proc/self/limits, less what is used of it.
fn limit(limits: &str, name: &str, status: &str, used: &str, set_by: &'static str) -> Option<Room> {
    let line = limits.lines().find_map(|l| l.strip_prefix(name))?;
    let soft: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(Room {
        bytes: soft.saturating_sub(kib_of(status, used)?),
        set_by,
    })
}

/// The narrowest of the control groups (version 1 or 2) that this process and its parents are in.
fn group(root: &Path, groups: &str) -> Option<Room> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (base, names) = match controllers {
            "" => (root.to_owned(), ["memory.max", "memory.current"]),
            _ if controllers.split(',').any(|c| c == "memory") => (
                root.join("memory"),
                ["memory.limit_in_bytes", "memory.usage_in_bytes"],
            ),
            _ => continue,
        };
        // A container may see its own group as the root, whatever the path says.
        for dir in Path::new(path).ancestors() {
            let dir = base.join(dir.strip_prefix("/").unwrap_or(dir));
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
            };
            let [Some(max), Some(used)] = names.map(number) else {
                continue;
            };
            // Files that are cached give way.
            let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            let cached = |key: &str| -> Option<u64> {
                stat.lines()
                    .find_map(|l| l.strip_prefix(key))?
                    .trim()
                    .parse()
                    .ok()
            };
            let files = cached("total_inactive_file ").or(cached("inactive_file "));
            let free = max.saturating_sub(used.saturating_sub(files.unwrap_or(0)));
            least = Some(least.map_or(free, |least| least.min(free)));
        }
    }
    least.map(|bytes| Room {
        bytes,
        set_by: "this control group",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_linux_writes_them() {
        let meminfo = "MemTotal: 100 kB\nMemAvailable:   24 kB\nSwapFree:  1 kB\n";
        assert_eq!(machine(meminfo).unwrap().bytes, 25 * 1024);
        assert_eq!(machine("MemTotal: 1 kB"), None);
        let limits = "Limit   Soft Limit  Hard Limit  Units\n\
            Max address space         4096000   unlimited   bytes\n\
            Max data size             unlimited  unlimited  bytes\n";
        let status = "VmSize:\t    1000 kB\nVmData:\t 10 kB\n";
        let room = limit(limits, "Max address space", status, "VmSize:", "ulimit -v").unwrap();
        assert_eq!(room.bytes, 4_096_000 - 1_024_000);
        assert_eq!(limit(limits, "Max data size", status, "VmData:", ""), None);
        // More in use than allowed is no room, not an overflow.
        let room = limit(
            "Max address space 5 5 bytes",
            "Max address space",
            status,
            "VmSize:",
            "",
        );
        assert_eq!(room.unwrap().bytes, 0);
    }

    #[test]
    fn groups_of_both_versions_and_their_parents_count() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(group(root.path(), "0::/\n"), None);
        // Version 2: the parent is narrower than the group itself, which has no limit.
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "7\n");
        write("a/memory.max", "1000\n");
        write("a/memory.current", "400\n");
        write("a/memory.stat", "anon 3\ninactive_file 100\n");
        assert_eq!(group(root.path(), "0::/a/b\n").unwrap().bytes, 700);
        // Version 1, in a container that sees another path.
        write("memory/memory.limit_in_bytes", "900\n");
        write("memory/memory.usage_in_bytes", "800\n");
        let groups = "7:blkio:/\n4:cpu,memory:/docker/0123\n";
        assert_eq!(group(root.path(), groups).unwrap().bytes, 100);
        assert_eq!(group(root.path(), "nonsense\n4:memory"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_peak_and_room() {
        assert!(peak_bytes().unwrap() > 1 << 20);
        assert!(room().unwrap().bytes > 1 << 20);
    }
}
