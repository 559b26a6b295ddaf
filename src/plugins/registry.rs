//! The built-in discovery plugins: one line each.

use natpunch_plugin::{Discovery, PluginError};

use crate::config::DiscoverySettings;

/// Makes the plugin for a section of the mesh file.
///
/// # Errors
/// A setting that only the plugin itself can judge is wrong.
pub fn build(settings: &DiscoverySettings) -> Result<Box<dyn Discovery>, PluginError> {
    Ok(match settings {
        DiscoverySettings::Static(settings) => {
            let _ = settings;
            return Err(PluginError::Failed("not part of this build".to_owned()));
        }
        DiscoverySettings::NatpunchGo(settings) => {
            Box::new(natpunch_plugin_natpunch_go::Plugin::new(settings.clone())?)
        }
        DiscoverySettings::NatHolePunching(settings) => {
            let _ = settings;
            return Err(PluginError::Failed("not part of this build".to_owned()));
        }
        DiscoverySettings::Http(settings) => Box::new(natpunch_plugin_http::Plugin::new(settings.clone())?),
    })
}
