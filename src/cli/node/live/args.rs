//! The command lines of `web` and `top`.

use std::net::SocketAddr;

use clap::Args;

/// Arguments of `web`.
#[derive(Debug, Args)]
pub struct WebArgs {
    /// The address of this host to listen at, 127.0.0.1 or ::1. Port 0: any that is free.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0", value_parser = own)]
    pub listen: SocketAddr,
    /// The interface or the mesh. Needed if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The interface or the mesh. Needed if several run on this host.
    #[arg(long, short, value_name = "NAME")]
    pub interface: Option<String>,
}

/// An address that nobody but this host reaches.
fn own(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "an address with a port, such as 127.0.0.1:9470".to_owned())?;
    let port = match address.port() {
        0 => 9470,
        port => port,
    };
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err(format!(
            "the page speaks no TLS, so nobody but this host may reach it; listen at \
             127.0.0.1:{port}, and on your own machine run \
             ssh -L {port}:127.0.0.1:{port} root@HOST, and open the URL there"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_for_this_host_and_who_wants_it_elsewhere_is_told_how() {
        assert!(own("127.0.0.1:9470").is_ok() && own("[::1]:0").is_ok());
        for bad in ["0.0.0.0:8080", "192.0.2.1:8080", "[::]:8080"] {
            let told = own(bad).unwrap_err();
            assert!(told.contains("ssh -L 8080:127.0.0.1:8080"), "{told}");
        }
        for bad in ["127.0.0.1", "localhost:80", ""] {
            assert!(own(bad).is_err(), "{bad}");
        }
    }
}
