//! The lab: a strict fake Entra, a small OIDC issuer and a small SPIFFE Workload API server.
