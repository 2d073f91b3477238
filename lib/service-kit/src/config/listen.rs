//! Where a service listens.

use std::net::SocketAddr;

use super::{Env, Knob};

/// Addresses of one service.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// Where its callers come; services without callers have none.
    pub public: Option<SocketAddr>,
    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub admin: SocketAddr,
}

impl ListenConfig {
    /// Reads the addresses. The defaults differ by service.
    pub fn load(env: &mut Env<'_>, public: Option<&'static str>, admin: &'static str) -> Self {
        Self {
            public: public.map(|default| {
                env.address(&Knob {
                    name: "CLAIRVIO_LISTEN",
                    doc: "Address of the service's HTTP interface.",
                    unit: "address:port",
                    default: Some(default),
                    secret: false,
                })
            }),
            admin: env.address(&Knob {
                name: "CLAIRVIO_ADMIN_LISTEN",
                doc: "Address of `/livez`, `/readyz` and `/metrics`.",
                unit: "address:port",
                default: Some(admin),
                secret: false,
            }),
        }
    }
}
