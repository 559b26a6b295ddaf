# natpunch as services of NixOS. The units are natpunch's own: this module only says what they run.
#
# Not run by a test: it was evaluated once, with stand-ins for nixpkgs (nix 2.8).
#
#   imports = [ ./natpunch/dist/nixos/module.nix ];
#   services.natpunch.meshes.home = { source = "git+https://git.example/mesh.git#main:mesh.toml"; };
#   networking.firewall.trustedInterfaces = [ "wg-home" ];
#   networking.firewall.allowedUDPPorts = [ 51820 ];   # of a node with an endpoint
#
# Keys are no part of this configuration, since everybody may read the store: `natpunch keygen > /etc/natpunch/home.key`
# on the machine, with mode 0600.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.natpunch;

  mesh = { name, ... }: {
    options = {
      source = lib.mkOption {
        type = lib.types.str;
        default = "/etc/natpunch/${name}.toml";
        description = "What `natpunch apply` takes: a file, a directory, or the address of a repository or file.";
      };
      arguments = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "--poll" "60s" ];
        description = "More arguments of `natpunch apply`.";
      };
    };
  };

  service = name: mesh: lib.nameValuePair "natpunch@${name}" {
    overrideStrategy = "asDropin";
    wantedBy = [ "multi-user.target" ];
    path = [ pkgs.git pkgs.nftables pkgs.openssh ];
    serviceConfig.ExecStart = [
      ""
      "${lib.getExe cfg.package} apply ${lib.escapeShellArgs ([ mesh.source ] ++ mesh.arguments)}"
    ];
  };
in
{
  options.services.natpunch = {
    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The package of natpunch.";
    };
    meshes = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule mesh);
      default = { };
      description = "The meshes that this machine is a node of, by the instance of `natpunch@.service`.";
    };
  };

  config = lib.mkIf (cfg.meshes != { }) {
    environment.systemPackages = [ cfg.package ];
    systemd.packages = [ cfg.package ];
    systemd.tmpfiles.rules = [ "d /etc/natpunch 0700 root root -" ];
    systemd.services = lib.mapAttrs' service cfg.meshes;
  };
}
