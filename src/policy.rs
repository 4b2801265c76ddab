//! Who may have what: caller × identity × resource → allow, or deny with a reason. Pure.
//!
//! Whatever no rule allows is denied. Look-ups are by hash: ten thousand identities cost a request
//! no more than ten.

use crate::{caller::Caller, config::Plan, id::Scope};

/// The rules in force.
#[derive(Debug)]
pub struct Policy {}

/// Why a request is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The identity does not exist, or is not for this caller on this socket: which of the two is
    /// not told.
    Identity,
    /// None was named and no identity is for this caller on this socket.
    NoIdentity,
    /// None was named and there is more than one to choose from.
    Ambiguous,
    /// The identity is for this caller, the resource is not.
    Resource,
}

impl Policy {
    /// Indexes a plan.
    pub fn new(_plan: &Plan) -> Self {
        todo!()
    }

    /// Which identity (its place in [`Plan::identities`]) answers this request. `wanted` is a name,
    /// a client id, an object id or a resource id; `listener` the place of the socket in
    /// [`Plan::listeners`].
    pub fn decide(
        &self,
        _caller: &Caller,
        _listener: usize,
        _wanted: Option<&str>,
        _scope: &Scope,
    ) -> Result<usize, Denial> {
        todo!()
    }

    /// As [`Self::decide`], for what concerns an identity and no resource.
    pub fn identity(
        &self,
        _caller: &Caller,
        _listener: usize,
        _wanted: Option<&str>,
    ) -> Result<usize, Denial> {
        todo!()
    }

    /// All identities that this caller may ask for on this socket.
    pub fn identities_of(&self, _caller: &Caller, _listener: usize) -> Vec<usize> {
        todo!()
    }

    /// Whether there is any identity for this caller on this socket.
    pub fn knows(&self, _caller: &Caller, _listener: usize) -> bool {
        todo!()
    }

    /// Whether this caller may see status and refresh: root, the daemon's own uid, `admins`.
    pub fn is_admin(&self, _caller: &Caller) -> bool {
        todo!()
    }
}
