use schemars::JsonSchema;
use serde::Deserialize;

/// The settings of a `[discovery.NAME]` section with `plugin = "static"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Seconds between two looks at what a host name stands for.
    #[schemars(range(min = 1, max = 86400))]
    pub resolve_interval: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resolve_interval: 60,
        }
    }
}
