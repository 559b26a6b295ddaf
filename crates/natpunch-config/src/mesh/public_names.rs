//! Names that mean something else to every host: in the hosts file they would send its programs to
//! a peer.

/// Whose name it is, if `NAME.MESH` may be a name of the public DNS: every top-level domain of the
/// public suffix list, as `com` in a mesh of that name would make a peer `github` of `github.com`.
pub(crate) fn of_a_mesh(name: &str) -> Option<&'static str> {
    let public = psl::suffix(name.as_bytes()).is_some_and(|suffix| suffix.is_known());
    if public {
        return Some("a top-level domain of the public DNS");
    }
    of_a_peer(name)
}

/// Whose name it is, if programs give a meaning to this name alone.
pub(crate) fn of_a_peer(name: &str) -> Option<&'static str> {
    match name {
        // RFC 6761, 6.3: always this host.
        "localhost" => Some("every host's name for itself"),
        // Browsers fetch their proxy's settings from it; Microsoft's resolvers block both names
        // by default for that reason.
        "wpad" => Some("where browsers look for their proxy"),
        // RFC 5214, 8.3: hosts take the machine of this name for their router.
        "isatap" => Some("where hosts look for an IPv6 router"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{of_a_mesh, of_a_peer};

    #[test]
    fn top_level_domains_are_public_and_private_names_are_not() {
        for public in [
            "com",
            "de",
            "dev",
            "work",
            "arpa",
            "xn--p1ai",
            "localhost",
            "wpad",
        ] {
            assert!(of_a_mesh(public).is_some(), "{public}");
        }
        for own in [
            "home", "lab", "mesh", "office-2", "corp", "lan", "wg", "github",
        ] {
            assert!(of_a_mesh(own).is_none(), "{own}");
            assert!(of_a_peer(own).is_none(), "{own}");
        }
        assert!(of_a_peer("com").is_none(), "alone it is no name of a host");
    }
}
