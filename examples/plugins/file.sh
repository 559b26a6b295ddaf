#!/bin/sh
# A natpunch plugin: sealed records as files in a directory that all nodes see (NFS, Syncthing, …).
# [discovery.file]
# plugin = "exec"
# command = ["/usr/local/lib/natpunch/file.sh", "/srv/natpunch-records"]
# user = "nobody"
# write_paths = ["/srv/natpunch-records"]
set -u
cd "${1:?usage: file.sh DIRECTORY}" || exit 1

# Says what is new in the files of these tags, every two seconds.
look() {
    while :; do
        for tag in "$@"; do
            blob=$(cat "$tag" 2>/dev/null) || continue
            # Whoever can write to the directory must not write our messages.
            case $blob in '' | *[!A-Za-z0-9+/=]*) continue ;; esac
            eval "seen=\${seen_$tag-}"
            [ "$blob" = "$seen" ] && continue
            eval "seen_$tag=\$blob"
            printf '{"type":"records","records":[{"tag":"%s","blob":"%s"}]}\n' "$tag" "$blob"
        done
        sleep 2
    done
}

# The objects of a list, one a line.
objects() { printf '%s\n' "$1" | tr '{' '\n'; }

looker=
read -r welcome || exit 0
case $welcome in
'{"natpunch":1,'*) ;;
*) echo "this plugin speaks version 1 of the protocol" >&2 && exit 1 ;;
esac
echo '{"natpunch":1,"name":"file.sh","abilities":["records"]}'
while read -r line; do
    case $line in
    '{"type":"peers"'*)
        [ -z "$looker" ] || kill "$looker"
        # shellcheck disable=SC2046 # a tag is one word
        look $(objects "$line" | sed -n 's/.*"inbound_tag":"\([0-9a-f]*\)".*/\1/p') &
        looker=$!
        ;;
    '{"type":"records"'*)
        objects "$line" | sed -n 's/^"tag":"\([0-9a-f]*\)","blob":"\([^"]*\)".*/\1 \2/p' |
            while read -r tag blob; do
                # Renamed, so that nobody reads half a record.
                printf '%s\n' "$blob" >".$tag.new" && mv ".$tag.new" "$tag"
            done
        ;;
    '{"type":"shutdown"'*) break ;;
    esac
done
[ -z "$looker" ] || kill "$looker"
