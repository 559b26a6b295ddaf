#!/bin/sh
# breaks: brings records to the other side, the newest last
# says: after the newer record the older one came again
# The directory is its argument. It keeps all versions of a record, and says them all.
cd "$1" || exit 1
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["records"]}'
look() {
    while :; do
        for file in "$1".*; do
            [ -e "$file" ] || continue
            printf '{"type":"records","records":[{"tag":"%s","blob":"%s"}]}\n' "$1" "$(cat "$file")"
        done
        sleep 0.5
    done
}
looker= count=0
while read -r line; do
    case $line in
    '{"type":"peers"'*inbound_tag*)
        [ -z "$looker" ] || kill "$looker"
        look "$(printf '%s' "$line" | sed 's/.*"inbound_tag":"\([0-9a-f]*\)".*/\1/')" &
        looker=$!
        ;;
    '{"type":"records"'*'"tag":'*)
        count=$((count + 1))
        tag=$(printf '%s' "$line" | sed 's/.*"tag":"\([0-9a-f]*\)".*/\1/')
        printf '%s' "$line" | sed 's/.*"blob":"\([^"]*\)".*/\1/' >"new.$$" && mv "new.$$" "$tag.$count"
        ;;
    '{"type":"shutdown"'*) break ;;
    esac
done
[ -z "$looker" ] || kill "$looker"
