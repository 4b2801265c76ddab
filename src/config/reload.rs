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
        if self.limits != new.limits {
            words.push("[limits] changed".into());
        }
        words
    }

    /// This plan for a process that runs `running`: with the sockets that are open, in their
    /// order, each serving what this plan says. A socket that this plan has no more serves nobody.
    pub fn for_sockets_of(mut self, running: &Self) -> Self {
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
