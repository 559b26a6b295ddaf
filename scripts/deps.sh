#!/usr/bin/env bash
# deps.sh demo|test|vm|bench|supply|package|packages: makes sure that the programs this needs are there. As root on a
# Debian-like machine it installs what is missing; elsewhere it says what is missing and how to get it, and fails.
set -euo pipefail

# program:Debian package
demo='cargo:cargo cc:gcc ip:iproute2 nft:nftables ping:iputils-ping setpriv:util-linux unshare:util-linux'
# miniupnpd: the daemon alone, without the package of its service.
test="$demo git:git ssh-keygen:openssh-client sshd:openssh-server openssl:openssl tinyproxy:tinyproxy wg:wireguard-tools wireguard-go:wireguard-go systemd-analyze:systemd jq:jq miniupnpd:miniupnpd-nftables redis-server:redis-server knotd:knot kdig:knot-dnsutils"
bench="$test iperf3:iperf3"
supply='cargo:cargo pip3:python3-pip'
package='cargo:cargo cc:gcc dpkg-deb:dpkg objdump:binutils rpmbuild:rpm'
packages="$package debootstrap:debootstrap systemd-nspawn:systemd-container"
vm='qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio depmod:kmod zstd:zstd xz:xz-utils dpkg-deb:dpkg'

what=${1:-}
case $what in
  demo | test | bench | supply | vm | package | packages) needed=${!what} ;;
  *) sed -n '2,3s/^# //p' "$0" >&2; exit 2 ;;
esac

# sbin is where ip and nft live, and not on every user's path.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
# The guest of the virtual machine has no libraries: a busybox that needs some is none for it.
is_there() {
  command -v "$1" >/dev/null || return 1
  [ "$1" != busybox ] || ! ldd "$(command -v busybox)" >/dev/null 2>&1
}

missing='' packages=''
for entry in $needed; do
  if ! is_there "${entry%%:*}"; then
    missing+=" ${entry%%:*}" packages+=" ${entry#*:}"
  fi
done
[ -n "$missing" ] || exit 0

case $missing in
  *' cargo'*) echo "missing: cargo. Install Rust: https://rustup.rs (the version is in Cargo.toml)" >&2; exit 1 ;;
esac
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing:$packages (for$missing)"
  export DEBIAN_FRONTEND=noninteractive
  case $packages in
    *openssh-server*)
      # Only the tests start it, on loopback in namespaces of their own: this machine does not become an SSH server.
      mkdir -p /etc/systemd/system
      for unit in ssh.service ssh.socket; do
        [ -e "/etc/systemd/system/$unit" ] || ln -s /dev/null "/etc/systemd/system/$unit"
      done
      echo "ssh.service is masked: systemctl unmask ssh.service, if this machine shall be an SSH server" ;;
  esac
  case $packages in
    *tinyproxy*)
      mkdir -p /etc/systemd/system
      [ -e /etc/systemd/system/tinyproxy.service ] || ln -s /dev/null /etc/systemd/system/tinyproxy.service
      echo "tinyproxy.service is masked: systemctl unmask tinyproxy.service, if this machine shall be a proxy" ;;
  esac
  case $packages in
    *redis-server*)
      mkdir -p /etc/systemd/system
      [ -e /etc/systemd/system/redis-server.service ] || ln -s /dev/null /etc/systemd/system/redis-server.service
      echo "redis-server.service is masked: systemctl unmask redis-server.service, if this machine shall be a Redis server" ;;
  esac
  case " $packages " in
    *' knot '*)
      mkdir -p /etc/systemd/system
      [ -e /etc/systemd/system/knot.service ] || ln -s /dev/null /etc/systemd/system/knot.service
      echo "knot.service is masked: systemctl unmask knot.service, if this machine shall be a name server" ;;
  esac
  # shellcheck disable=SC2086 # a list of words
  apt-get install -qq --yes --no-install-recommends $packages </dev/null >/dev/null ||
    { apt-get update -qq && apt-get install -qq --yes --no-install-recommends $packages </dev/null >/dev/null; }
else
  echo "missing programs:$missing" >&2
  echo "On Debian or Ubuntu: sudo apt-get install$packages" >&2
  exit 1
fi
