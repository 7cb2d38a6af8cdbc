//! Memory that this process may still use: the machine's, or what its control groups leave of it.

use std::path::{Path, PathBuf};

/// Where the system says nothing.
const GUESS: u64 = 8 << 30;

/// Bytes that are free or can be freed.
pub(super) fn available() -> usize {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| free_of_machine(&text)).unwrap_or(GUESS);
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let mounts = read(Path::new("/proc/self/mountinfo")).unwrap_or_default();
    let least = folders(&groups, &mounts).iter().filter_map(|folder| left_of_group(folder, &read)).min();
    usize::try_from(machine.min(least.unwrap_or(u64::MAX))).unwrap_or(usize::MAX)
}

fn free_of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// The folders of the control groups that this process is in, and of all above them: each may have a limit.
///
/// `groups` is `/proc/self/cgroup` and `mounts` `/proc/self/mountinfo` (proc(5), cgroups(7)).
fn folders(groups: &str, mounts: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        // All controllers of the second version are in one hierarchy.
        let is_unified = id == "0" && controllers.is_empty();
        if !(is_unified || controllers.split(',').any(|name| name == "memory")) {
            continue;
        }
        for (root, mounted) in mounts.lines().filter_map(|line| mount(line, is_unified)) {
            // In a container the group may be seen from above its root.
            let inner = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
            let inner = if inner.is_absolute() { Path::new("") } else { inner };
            folders.extend(inner.ancestors().map(|inner| Path::new(mounted).join(inner)));
        }
    }
    folders
}

/// The root and the place of a mount, if it is of control groups with memory.
fn mount(line: &str, is_unified: bool) -> Option<(&str, &str)> {
    let (mount, what) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, mounted) = (fields.next()?, fields.next()?);
    let mut what = what.split(' ');
    let (kind, options) = (what.next()?, what.nth(1).unwrap_or_default());
    let is_memory = match is_unified {
        true => kind == "cgroup2",
        false => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
    };
    is_memory.then_some((root, mounted))
}

/// Bytes that a group's limit leaves; `None` where it has none.
fn left_of_group(folder: &Path, read: &impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let number = |name: &str| read(&folder.join(name))?.trim().parse::<u64>().ok();
    let (limit, used, files) = match number("memory.max") {
        Some(limit) => (limit, number("memory.current")?, ["inactive_file ", "active_file "]),
        None => {
            let (limit, used) = (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?);
            (limit, used, ["total_inactive_file ", "total_active_file "])
        }
    };
    // What was read of files makes way, also what was read twice.
    let stat = read(&folder.join("memory.stat")).unwrap_or_default();
    let bytes_of =
        |line: &str| files.iter().find_map(|name| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let of_files: u64 = stat.lines().filter_map(bytes_of).sum();
    Some(limit.saturating_sub(used.saturating_sub(of_files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const FIRST: &str = "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                         32 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    fn left(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u64> {
        let read = |path: &Path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        };
        folders(groups, mounts).iter().filter_map(|folder| left_of_group(folder, &read)).min()
    }

    #[test]
    fn the_least_of_all_groups_above_counts() {
        let files = [
            ("/sys/fs/cgroup/a/memory.max", "1000\n"),
            ("/sys/fs/cgroup/a/memory.current", "700\n"),
            ("/sys/fs/cgroup/a/memory.stat", "anon 500\ninactive_file 100\nactive_file 50\nslab 1\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/b/memory.current", "600\n"),
            ("/sys/fs/cgroup/a/b/c/memory.max", "5000\n"),
            ("/sys/fs/cgroup/a/b/c/memory.current", "100\n"),
        ];
        assert_eq!(left("0::/a/b/c\n", SECOND, &files), Some(450));
        assert_eq!(left("0::/other\n", SECOND, &files), None);
        // More is used than the limit that was set later.
        assert_eq!(
            left("0::/a\n", SECOND, &[files[0], ("/sys/fs/cgroup/a/memory.current", "2000")]),
            Some(0)
        );
    }

    #[test]
    fn the_first_version_has_a_hierarchy_for_memory() {
        let files = [
            ("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1073741824\n"),
            ("/sys/fs/cgroup/memory/box/memory.usage_in_bytes", "73741824\n"),
            ("/sys/fs/cgroup/cpu/box/memory.limit_in_bytes", "1\n"),
        ];
        let groups = "7:cpu:/box\n4:memory:/box\n0::/\n";
        assert_eq!(left(groups, FIRST, &files), Some(1_000_000_000));
    }

    #[test]
    fn a_container_that_sees_its_group_from_above_finds_it_where_it_is_mounted() {
        let mounts = "99 98 0:26 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let files = [("/sys/fs/cgroup/memory.max", "42\n"), ("/sys/fs/cgroup/memory.current", "2\n")];
        for groups in ["0::/docker/x\n", "0::/\n", "0::/../..\n"] {
            assert_eq!(left(groups, mounts, &files), Some(40), "{groups}");
        }
    }

    #[test]
    fn what_the_system_does_not_say_is_no_limit() {
        for (groups, mounts) in
            [("", ""), ("0::/a", ""), ("x", "y - z"), ("0::/a\n1:memory:/b\n", "a b c d e - f")]
        {
            assert_eq!(left(groups, mounts, &[]), None);
        }
        assert_eq!(free_of_machine("MemTotal: 5 kB\nMemAvailable:   16 kB\n"), Some(16384));
        assert_eq!(free_of_machine("MemTotal: 5 kB\n"), None);
    }
}
