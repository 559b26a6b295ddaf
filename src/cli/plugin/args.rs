//! The commands of `natpunch plugin` as typed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use natpunch_plugin_exec::OwnSetting;

/// What can be done with plugins.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// List the plugins that a mesh file may name, and what each can do.
    List(PluginListArgs),
    /// Run a program as `plugin = "exec"` does, hold it to the rules of plugins, and say what it
    /// breaks.
    Test(PluginTestArgs),
    /// Make a plugin to begin with, which passes `plugin test`.
    New(PluginNewArgs),
}

/// Arguments of `plugin list`.
#[derive(Debug, Args)]
pub struct PluginListArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `plugin test`.
#[derive(Debug, Args)]
pub struct PluginTestArgs {
    /// One of the program's own settings, as the mesh file's `settings` would have it. Repeat for
    /// several.
    #[arg(long, value_name = "KEY=VALUE", value_parser = own_setting)]
    pub set: Vec<(String, OwnSetting)>,
    /// A file or directory that the program may read, beside its own. Repeat for several.
    #[arg(long, value_name = "PATH")]
    pub read: Vec<PathBuf>,
    /// A file or directory that the program may change. Repeat for several.
    #[arg(long, value_name = "PATH")]
    pub write: Vec<PathBuf>,
    /// Let the program have the ability `meetings`.
    #[arg(long)]
    pub meetings: bool,
    /// The system user that the program runs as. Default: the one who runs this.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// The program and its arguments. It is started in the directory `/`, as natpunch does.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub command: Vec<String>,
}

/// `KEY=VALUE`, the value as TOML has it, or a text without quotes.
fn own_setting(text: &str) -> Result<(String, OwnSetting), String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| "write KEY=VALUE, such as directory=/srv/records".to_owned())?;
    let read = toml::from_str::<BTreeMap<String, OwnSetting>>(&format!("it = {value}"));
    let setting = read
        .ok()
        .and_then(|mut table| table.remove("it"))
        .unwrap_or_else(|| OwnSetting::String(value.to_owned()));
    Ok((key.to_owned(), setting))
}

/// Arguments of `plugin new`.
#[derive(Debug, Args)]
pub struct PluginNewArgs {
    /// The language.
    #[arg(long, value_enum, value_name = "LANGUAGE")]
    pub lang: Language,
    /// A new directory, whose name becomes that of the plugin.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Languages that `plugin new` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// Python 3, with nothing but its standard library.
    Python,
    /// A POSIX shell.
    Shell,
    /// Rust, with serde_json.
    Rust,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_toml_or_a_text() {
        let value = |text| own_setting(text).map(|(_, value)| value);
        assert_eq!(value("a=5"), Ok(OwnSetting::Integer(5)));
        assert_eq!(value("a=true"), Ok(OwnSetting::Boolean(true)));
        let texts = OwnSetting::Strings(vec!["x".to_owned(), "y".to_owned()]);
        assert_eq!(value("a=[\"x\", \"y\"]"), Ok(texts));
        let path = OwnSetting::String("/srv/a=b".to_owned());
        assert_eq!(value("a=/srv/a=b"), Ok(path.clone()));
        assert_eq!(value("a=\"/srv/a=b\""), Ok(path));
        assert!(own_setting("a").is_err() && own_setting("=a").is_err());
    }
}
