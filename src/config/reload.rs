//! What a reload can change, and what waits for a restart.
//!
//! Identities, their callers, the admins and which identities a socket serves take effect at
//! once. Whatever was opened, bound or built at the start stays as it is until the next one.

use std::{collections::BTreeSet, path::Path};

use super::{Entra, Listener, Plan};

impl Plan {
    /// What of `new` needs a restart, in words; nothing, when a reload does.
    pub fn diff_needs_restart(&self, new: &Self) -> Vec<String> {
        let mut words = Vec::new();
        for listener in &self.listeners {
            match new.listener_at(&listener.socket) {
                None => words.push(format!(
                    "the socket {} was removed: it serves nobody from now on, and goes with the \
                     next restart",
                    listener.socket.display()
                )),
                Some(other) => words.extend(listener.changes(other)),
            }
        }
        for listener in &new.listeners {
            if self.listener_at(&listener.socket).is_none() {
                let socket = listener.socket.display();
                words.push(format!("the socket {socket} was added"));
            }
        }
        if self.metrics != new.metrics {
            words.push("the address of [metrics] changed".into());
        }
        if self.workload_api != new.workload_api {
            words.push("[workload_api] has another endpoint or timeout".into());
        }
        words.extend(self.entra.changes(&new.entra));
        words
    }

    /// This plan for a process that runs `running`: with what was opened and built at its start,
    /// so that nothing is shown that is not so, and a change that waits for a restart is told at
    /// each reload. The sockets stay in their order, each serving what this plan says; one that this
    /// plan has no more serves nobody.
    pub fn for_process_of(mut self, running: &Self) -> Self {
        self.workload_api = running.workload_api.clone();
        self.entra = running.entra.clone();
        self.metrics = running.metrics;
        let listeners = running.listeners.iter().map(|open| {
            let identities = match self.listener_at(&open.socket) {
                Some(planned) => planned.identities.clone(),
                None => Some(BTreeSet::new()),
            };
            Listener {
                identities,
                ..open.clone()
            }
        });
        self.listeners = listeners.collect();
        self
    }

    fn listener_at(&self, socket: &Path) -> Option<&Listener> {
        self.listeners
            .iter()
            .find(|l| l.socket.components().eq(socket.components()))
    }
}

impl Listener {
    fn changes(&self, new: &Self) -> Option<String> {
        let mut changed = Vec::new();
        let mut note = |differs: bool, what: &'static str| {
            if differs {
                changed.push(what);
            }
        };
        note(self.mode != new.mode, "mode");
        note(self.owner != new.owner, "owner");
        note(self.group != new.group, "group");
        note(
            self.max_connections != new.max_connections,
            "max_connections",
        );
        let socket = self.socket.display();
        (!changed.is_empty()).then(|| format!("the socket {socket}: {}", changed.join(", ")))
    }
}

impl Entra {
    fn changes(&self, new: &Self) -> Option<String> {
        let mut changed = Vec::new();
        let mut note = |differs: bool, what: &'static str| {
            if differs {
                changed.push(what);
            }
        };
        note(self.ca_file != new.ca_file, "ca_file");
        note(self.ca_only != new.ca_only, "ca_only");
        note(self.proxy != new.proxy, "proxy");
        note(
            self.allow_http_loopback != new.allow_http_loopback,
            "allow_http_loopback",
        );
        (!changed.is_empty()).then(|| format!("[entra]: {}", changed.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{HEAD, IDENTITY, LISTEN, given};
    use std::time::Duration;

    fn plan() -> Plan {
        given(&format!("{HEAD}{LISTEN}{IDENTITY}")).fine()
    }

    #[test]
    fn identities_and_callers_need_no_restart() {
        let (old, mut new) = (plan(), plan());
        new.identities.clear();
        new.admins = vec![];
        new.listeners[0].identities = Some(BTreeSet::new());
        assert_eq!(old.diff_needs_restart(&new), [""; 0]);
    }

    #[test]
    fn what_was_opened_or_built_needs_one() {
        let old = plan();
        let changed = |change: &dyn Fn(&mut Plan)| {
            let mut new = plan();
            change(&mut new);
            old.diff_needs_restart(&new).join("; ")
        };
        let socket = "the socket /run/spiffe-entra/a.sock";
        for (words, expected) in [
            (
                changed(&|p| p.listeners[0].mode = 0o600),
                format!("{socket}: mode"),
            ),
            (
                changed(&|p| p.listeners[0].owner = Some(1)),
                format!("{socket}: owner"),
            ),
            (
                changed(&|p| {
                    p.listeners[0].group = Some(1);
                    p.listeners[0].max_connections = 1;
                }),
                format!("{socket}: group, max_connections"),
            ),
            (
                changed(&|p| p.listeners[0].socket = "/run/b.sock".into()),
                format!(
                    "{socket} was removed: it serves nobody from now on, and goes with the next \
                     restart; the socket /run/b.sock was added"
                ),
            ),
            (
                changed(&|p| p.metrics = Some(([127, 0, 0, 1], 1).into())),
                "the address of [metrics] changed".into(),
            ),
            (
                changed(&|p| p.workload_api.timeout = Duration::from_secs(1)),
                "[workload_api] has another endpoint or timeout".into(),
            ),
            (
                changed(&|p| {
                    p.entra.ca_only = true;
                    p.entra.proxy = Some("http://u:hunter2@h".parse().unwrap());
                }),
                "[entra]: ca_only, proxy".into(),
            ),
        ] {
            assert_eq!(words, expected);
        }
    }

    #[test]
    fn what_waits_for_a_restart_is_told_at_each_reload() {
        let running = plan();
        let mut new = plan();
        new.workload_api.endpoint = crate::config::Endpoint::Unix("/run/other.sock".into());
        new.entra.ca_only = true;
        new.metrics = Some("127.0.0.1:9999".parse().unwrap());
        let told = running.diff_needs_restart(&new);
        assert_eq!(told.len(), 3, "{told:?}");
        let in_force = new.clone().for_process_of(&running);
        assert_eq!(in_force.workload_api, running.workload_api);
        assert_eq!(in_force.diff_needs_restart(&new), told);
    }

    #[test]
    fn a_socket_that_is_gone_serves_nobody_and_places_stay() {
        let mut running = plan();
        running.listeners.push(Listener {
            socket: "/run/b.sock".into(),
            ..running.listeners[0].clone()
        });
        let mut new = plan();
        new.listeners = vec![
            Listener {
                socket: "/run/new.sock".into(),
                ..new.listeners[0].clone()
            },
            Listener {
                socket: "/run/b.sock".into(),
                mode: 0o600,
                identities: Some(["payments".to_owned()].into()),
                ..new.listeners[0].clone()
            },
        ];
        let in_force = new.for_process_of(&running);
        assert_eq!(in_force.listeners.len(), 2);
        assert_eq!(in_force.listeners[0].socket, running.listeners[0].socket);
        assert_eq!(in_force.listeners[0].identities, Some(BTreeSet::new()));
        assert_eq!(
            in_force.listeners[1].mode, 0o666,
            "the socket is as it was opened"
        );
        let payments = Some(["payments".to_owned()].into());
        assert_eq!(in_force.listeners[1].identities, payments);
    }
}
