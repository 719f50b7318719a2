//! The memory that this process may use.

/// The size that is assumed where the system does not report one.
const UNKNOWN: u64 = 4 << 30;

/// Returns the bytes of memory of the machine, or of the control group if that has less.
#[cfg(target_os = "linux")]
pub(super) fn available() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit.max(1)));
    let machine = if machine == 0 { UNKNOWN } else { machine };
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).into_iter().filter_map(|file| {
        // "max" in version 2, and a number near 2^63 in version 1, mean that there is no limit.
        std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok().filter(|limit| *limit > 0)
    });
    limits.fold(machine, u64::min)
}

/// Returns a size for systems without control groups.
#[cfg(not(target_os = "linux"))]
pub(super) fn available() -> u64 {
    UNKNOWN
}

/// Returns the files with the limits of control groups and their parents.
///
/// `groups` is the content of `/proc/self/cgroup`. In a container the path in it may be that of the
/// host, and only the files of the root exist.
#[cfg(target_os = "linux")]
fn limit_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut group = path.trim_end_matches('/');
        loop {
            files.push(format!("{root}{group}/{name}"));
            let Some(parent) = group.rfind('/') else { break };
            group = &group[..parent];
        }
    }
    files
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn files_of_group_and_its_parents_are_read() {
        let files = limit_files("0::/user.slice/app.scope\n");
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/user.slice/app.scope/memory.max",
                "/sys/fs/cgroup/user.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert_eq!(limit_files("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        let version_1 = limit_files("5:cpu,cpuacct:/a\n4:memory:/docker/1\nbad\n");
        assert_eq!(version_1.len(), 3);
        assert_eq!(version_1[2], "/sys/fs/cgroup/memory/memory.limit_in_bytes");
    }

    #[test]
    fn available_memory_is_plausible() {
        assert!((1 << 20..1 << 50).contains(&available()));
    }
}
