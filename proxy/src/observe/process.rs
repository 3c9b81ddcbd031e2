//! What the operating system says of this process, under the names every Prometheus client uses.

use std::sync::Mutex;

use super::metrics::Families;

/// Bytes in a page on every platform this runs on where `/proc` is read (x86-64 and most aarch64 kernels).
const PAGE: i64 = 4096;
/// Clock ticks per second in `/proc/PID/stat`: fixed at 100 by the kernel's user interface.
const TICKS: f64 = 100.0;

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
        let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
        // Fields are counted after the command's closing parenthesis: the command may hold blanks (proc_pid_stat(5)).
        let Some((_, rest)) = stat.rsplit_once(") ") else { return };
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<i64>().ok()).unwrap_or(0);
        #[allow(
            clippy::cast_precision_loss,
            reason = "seconds of processor time fit a float's mantissa for millions of years"
        )]
        let cpu = (field(14) + field(15)) as f64 / TICKS;
        let mut told = self.cpu_told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if cpu > *told {
            self.cpu.inc_by(cpu - *told);
            *told = cpu;
        }
        self.threads.set(field(20));
        self.resident.set(field(24) * PAGE);
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.open_files.set(i64::try_from(files.count()).unwrap_or(0));
        }
    }
}
