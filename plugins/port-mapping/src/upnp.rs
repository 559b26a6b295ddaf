//! UPnP IGD, by `igd-next`: it heeds only addresses of the device that answers, and bounds the
//! length and the depth of what that sends. We heed only the router.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, PortMappingProtocol, SearchOptions};

use crate::talk::{Granted, LIFETIME, Outcome, Protocol};
use crate::wish::Wish;

/// Where devices are searched.
const SSDP_PORT: u16 = 1900;
/// How long a router may take to answer a search that was sent to it alone.
const ALONE: Duration = Duration::from_millis(1000);
/// ... and to all, upon which devices wait for up to 3 s.
const TO_ALL: Duration = Duration::from_secs(4);
/// How long all of a mapping may take.
const LONGEST: Duration = Duration::from_secs(10);
/// What a router's own pages show.
const DESCRIPTION: &str = "natpunch";

/// Makes or renews a mapping; `None` where the router does not speak UPnP.
pub(crate) async fn map(wish: &Wish) -> Option<Outcome> {
    let wish = *wish;
    // In a task of its own: what a device sends may find a flaw in a parser, and that ends here.
    let task = tokio::spawn(tokio::time::timeout(LONGEST, async move {
        Some(add(&wish, &search(&wish).await?).await)
    }));
    task.await.ok()?.ok()?
}

/// Deletes a mapping.
pub(crate) async fn unmap(wish: &Wish, external_port: u16) {
    let wish = *wish;
    let task = tokio::spawn(async move {
        if let Some(gateway) = search(&wish).await {
            let _ = gateway
                .remove_port(PortMappingProtocol::UDP, external_port)
                .await;
        }
    });
    let _ = task.await;
}

/// Finds the router. Asked alone it answers past a firewall of this host, too.
async fn search(wish: &Wish) -> Option<Gateway<Tokio>> {
    let options = |timeout: Duration| {
        let mut options = SearchOptions::default();
        options.bind_addr = SocketAddr::from((wish.way.own, 0));
        (options.timeout, options.single_search_timeout) = (Some(timeout), Some(timeout));
        options
    };
    let mut alone = options(ALONE);
    alone.broadcast_address = SocketAddr::from((wish.way.router, SSDP_PORT));
    for options in [alone, options(TO_ALL)] {
        match search_gateway(options).await {
            Ok(gateway) if gateway.addr.ip() == IpAddr::V4(wish.way.router) => {
                return Some(gateway);
            }
            Ok(other) => tracing::debug!(device = %other.addr, "UPnP: not our router, ignored"),
            Err(error) => tracing::debug!(%error, "UPnP: no router"),
        }
    }
    None
}

async fn add(wish: &Wish, gateway: &Gateway<Tokio>) -> Outcome {
    let refused = |reason| Outcome::Refused(Protocol::Upnp, reason);
    let Ok(IpAddr::V4(address)) = gateway.get_external_ip().await else {
        return refused("it does not tell its address");
    };
    let internal = SocketAddr::from((wish.way.own, wish.port));
    let add = async |port: u16, lease: Duration| {
        let seconds = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX);
        gateway
            .add_port(
                PortMappingProtocol::UDP,
                port,
                internal,
                seconds,
                DESCRIPTION,
            )
            .await
    };
    let mut reason = "it could not";
    let suggested = wish.suggested.port();
    for port in [suggested, wish.other_port] {
        let mut added = add(port, LIFETIME).await;
        if let Err(AddPortError::OnlyPermanentLeasesSupported) = added {
            added = add(port, Duration::ZERO).await;
        }
        reason = match added {
            Ok(()) => {
                return Outcome::Granted(Granted {
                    by: Protocol::Upnp,
                    external: SocketAddrV4::new(address, port),
                    lifetime: LIFETIME,
                });
            }
            Err(AddPortError::ActionNotAuthorized) => return refused("it does not allow it"),
            Err(AddPortError::PortInUse) => "it can't give a port",
            Err(error) => {
                tracing::debug!(%error, port, "UPnP: no mapping");
                "it could not"
            }
        };
    }
    refused(reason)
}
