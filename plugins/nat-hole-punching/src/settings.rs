use schemars::JsonSchema;
use serde::Deserialize;

/// The settings of a `[discovery.NAME]` section with `plugin = "nat-hole-punching"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the server is: `HOST:PORT`. WireGuard's example listens on port 49918.
    pub server: String,
}
