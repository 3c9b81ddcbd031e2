//! What connections to ports that declare nothing turned out to be, so that the next one need not be watched as long.
//!
//! One word for each port of a Service, so that it is bounded by what is written down; a port that is written anew begins anew.

use std::sync::{Mutex, PoisonError};

use equerry_policies::policy::ServicePort;

/// What a port was seen to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Requests came to it.
    Requests,
    /// Its server spoke before its caller did.
    ServerFirst,
}

/// The habits of a Service's ports; kept across changes.
#[derive(Debug, Default)]
pub(crate) struct Habits {
    by_port: Mutex<Vec<(ServicePort, Habit)>>,
}

impl Habits {
    /// What is known of a port as it is written now.
    pub(crate) fn of(&self, port: &ServicePort) -> Option<Habit> {
        let by_port = self.by_port.lock().unwrap_or_else(PoisonError::into_inner);
        by_port.iter().find(|(known, _)| known == port).map(|(_, habit)| *habit)
    }

    /// Remembers what `port`, one of `ports`, was seen to do. Requests weigh more: where they come, silence is an idle caller's.
    pub(crate) fn note(&self, port: &ServicePort, habit: Habit, ports: &[ServicePort]) {
        let mut by_port = self.by_port.lock().unwrap_or_else(PoisonError::into_inner);
        by_port.retain(|(known, _)| ports.contains(known));
        match by_port.iter_mut().find(|(known, _)| known == port) {
            Some((_, known)) if habit == Habit::Requests => *known = habit,
            Some(_) => {}
            None => by_port.push((port.clone(), habit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use equerry_policies::policy::AppProtocol;

    use super::*;

    fn port(target_port: u16) -> ServicePort {
        ServicePort { name: None, port: 25, target_port, app_protocol: AppProtocol::Http, undeclared: true }
    }

    #[test]
    fn a_port_written_anew_begins_anew_and_the_old_one_is_forgotten() {
        let habits = Habits::default();
        habits.note(&port(25), Habit::ServerFirst, &[port(25)]);
        assert_eq!((habits.of(&port(25)), habits.of(&port(26))), (Some(Habit::ServerFirst), None));
        habits.note(&port(26), Habit::Requests, &[port(26)]);
        assert_eq!((habits.of(&port(25)), habits.of(&port(26))), (None, Some(Habit::Requests)));
    }

    #[test]
    fn requests_weigh_more_than_a_server_that_spoke_first() {
        let habits = Habits::default();
        for habit in [Habit::ServerFirst, Habit::Requests, Habit::ServerFirst] {
            habits.note(&port(25), habit, &[port(25)]);
        }
        assert_eq!(habits.of(&port(25)), Some(Habit::Requests));
    }
}
