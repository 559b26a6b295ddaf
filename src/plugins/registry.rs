//! The built-in discovery plugins: one row each.

use natpunch_config::Kind;
use natpunch_plugin::{Discovery, Runs, Secrets, Settings};
use natpunch_plugin_description::AnyInstance;

/// A plugin of a build.
pub struct Row {
    kind: Kind,
    build: fn(&AnyInstance, &Secrets) -> Option<Box<dyn Discovery>>,
}

impl Row {
    /// The plugin with these settings.
    pub const fn of<S>() -> Self
    where
        S: Settings<Instance: Runs>,
    {
        Self {
            kind: Kind::of::<S>(),
            build: |instance, secrets| {
                let instance = instance.downcast_ref::<S::Instance>()?;
                Some(instance.plugin(secrets))
            },
        }
    }

    /// What the mesh file's reader has to know of it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Makes the plugin of checked settings; `None` for those of another plugin.
    pub fn build(&self, instance: &AnyInstance, secrets: &Secrets) -> Option<Box<dyn Discovery>> {
        (self.build)(instance, secrets)
    }
}

const ROWS: [Row; 11] = [
    Row::of::<natpunch_plugin_static::Settings>(),
    Row::of::<natpunch_plugin_port_mapping::Settings>(),
    Row::of::<natpunch_plugin_rendezvous::Settings>(),
    Row::of::<natpunch_plugin_natpunch_go::Settings>(),
    Row::of::<natpunch_plugin_nat_hole_punching::Settings>(),
    Row::of::<natpunch_plugin_http::Settings>(),
    Row::of::<natpunch_plugin_exec::Settings>(),
    Row::of::<natpunch_plugin_file::Settings>(),
    Row::of::<natpunch_plugin_redis::Settings>(),
    Row::of::<natpunch_plugin_dns::Settings>(),
    Row::of::<natpunch_plugin_gossip::Settings>(),
];

/// What a mesh file may name as `plugin`.
pub fn kinds() -> Vec<Kind> {
    ROWS.iter().map(Row::kind).collect()
}

/// Makes the plugin of an instance; `None` if it is of no plugin of this build.
pub fn build(instance: &AnyInstance, secrets: &Secrets) -> Option<Box<dyn Discovery>> {
    ROWS.iter().find_map(|row| row.build(instance, secrets))
}
