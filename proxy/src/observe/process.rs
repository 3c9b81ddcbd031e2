//! What the operating system says of this process, under the names every Prometheus client uses.

use std::sync::Mutex;
use std::time::Duration;

use super::metrics::Families;

/// Bytes in a page on every platform this runs on where `/proc` is read (x86-64 and most aarch64 kernels).
const PAGE: i64 = 4096;
/// Milliseconds of a clock tick in `/proc/PID/stat`: there are 100 a second in the kernel's user interface.
const TICK: u64 = 10;

/// Processor time of this process so far, in user and system mode; 0 where there is no `/proc`.
pub(crate) fn processor_time() -> Duration {
    Stat::read().map(|stat| stat.processor_time()).unwrap_or_default()
}

/// The fields of `/proc/self/stat`.
struct Stat(String);

impl Stat {
    fn read() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/self/stat").ok()?;
        // Fields are counted after the command's closing parenthesis: the command may hold blanks (proc_pid_stat(5)).
        text.rsplit_once(") ").map(|(_, rest)| Self(rest.to_owned()))
    }

    /// A field by its number in proc_pid_stat(5).
    fn field(&self, number: usize) -> i64 {
        self.0.split_ascii_whitespace().nth(number - 3).and_then(|field| field.parse().ok()).unwrap_or(0)
    }

    fn processor_time(&self) -> Duration {
        Duration::from_millis(TICK * u64::try_from(self.field(14) + self.field(15)).unwrap_or(0))
    }
}

#[derive(Debug)]
pub(super) struct Process {
    resident: prometheus::IntGauge,
    open_files: prometheus::IntGauge,
    threads: prometheus::IntGauge,
    cpu: prometheus::Counter,
    cpu_told: Mutex<f64>,
}

impl Process {
    pub(super) fn new(make: &Families<'_>) -> Self {
        let info = make.gauges("equerry_build_info", "Always 1; the version of this program.", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let started =
            make.float_gauge("process_start_time_seconds", "When the process started, in seconds since 1970.");
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        started.set(now.unwrap_or_default().as_secs_f64());
        Self {
            resident: make.gauge("process_resident_memory_bytes", "Resident memory."),
            open_files: make.gauge("process_open_fds", "Open file descriptors."),
            threads: make.gauge("process_threads", "Threads."),
            cpu: make.float_counter("process_cpu_seconds_total", "Processor time in user and system mode."),
            cpu_told: Mutex::default(),
        }
    }

    /// Reads `/proc/self`; where there is none, the values stay 0.
    pub(super) fn refresh(&self) {
        let Some(stat) = Stat::read() else { return };
        let cpu = stat.processor_time().as_secs_f64();
        let mut told = self.cpu_told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if cpu > *told {
            self.cpu.inc_by(cpu - *told);
            *told = cpu;
        }
        self.threads.set(stat.field(20));
        self.resident.set(stat.field(24) * PAGE);
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.open_files.set(i64::try_from(files.count()).unwrap_or(0));
        }
    }
}
