use natpunch_types::PeerKey;
use schemars::JsonSchema;
use serde::Deserialize;

/// The settings of a `[discovery.NAME]` section with `plugin = "natpunch-go"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the server is: `HOST:PORT`.
    pub server: String,
    /// The server's public key in base64, as it prints it at its start.
    #[schemars(with = "String")]
    pub public_key: PeerKey,
}
